"""Addresses of random numbers and files that are whole or not there: what every algorithm of the package shares."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from sb3_erl.common.files import replacing
from sb3_erl.common.resuming import ResumingMixin
from sb3_erl.common.seeding import Address, Stream


class AddressedMixin(ResumingMixin):
    """
    Randomness that derives from an address, and saves that a crash cannot damage.

    Stands before an SB3 base class in the method resolution order.
    """

    phase: int
    """Part of every random address; generational algorithms count begun generations here."""
    run_seed: int | None

    def _init_addresses(self) -> None:
        """Attributes that survive save and load; call it in ``__init__`` before ``_setup_model``."""
        self.phase = 0
        self.run_seed = None

    def _setup_addresses(self) -> None:
        """To be called in ``_setup_model``, which also runs in ``load``: keeps what was loaded."""
        if self.seed is not None:
            self.run_seed = int(self.seed)
        elif self.run_seed is None:
            self.run_seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])

    @property
    def address(self) -> Address:
        """Root of all random numbers of the current phase."""
        assert self.run_seed is not None
        return Address(self.run_seed, self.phase)

    def _rng(self, stream: Stream) -> np.random.Generator:
        return self.address.rng(stream)

    # ---------------------------------------------------------------- files

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save everything but transitions to an SB3 zip file; a crash while saving leaves the previous file whole.

        :param path: file name (``.zip`` is added) or open file
        :param exclude: attributes to leave out
        :param include: attributes to save although they are excluded by default
        """
        if isinstance(path, str | pathlib.Path):
            with replacing(path, ".zip") as temporary:
                super().save(temporary, exclude, include)
        else:
            super().save(path, exclude, include)


class SafeBufferMixin:
    """Writes replay buffer files that are whole or not there; stands before an SB3 off-policy class."""

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer; a crash while saving leaves the previous file whole.

        :param path: file name (``.pkl`` is added) or open file
        """
        base: Any = super()
        if isinstance(path, str | pathlib.Path):
            with replacing(path, ".pkl") as temporary:
                base.save_replay_buffer(temporary)
        else:
            base.save_replay_buffer(path)
