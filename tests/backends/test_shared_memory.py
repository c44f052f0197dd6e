"""Shared memory that is too small is an error with a way out, before the first write to it would kill the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.process import ProcessPool

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot say whether memory is there")


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of segments that were made."""
    names: list[str] = []
    allocate = os.posix_fallocate

    def noted(descriptor: int, offset: int, size: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    return names


@pytest.mark.parametrize(
    ("room", "what"), [(0, "networks of a generation"), (1000, r"table of noise \(noise_table_size=1000\)")]
)
def test_too_little_is_an_error_that_names_the_way_out(room: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def allocate(descriptor: int, offset: int, size: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        if size > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    pool = ProcessPool(b"", "spawn")
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with pytest.raises(OSError, match=rf"/dev/shm.*{what}.*--shm-size.*smaller noise_table_size") as caught:
        pool.publish(0, b"x" * 10, [NoiseTable(size=1000, seed=1)])
    assert caught.value.errno == errno.ENOSPC and len(names) == 1 + (room > 0)
    assert names[-1] not in segments()
    pool.close()
    assert not segments() & set(names)


def test_it_is_there_before_the_first_write(made: list[str]) -> None:
    pool = ProcessPool(b"", "spawn")
    pool.publish(0, b"x" * 10, [NoiseTable(size=1000, seed=1)])
    pool.publish(1, b"y" * 10, [NoiseTable(size=1000, seed=1)])
    assert len(made) == 3 and len(segments() & set(made)) == 2, "the table is shared once, the phase replaced"
    pool.close()
    assert not segments() & set(made)


def test_a_pool_goes_on_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, rooms = os.posix_fallocate, [100, 0, 100]

    def limited(descriptor: int, offset: int, size: int) -> None:
        if size > rooms.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", limited)
    pool, before = ProcessPool(b"", "spawn"), segments()
    pool.publish(0, b"x" * 10, ())
    with pytest.raises(OSError, match="/dev/shm must have room"):
        pool.publish(1, b"y" * 10, ())
    assert pool._memory is None and segments() == before
    pool.publish(2, b"z" * 10, ())
    assert len(segments() - before) == 1
    pool.close()
    assert segments() == before


def test_file_systems_that_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    pool = ProcessPool(b"", "spawn")
    pool.publish(0, b"x", ())
    pool.close()
