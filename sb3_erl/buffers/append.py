"""Appending the steps of a rollout to SB3's replay buffers, which have one column (``n_envs=1``) here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_erl.buffers.lap import DictLAPReplayBuffer, LAPReplayBuffer
from sb3_erl.buffers.rollout_steps import TRUNCATED, Steps, Transition
from sb3_erl.core.observations import Observation, take


def append_steps(buffer: ReplayBuffer, steps: Steps) -> None:
    """
    Append the steps of a rollout, with the content that adding its transitions one by one would give.

    Whole arrays are copied where the class of the buffer is in :data:`AFTER_COPY`. Any other class, also a subclass of one of
    these, may do something of its own in ``add`` and gets one call per transition.

    :param buffer: any replay buffer with ``n_envs=1``
    :param steps: of one rollout
    """
    if not is_written_directly(buffer):
        append_one_by_one(buffer, steps)
        return
    timeouts = np.array([info.get(TRUNCATED, False) for info in steps.infos], dtype=np.float32)
    after_copy = AFTER_COPY[type(buffer)]
    start = 0
    while start < len(steps):
        n = min(len(steps) - start, buffer.buffer_size - buffer.pos)
        rows, taken = slice(buffer.pos, buffer.pos + n), slice(start, start + n)
        _copy_rows(buffer.observations, rows, take(steps.observations, taken))
        _copy_rows(buffer.next_observations, rows, take(steps.observations, slice(start + 1, start + n + 1)))
        buffer.actions[rows] = steps.actions[taken].reshape(n, 1, -1)
        buffer.rewards[rows, 0] = steps.rewards[taken]
        buffer.dones[rows] = 0
        if buffer.handle_timeout_termination:
            buffer.timeouts[rows, 0] = timeouts[taken]
        elif isinstance(buffer, NStepReplayBuffer):
            buffer.timeouts[rows] = 0
        after_copy(buffer, rows)
        start += n
        if start == len(steps) and steps.done:
            is_done = _is_stored_as_done(buffer, steps[-1])
            buffer.dones[rows.stop - 1] = is_done
            if isinstance(buffer, NStepReplayBuffer) and not is_done:  # the returns of the next rollout must not be added
                buffer.timeouts[rows.stop - 1] = 1
        buffer.full = buffer.full or rows.stop == buffer.buffer_size
        buffer.pos = rows.stop % buffer.buffer_size


def is_written_directly(buffer: ReplayBuffer) -> bool:
    """
    :param buffer: any replay buffer
    :return: whether whole arrays are copied into it; of infos only time limits are read then
    """
    return type(buffer) in AFTER_COPY and not buffer.optimize_memory_usage


GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
"""Keys of the observations of an environment with goals."""
BufferClass = type[ReplayBuffer] | None
"""Class of a replay buffer; ``None`` for SB3's choice."""


def buffer_class_for(space: spaces.Space, choice: BufferClass, n_steps: int = 1) -> BufferClass:
    """
    :param space: of observations
    :param choice: class of a replay buffer, ``None`` for SB3's choice
    :param n_steps: length of n-step returns
    :return: the class, for Dict observations in the form for these; ``None`` for SB3's choice
    :raises ValueError: if it keeps observations of the other kind, or SB3 has none for such returns
    """
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and n_steps > 1:
        raise ValueError(
            f"n_steps must be 1 with Dict observations, for which SB3 has no replay buffer of n-step returns; got {n_steps}. "
            "Or wrap the env in gymnasium.wrappers.FlattenObservation"
        )
    if choice is None:
        return None
    if is_dict and choice is LAPReplayBuffer:
        return DictLAPReplayBuffer
    if issubclass(choice, DictReplayBuffer) != is_dict:
        right = "DictReplayBuffer, HerReplayBuffer or DictLAPReplayBuffer" if is_dict else "ReplayBuffer or LAPReplayBuffer"
        raise ValueError(
            f"replay_buffer_class must be one for {'Dict observations' if is_dict else 'observations in one array'}, such as "
            f"{right}; got {choice.__name__} with observation_space={space}"
        )
    if issubclass(choice, HerReplayBuffer) and not set(GOAL_KEYS) <= set(space):  # type: ignore[call-overload]
        raise ValueError(
            f"replay_buffer_class=HerReplayBuffer needs an env with goals, whose observations have the keys {GOAL_KEYS} and "
            f"which has the method compute_reward; got observation_space={space}. Use DictReplayBuffer"
        )
    return choice


