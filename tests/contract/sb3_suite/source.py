"""Fetches the source distribution of the installed Stable-Baselines3, whose tests the wheel leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


class SourceUnavailable(Exception):
    """The package index could not be reached."""


def sb3_tests(cache: Path) -> Path:
    """
    :param cache: folder that is kept between runs
    :return: SB3's ``tests`` folder in the version that is installed
    :raises SourceUnavailable: if the archive is not in the cache and cannot be downloaded
    """
    release = version("stable_baselines3")
    folder = cache / f"stable_baselines3-{release}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            archive = _download(f"stable_baselines3=={release}", Path(temporary))
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter="data")
            try:
                os.rename(next(Path(temporary).glob("stable_baselines3-*/")), folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder / "tests"


def _download(requirement: str, into: Path) -> Path:
    words = ["download", "--no-deps", "--no-binary", ":all:", "--disable-pip-version-check", "-d", str(into), requirement]
    result = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=300)
    if result.returncode != 0:
        raise SourceUnavailable(result.stderr[-2000:])
    return next(into.glob("*.tar.gz"))
