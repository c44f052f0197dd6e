"""
Damages files of models in every way that comes to mind and loads them with ``load_safe``, under guard.

    python -m benchmarks.file_fuzz [--files 100000] [--minutes 10] [--seed 0] [--out docs/results/file_fuzz.json]

A file must load as it was before, or be refused with ``ModelFileError``; one whose author made all checksums right
may load as another model, too. An audit hook notes what must not happen meanwhile: code that is compiled or run,
modules that are imported, files that are written, sockets, processes. The memory of the process is limited. A corpus
of malicious pickles stands in files as well; each of them is unpickled in a process of its own to show that it would
have done harm. The exit status is the number of files that ended otherwise.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import importlib
import io
import json
import os
import pickle
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th

from sb3_erl import ALGOS, load_safe
from sb3_erl.core.registry import PARTS
from sb3_erl.runs.safe_files import SETTINGS, TENSORS, ModelFileError, read_safe

NETWORK: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}}
SYSTEMS: dict[str, dict[str, Any]] = {
    "erl": {**NETWORK, "pop_size": 3, "buffer_size": 500, "learning_starts": 10, "batch_size": 8},
    "erl_re2": {**NETWORK, "pop_size": 3, "buffer_size": 500, "learning_starts": 10, "batch_size": 8},
    "cem": {**NETWORK, "pop_size": 4},
    "deep_ga": {**NETWORK, "pop_size": 4, "truncation": 2, "n_finalists": 2, "noise_table_size": 200_000},
    "nsra_es": {**NETWORK, "n_pairs": 2, "meta_population_size": 2, "noise_table_size": 200_000},
}
"""A model with shared parts, ones with a noise table, an archive, a learner and a replay buffer; as small as can be."""
MEMORY = 2 << 30
"""Bytes that may be taken beyond what the process has before the first file."""
SLOWEST = 60
"""Seconds for a file."""
CHECKED = 25
"""Of files whose settings and tensors are those of the original, one in so many is also made into a model."""
OWN_MODULES = ("sb3_erl.remote.process", "sb3_erl.remote.choice", "sb3_erl.engine.replace", "sb3_erl.evolution.fitness.parts")
OWN_MODULES += tuple(
    part.partition(":")[0] for parts in PARTS.values() for part in parts.values() if isinstance(part, str) and ":" in part
)
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "marshal.loads",
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "ctypes.",
)

Members = dict[str, bytes]

# -------------------------------------------------------------------- the guard


class Guard:
    """Notes events that loading a file must not cause."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "import" and arguments[0] in sys.modules:
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif not event.startswith(FORBIDDEN) and event != "open":
            return
        self.events.append(f"{event} {str(arguments)[:200]}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """:return: what happened inside"""
        self.events, self.armed = [], True
        signal.alarm(SLOWEST)
        try:
            yield self.events
        finally:
            signal.alarm(0)
            self.armed = False


class TooSlow(BaseException):
    """A file took longer than :data:`SLOWEST` seconds."""


def stop(*_: Any) -> None:
    raise TooSlow


# -------------------------------------------------------------------- files


def packed(members: Members, **extra: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in {**members, **extra}.items():
            archive.writestr(name, data)
    return stream.getvalue()


def unpacked(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_settings(members: Members, settings: Any, tensors: bytes | None = None) -> bytes:
    """With the checksum of the tensors as the author of a malicious file would write it."""
    tensors = members[TENSORS] if tensors is None else tensors
    if isinstance(settings, dict):
        settings = {**settings, "sha256": hashlib.sha256(tensors).hexdigest()}
    text = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    return packed({**members, SETTINGS: text, TENSORS: tensors})


# -------------------------------------------------------------------- damage: equal or refused


def flipped(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def flipped_directory(data: bytes, chance: random.Random) -> bytes:
    """Where the names, sizes and places of the members stand."""
    start = data.rfind(b"PK\x01\x02", 0, data.find(b"PK\x01\x02") + 4)
    place = chance.randrange(start, len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))] if chance.random() < 0.7 else data[chance.randrange(1, len(data)) :]


def overwritten(data: bytes, chance: random.Random) -> bytes:
    start, size = chance.randrange(len(data)), chance.choice((1, 16, 512, 4096))
    block = chance.choice((b"\0" * size, b"\xff" * size, chance.randbytes(size), b"", data[:size]))
    return data[:start] + block + data[start + chance.choice((0, size)) :]


def swapped(members: Members, chance: random.Random, other: Members) -> bytes:
    """Contents under each other's names, or one of another model; the checksums of the zip file are right."""
    changed = dict(members)
    first, second = chance.sample(sorted(changed), 2)
    changed[first], changed[second] = changed[second], changed[first]
    if chance.random() < 0.5:
        name = chance.choice((SETTINGS, TENSORS))
        changed = {**members, name: other[name]}
    return packed(changed)


def renamed(members: Members, chance: random.Random) -> bytes:
    names = (
        "../../../tmp/x",
        "/etc/passwd",
        "C:\\x",
        "a/../../b",
        ".",
        "x" * 60000,
        "a\0b",
        "\u202e",
        "CON",
        "//x",
        "safe.json/",
    )
    name = chance.choice(sorted(members))
    changed = {(chance.choice(names) if key == name else key): value for key, value in members.items()}
    return packed(changed)


def doubled(members: Members, chance: random.Random) -> bytes:
    stream = io.BytesIO(packed(members))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(chance.choice(sorted(members)), chance.choice((b"", b"{}", members[SETTINGS], b"\0" * 100)))
    return stream.getvalue()


BOMB = zlib.compress(b"[" * 50_000_000, 9)[2:-4]


def bomb(members: Members, chance: random.Random) -> bytes:
    """A member that is a thousand times larger than it looks, or says so."""
    stream = io.BytesIO()
    name = chance.choice((SETTINGS, TENSORS, "more"))
    with zipfile.ZipFile(stream, "w") as archive:
        for key, data in {**members, "more": b""}.items():
            packing = zipfile.ZIP_DEFLATED if key == name else zipfile.ZIP_STORED
            content = b" " * chance.choice((10_000, 5_000_000)) if key == name else data
            archive.writestr(key, content, packing)
    data = stream.getvalue()
    if chance.random() < 0.5:  # the directory claims that a member is stored
        place = data.rfind(name.encode()) - 46
        size = chance.choice((2**31, 2**32 - 2, 10**9)).to_bytes(4, "little")
        data = data[: place + 10] + b"\0\0" + data[place + 12 : place + 20] + size + size + data[place + 28 :]
    return data


DAMAGE: dict[str, Callable[[bytes, Members, random.Random, Members], bytes]] = {
    "bits": lambda data, _, chance, __: flipped(data, chance),
    "bits of the directory": lambda data, _, chance, __: flipped_directory(data, chance),
    "cut off": lambda data, _, chance, __: truncated(data, chance),
    "blocks": lambda data, _, chance, __: overwritten(data, chance),
    "swapped members": lambda _, members, chance, other: swapped(members, chance, other),
    "names": lambda _, members, chance, __: renamed(members, chance),
    "two of a name": lambda _, members, chance, __: doubled(members, chance),
    "bombs": lambda _, members, chance, __: bomb(members, chance),
}

# -------------------------------------------------------------------- malice: all checksums are right

NONSENSE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**12,
    10**400,
    -0.5,
    1e308,
    "",
    "x",
    "os:system",
    "antigravity:fly",
    "builtins:exec",
    "torch:load",
    "antigravity:Env-v0",
    "process",
    "ray",
    "CartPole-v1",
    "/etc/passwd",
    [],
    {},
    [[]],
    [10**9],
    [0] * 1000,
    {"dict": {}},
    {"class": "os:_Environ"},
    {"class": "subprocess:Popen"},
    {"class": "sb3_erl.remote.process:ProcessEvaluator"},
    {"class": "torch.nn.modules.linear:Linear"},
    {"deploying": "stable_baselines3.sac.sac:SAC"},
    {"object": ["subprocess:Popen", {}]},
    {"tensor": "0"},
    {"array": "0"},
    {"float": "1"},
    {"object": ["stable_baselines3.common.utils:LinearSchedule", {"__class__": 1}]},
    {"deque": [-1, []]},
    {"unknown": 1},
    {"a": 1, "b": 2},
    {"space": {"kind": "Box"}},
    {"space": {"kind": "MultiBinary", "n": 10**12, "dtype": "int8"}},
    {"pairs": [[[], 1]]},
    {"tuple": 3},
    {"dict": {"net_arch": [10**6, 10**6]}},
    {"dict": {"net_arch": [10**9]}},
    {"numpy": ["type", "object"]},
    "antigravity: fly",
    " antigravity:fly",
    "\x1b]0;title\x07",
    {"class": "stable_baselines3.sac.sac:SAC"},
    {"class": "sb3_erl.algorithms.erl:ERL"},
    {"dict": {"optimizer_class": {"class": "stable_baselines3.sac.sac:SAC"}}},
    {"object": ["sb3_erl.engine.steps:every", {"period": 1, "step": "antigravity: fly", "after": "exchange"}]},
    {"object": ["stable_baselines3.common.utils:FloatSchedule", {"value_schedule": {"class": "torch.optim.adam:Adam"}}]},
)


