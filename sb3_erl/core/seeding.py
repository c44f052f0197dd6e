"""
Random streams with an address.

Everything random in a run derives from ``(run seed, phase, stream, job, episode)`` through
``numpy.random.SeedSequence`` spawn keys. So a result depends neither on the number of environments nor on the order in
which jobs finish, and a run continued from a save draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What the random numbers of a phase are used for."""

    EVOLUTION = 0
    ENVIRONMENT = 1
    EXPLORATION = 2
    LEARNING = 3
    FITNESS = 4
    NAMED = 5
    """Streams that users name themselves."""


@dataclass(frozen=True)
class Address:
    """
    Root of the random streams of one phase (one generation's worth of work) of one run.

    :param run_seed: non-negative seed of the run
    :param phase: number of the phase, counted over the whole life of the model

    >>> int(Address(1, 2).rng(Stream.EVOLUTION).integers(10)) == int(Address(1, 2).rng(Stream.EVOLUTION).integers(10))
    True
    """

    run_seed: int
    phase: int

    def sequence(self, stream: Stream, *key: int) -> np.random.SeedSequence:
        """Seed sequence of a stream; ``key`` is for example (job, episode)."""
        return np.random.SeedSequence(self.run_seed, spawn_key=(self.phase, int(stream), *key))

    def named_sequence(self, name: str, *key: int) -> np.random.SeedSequence:
        """Seed sequence of a stream with a name of the user's own, the same in every process and on every machine."""
        words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
        return self.sequence(Stream.NAMED, *(int(word) for word in words[:4]), *key)

    def rng(self, stream: Stream, *key: int) -> np.random.Generator:
        """A fresh generator at this address."""
        return np.random.default_rng(self.sequence(stream, *key))

    def seed(self, stream: Stream, *key: int) -> int:
        """An integer in [0, 2**31) at this address, as ``env.reset(seed=...)`` takes it."""
        return int(self.sequence(stream, *key).generate_state(1)[0] >> 1)


class ScopedGenerators:
    """
    Addressed state for code that reads global generators (SB3 buffers, action noise, stochastic policies).

    Inside ``with scope:`` the global generators of NumPy, Python and torch continue the scope's own streams; outside
    they are as the user left them.

    :param sequence: where the streams start
    """

    def __init__(self, sequence: np.random.SeedSequence):
        words = sequence.generate_state(3)
        self._numpy = np.random.RandomState(int(words[0])).get_state()
        self._python = random.Random(int(words[1])).getstate()
        self._torch_seed: int | None = int(words[2])
        self._torch: torch.Tensor | None = None
        self._cuda: torch.Tensor | None = None

    def __enter__(self) -> ScopedGenerators:
        self._outside = (np.random.get_state(), random.getstate(), torch.get_rng_state())
        use_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._outside_cuda = torch.cuda.get_rng_state() if use_cuda else None
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._torch_seed is not None:
            torch.default_generator.manual_seed(self._torch_seed)  # torch.manual_seed also tells devices that are not in use
            if use_cuda:
                torch.cuda.manual_seed_all(self._torch_seed)
            self._torch_seed = None
        else:
            assert self._torch is not None
            torch.set_rng_state(self._torch)
            if use_cuda and self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda)
        return self

    def __exit__(self, *_: object) -> None:
        self._numpy, self._python, self._torch = np.random.get_state(), random.getstate(), torch.get_rng_state()
        if self._outside_cuda is not None:
            self._cuda = torch.cuda.get_rng_state()
            torch.cuda.set_rng_state(self._outside_cuda)
        np.random.set_state(self._outside[0])
        random.setstate(self._outside[1])
        torch.set_rng_state(self._outside[2])


@contextmanager
def scoped_generators(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Run a block with all global generators seeded from ``sequence`` and put them back afterwards."""
    with ScopedGenerators(sequence):
        yield
