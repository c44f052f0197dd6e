"""Replay buffers in checkpoints: what is read is what was there, to the bit, and only what is new is written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_erl.buffers.genetic_memory import GeneticMemories, memories_trimmed
from sb3_erl.buffers.lap import LAPReplayBuffer, PriorityTree
from sb3_erl.runs import segments
from sb3_erl.runs.buffer_files import filled_rows, save_buffer
from sb3_erl.runs.segments import FOLDER, DamagedError, read_buffer, write_buffer

OBSERVATIONS = spaces.Box(-1, 1, (3,), np.float32)
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (1, 6, 6), np.uint8), "goal": OBSERVATIONS})
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
MADE: dict[str, Callable[..., ReplayBuffer]] = {
    "plain": lambda size, n: ReplayBuffer(size, OBSERVATIONS, ACTIONS, n_envs=n),
    "float64": lambda size, n: ReplayBuffer(size, spaces.Box(-1, 1, (5,), np.float64), ACTIONS, n_envs=n),
    "discrete": lambda size, n: ReplayBuffer(size, OBSERVATIONS, spaces.Discrete(4), n_envs=n),
    "half the memory": lambda size, n: ReplayBuffer(
        size, OBSERVATIONS, ACTIONS, n_envs=n, optimize_memory_usage=True, handle_timeout_termination=False
    ),
    "dict": lambda size, n: DictReplayBuffer(size, IMAGES, ACTIONS, n_envs=n),
    "n-step": lambda size, n: NStepReplayBuffer(size, OBSERVATIONS, ACTIONS, n_envs=n, n_steps=3),
    "priorities": lambda size, n: LAPReplayBuffer(size, OBSERVATIONS, ACTIONS, n_envs=n),
    "three sets of priorities": lambda size, n: LAPReplayBuffer(size, OBSERVATIONS, ACTIONS, n_envs=n, n_priorities=3),
}


def add(buffer: Any, n: int, rng: np.random.Generator) -> None:
    """Transitions with zeros that have a sign and numbers that are none, and priorities that a learner writes."""

    def draw(space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: draw(part) for key, part in space.items()}
        if isinstance(space, spaces.Discrete):
            return rng.integers(space.n, size=buffer.n_envs)
        shape = (buffer.n_envs, *(space.shape or ()))
        values = rng.uniform(-1, 1, shape) * rng.integers(0, 2, shape)
        return (values * 100).astype(space.dtype)

    for _ in range(n):
        observation, following = draw(buffer.observation_space), draw(buffer.observation_space)
        dones, infos = rng.random(buffer.n_envs) < 0.05, [{"TimeLimit.truncated": rng.random() < 0.02}] * buffer.n_envs
        buffer.add(observation, following, draw(buffer.action_space), rng.normal(size=buffer.n_envs), dones, infos)
    for owner in range(len(getattr(buffer, "trees", ()))):
        buffer.sample(16, owner=owner)
        buffer.update_priorities(rng.uniform(1, 4, 16), owner)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that an object holds, arrays as bytes."""
    if isinstance(value, np.ndarray):
        yield name, (value.shape, value.dtype.str, value.tobytes(), value.flags.writeable, value.flags.c_contiguous)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from leaves(part, f"{name}.{number}")
    elif isinstance(value, ReplayBuffer | PriorityTree):
        yield from leaves(vars(value), name)
    else:
        yield name, repr(value)


def saved(buffer: Any, folder: Path, before: Path | None = None) -> Path:
    folder.mkdir(parents=True)
    write_buffer(buffer, folder / "index", None if before is None else before / "index")
    return folder


def segments_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / FOLDER).iterdir()}


def written_bytes(folder: Path) -> int:
    """Of segments that no other folder has."""
    return sum(path.stat().st_size for path in (folder / FOLDER).iterdir() if path.stat().st_nlink == 1)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", MADE)