def places(value: Any, found: list[tuple[Any, Any]], depth: int = 0) -> list[tuple[Any, Any]]:
    """All (container, key) in a tree."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found.append((value, key))
        if depth < 8:
            places(part, found, depth + 1)
    return found


def other_settings(members: Members, chance: random.Random) -> bytes:
    settings = json.loads(members[SETTINGS])
    for _ in range(chance.choice((1, 1, 1, 3))):
        root = settings if chance.random() < 0.2 else settings["attributes"]
        container, key = chance.choice(places(root, []))
        if isinstance(container, dict) and chance.random() < 0.2:
            container.pop(key, None)
        elif isinstance(container, dict) and chance.random() < 0.1:
            key = chance.choice(("env", "__class__", "predict", "run", "a b", "policy", "_setup_model"))
            container[key] = copy.deepcopy(chance.choice(NONSENSE))
        else:
            container[key] = copy.deepcopy(chance.choice(NONSENSE))
        if not isinstance(settings.get("attributes"), dict) or not settings["attributes"]:
            break
    return with_settings(members, settings)


def deep_settings(members: Members, chance: random.Random) -> bytes:
    depth = chance.choice((70, 500, 5_000, 100_000))
    nested = chance.choice((b'{"tuple":[', b"[", b'{"dict":{"a":'))
    end = {b'{"tuple":[': b"]}", b"[": b"]", b'{"dict":{"a":': b"}}"}[nested]
    value = nested * depth + b"1" + end * depth
    text = members[SETTINGS].replace(b'"seed": ', b'"seed": ' + value + b', "x": ', 1)
    return with_settings(members, chance.choice((text, text, value, b'{"format": 1,' + text[1:])))


def other_header(members: Members, chance: random.Random) -> bytes:
    data = members[TENSORS]
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = chance.choice(sorted(header))
    entry, size = header[name], chance.choice((0, -1, 1, 2**31, 2**62, 2**64, 10**30))
    kind = chance.randrange(6)
    if kind == 0:
        entry["shape"] = [size] * chance.choice((1, 2, 50))
    elif kind == 1:
        entry["dtype"] = chance.choice(("F64", "I8", "F8_E4M3", "OBJ", 3))
    elif kind == 2:
        entry["data_offsets"] = chance.choice(([0, size], [size, 0], [0], [0, 8]))
    elif kind == 3:
        header[chance.choice(sorted(header))] = entry
    elif kind == 4:
        body = chance.randbytes(len(body))
    else:
        header[f"{size}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    size = chance.choice((len(text),) * 8 + (2**63, 2**64 - 1, 0))
    return with_settings(members, json.loads(members[SETTINGS]), size.to_bytes(8, "little") + text + body)


MALICE: dict[str, Callable[[Members, random.Random], bytes]] = {
    "other settings": other_settings,
    "deep settings": deep_settings,
    "other headers of tensors": other_header,
}

# -------------------------------------------------------------------- replay buffers

BUFFERS = ("erl", "td7")
"""Systems whose replay buffers are plain, and have priorities."""


def damaged_buffer(data: bytes, chance: random.Random) -> bytes:
    """:return: a file of a replay buffer with bits, its end, blocks, or, with right checksums, an array changed"""
    kind = chance.randrange(6)
    if kind < 3:
        return (flipped, truncated, overwritten)[kind](data, chance)
    members = unpacked(data)
    name = chance.choice(sorted(members))
    array = members[name]
    if kind == 3:
        members[name] = array[:128] + chance.choice((b"", array[128:] * 2, b"\0" * 8, chance.randbytes(len(array) - 128)))
    elif kind == 4:
        shapes = (b"(99999999999999,)", b"(-1,)", b"()", b"(3, 3, 3)", b"(" + b"9" * 60 + b",)")
        members[name] = re.sub(rb"\([\d, ]*\)", chance.choice(shapes), array, count=1)
    else:
        members[name] = re.sub(rb"'[<|]..'", chance.choice((b"'|O8'", b"'<f8'", b"'<U4'", b"exec('')")), array, count=1)
    return packed(members)


# -------------------------------------------------------------------- pickles


class Call:
    """Unpickled, it is the result of a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def pickles(mark: Path) -> dict[str, bytes]:
    """:return: by name, pickles that write a file when they are read"""
    import builtins

    write = f"open({str(mark)!r}, 'w').write('x')"
    command = [sys.executable, "-c", write]
    calls = {
        "exec": Call(builtins.exec, write),
        "eval": Call(builtins.eval, write),
        "system": Call(os.system, f"echo x > {mark}"),
        "run": Call(subprocess.run, command),
        "write": Call(Path.write_text, mark, "x"),
        "nested": Call(pickle.loads, pickle.dumps(Call(builtins.exec, write))),
        "os.open": Call(os.open, str(mark), os.O_CREAT | os.O_WRONLY),
        "mkdir": Call(os.mkdir, str(mark)),
        "popen": Call(os.popen, f"echo x > {mark}"),
    }
    return {
        f"{name}, protocol {protocol}": pickle.dumps(call, protocol) for name, call in calls.items() for protocol in (2, 4)
    }


