"""``sb3-erl plot``: pictures of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sb3_erl.pictures.callback import ENDS
from sb3_erl.pictures.curves import EVALUATIONS, MONITORS, draw_curves, runs_in
from sb3_erl.pictures.drawing import save
from sb3_erl.pictures.ends_figure import draw_ends
from sb3_erl.pictures.population_figure import draw_population, has_generations

KINDS = ("population", "ends", "curves")
HELP = """\
Draw pictures of runs: folders that the Zoo, a PopulationCallback, an EvalCallback or Monitor wrote.

  sb3-erl plot logs/erl_re2/Pendulum-v1_1   writes population.png, learning_curve.png, endpoints.png
  sb3-erl plot logs/erl/Pendulum-v1_* logs/td3/Pendulum-v1_*   a curve each, with the band of seeds

The population is drawn where there is a population.csv: callback=PopulationCallback(folder), in the
Zoo -params callback:"'sb3_erl.PopulationCallback'", or the same in a file of hyperparameters.
"""


def main(arguments: list[str] | None = None) -> list[Path]:
    """
    :param arguments: of the command line
    :return: the pictures that were written
    :raises SystemExit: if there is nothing to draw, after a message that says what is missing
    """
    parser = argparse.ArgumentParser(
        prog="sb3-erl plot", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run, or of several runs; seed_N.csv of a benchmark")
    parser.add_argument("--output", type=Path, metavar="X.png", help="picture (also .svg, .pdf); more get a suffix")
    about = f"any of {', '.join(KINDS)}; by default all that there is, of several runs curves"
    parser.add_argument("--kind", nargs="+", choices=KINDS, metavar="KIND", help=about)
    options = parser.parse_args(arguments)
    try:
        return draw(options.run, options.output, options.kind)
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))


def draw(paths: list[Path], output: Path | None, kinds: list[str] | None) -> list[Path]:
    """
    :param paths: folders or files of runs
    :param output: of the first picture, ``None`` for names in the folder of the run (of several runs: in this folder)
    :param kinds: of :data:`KINDS`, ``None`` for all that there is
    :return: the pictures that were written
    :raises FileNotFoundError: if there is nothing to draw
    :raises ValueError: if several populations are to be drawn, or the output has no known ending
    :raises ImportError: without matplotlib
    """
    runs = runs_in(paths)
    wanted = kinds_of(runs) if kinds is None else list(dict.fromkeys(kinds))
    if len(runs) > 1 and wanted != ["curves"]:
        raise ValueError(
            f"run must be a single one for --kind {' '.join(wanted)}; got {len(runs)}. Leave --kind out for curves"
        )
    drawn: dict[str, Any] = {}
    for kind in wanted:
        drawn[kind] = (
            draw_curves(runs) if kind == "curves" else {"population": draw_population, "ends": draw_ends}[kind](runs[0])
        )
    written = [save(figure, _path(kind, runs, output, is_first=kind == wanted[0])) for kind, figure in drawn.items()]
    print("\n".join(str(path) for path in written))
    return written


def kinds_of(runs: list[Path]) -> list[str]:
    """
    :param runs: folders or files
    :return: what can be drawn of them: of several only their curves
    """
    run = runs[0]
    if len(runs) > 1 or run.is_file():
        return ["curves"]
    has_curve = (run / EVALUATIONS).is_file() or any(run.glob(MONITORS))
    there = {"population": has_generations(run), "ends": (run / ENDS).is_file(), "curves": has_curve}
    return [kind for kind, is_there in there.items() if is_there] or ["population"]  # whose error says what is missing


NAMES = {"population": "population.png", "ends": "endpoints.png", "curves": "learning_curve.png"}


def _path(kind: str, runs: list[Path], output: Path | None, is_first: bool) -> Path:
    if output is None:
        return (runs[0] if len(runs) == 1 and runs[0].is_dir() else Path()) / NAMES[kind]
    return output if is_first else output.with_name(f"{output.stem}_{kind}{output.suffix}")
