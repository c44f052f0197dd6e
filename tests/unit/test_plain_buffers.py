"""``save_replay_buffer("<name>.npz")``: arrays and JSON, from which the same buffer is made without unpickling anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_erl.buffers.plain_files import ARRAYS, PLAIN_BUFFERS, read_plain, write_plain
from sb3_erl.runs.buffer_files import filled_rows
from tests.contract.settings import make
from tests.envs import toy_vec_env
from tests.unit.test_segments import MADE, add


def written(buffer: Any) -> io.BytesIO:
    file = io.BytesIO()
    write_plain(buffer, file, filled_rows)
    file.seek(0)
    return file


def state(buffer: Any) -> dict[str, Any]:
    """Everything that a buffer has, to the bit; sums of priorities as they are once they are brought up to date."""
    found: dict[str, Any] = {}
    for name, value in vars(buffer).items():
        if name == "trees":
            for number, tree in enumerate(value):
                tree._settle()
                parts = vars(tree).items()
                found |= {f"tree {number} {key}": _bits(part) for key, part in parts if key != "_sums"}
                found |= {f"tree {number} sums {k}": _bits(part) for k, part in enumerate(tree._sums)}
        elif isinstance(value, dict):
            found |= {f"{name} {key}": _bits(part) for key, part in value.items()}
        else:
            found[name] = _bits(value)
    return found


def _bits(value: Any) -> Any:
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("n", [0, 7, 30, 75])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("kind", MADE)
def test_a_buffer_comes_back_to_the_bit(kind: str, n_envs: int, n: int) -> None:
    """Empty, filled in part, full, and a ring that has wrapped round; and it draws the same batches."""
    size = 30 * n_envs
    buffer, rng = MADE[kind](size, n_envs), np.random.default_rng(n)
    add(buffer, n, rng) if n else None
    other = MADE[kind](size, n_envs)
    add(other, 5, rng)
    read_plain(written(buffer), other)
    assert type(buffer) in PLAIN_BUFFERS and state(buffer) == state(other)
    if n:
        for _ in range(2):
            batches = []
            for each in (buffer, other):
                np.random.seed(3)
                batches.append(each.sample(16))
            assert str(batches[0]) == str(batches[1])
        for each in (buffer, other):
            np.random.seed(4)
            add(each, 3, np.random.default_rng(1))
        assert state(buffer) == state(other)


SETTINGS: dict[str, dict[str, Any]] = {
    "erl": {},
    "td7": {},
    "pop_td7": {},
    "veb_rl": {"prioritized": True},
    "cerl": {"learner": ["td7", "td3"]},
    "erl_re2": {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_goes_on_with_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose buffer was pickled, but no pickle is read; a file is as small as it is filled."""
    model = make(name, **SETTINGS[name]).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.npz")
    model.save_replay_buffer(str(tmp_path / "buffer.pkl"))
    env = model.get_env()
    loaded = [type(model).load(tmp_path / "model", env=type(env)(env.env_fns) if hasattr(env, "env_fns") else env)]
    loaded.append(type(model).load(tmp_path / "model", env=env))
    loaded[0].load_replay_buffer(tmp_path / "buffer.pkl")
    with monkeypatch.context() as patch:
        for function in ("load", "loads", "Unpickler"):
            patch.setattr(pickle, function, None)
        loaded[1].load_replay_buffer(str(tmp_path / "buffer.npz"), trusted=False)
        with (tmp_path / "buffer.npz").open("rb") as file:
            loaded[1].load_replay_buffer(file, trusted=False)
    assert state(loaded[0].replay_buffer) == state(loaded[1].replay_buffer) == state(model.replay_buffer)
    assert (tmp_path / "buffer.npz").stat().st_size < 20_000
    with np.load(tmp_path / "buffer.npz", allow_pickle=False) as arrays:
        assert len(arrays["actions"]) == model.replay_buffer.size()
        assert json.loads(arrays["settings"].tobytes())["pos"] == model.replay_buffer.pos


def test_what_is_no_such_file(tmp_path: Path) -> None:
    model = make("erl").learn(40)
    model.save_replay_buffer(tmp_path / "pickled")
    before = state(model.replay_buffer)
    with pytest.raises(ValueError, match=r"pickled.* must be a replay buffer without pickles"):
        model.load_replay_buffer(tmp_path / "pickled", trusted=False)
    (tmp_path / "pickled.pkl").rename(tmp_path / "named.npz")
    with pytest.raises(ValueError, match=r"named\.npz.* must be a replay buffer that save_replay_buffer\(\) wrote"):
        model.load_replay_buffer(tmp_path / "named.npz")
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "nothing.npz")
    assert state(model.replay_buffer) == before


class OwnBuffer(ReplayBuffer):
    """A user's."""


