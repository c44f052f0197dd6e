"""MuJoCo's own rollouts in C, with the reward as a function of states: the fast way to plan in a simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from mujoco import rollout as mujoco_rollout

from sb3_erl.core.checks import check_range
from sb3_erl.planning.base import PlanningModel, episode_length, layers_of, physics_of, planned_env, single_env, steps_left

RewardFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""States, sensors and actions of whole sequences in, rewards ``(n_candidates, n_steps)`` out, see :class:`RolloutModel`."""
FULL_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


@dataclass(frozen=True)
class PhysicsState:
    """
    Where sequences start.

    :param full: ``(n_state,)``, MuJoCo's ``mjSTATE_FULLPHYSICS``: time, positions, velocities and so on
    :param warm_start: ``(nv,)``, the solver's
    :param steps_left: environment steps to the time limit, ``None`` if there is no limit
    """

    full: np.ndarray
    warm_start: np.ndarray
    steps_left: int | None


class RolloutModel(PlanningModel):
    """
    All sequences at once by ``mujoco.rollout`` in C, over threads.

    The environment's ``step`` is not called, so its reward has to be written as a function of states. Actions must be MuJoCo's
    controls: no wrapper may change them. Nothing is written into the environment.

    :param env: a MuJoCo environment of Gymnasium's or of dm_control; ``None``: it is given later, by :meth:`sync`
    :param reward_fn: ``reward_fn(states, sensors, actions) -> rewards (n_candidates, n_steps)``, 0 after the end of an
        episode. ``states (n_candidates, n_steps + 1, n_state)`` are ``mjSTATE_FULLPHYSICS`` (the time, ``nq`` positions,
        ``nv`` velocities, ...), the first one that of now, the others after each environment step; ``sensors (n_candidates,
        n_steps, nsensordata)`` were computed in the last simulation step of each environment step, from the state before it.
        ``None``: :func:`locomotion_reward` of the environment
    :param n_threads: threads that share the sequences, at least 1
    :raises ValueError: if ``env`` is no MuJoCo environment, or its actions are no controls, or no reward is known for it
    """

    is_simulator = True

    def __init__(self, env: Any = None, reward_fn: RewardFunction | None = None, n_threads: int = 1):
        check_range("n_threads", n_threads, 1, integer=True)
        if reward_fn is not None and not callable(reward_fn):
            raise TypeError(f"reward_fn must be None or a function of states, sensors and actions; got {reward_fn!r}")
        self.n_threads, self.reward_fn = n_threads, reward_fn
        self.env: gym.Env | None = None
        if env is not None:
            self._bind(env)

    def _bind(self, env: Any) -> None:
        inner = planned_env(single_env(env))
        if inner is self.env:
            return
        physics = physics_of(layers_of(inner))
        if physics is None:
            raise ValueError(f"env must be a MuJoCo environment for mujoco.rollout; got {inner}. Use SimulatorModel(env)")
        own, base = inner.action_space, inner.unwrapped.action_space
        if not isinstance(own, gym.spaces.Box) or own != base or own.shape != (physics[0].nu,):
            raise ValueError(
                f"env must have MuJoCo's controls as actions, with no wrapper that changes them; got {own} and "
                f"{physics[0].nu} controls. Use SimulatorModel(env)"
            )
        self._reward = locomotion_reward(inner) if self.reward_fn is None else self.reward_fn
        self.env, self.episode_length = inner, episode_length(inner)
        self._model, self._data, self._frame_skip = physics
        self._scratch = [mujoco.MjData(self._model) for _ in range(self.n_threads)]
        self._pool = mujoco_rollout.Rollout(nthread=self.n_threads if self.n_threads > 1 else 0)

    def sync(self, env: Any = None) -> PhysicsState:
        """
        :param env: environment in which actions will be executed from now on, that of the last call if ``None``
        :return: its state
        :raises ValueError: if there is no environment, or it is not a single MuJoCo environment in this process
        """
        if env is not None:
            self._bind(env)
        if self.env is None:
            raise ValueError("env must be given to a RolloutModel before it plans: RolloutModel(env), or model.sync(env)")
        full = np.empty(mujoco.mj_stateSize(self._model, FULL_PHYSICS))
        mujoco.mj_getState(self._model, self._data, full, FULL_PHYSICS)
        return PhysicsState(full, self._data.qacc_warmstart.copy(), steps_left(self.env))

    def rollout(self, state: PhysicsState, actions: np.ndarray) -> np.ndarray:
        """
        :param state: where all sequences start
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``, 0 after a time limit
        :raises ValueError: if the reward function returns another shape
        """
        assert self.env is not None
        actions = actions.astype(self.env.action_space.dtype)
        n_candidates, n_steps, _ = actions.shape
        states, sensors = self._pool.rollout(
            self._model,
            self._scratch,
            np.repeat(state.full[None], n_candidates, axis=0),
            np.repeat(actions, self._frame_skip, axis=1).astype(np.float64),
            initial_warmstart=np.repeat(state.warm_start[None], n_candidates, axis=0),
        )
        last = slice(self._frame_skip - 1, None, self._frame_skip)  # simulation step with which an environment step ends
        first = np.repeat(state.full[None, None], n_candidates, axis=0)
        rewards = np.asarray(self._reward(np.concatenate([first, states[:, last]], axis=1), sensors[:, last], actions))
        if rewards.shape != (n_candidates, n_steps):
            raise ValueError(f"reward_fn must return rewards of shape ({n_candidates}, {n_steps}); got {rewards.shape}")
        if state.steps_left is not None and state.steps_left < n_steps:
            rewards = np.where(np.arange(n_steps) < max(state.steps_left, 0), rewards, 0.0)
        return rewards

    def close(self) -> None:
        """Stop the threads; the next :meth:`sync` with an environment starts new ones."""
        if self.env is not None:
            self._pool.close()
            self.env = None

    def __getstate__(self) -> dict[str, Any]:
        return {"n_threads": self.n_threads, "reward_fn": self.reward_fn, "env": None}


