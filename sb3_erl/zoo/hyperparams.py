"""Where the default hyper-parameters of the algorithms lie."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def hyperparams_folder() -> Path:
    """
    Find the folder of the ``<algo>.yml`` files.

    A wheel carries it as ``sb3_erl/hyperparams``; in a checkout (editable install) it stands beside the package.

    :return: the folder
    :raises FileNotFoundError: if the installation lost it
    """
    for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams"):
        if (folder / "erl.yml").is_file():
            return folder
    raise FileNotFoundError(
        f"sb3_erl found no hyperparams folder in {PACKAGE} or {PACKAGE.parent}; reinstall it, or pass your own settings "
        "with --conf-file"
    )


def hyperparams_file(algo: str) -> Path:
    """
    :param algo: id of an algorithm, a key of ``sb3_erl.ALGOS``
    :return: its file of default hyper-parameters in the format of the Zoo, whether it exists or not
    """
    return hyperparams_folder() / f"{algo}.yml"
