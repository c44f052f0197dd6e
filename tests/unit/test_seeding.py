from __future__ import annotations

import random

import numpy as np
import torch

from sb3_erl.core.seeding import Address, ScopedGenerators, Stream


def test_streams_of_different_addresses_differ_and_the_same_agree() -> None:
    seen = {Address(run, phase).seed(stream, job) for run in (0, 1) for phase in (0, 1) for stream in Stream for job in (0, 1)}
    assert len(seen) == 2 * 2 * len(Stream) * 2
    assert Address(3, 4).seed(Stream.ENVIRONMENT, 5, 6) == Address(3, 4).seed(Stream.ENVIRONMENT, 5, 6)
    assert all(0 <= seed < 2**31 for seed in seen)


def draw() -> list[float]:
    return [float(np.random.rand()), random.random(), float(torch.rand(()))]


def test_scope_continues_its_own_streams_and_restores_the_users() -> None:
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    outside = [draw(), draw()]
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    inside: list[list[float]] = []
    scope = ScopedGenerators(np.random.SeedSequence(7))
    first = draw()
    with scope:
        inside.append(draw())
    with scope:
        inside.append(draw())
    second = draw()
    assert [first, second] == outside
    again = ScopedGenerators(np.random.SeedSequence(7))
    with again:
        assert [draw(), draw()] == inside
    assert inside[0] != inside[1]
