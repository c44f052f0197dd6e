"""Addresses of random numbers and files that are whole or not there: what every algorithm of the package shares."""

from __future__ import annotations

import difflib
import inspect
import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_erl.core.atomic_files import replacing
from sb3_erl.core.checks import env_ids_explained
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.runs.loading import (
    beside_folder,
    check_buffer,
    check_model_file,
    check_seal,
    misfits_explained,
    pickle_explained,
    seal,
)
from sb3_erl.runs.resuming import ResumingMixin

SelfAddressed = TypeVar("SelfAddressed", bound="AddressedMixin")


class AddressedMixin(ResumingMixin):
    """
    Randomness that derives from an address, and saves that a crash cannot damage.

    Stands before an SB3 base class in the method resolution order.
    """

    phase: int
    """Part of every random address; generational algorithms count begun generations here."""
    run_seed: int | None
    algorithm: str
    """Name of the class of this package that the model is of, saved so that no other class loads it."""

    def _init_addresses(self) -> None:
        """Attributes that survive save and load; call it in ``__init__`` before ``_setup_model``."""
        self.phase = 0
        self.algorithm = self._family()
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
        self._write_state()
        try:
            if isinstance(path, str | pathlib.Path):
                with replacing(path, ".zip") as temporary:
                    super().save(temporary, exclude, include)
            else:
                super().save(path, exclude, include)
        finally:
            self._forget_state()

    def _write_state(self) -> None:
        """Put what is to be saved as plain values into attributes of its own."""

    def _forget_state(self) -> None:
        """What :meth:`_write_state` made is needed no more."""

    @classmethod
    def load(
        cls: type[SelfAddressed],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAddressed:
        """
        Load a model, see ``BaseAlgorithm.load``. SB3's format holds pickles: load files of people you trust only, and use
        :func:`~sb3_erl.runs.loading.load_parameters` for others.

        :param path: file name (``.zip`` may be left out) or open file
        :param env: environment to go on in or its id, ``None`` to predict only
        :param device: where the networks shall be
        :param custom_objects: replace what cannot be unpickled, by name
        :param print_system_info: also of the system that saved the model
        :param force_reset: whether ``env`` is reset before the next ``learn``
        :param kwargs: attributes to change
        :return: the model
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, or not a model of this class and version, or the id unknown
        :raises TypeError: if there is no such attribute to change
        """
        path = beside_folder(path)
        data = check_model_file(path, cls._family())
        # SB3's own tests hand the arguments of off-policy classes to every class
        classes = (cls, OffPolicyAlgorithm)
        known = {*data, *(name for owner in classes for name in inspect.signature(owner.__init__).parameters)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            close = {name: difflib.get_close_matches(name, known, n=1) for name in unknown}
            raise TypeError(f"load() got {unknown}, which {cls.__name__} does not have; the closest are {close}")
        with env_ids_explained():
            env = None if env is None else maybe_make_env(env, verbose=0)
        with misfits_explained(path, cls.__name__):
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    @classmethod
    def _family(cls) -> str:
        return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("sb3_erl."))


class SafeBufferMixin:
    """Replay buffer files that are whole or not there, with a checksum; stands before an SB3 off-policy class."""

    replay_buffer: Any

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer; a crash while saving leaves the previous file whole.

        :param path: file name (``.pkl`` is added) or open file
        """
        base: Any = super()
        if isinstance(path, str | pathlib.Path):
            with replacing(path, ".pkl") as temporary:
                base.save_replay_buffer(temporary)
                seal(temporary)
        else:
            base.save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer; if that fails the model keeps its own. The file is a pickle: load those of people you trust only.

        :param path: file name (``.pkl`` may be left out) or open file
        :param truncate_last_traj: for HER buffers only
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, or of a model with other environments
        """
        base: Any = super()
        kept = self.replay_buffer
        try:
            with pickle_explained(path):
                check_seal(path)
                base.load_replay_buffer(path, truncate_last_traj)
                check_buffer(path, self.replay_buffer, self, None if kept is None else kept.n_envs)
        except BaseException:
            self.replay_buffer = kept
            raise