def poisoned(members: Members, payload: bytes) -> Iterator[bytes]:
    """Files with a pickle in each place where one may stand."""
    data = json.loads(members["data"])
    text = {":type:": "x", ":serialized:": base64.b64encode(payload).decode()}
    for name in ("lr_schedule", "policy_class", "observation_space", "something"):
        yield packed({**members, "data": json.dumps({**data, name: text}).encode()})
    settings = json.loads(members[SETTINGS])
    for name in ("policy_class", "seed", "something"):
        yield with_settings(members, {**settings, "attributes": {**settings["attributes"], name: text}})
    stream = io.BytesIO()
    th.save({"x": 1}, stream)
    with zipfile.ZipFile(stream) as archive:
        torch_file = {name: payload if name.endswith("data.pkl") else archive.read(name) for name in archive.namelist()}
    for content in (payload, packed(torch_file)):
        for name in ("policy.pth", "pytorch_variables.pth", SETTINGS, "more.pth", "data.pkl"):
            yield packed({**members, name: content})
        yield with_settings(members, settings, content)


def is_harmful(payload: bytes, mark: Path) -> bool:
    """Whether a pickle does what it is made for; afterwards its mark is gone."""
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=payload, capture_output=True
    )
    time.sleep(0.05)
    found = mark.exists()
    if mark.is_dir():
        mark.rmdir()
    mark.unlink(missing_ok=True)
    return found