def store_for_networks(buffer: ReplayBuffer | None, observation_space: spaces.Space, normalizes: bool) -> None:
    """
    Give the arrays of a replay buffer the dtypes in which nothing is lost that networks see; what it holds stays.

    Actions of a box are the networks' own output, float32, also where the box is one of float16 or whole numbers. What
    ``VecNormalize`` will normalize keeps the float64 of its space: a small difference of large numbers, which rounding would
    destroy, may be a large one after that.

    :param buffer: new or from a file, or ``None``
    :param observation_space: of the environment
    :param normalizes: whether observations are normalized when they are drawn
    """
    if buffer is None:
        return

    def of_type(array: np.ndarray, dtype: Any) -> np.ndarray:
        # zeros take no memory before they are written, a converted array takes all of it at once
        return array.astype(dtype, copy=False) if buffer.size() > 0 else np.zeros(array.shape, dtype)

    if isinstance(buffer.action_space, spaces.Box) and buffer.actions.dtype != np.float32:
        buffer.actions = of_type(buffer.actions, np.float32)
    if normalizes and isinstance(buffer, LAPReplayBuffer) and observation_space.dtype == np.float64:
        buffer.observations = of_type(buffer.observations, np.float64)
        buffer.next_observations = of_type(buffer.next_observations, np.float64)


def append_one_by_one(buffer: ReplayBuffer, steps: Steps) -> None:
    """
    Append the steps of a rollout by one call of ``buffer.add`` each; slow, but right for every replay buffer.

    :param buffer: any replay buffer with ``n_envs=1``
    :param steps: of one rollout
    """
    for step in steps:
        observation, following = take(step.observation, None), take(step.next_observation, None)
        done = step.done and _is_stored_as_done(buffer, step)
        buffer.add(observation, following, step.action[None], np.array([step.reward]), np.array([done]), [step.info])  # type: ignore[arg-type]
        if isinstance(buffer, NStepReplayBuffer) and not buffer.handle_timeout_termination:
            buffer.timeouts[(buffer.pos - 1) % buffer.buffer_size] = step.done and not done


def _copy_rows(stored: np.ndarray | dict[str, np.ndarray], rows: slice, observations: Observation) -> None:
    """Write observations into the rows of a buffer with one column."""
    if isinstance(stored, dict):
        assert isinstance(observations, dict)
        for key, array in stored.items():
            _copy_rows(array, rows, observations[key])
    else:
        assert isinstance(observations, np.ndarray)
        stored[rows] = observations.reshape(len(observations), 1, *stored.shape[2:])


def _no_more(buffer: ReplayBuffer, rows: slice) -> None:
    """Nothing is kept beside the arrays."""


def _give_highest_priority(buffer: ReplayBuffer, rows: slice) -> None:
    assert isinstance(buffer, LAPReplayBuffer)
    for tree in buffer.trees:
        tree.append(np.arange(rows.start, rows.stop))


AFTER_COPY: dict[type[ReplayBuffer], Callable[[ReplayBuffer, slice], None]] = {
    ReplayBuffer: _no_more,
    NStepReplayBuffer: _no_more,
    DictReplayBuffer: _no_more,
    LAPReplayBuffer: _give_highest_priority,
    DictLAPReplayBuffer: _give_highest_priority,
}
"""The classes whose arrays are written directly, and what follows for the rows that were written."""


def _is_stored_as_done(buffer: ReplayBuffer, last: Transition) -> bool:
    """Whether the last step of a rollout is stored as done; without this a cut rollout would look terminal to some buffers."""
    keeps_time_limits = buffer.handle_timeout_termination or buffer.optimize_memory_usage
    return keeps_time_limits or "terminal_observation" in last.info