def locomotion_reward(env: gym.Env) -> RewardFunction:
    """
    The rewards of Gymnasium's planar runners as functions of states, with the weights of the environment.

    :param env: HalfCheetah or Swimmer (v4, v5), Hopper or Walker2d (v5)
    :return: reward function for :class:`RolloutModel`
    :raises ValueError: if it is another environment
    """
    inner: Any = env.unwrapped
    name, is_v4 = type(inner).__name__, type(inner).__module__.endswith("_v4")
    if name not in ("HalfCheetahEnv", "SwimmerEnv") and (name not in ("HopperEnv", "Walker2dEnv") or is_v4):
        raise ValueError(
            "reward_fn must be given: rewards are known as functions of states for HalfCheetah and Swimmer, and for Hopper-v5 "
            f"and Walker2d-v5; got {env}"
        )
    dt, n_positions = float(inner.dt), int(inner.model.nq)

    def moving(states: np.ndarray, sensors: np.ndarray, actions: np.ndarray) -> np.ndarray:
        velocity = np.diff(states[..., 1], axis=1) / dt
        return inner._forward_reward_weight * velocity - inner._ctrl_cost_weight * np.square(actions).sum(axis=2)

    def staying_up(states: np.ndarray, sensors: np.ndarray, actions: np.ndarray) -> np.ndarray:
        is_up = _is_healthy(inner, states[:, 1:, 1 : 1 + n_positions + inner.model.nv])
        rewards = moving(states, sensors, actions) + inner._healthy_reward * is_up
        if not inner._terminate_when_unhealthy:
            return rewards
        fallen = np.cumsum(~is_up, axis=1) - ~is_up  # falls before this step
        return np.where(fallen == 0, rewards, 0.0)

    return moving if name in ("HalfCheetahEnv", "SwimmerEnv") else staying_up


def _is_healthy(env: Any, states: np.ndarray) -> np.ndarray:
    """:return: for states ``(..., nq + nv)`` whether the walker stands upright, as Gymnasium decides it"""
    ranges = [(states[..., 1], env._healthy_z_range), (states[..., 2], env._healthy_angle_range)]
    healthy = np.logical_and.reduce([(low < value) & (value < high) for value, (low, high) in ranges])
    if hasattr(env, "_healthy_state_range"):
        low, high = env._healthy_state_range
        healthy &= ((low < states[..., 2:]) & (states[..., 2:] < high)).all(axis=-1)
    return healthy