# -------------------------------------------------------------------- the run


class Fuzz:
    """
    Loads files and counts how they ended.

    :param chance: draws the damage
    """

    def __init__(self, chance: random.Random):
        self.chance, self.guard = chance, Guard()
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[dict[str, Any]] = []
        self.slowest, self.n_files = 0.0, 0
        self.files = {name: self._saved(name) for name in SYSTEMS}
        self.members = {name: unpacked(data) for name, data in self.files.items()}
        for name in OWN_MODULES:  # whatever of the package is imported when it is wanted is imported now
            importlib.import_module(name)
        for data in self.files.values():
            load_safe(io.BytesIO(data))
        self.models = {name: self._filled(name) for name in BUFFERS}
        self.buffers = {name: self._buffer_of(model) for name, model in self.models.items()}
        for name, data in self.buffers.items():
            self._load_buffer(data, name)
        signal.signal(signal.SIGALRM, stop)

    def _filled(self, name: str) -> Any:
        settings = SYSTEMS.get(name, {"buffer_size": 500, "learning_starts": 1000, "policy_kwargs": {"net_arch": [4]}})
        return ALGOS[name]("MlpPolicy", "Pendulum-v1", seed=1, device="cpu", **settings).learn(60)

    def _buffer_of(self, model: Any) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            model.save_replay_buffer(Path(folder, "buffer.npz"))
            return Path(folder, "buffer.npz").read_bytes()

    def _load_buffer(self, data: bytes, name: str) -> str:
        model = self.models[name]
        before = model.replay_buffer.rewards.copy()
        try:
            model.load_replay_buffer(io.BytesIO(data), trusted=False)
        except ValueError as error:
            raise ModelFileError(str(error)) from error
        is_equal = (model.replay_buffer.rewards == before).all()
        model.replay_buffer.rewards[:] = before
        return "equal" if is_equal else "another buffer"

    def _saved(self, name: str) -> bytes:
        stream = io.BytesIO()
        ALGOS[name]("MlpPolicy", "Pendulum-v1", seed=1, device="cpu", **SYSTEMS[name]).save(stream)
        return stream.getvalue()

    def try_file(self, kind: str, data: bytes, name: str, may_differ: bool, is_buffer: bool = False) -> None:
        """
        :param kind: what was done to the file
        :param data: the file
        :param name: of the system
        :param may_differ: whether it may be another model's
        :param is_buffer: whether it is a replay buffer
        """
        start, end = time.monotonic(), "refused"
        with self.guard.watching() as events:
            try:
                end = self._load_buffer(data, name) if is_buffer else self._end(data, name)
            except ModelFileError:
                pass
            except TooSlow:
                end = "too slow"
            except BaseException as error:
                end = f"{type(error).__name__}: {error}"[:200]
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.n_files += 1
        if events or end not in ("equal", "refused", *(("another model", "another buffer") if may_differ else ())):
            self.faults.append({"kind": kind, "system": name, "end": end, "events": events[:3]})
            end = "fault"
            Path(tempfile.gettempdir(), f"file_fuzz_{len(self.faults)}.zip").write_bytes(data)
        self.counts.setdefault(kind, Counter())[end] += 1

    def _end(self, data: bytes, name: str) -> str:
        if self._is_original(data, name):
            if self.n_files % CHECKED == 0:
                load_safe(io.BytesIO(data))
            return "equal"
        load_safe(io.BytesIO(data))
        return "another model"

    def _is_original(self, data: bytes, name: str) -> bool:
        """Whether the two members that are read are those of the original, and can be read."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if any(archive.read(member) != self.members[name][member] for member in (SETTINGS, TENSORS)):
                    return False
            return read_safe(io.BytesIO(data)) is not None
        except Exception:
            return False

    def run_pickles(self) -> int:
        """:return: number of pickles in the corpus"""
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            corpus = pickles(mark)
            for what, payload in corpus.items():
                if not is_harmful(payload, mark):
                    self.faults.append({"kind": "pickles", "end": f"{what} does no harm"})
                for name in ("erl", "cem"):
                    for data in poisoned(self.members[name], payload):
                        self.try_file("pickles", data, name, False)
                if mark.exists():
                    self.faults.append({"kind": "pickles", "end": f"{what} was run"})
        return len(corpus)

    def run(self, n_files: int, deadline: float) -> None:
        """
        :param n_files: to be tried
        :param deadline: time at which to stop
        """
        kinds = [*DAMAGE] * 4 + ["bits"] * 16 + [*MALICE] + ["other settings"]
        while self.n_files < n_files and time.monotonic() < deadline:
            if self.n_files % 20 == 0:
                name = self.chance.choice(BUFFERS)
                data = damaged_buffer(self.buffers[name], self.chance)
                self.try_file("replay buffers", data, name, True, is_buffer=True)
                continue
            kind, name = self.chance.choice(kinds), self.chance.choice(sorted(SYSTEMS))
            members = self.members[name]
            if kind in MALICE:
                self.try_file(kind, MALICE[kind](members, self.chance), name, True)
            else:
                other = self.members[self.chance.choice([key for key in SYSTEMS if key != name])]
                self.try_file(kind, DAMAGE[kind](self.files[name], members, self.chance, other), name, False)


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    start = time.monotonic()
    fuzz = Fuzz(random.Random(arguments.seed))
    n_pickles = fuzz.run_pickles()
    limit_memory()
    fuzz.run(arguments.files, start + 60 * arguments.minutes)
    result = {
        "files": fuzz.n_files,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "seconds of the slowest file": round(fuzz.slowest, 2),
        "malicious pickles": n_pickles,
        "seed": arguments.seed,
        "python": platform.python_version(),
        "torch": th.__version__,
        "memory limit in MiB": MEMORY >> 20,
        "peak memory in MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "ends by kind": {kind: dict(sorted(ends.items())) for kind, ends in sorted(fuzz.counts.items())},
        "faults": fuzz.faults[:50],
    }
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(min(len(fuzz.faults), 100))


if __name__ == "__main__":
    main()
