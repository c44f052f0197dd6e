"""``sb3-erl doctor``: what this installation is made of, what this machine can do, and what to install."""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("sb3-erl", "stable-baselines3", "sb3-contrib", "rl_zoo3", "gymnasium", "mujoco", "torch", "numpy")
EXTRAS: dict[str, tuple[str, ...]] = {
    "plots": ("matplotlib", "pandas", "seaborn"),
    "classic": ("pygame",),
    "atari": ("ale_py", "cv2"),
    "minatar": ("minatar",),
    "dmc": ("dm_control", "shimmy"),
    "offline": ("minari", "h5py"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "ray": ("ray",),
    "box2d": ("Box2D",),
}
"""Extras of this package, and the modules that they install."""
FLAGS = ("avx512_bf16", "amx_bf16")
"""Of processors with instructions for bfloat16, in /proc/cpuinfo."""


def main(arguments: list[str] | None = None) -> list[str]:
    """
    :param arguments: of the command line
    :return: the lines that were printed
    """
    parser = argparse.ArgumentParser(
        prog="sb3-erl doctor", description="Show versions, threads, bfloat16, GPU, renderer and extras, and what to install."
    )
    parser.parse_args(arguments)
    found = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += [("versions", line) for line in _in_lines([f"{name} {version(name)}" for name in PACKAGES], 4)]
    found += [("threads", threads()), ("bfloat16", bfloat16()), ("gpu", gpu()), ("renderer", renderer()), ("zoo", zoo())]
    missing = missing_extras()
    found.append(("extras", "installed: " + (", ".join(name for name in EXTRAS if name not in missing) or "none")))
    lines, last = [], ""
    for name, text in found:
        lines.append(f"{'' if name == last else name:<9} {text}")
        last = name
    for name in missing:
        lines.append(
            f"{'missing' if name == missing[0] else '':<9} pip install 'sb3-erl[{name}]'  # {', '.join(EXTRAS[name])}"
        )
    print("\n".join(lines))
    return lines


def version(package: str) -> str:
    """:return: installed version of a distribution, or "is missing" """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "sb3-erl":
            return "is missing"
        import sb3_erl

        return f"{sb3_erl.__version__} (not installed, imported from a folder)"


def threads() -> str:
    """:return: how many threads torch uses, and how many cores there are"""
    import torch

    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"torch {torch.get_num_threads()}, usable cores {n_cores}, OMP_NUM_THREADS {limit}"


def bfloat16() -> str:
    """:return: whether ``precision="bf16"`` can pay"""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return 'the GPU has instructions for it: precision="bf16" can pay with wide networks'
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.exists() else ""
    if any(flag in flags for flag in FLAGS):
        return 'the processor has instructions for it: precision="bf16" can pay with wide networks'
    return 'no instructions for it were found: precision="bf16" is slower here'


def gpu() -> str:
    """:return: the GPUs that torch finds"""
    import torch

    if not torch.cuda.is_available():
        built = (
            "this torch is one for CPUs" if torch.version.cuda is None else f"torch was built for CUDA {torch.version.cuda}"
        )
        return f"none ({built}); small networks are fastest on the processor anyway"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def renderer() -> str:
    """:return: how MuJoCo can draw pictures here"""
    chosen, has_display = os.environ.get("MUJOCO_GL"), bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    libraries = [name for name in ("EGL", "OSMesa", "GL") if ctypes.util.find_library(name)]
    there = f"libraries: {', '.join(libraries) or 'none'}"
    if chosen:
        return f"MUJOCO_GL={chosen}; {there}"
    if has_display or not sys.platform.startswith("linux"):
        return f"a window; {there}"
    for library, value in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if library in libraries:
            return f"no display: export MUJOCO_GL={value} before videos are made; {there}"
    return "no display and no library: videos need libegl1 or libosmesa6 (apt install libosmesa6), then MUJOCO_GL=osmesa"


def zoo() -> str:
    """:return: whether the Zoo's own commands know the systems"""
    known = any(getattr(finder, "is_sb3_erl_zoo_finder", False) for finder in sys.meta_path)
    if known:
        return "rl_zoo3 train --algo erl knows the systems"
    return "rl_zoo3 does not know the systems (no start-up file was read): use sb3-erl train --algo erl instead"


def missing_extras() -> list[str]:
    """:return: extras of which a module is not installed"""
    return [name for name, modules in EXTRAS.items() if any(importlib.util.find_spec(module) is None for module in modules)]


def _in_lines(words: list[str], n: int) -> Iterator[str]:
    for start in range(0, len(words), n):
        yield ", ".join(words[start : start + n])
