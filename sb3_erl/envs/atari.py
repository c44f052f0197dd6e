"""Atari games as the papers of evolution strategies and Deep GA play them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_erl.core.extras import missing_extra

NEEDS = "Atari games need ale-py and OpenCV"
WHOLE_GAMES: dict[str, Any] = {"terminal_on_life_loss": False, "clip_reward": False}
"""Arguments of SB3's ``AtariWrapper``: an episode is a game, a return is its score."""
PLAIN_EMULATOR: dict[str, Any] = {"frameskip": 1, "repeat_action_probability": 0.0}
"""
Arguments of the ``ALE/...-v5`` environments that leave the repetition of actions to ``AtariWrapper``, and make the start
(up to 30 frames without action) the only thing that is random. ``...NoFrameskip-v4`` has the same by default.
"""


GAMES = (
    "Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling "
    "Boxing Breakout Carnival Centipede ChopperCommand CrazyClimber Defender DemonAttack DoubleDunk ElevatorAction Enduro "
    "FishingDerby Freeway Frostbite Gopher Gravitar Hero IceHockey Jamesbond JourneyEscape Kangaroo Krull KungFuMaster "
    "MontezumaRevenge MsPacman NameThisGame Phoenix Pitfall Pong Pooyan PrivateEye Qbert Riverraid RoadRunner Robotank "
    "Seaquest Skiing Solaris SpaceInvaders StarGunner Tennis TimePilot Tutankham UpNDown Venture VideoPinball "
    "WizardOfWor YarsRevenge Zaxxon"
)
"""The games whose ids are known without ale-py."""


class AtariEnvMissing:
    """
    Stands for a game where ale-py is not installed; cannot be made.

    The Zoo takes its settings for Atari games by the first half of this name.

    :raises ImportError: always, with the line that installs the emulator
    """

    def __init__(self, **kwargs: Any) -> None:
        raise missing_extra(NEEDS, "atari")


def register_envs() -> None:
    """Register the ids of the games: the real ones, or where ale-py is missing such as say what to install."""
    try:
        import ale_py
    except ImportError:
        for game in GAMES.split():
            for env_id in (f"ALE/{game}-v5", f"{game}NoFrameskip-v4"):
                gym.registry.setdefault(env_id, EnvSpec(env_id, "sb3_erl.envs.atari:AtariEnvMissing"))
    else:
        gym.register_envs(ale_py)


def make_atari(env_id: str, n_envs: int = 1, seed: int | None = None, n_stack: int = 4, **kwargs: Any) -> VecEnv:
    """
    Gray 84x84 frames, four of them stacked, every action for four frames, whole games, unclipped scores.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, section "Atari"; Salimans et al. (2017),
    https://arxiv.org/abs/1703.03864, section 4.2. The environment ends games only by its own rules and limits; the step
    limit of the papers, 5000, is the algorithms' ``episode_cutoff``.

    :param env_id: ``"FrostbiteNoFrameskip-v4"`` or ``"ALE/Frostbite-v5"``
    :param n_envs: number of environments
    :param seed: of the environments; ``learn`` seeds every episode itself
    :param n_stack: frames in an observation
    :param kwargs: further arguments of SB3's ``make_atari_env``; ``wrapper_kwargs`` and ``env_kwargs`` add to what the
        papers have
    :return: the environments
    :raises ImportError: if the emulator or OpenCV is missing
    :raises ValueError: if ``env_id`` is no Atari environment

    >>> make_atari("FrostbiteNoFrameskip-v4").observation_space.shape
    (84, 84, 4)
    """
    try:
        import ale_py
        import cv2  # noqa: F401 a part of AtariWrapper, which says so late
    except ImportError as error:
        raise missing_extra(NEEDS, "atari") from error
    gym.register_envs(ale_py)
    if not is_atari(env_id):
        raise ValueError(
            "env_id must be that of an Atari game, for example 'FrostbiteNoFrameskip-v4' or 'ALE/Frostbite-v5'; "
            f"got {env_id!r}"
        )
    kwargs["wrapper_kwargs"] = {**WHOLE_GAMES, **kwargs.get("wrapper_kwargs", {})}
    kwargs["env_kwargs"] = {**PLAIN_EMULATOR, **kwargs.get("env_kwargs", {})}
    return VecFrameStack(make_atari_env(env_id, n_envs, seed, **kwargs), n_stack)


def is_atari(env_id: str) -> bool:
    """Whether this is the id of a registered Atari game."""
    return env_id in gym.registry and "AtariEnv" in str(gym.registry[env_id].entry_point)
