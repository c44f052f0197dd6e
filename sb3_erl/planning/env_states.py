"""From an observation to the state of the environment that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from sb3_erl.planning.base import single_env


class EnvStates:
    """The environments that an agent may be asked to plan in, beside its own."""

    def __init__(self) -> None:
        self.others: list[VecEnv] = []
        self._seen: tuple[bytes, np.ndarray] | None = None

    def add(self, env: VecEnv) -> None:
        """
        :param env: a ``VecEnv`` of one environment in this process
        :raises TypeError: if it is no ``VecEnv``
        :raises ValueError: if there are several in it, or it is in another process
        """
        if not isinstance(env, VecEnv):
            raise TypeError(
                f"env must be a VecEnv, whose last observation is known; got {env!r}. Use DummyVecEnv([lambda: env])"
            )
        single_env(env)
        self.others.append(env)

    def forget(self) -> None:
        """The agent has another environment now."""
        self._seen = None

    def state_of(self, model: Any, own: VecEnv, observation: np.ndarray) -> Any:
        """
        :param model: a simulator
        :param own: the environment of the agent, whose user may also step what is inside the ``VecEnv``
        :param observation: one, as the environment shows it
        :return: the state of the environment that shows it, see :meth:`~sb3_erl.planning.base.PlanningModel.sync`
        :raises ValueError: if it is of another environment, as far as that can be told
        """
        for env in (own, *self.others):
            if np.array_equal(shown(env), observation):  # type: ignore[arg-type]
                return model.sync(env)
        state = model.sync(own)
        now = _fingerprint(state)
        if now and self._seen is not None and self._seen[0] == now and not np.array_equal(self._seen[1], observation):
            raise ValueError(
                "observation must be the current one of the environment that the agent plans in: the state of its env has "
                "not changed since the last call of predict(), but the observation has. Call set_env(env), or add_env(env) "
                "with the one that is stepped"
            )
        self._seen = (now, observation.copy())
        return state


def shown(env: VecEnv) -> np.ndarray | None:
    """
    :return: the last observation that an environment gave, as its outermost wrapper shows it; ``None`` if that is not
        known
    """
    wrappers: list[VecEnvWrapper] = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    observations: Any = env.buf_obs if isinstance(env, DummyVecEnv) else {}
    observation = observations.get(None)  # a Dict space has other keys
    if observation is None:
        return None
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, VecNormalize):
            observation = wrapper.normalize_obs(observation)
        elif isinstance(wrapper, VecTransposeImage):
            observation = observation if wrapper.skip else wrapper.transpose_observations(observation)
        elif wrapper.observation_space != wrapper.venv.observation_space:
            return None
    return observation[0]


def evaluated_in(callback: BaseCallback) -> Iterator[VecEnv]:
    """:return: environments in which callbacks test the agent, such as ``EvalCallback``'s"""
    children = [getattr(callback, "callback", None), *getattr(callback, "callbacks", [])]
    for child in children:
        if isinstance(child, BaseCallback):
            yield from evaluated_in(child)
    env = getattr(callback, "eval_env", None)
    if isinstance(env, VecEnv):
        yield env


def _fingerprint(state: Any) -> bytes:
    """:return: something that is equal for equal states; empty if there is no such thing"""
    data = getattr(state, "data", None)
    if data is not None:
        return b"".join(np.asarray(part).tobytes() for part in (data.time, data.qpos, data.qvel))
    try:
        return cloudpickle.dumps(state)
    except Exception:  # a simulator of the user's may have any state
        return b""
