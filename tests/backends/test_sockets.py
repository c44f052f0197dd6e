"""Nothing of this package listens on the network; Ray opens ports of its own and no others."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.injection import descendants
from sb3_erl.remote.process import ProcessEvaluator
from tests import envs
from tests.contract.settings import make
from tests.envs import ToyEnv

LISTENING = "0A"
"""State of a TCP socket in ``/proc/net/tcp``."""

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net/tcp")


def inodes(pid: int) -> Iterator[str]:
    """Sockets that a process has open."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:  # it has ended
        return


def listening(pids: list[int]) -> dict[str, int]:
    """:return: ``address:port`` of TCP sockets that wait for connections, or local address of UDP ones, with the process"""
    owners = {inode: pid for pid in pids for inode in inodes(pid)}
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in owners and (words[3] == LISTENING or table.startswith("udp")):
                found[f"{table} {words[1]}"] = owners[words[9]]
    return found


class Look(BaseCallback):
    """
    Lists sockets at the end of each generation, while workers are there.

    :param look: called for the list
    """

    def __init__(self, look: Callable[[], Any]):
        super().__init__()
        self.look = look
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seen.append(self.look())


def family() -> list[int]:
    return [os.getpid(), *descendants(os.getpid())]


def test_the_list_finds_what_listens() -> None:
    before = listening(family())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (new,) = set(listening(family())) - set(before)
        assert new == f"tcp 0100007F:{port:04X}"


@pytest.mark.parametrize("name", ["erl", "openai_es"])
def test_worker_processes_do_not_listen(name: str) -> None:
    before, n_before = listening(family()), len(family())
    look = Look(lambda: (len(family()), listening(family())))
    evaluator = ProcessEvaluator(2, partial(ToyEnv, n_actions=envs.N_ACTIONS))
    try:
        make(name, evaluator=evaluator).learn(120, callback=look)
    finally:
        evaluator.close()
    assert len(look.seen) > 1
    for n_processes, found in look.seen:
        assert n_processes >= n_before + 2 and found == before


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_only_ray_listens() -> None:
    """Its own processes, and the main process where ``ray.init`` opened a port before anything of this package ran."""
    ray = pytest.importorskip("ray")
    from sb3_erl.remote.ray import RayEvaluator

    ray.init(num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        ray.get(ray.remote(lambda: 1).remote())
        before, look = listening([os.getpid()]), Look(lambda: listening(family()))
        evaluator = RayEvaluator(2, partial(ToyEnv, n_actions=envs.N_ACTIONS))
        make("erl", evaluator=evaluator).learn(120, callback=look)
        commands = {pid: command for pid, (_, command) in descendants(os.getpid()).items()}
        assert len(look.seen) > 1 and any(look.seen)
        for found in look.seen:
            assert {address for address, pid in found.items() if pid == os.getpid()} <= set(before)
            assert all("ray" in commands[pid].lower() for pid in found.values() if pid in commands)
        evaluator.close()
    finally:
        ray.shutdown()
