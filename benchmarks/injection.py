"""One fault: injected, and compared with how it must end."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import TD3

from benchmarks.faulty import DEATHS, HANGS, KINDS, RAISES, SHAPES, faulty_vec_env, monitored
from sb3_erl import ALGOS, ProcessEvaluator, RayEvaluator
from sb3_erl.rollouts.soundness import FailedEpisodesError, WorkerError
from tests.contract.settings import DISCRETE, GENERATIONAL, HYBRIDS, NAMES, make

STEPS, ROUNDS = 150, 10
"""Length of a run, and how often it goes on if nothing went wrong in it."""
BACKENDS = ("dummy", "subproc", "process", "ray")
MODEL_FILES = ("disk full, model", "two writers", "truncated zip", "flipped zip", "foreign zip", "other class", "older zip")
BUFFER_FILES = ("disk full, buffer", "truncated buffer", "flipped buffer", "foreign buffer", "older buffer")
INTERRUPT = "Ctrl-C"
NO_NUMBER_YET = ("score", "fitness", "returns")
"""What evolvers remember of evaluations; NaN or minus infinity where there was none."""

SERVERS = ("multiprocessing.forkserver import main", "multiprocessing.resource_tracker import main")
RAYS = ("/ray/", "ray::")
"""What command lines of helpers contain, of multiprocessing and of Ray."""


@dataclass(frozen=True)
class Fault:
    """
    What is broken, where and when.

    :param kind: one of :data:`KINDS` of the environment, a kind of file, or ``INTERRUPT``
    :param backend: one of :data:`BACKENDS`; ``"file"`` where no environment is involved
    :param name: key in ALGOS
    :param one_in: an episode in so many goes wrong; 1 for all
    :param at: step of the episode
    :param seed: of the run, and of what is random in the fault
    """

    kind: str
    backend: str
    name: str
    one_in: int = 5
    at: int = 1
    seed: int = 0


class Unexpected(AssertionError):
    """A fault did not end as it must."""


def fits(kind: str, backend: str, name: str) -> bool:
    """Whether there is such a fault."""
    if name not in NAMES:  # populations of whole models are tested in tests/populations
        return False
    if backend in ("process", "ray"):
        return name in GENERATIONAL and (kind in KINDS or kind == INTERRUPT)
    if kind in BUFFER_FILES:
        return name in HYBRIDS and backend == "file"
    return (kind in MODEL_FILES) == (backend == "file") and not (kind == "die once" and backend != "file")


def inject(fault: Fault, folder: Path) -> str:
    """
    :param fault: to be injected
    :param folder: empty, for files
    :return: how it ended, in a few words
    :raises Unexpected: if it must not end so
    """
    before = processes_of(os.getpid())
    os.chdir(folder)
    if fault.backend == "file":
        ending = _file_fault(fault, folder)
    elif fault.backend == "dummy" and fault.kind in DEATHS:
        ending = _own_death(fault, folder)
    else:
        ending = _run(fault, folder)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if left:
        raise Unexpected(f"temporary files are left: {left}")
    others = what_stays(lambda: processes_of(os.getpid()) - before)
    if others:
        raise Unexpected(f"processes are left: {sorted(others)}")
    return ending


def what_stays(left: Callable[[], set[Any]], seconds: float = 30.0) -> set[Any]:
    """
    :param left: what is left now
    :param seconds: to go; what was killed takes a moment, on a busy machine a long one
    :return: what is left after that time
    """
    end = time.monotonic() + seconds
    while (found := left()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


# -------------------------------------------------------------------- environments


def _actions(name: str) -> dict[str, bool]:
    """Arguments of a faulty environment whose actions a class can take."""
    return {"discrete": name in DISCRETE}


def _evaluator(fault: Fault, folder: Path) -> Any:
    flag = str(folder / "died") if fault.kind == "die once" else ""
    maker = partial(monitored, kind=fault.kind, one_in=fault.one_in, at=fault.at, flag=flag, **_actions(fault.name))
    if fault.backend == "process":
        return ProcessEvaluator(2, maker, episode_timeout=1.0 if fault.kind in HANGS else None)
    return RayEvaluator(2, maker, episode_timeout=1.0 if fault.kind in HANGS else None, num_cpus=0.5)


def _run(fault: Fault, folder: Path) -> str:
    remote = fault.backend in ("process", "ray")
    kwargs: dict[str, Any] = {} if remote else {"kind": fault.kind, "one_in": fault.one_in, "at": fault.at}
    env = faulty_vec_env(1 if remote else 2, fault.backend == "subproc", **kwargs, **_actions(fault.name))
    settings = {"evaluator": _evaluator(fault, folder)} if remote else {}
    model = make(fault.name, env, seed=fault.seed, **settings)
    by_hand = fault.kind == INTERRUPT or (fault.kind in HANGS and not remote)
    timer = threading.Timer(0.3 + fault.seed % 7 / 10, os.kill, (os.getpid(), signal.SIGINT))
    error: BaseException | None = None
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore Ctrl-C
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if by_hand:
                timer.start()
            model.learn(10**9 if by_hand else STEPS, log_interval=None)
            for _ in range(ROUNDS):
                if not _has_happened(fault, said, folder):
                    model.learn(STEPS, reset_num_timesteps=False, log_interval=None)
        except (Exception, KeyboardInterrupt) as caught:
            error = caught
        finally:
            timer.cancel()
            signal.signal(signal.SIGINT, handler)
    ending = _judge(fault, error, [str(warning.message) for warning in said])
    is_cut = fault.kind == INTERRUPT and getattr(env, "closed", False)  # in the middle of a message
    check_whole(model, folder)
    if remote:
        model.evaluator.make_env, model.evaluator.episode_timeout = partial(monitored, **_actions(fault.name)), None
    elif not isinstance(error, KeyboardInterrupt) or fault.kind in HANGS or is_cut:
        with suppress(OSError, EOFError):
            env.close()
        env = faulty_vec_env(2, **_actions(fault.name))
        model.set_env(env)
    before = model.num_timesteps
    model.learn(20, reset_num_timesteps=False, log_interval=None)  # it goes on
    if not before + 20 <= model.num_timesteps <= before + 21:
        raise Unexpected(f"continued to {model.num_timesteps} from {before}")
    env.close()
    if remote:
        model.evaluator.close()
    return f"{ending}, processes ended" if is_cut else ending


def _has_happened(fault: Fault, said: list[warnings.WarningMessage], folder: Path) -> bool:
    """Episodes go wrong by chance, perhaps none of the first ones. Faults without a warning are errors."""
    if fault.kind == "die once":
        return (folder / "died").exists()
    return any("episodes failed" in str(warning.message) for warning in said)


def _judge(fault: Fault, error: BaseException | None, said: list[str]) -> str:
    """How it ended; whether that is as documented depends on back-end and class."""
    remote, all_bad = fault.backend in ("process", "ray"), fault.one_in == 1
    shape = "env must give (observations|rewards)"
    kind = fault.kind
    if kind == INTERRUPT or (kind in HANGS and not remote):
        return _expect(error, KeyboardInterrupt, "", "interrupted")
    if kind in RAISES or kind in SHAPES:
        words = "the knee is broken" if kind in RAISES else shape
        if remote:
            return _expect(error, WorkerError, words, "error with the worker's traceback")
        if fault.backend == "subproc" and kind in (*RAISES, "vector reward"):
            return _expect(error, WorkerError, r"exit codes \[1", "error that names the process")
        return _expect(error, RuntimeError if kind in RAISES else ValueError, words, "error")
    if kind in DEATHS:
        if kind == "die once":
            return _expect(error, None, "", "worker replaced")
        words = "3 workers died while they ran" if remote else r"exit codes \[-9"
        return _expect(error, WorkerError, words, "error that names the process")
    if fault.name not in GENERATIONAL:
        return _expect(error, ValueError, "env must give finite observations and rewards; got", "error")
    told = any("episodes failed" in line for line in said)
    if not told:
        raise Unexpected(f"no episode failed; {error!r}")
    if all_bad or isinstance(error, FailedEpisodesError):
        return _expect(error, FailedEpisodesError, "as many as a generation has", "error: all episodes failed")
    return _expect(error, None, "", "failed individual")


def _expect(error: BaseException | None, wanted: type[BaseException] | None, words: str, ending: str) -> str:
    if wanted is None and error is None:
        return ending
    if wanted is None or not isinstance(error, wanted) or not re.search(words, str(error)):
        raise Unexpected(f"{wanted and wanted.__name__} with {words!r} was to come; got {error!r}")
    return ending


def check_whole(model: Any, folder: Path) -> None:
    """The model holds nothing that is not finite, and can be saved and loaded."""
    for name, state in model.get_parameters().items():
        for key, tensor in _tensors(name, state):
            is_number = tensor.dtype.is_floating_point and not key.endswith(NO_NUMBER_YET)
            if is_number and not bool(th.isfinite(tensor).all()):
                raise Unexpected(f"{key} is not finite")
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name in ("observations", "next_observations", "actions", "rewards"):
            if not np.isfinite(getattr(buffer, name)[: buffer.size()]).all():
                raise Unexpected(f"the replay buffer has {name} that are not finite")
        model.save_replay_buffer(folder / "buffer")
        model.load_replay_buffer(folder / "buffer")
    model.save(folder / "model")
    loaded = type(model).load(folder / "model")
    observations = np.zeros((2, 3), np.float32)
    if not np.array_equal(loaded.predict(observations)[0], model.predict(observations)[0]):
        raise Unexpected("the saved model acts otherwise")


def _tensors(prefix: str, value: Any) -> list[tuple[str, th.Tensor]]:
    if isinstance(value, th.Tensor):
        return [(prefix, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for key, part in items for found in _tensors(f"{prefix}.{key}", part)]


def _own_death(fault: Fault, folder: Path) -> str:
    """The environment kills the process that trains; what was saved before is whole."""
    model = make(fault.name, faulty_vec_env(2, **_actions(fault.name)), seed=fault.seed)
    model.save(folder / "model")
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            model.set_env(faulty_vec_env(2, kind=fault.kind, one_in=fault.one_in, at=fault.at, **_actions(fault.name)))
            model.learn(10**6)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        raise Unexpected(f"the process ended with {status}")
    type(model).load(folder / "model")
    return "the run died; its files are whole"


# -------------------------------------------------------------------- files


def _file_fault(fault: Fault, folder: Path) -> str:
    model = make(fault.name, faulty_vec_env(1, **_actions(fault.name)), seed=fault.seed)
    model.learn(40, log_interval=None)
    is_buffer = fault.kind in BUFFER_FILES
    path = folder / ("file.pkl" if is_buffer else "file.zip")
    save = partial(model.save_replay_buffer if is_buffer else model.save, path)
    load: Callable[[], Any] = partial(model.load_replay_buffer if is_buffer else ALGOS[fault.name].load, path)
    save()
    before, rng = path.read_bytes(), np.random.default_rng(fault.seed)
    if fault.kind.startswith("disk full"):
        _with_full_disk(save, int(rng.integers(1, len(before))))
        if path.read_bytes() != before:
            raise Unexpected("the previous file was damaged")
        load()
        return "error; the previous file is whole"
    if fault.kind == "two writers":
        return _two_writers(model, path, load)
    if fault.kind.startswith("older"):
        _make_older(path, before)
        load()
        return "loaded"
    if fault.kind.startswith("truncated"):
        path.write_bytes(before[: int(rng.integers(0, len(before) - 30))])
    elif fault.kind.startswith("flipped"):
        data = bytearray(before)
        data[_place(path, rng)] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif fault.kind == "foreign buffer":
        path.write_bytes(pickle.dumps({"a": list(range(100))}))
    elif fault.kind == "foreign zip":
        TD3("MlpPolicy", faulty_vec_env(1), buffer_size=10, policy_kwargs={"net_arch": [4]}).save(path)
    else:
        other = NAMES[(NAMES.index(fault.name) + 1 + fault.seed % 13) % len(NAMES)]
        other = other if other != fault.name else NAMES[0]
        make(other, faulty_vec_env(1, **_actions(other))).save(path)
    try:
        load()
    except ValueError as error:
        if path.name not in str(error):
            raise Unexpected(f"the message does not name the file: {error}") from error
        return "error that names the file"
    except Exception as error:
        raise Unexpected(f"ValueError was to come; got {error!r}") from error
    raise Unexpected("the file was loaded")


def _place(path: Path, rng: np.random.Generator) -> int:
    """Where a bit is flipped: of a zip file in the contents of a member, for what lies between them says nothing."""
    if path.suffix == ".pkl":
        return int(rng.integers(path.stat().st_size - 30))
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.file_size > 0]
        info = members[int(rng.integers(len(members)))]
        with archive.open(info) as member:
            start = member._orig_compress_start  # type: ignore[attr-defined]
        return int(start + rng.integers(info.compress_size))


def _with_full_disk(save: Callable[[], None], n_bytes: int) -> None:
    """The kernel refuses to write more than so many bytes into a file."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        save()
    except (OSError, RuntimeError):  # PyTorch's own writer says the latter
        return
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    raise Unexpected("saving to a full disk was no error")


