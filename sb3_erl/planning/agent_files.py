"""Files of an agent that plans: an SB3 zip file, and one of transitions."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import GymEnv

from sb3_erl.core.atomic_files import replacing
from sb3_erl.core.checks import env_ids_explained
from sb3_erl.envs.packages import register_namespaces

SelfAgent = TypeVar("SelfAgent", bound="AgentFiles")


class AgentFiles(BaseAlgorithm):
    """What of an agent is written and read."""

    replay_buffer: ReplayBuffer | None

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all but environment and transitions to an SB3 zip file; a crash while saving leaves the previous file whole.

        :param path: file name (``.zip`` is added) or open file
        :param exclude: attributes to leave out
        :param include: attributes to save although they are excluded by default
        """
        if isinstance(path, str | pathlib.Path):
            with replacing(path, ".zip") as temporary:
                super().save(temporary, exclude, include)
        else:
            super().save(path, exclude, include)

    @classmethod
    def load(cls: type[SelfAgent], path: Any, env: GymEnv | str | None = None, *args: Any, **kwargs: Any) -> SelfAgent:
        """
        Load an agent, see ``BaseAlgorithm.load``; the file holds pickles, so load those of people you trust only.

        :param path: file name or open file
        :param env: environment to plan in, or its id
        :param args: further arguments of ``BaseAlgorithm.load``
        :param kwargs: attributes to change; other ``planner_kwargs`` make another planner, with the defaults for what they
            leave out
        :return: the agent
        """
        with env_ids_explained():
            register_namespaces(env)
            return super().load(path, None if env is None else maybe_make_env(env, verbose=0), *args, **kwargs)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the transitions; a crash while saving leaves the previous file whole.

        :param path: file name (``.pkl`` is added) or open file
        """
        if isinstance(path, str | pathlib.Path):
            with replacing(path, ".pkl") as temporary:
                save_to_pkl(temporary, self.replay_buffer)
        else:
            save_to_pkl(path, self.replay_buffer)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        :param path: of a file of :meth:`save_replay_buffer`, which holds a pickle
        """
        self.replay_buffer = load_from_pkl(path, self.verbose)