def test_each_checkpoint_holds_the_buffer_of_its_moment(kind: str, n_envs: int, tmp_path: Path) -> None:
    """Also when the ring has wrapped round, when nothing was added, and after it was emptied."""
    buffer, rng, expected, before = MADE[kind](900, n_envs), np.random.default_rng(0), [], None
    for number, n in enumerate([0, 1, 150, 0, 500, 300, 1000, 7]):
        add(buffer, n, rng) if n else None
        if number == 5:
            buffer.reset()
            add(buffer, 20, rng)
        before = saved(buffer, tmp_path / str(number), before)
        expected.append(dict(leaves(buffer)))
        add(buffer, 3, rng)  # what follows changes no earlier one
    for number, each in enumerate(expected):
        assert dict(leaves(read_buffer(tmp_path / str(number) / "index"))) == each, number
    assert sum(len(value) for key, value in expected[-1].items() if "observations" in key) > 0


@pytest.mark.parametrize("kind", MADE)
def test_a_buffer_that_was_read_goes_on_as_the_one_that_was_written(kind: str, tmp_path: Path) -> None:
    first, rng = MADE[kind](500, 2), np.random.default_rng(1)
    add(first, 200, rng)
    second = read_buffer(saved(first, tmp_path / "0") / "index")
    for each in (first, second):
        np.random.seed(3)
        add(each, 300, np.random.default_rng(2))
    assert dict(leaves(first)) == dict(leaves(second))
    assert dict(leaves(read_buffer(saved(second, tmp_path / "1", tmp_path / "0") / "index"))) == dict(leaves(first))


@pytest.mark.parametrize("kind", MADE)
def test_only_what_is_filled_is_written_and_only_what_is_new(kind: str, tmp_path: Path) -> None:
    buffer, rng = MADE[kind](200_000, 1), np.random.default_rng(0)
    per_row = sum(part.nbytes for array in vars(buffer).values() for part in arrays_in(array)) / buffer.buffer_size
    before = saved(buffer, tmp_path / "empty")
    assert segments_of(before) == {} and (before / "index").stat().st_size < 10_000
    add(buffer, 3000, rng)
    before = saved(buffer, tmp_path / "first", before)
    n_arrays = 8 + len(getattr(buffer, "trees", ()))
    assert sum(segments_of(before).values()) <= 3000 * (per_row + 12) + 5000
    add(buffer, 100, rng)
    after = saved(buffer, tmp_path / "second", before)
    new = written_bytes(after)
    rest = 4 * 3100 * len(getattr(buffer, "trees", ()))  # priorities may all be new
    assert 0 < new <= 100 * per_row + n_arrays * 8192 + rest
    assert set(segments_of(before)) & set(segments_of(after)), "the rest is shared"


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, dict):
        for part in value.values():
            yield from arrays_in(part)
    elif isinstance(value, np.ndarray):
        yield value


def test_a_ring_that_wraps_round_many_times_neither_grows_nor_becomes_thousands_of_files(tmp_path: Path) -> None:
    """Segments that are overwritten go; a folder needs nothing of another one."""
    buffer, rng, before = MADE["priorities"](4000, 1), np.random.default_rng(0), None
    filled = sum(array.nbytes for part in vars(buffer).values() for array in arrays_in(part)) + 4 * 4000
    largest = most = 0
    for number in range(150):
        add(buffer, 100, rng)
        after = saved(buffer, tmp_path / str(number), before)
        if before is not None:
            for path in sorted(before.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        before = after
        largest, most = max(largest, sum(segments_of(after).values())), max(most, len(segments_of(after)))
    assert dict(leaves(read_buffer(after / "index"))) == dict(leaves(buffer))
    assert largest <= 2.2 * filled and most <= segments.MOST_SEGMENTS + 2


def test_many_small_segments_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 4)
    buffer, rng, before = MADE["plain"](100_000, 1), np.random.default_rng(0), None
    for number in range(12):
        add(buffer, 1000, rng)
        before = saved(buffer, tmp_path / str(number), before)
        assert len(segments_of(before)) <= 4 + 2
    assert dict(leaves(read_buffer(before / "index"))) == dict(leaves(buffer))