def test_classes_that_only_a_pickle_can_hold(tmp_path: Path) -> None:
    """A user's class, whose attributes nobody knows, and hindsight buffers with the infos of each step."""
    model = make("erl", replay_buffer_class=OwnBuffer)
    with pytest.raises(ValueError, match=r"replay_buffer must be of one of the classes .* got a OwnBuffer.*\.pkl"):
        model.save_replay_buffer(tmp_path / "buffer.npz")
    assert os.listdir(tmp_path) == [] and HerReplayBuffer not in PLAIN_BUFFERS
    make("erl").save_replay_buffer(tmp_path / "plain.npz")
    with pytest.raises(ValueError, match="it is a OwnBuffer"):
        model.load_replay_buffer(tmp_path / "plain.npz")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"buffer_size": 1999}, "buffer_size is 2000, that of the model's 1999"),
        ({"env": lambda: toy_vec_env(action_shape=(3,))}, "spaces is"),
        ({"learner": "td7"}, "class is 'ReplayBuffer', that of the model's 'LAPReplayBuffer'"),
    ],
)
def test_buffers_of_other_models(other: dict[str, Any], words: str, tmp_path: Path) -> None:
    make("erl").learn(40).save_replay_buffer(tmp_path / "buffer.npz")
    env = other.pop("env", toy_vec_env)()
    model = make("erl", env, **other)
    with pytest.raises(ValueError, match=words):
        model.load_replay_buffer(tmp_path / "buffer.npz")
    assert model.replay_buffer.size() == 0


def changed(file: io.BytesIO, name: str, change: Callable[[np.ndarray], Any]) -> io.BytesIO:
    """A copy with another array, all checksums right, as the author of a malicious file would write it."""
    arrays = dict(np.load(file))
    arrays[name], copy = change(arrays[name]), io.BytesIO()
    np.savez(copy, **arrays)
    copy.seek(0)
    return copy


def with_settings(**values: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda old: np.frombuffer(json.dumps({**json.loads(old.tobytes()), **values}).encode(), np.uint8)


HOSTILE: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "objects": ("rewards", lambda old: np.array([[print]], dtype=object)),
    "more rows": ("rewards", lambda old: np.zeros((10**6, 1), np.float32)),
    "other numbers": ("rewards", lambda old: old.astype(np.float64)),
    "another shape": ("observations", lambda old: old[:, :, :2]),
    "the other order": ("observations", lambda old: np.asfortranarray(np.ones((4, 1, 3), np.float32))),
    "a place outside": ("settings", with_settings(pos=10**9)),
    "a place that is a text": ("settings", with_settings(pos="1")),
    "more priorities than transitions": ("settings", with_settings(trees=[[1.0, 10**9]])),
    "priorities without end": ("settings", with_settings(trees=[[float("nan"), 40]])),
    "more sets": ("settings", with_settings(trees=[[1.0, 40]] * 3)),
    "no number": ("priority.0", lambda old: old * np.nan),
    "draws outside": ("drawn", lambda old: np.array([10**9])),
    "settings that are none": ("settings", lambda old: old[:-3]),
    "settings in another encoding": ("settings", lambda old: np.frombuffer(b'{\x00"\x00a\x00"\x00', np.uint8)),
    "settings of a list": ("settings", lambda old: np.frombuffer(b"[]", np.uint8)),
    "too many settings": ("settings", lambda old: np.full(1 << 21, 32, np.uint8)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what: str, tmp_path: Path) -> None:
    model = make("td7").learn(40)
    before = state(model.replay_buffer)
    model.save_replay_buffer(tmp_path / "buffer.npz")
    bad = changed(io.BytesIO((tmp_path / "buffer.npz").read_bytes()), *HOSTILE[what])
    with pytest.raises(ValueError, match="must be a replay buffer that"):
        model.load_replay_buffer(bad, trusted=False)
    assert state(model.replay_buffer) == before


def test_damaged_files() -> None:
    """A bit anywhere, or the end cut off: refused, or as it was."""
    buffer = MADE["priorities"](50, 1)
    add(buffer, 20, np.random.default_rng(0))
    data, before, n_refused = written(buffer).getvalue(), state(buffer), 0
    for place in range(0, len(data), 37):
        for bad in (data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :], data[:place]):
            other = MADE["priorities"](50, 1)
            empty = state(other)
            try:
                read_plain(io.BytesIO(bad), other)
            except Exception:
                n_refused += 1
                assert state(other) == empty
            else:
                assert state(other) == before
    assert n_refused > len(data) // 37


def test_every_attribute_is_known() -> None:
    """An attribute that SB3 adds to a buffer some day is in such a file, or this fails."""
    constant = {"buffer_size", "observation_space", "action_space", "obs_shape", "action_dim", "device", "n_envs"}
    constant |= {"optimize_memory_usage", "handle_timeout_termination", "n_steps", "gamma"}
    for made in MADE.values():
        assert set(vars(made(10, 1))) <= constant | {*ARRAYS, "pos", "full", "trees", "_drawn"}


def test_members_are_stored_by_number(tmp_path: Path) -> None:
    """The key of a space of dicts is no name of a file."""
    with zipfile.ZipFile(written(MADE["dict"](10, 1))) as archive:
        assert {"observations.0.npy", "observations.1.npy"} <= set(archive.namelist())
