"""
DeepMind Control tasks with flat observations: ``dm_control/cheetah-run-v0`` and the other ids of Shimmy.

The short and the long form of every class and the Zoo know the ids. Elsewhere name this module, whose import registers them:
``gym.make("sb3_erl.envs.dmc:dm_control/cheetah-run-v0")``. It needs the extra ``[dmc]``, see ``docs/domains.md``.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_erl.core.checks import check_range
from sb3_erl.core.extras import missing_extra

TASKS = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "lqr": "lqr_2_1 lqr_6_2",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}
"""Domains of the suite and their tasks. Shimmy's other ids, of locomotion and manipulation, show camera pictures or bricks."""

DOCS = "see docs/domains.md"


class DMControl(gym.Env[np.ndarray, np.ndarray]):
    """
    A task of the DeepMind Control Suite, Tassa et al. (2018), https://arxiv.org/abs/1801.00690.

    Made by Shimmy's ``DmControlCompatibilityV0``. Observations are what ``gymnasium.wrappers.FlattenObservation`` makes of
    Shimmy's: the arrays of the task one after the other, ``(n,)`` float64. Rewards are in [0, 1] (``lqr``: negative). Almost
    all episodes end after 1000 steps of the task by truncation; ``lqr`` ends only where it is solved, and has actions without
    bounds.

    :param domain: key of :data:`TASKS`
    :param task: one of its tasks
    :param action_repeat: for how many steps of the task an action is applied; their rewards are summed. Hafner et al. (2019),
        PlaNet, https://arxiv.org/abs/1811.04551, has one number per task (``cheetah-run``: 4). Everything else counts steps
        of this environment: an episode has ``1000 / action_repeat``
    :param task_kwargs: further arguments of the task, for example ``{"random": 0}``
    :param environment_kwargs: further arguments of its environment, for example ``{"control_timestep": 0.02}``
    :param render_mode: ``None``, ``"rgb_array"``, ``"depth_array"`` or ``"human"``
    :param render_kwargs: arguments of ``Physics.render``: ``height``, ``width``, ``camera_id``
    :raises ImportError: if dm_control or Shimmy is missing, or MuJoCo is 4 or later, with which dm_control fails
    :raises ValueError: if ``action_repeat`` is below 1
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "depth_array", "human"], "render_fps": 30}  # noqa: RUF012 Gymnasium's

    def __init__(
        self,
        domain: str,
        task: str,
        action_repeat: int = 1,
        task_kwargs: dict[str, Any] | None = None,
        environment_kwargs: dict[str, Any] | None = None,
        render_mode: str | None = None,
        render_kwargs: dict[str, Any] | None = None,
    ):
        check_range("action_repeat", action_repeat, 1, integer=True)
        suite, adapter = import_dm_control(name_of(domain, task))
        made = suite.load(domain, task, task_kwargs=task_kwargs, environment_kwargs=environment_kwargs)
        self.adapter = adapter(made, render_mode=render_mode, render_kwargs=render_kwargs)
        self.action_repeat, self.render_mode = action_repeat, render_mode
        self.keys = list(self.adapter.observation_space.spaces)
        self.observation_space: spaces.Box = spaces.flatten_space(self.adapter.observation_space)  # type: ignore[assignment]
        self.action_space: spaces.Box = self.adapter.action_space
        self.metadata = {**self.metadata, "render_fps": round(1 / (made.control_timestep() * action_repeat))}
        self._is_open = True

    @property
    def physics(self) -> Any:
        """dm_control's ``Physics``, with MuJoCo's model and data."""
        return self.adapter.physics

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        observation, _ = self.adapter.reset(seed=seed)
        return self._flat(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.action_repeat):
            observation, reward, terminated, truncated, _ = self.adapter.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return self._flat(observation), total, terminated, truncated, {}

    def render(self) -> Any:
        return self.adapter.render()

    def close(self) -> None:
        if self._is_open:  # dm_control frees its memory and cannot do so twice
            self._is_open = False
            self.adapter.close()

    def _flat(self, observation: dict[str, Any]) -> np.ndarray:
        return np.concatenate([np.ravel(observation[key]) for key in self.keys])


def name_of(domain: str, task: str) -> str:
    """The id of a task."""
    return f"dm_control/{domain}-{task}-v0"


def register_envs() -> None:
    """Register all tasks with Gymnasium. Where Shimmy has registered an id, whose observations are dicts, it is replaced."""
    for domain, tasks in TASKS.items():
        for task in tasks.split():
            known = gym.registry.get(name_of(domain, task))
            if known is None or known.entry_point != "sb3_erl.envs.dmc:DMControl":
                gym.registry[name_of(domain, task)] = EnvSpec(
                    name_of(domain, task),
                    "sb3_erl.envs.dmc:DMControl",
                    disable_env_checker=True,
                    kwargs={"domain": domain, "task": task},
                )


def import_dm_control(env_id: str) -> tuple[Any, Any]:
    """
    :param env_id: named in the error
    :return: dm_control's module ``suite`` and Shimmy's adapter for its environments
    :raises ImportError: if a package is missing, or a version does not work
    """
    try:
        mujoco = version("mujoco")
        if int(mujoco.split(".")[0]) >= 4:
            needs = f"needs dm_control, which works with MuJoCo below 4 only; got mujoco {mujoco}"
            raise missing_extra(f"env {env_id!r} {needs}", "dmc", DOCS)
        ours = {key: gym.registry.pop(key) for key in list(gym.registry) if key.startswith("dm_control/")}
        try:  # the import registers Shimmy's ids, with a warning for each that is known
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*The DISPLAY environment variable is missing")
                from dm_control import suite
                from shimmy.dm_control_compatibility import DmControlCompatibilityV0
        finally:
            gym.registry.update(ours)
    except ModuleNotFoundError as error:
        needs = f"needs dm_control and Shimmy, of which {error.name!r} is missing"
        raise missing_extra(f"env {env_id!r} {needs}", "dmc", DOCS) from error
    return suite, DmControlCompatibilityV0


register_envs()