def test_every_wrong_bit_is_noticed(tmp_path: Path) -> None:
    buffer, rng = MADE["priorities"](2000, 1), np.random.default_rng(0)
    add(buffer, 300, rng)
    before = saved(buffer, tmp_path / "0")
    add(buffer, 1000, rng)
    folder = saved(buffer, tmp_path / "1", before)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        data = file.read_bytes()
        for place in [0, len(data) - 1, *rng.integers(len(data), size=40)]:
            wrong = bytearray(data)
            wrong[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(wrong)
            with pytest.raises(DamagedError, match=f"path='.*{file.name}' is damaged"):
                read_buffer(folder / "index")
        for shorter in (b"", data[: len(data) // 2]):
            file.write_bytes(shorter)
            with pytest.raises(DamagedError, match=file.name):
                read_buffer(folder / "index")
        file.unlink()
        with pytest.raises((DamagedError, FileNotFoundError), match=file.name):
            read_buffer(folder / "index")
        file.write_bytes(data)
    assert dict(leaves(read_buffer(folder / "index"))) == dict(leaves(buffer))


def test_a_segment_that_someone_else_changed_is_not_used_again(tmp_path: Path) -> None:
    """The run still has its content in memory, and writes it anew."""
    buffer = MADE["plain"](2000, 1)
    add(buffer, 1000, np.random.default_rng(0))
    before = saved(buffer, tmp_path / "0")
    (segment,) = (before / FOLDER).iterdir()
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.unlink()
    segment.write_bytes(data)
    after = saved(buffer, tmp_path / "1", before)
    assert dict(leaves(read_buffer(after / "index"))) == dict(leaves(buffer))
    with pytest.raises(DamagedError):
        read_buffer(before / "index")


@pytest.mark.parametrize("missing", ["index", "segments"])
def test_a_checkpoint_that_is_gone_is_not_needed(missing: str, tmp_path: Path) -> None:
    buffer = MADE["plain"](2000, 1)
    add(buffer, 1000, np.random.default_rng(0))
    before = saved(buffer, tmp_path / "0")
    for path in (before / FOLDER).iterdir() if missing == "segments" else [before / "index"]:
        path.unlink()
    assert dict(leaves(read_buffer(saved(buffer, tmp_path / "1", before) / "index"))) == dict(leaves(buffer))


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(segments.os, "link", refuse)
    buffer, rng, before = MADE["dict"](2000, 1), np.random.default_rng(0), None
    for number in range(3):
        add(buffer, 500, rng)
        before = saved(buffer, tmp_path / str(number), before)
    assert len(segments_of(before)) > 1, "copied"
    assert dict(leaves(read_buffer(before / "index"))) == dict(leaves(buffer))


class Own(ReplayBuffer):
    """A user's buffer, with arrays that share or need what others do not."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.same = self.rewards
        self.turned = np.asfortranarray(np.arange(10_000.0).reshape(100, 100))
        self.words = np.array(["a", None] * 2000, dtype=object)
        self.times = np.arange(4000).astype("datetime64[s]")
        self.fixed = np.arange(5000.0)
        self.fixed.flags.writeable = False
        self.signs = np.full(3000, -0.0)
        self.nothing = np.zeros((0, 3))


@pytest.mark.parametrize("as_file", [True, False])
def test_buffers_of_a_users_own(as_file: bool, tmp_path: Path) -> None:
    buffer = Own(2000, OBSERVATIONS, ACTIONS)
    add(buffer, 700, np.random.default_rng(0))
    if as_file:
        save_buffer(buffer, tmp_path / "file")
        found = pickle.loads((tmp_path / "file.pkl").read_bytes())
    else:
        found = read_buffer(saved(buffer, tmp_path / "0") / "index")
    assert found.same is found.rewards
    for name, value in leaves(buffer):
        if name not in (".fixed", ".words", ".turned"):
            assert dict(leaves(found))[name] == value, name
    assert np.array_equal(found.words, buffer.words) and np.array_equal(found.turned, buffer.turned)
    assert np.array_equal(found.fixed, buffer.fixed) and np.signbit(found.signs).all()


# ---------------------------------------------------------------- files of save_replay_buffer


def test_a_file_is_as_large_as_what_is_filled_and_read_without_this_package(tmp_path: Path) -> None:
    """By ``pickle`` alone, where this package is not installed."""
    buffer = MADE["plain"](1_000_000, 1)
    add(buffer, 600, np.random.default_rng(0))
    save_buffer(buffer, tmp_path / "file")
    assert (tmp_path / "file.pkl").stat().st_size < 600 * 44 + 5000
    program = (
        "import pickle, sys; sys.modules['sb3_erl'] = None\n"
        "from stable_baselines3.common.save_util import load_from_pkl\n"
        f"found = load_from_pkl({str(tmp_path / 'file.pkl')!r})\n"
        "found.add(found.observations[0], found.observations[0], found.actions[0], found.rewards[0], found.dones[0], [{}])\n"
        "print(type(found).__name__, found.size(), found.observations.shape, repr(float(found.observations.sum())))"
    )
    words = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    row = [array[0] for array in (buffer.observations, buffer.observations, buffer.actions, buffer.rewards, buffer.dones)]
    buffer.add(*row, [{}])
    assert words.strip() == f"ReplayBuffer 601 (1000000, 1, 3) {float(buffer.observations.sum())!r}"


@pytest.mark.parametrize("kind", MADE)
def test_a_file_holds_the_buffer(kind: str, tmp_path: Path) -> None:
    buffer, rng = MADE[kind](1500, 2), np.random.default_rng(0)
    for n in (0, 10, 600, 300):
        add(buffer, n, rng) if n else None
        save_buffer(buffer, tmp_path / "file.pkl")
        with open(tmp_path / "open.pkl", "wb") as file:
            save_buffer(buffer, file)
        for name in ("file.pkl", "open.pkl"):
            assert dict(leaves(pickle.loads((tmp_path / name).read_bytes()))) == dict(leaves(buffer))


def test_there_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replay_buffer must be there to be saved; got None"):
        save_buffer(None, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_filled_rows() -> None:
    array = np.zeros((300_000, 3), np.float32)
    assert filled_rows(array) == 0
    for row in (0, 17, 87_381, 87_382, 250_000, 299_999):
        array[row, 2] = -0.0
        assert filled_rows(array) == row + 1, "minus zero is not zero"


# ---------------------------------------------------------------- what is left out of the other state


def test_sums_of_priorities_are_made_again(tmp_path: Path) -> None:
    """Bit for bit, also where changes wait for the next draw; a tree of an earlier version has them in its file."""
    rng = np.random.default_rng(0)
    for capacity in (1, 15, 16, 17, 300, 5000):
        tree = PriorityTree(capacity)
        for _ in range(20):
            tree.append(np.unique(rng.integers(0, capacity, 1 + capacity // 30)))
            tree.write(rng.integers(0, tree.size, 30), rng.uniform(0, 5, 30).astype(np.float32))
            before = dict(leaves(tree))
            again = pickle.loads(pickle.dumps(tree))
            assert dict(leaves(again)) == dict(leaves(tree)) == before, "and saving changes nothing"
            old = PriorityTree.__new__(PriorityTree)
            old.__setstate__(pickle.loads(pickle.dumps(vars(tree))))
            assert dict(leaves(old)) == before
            if rng.random() < 0.5:
                tree.find(rng.random(4))
    assert len(pickle.dumps(PriorityTree(100_000))) < 100_000 * 4 + 1000


def test_genetic_memories_without_what_no_individual_has_filled() -> None:
    memories, rng = GeneticMemories(3, 5000, (4,), np.float32, 2), np.random.default_rng(0)
    memories.append(0, rng.normal(size=(40, 4)), rng.normal(size=(40, 2)))
    memories.append(2, rng.normal(size=(70, 4)), rng.normal(size=(70, 2)))
    memories.clear(2)
    whole = {name: tensor.clone() for name, tensor in memories.state_dict().items()}
    with memories_trimmed():
        small = memories.state_dict()
    assert small["stored_observations"].shape == (3, 70, 4) and small["stored_actions"].shape == (3, 70, 2)
    assert small["stored_observations"].untyped_storage().nbytes() == 3 * 70 * 4 * 4
    for state in (small, whole):
        other = GeneticMemories(3, 5000, (4,), np.float32, 2)
        other.append(1, rng.normal(size=(90, 4)), rng.normal(size=(90, 2)))
        other.load_state_dict(state)
        for name, tensor in other.state_dict().items():
            assert np.array_equal(tensor, whole[name]), name
        assert np.array_equal(other.observations[2, :70], whole["stored_observations"][2, :70]), (
            "what it uses is what was loaded"
        )
    assert memories.state_dict()["stored_observations"].shape == (3, 5000, 4)