def _two_writers(model: Any, path: Path, load: Callable[[], Any]) -> str:
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            for _ in range(10):
                model.save(path)
            status = 0
        os._exit(status)
    for _ in range(10):
        model.save(path)
        load()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise Unexpected("the other writer failed")
    load()
    return "one whole file"


def _make_older(path: Path, content: bytes) -> None:
    """As the first versions wrote it: without a checksum, or without the name of the class."""
    if path.suffix == ".pkl":
        path.write_bytes(content[: content.rindex(b"sb3_erl crc32 ")])
        return
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    data = json.loads(members["data"])
    del data["algorithm"]
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, body in members.items():
            new.writestr(name, body)


# -------------------------------------------------------------------- processes


def descendants(ancestor: int) -> dict[int, tuple[int, str]]:
    """:return: for each process below another one that has not ended, its parent's id and its command line"""
    processes: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):  # it ended, or is no process
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                processes[int(entry.name)] = int(parent), command
    found, front = set(), {ancestor}
    while front:
        front = {pid for pid, (parent, _) in processes.items() if parent in front}
        found |= front
    return {pid: processes[pid] for pid in found}


def processes_of(ancestor: int) -> set[int]:
    """:return: ids of the processes below another one other than helpers (multiprocessing's own, Ray's)"""
    below = descendants(ancestor)
    servers = {pid for pid, (_, command) in below.items() if any(word in command for word in SERVERS)}
    rays = {pid for pid, (_, command) in below.items() if any(word in command for word in RAYS)}
    # what a server forks has its command line
    return {pid for pid, (parent, _) in below.items() if pid not in rays and (pid not in servers or parent in servers)}
