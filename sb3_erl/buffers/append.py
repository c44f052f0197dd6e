"""Rollouts into SB3's replay buffers, which have one column here."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.buffers.rollout_steps import TRUNCATED, Steps, Transition


def store_transition(buffer: ReplayBuffer, step: Transition) -> None:
    """
    Add one transition.

    :param buffer: any replay buffer with ``n_envs=1``
    :param step: to be added
    """
    row = (step.observation[None], step.next_observation[None], step.action[None])
    done = step.done and _is_stored_as_done(buffer, step)
    buffer.add(*row, np.array([step.reward]), np.array([done]), [step.info])


def store_steps(buffer: ReplayBuffer, steps: Steps) -> None:
    """
    Add the steps of a rollout; the same as adding its transitions one by one, but in one go where the buffer's ``add`` is
    SB3's own.

    :param buffer: any replay buffer with ``n_envs=1``
    :param steps: of one rollout
    """
    is_lap = type(buffer).add is LAPReplayBuffer.add
    if buffer.optimize_memory_usage or not (is_lap or type(buffer).add is ReplayBuffer.add) or "add" in vars(buffer):
        for transition in steps:
            store_transition(buffer, transition)
        return
    timeouts = np.array([info.get(TRUNCATED, False) for info in steps.infos], dtype=np.float32)
    start = 0
    while start < len(steps):
        n = min(len(steps) - start, buffer.buffer_size - buffer.pos)
        rows, taken = slice(buffer.pos, buffer.pos + n), slice(start, start + n)
        observations = steps.observations[start : start + n + 1].reshape(n + 1, 1, *buffer.obs_shape)
        buffer.observations[rows], buffer.next_observations[rows] = observations[:-1], observations[1:]
        buffer.actions[rows] = steps.actions[taken].reshape(n, 1, -1)
        buffer.rewards[rows, 0] = steps.rewards[taken]
        buffer.dones[rows] = 0
        if buffer.handle_timeout_termination:
            buffer.timeouts[rows, 0] = timeouts[taken]
        if isinstance(buffer, LAPReplayBuffer):
            for tree in buffer.trees:
                tree.append(np.arange(rows.start, rows.stop))
        start += n
        if start == len(steps) and steps.done:
            buffer.dones[rows.stop - 1] = _is_stored_as_done(buffer, steps[-1])
        buffer.full = buffer.full or rows.stop == buffer.buffer_size
        buffer.pos = rows.stop % buffer.buffer_size


def _is_stored_as_done(buffer: ReplayBuffer, last: Transition) -> bool:
    """A rollout that was cut did not end, which a buffer may not be able to tell from the info."""
    knows = buffer.handle_timeout_termination or buffer.optimize_memory_usage
    return knows or "terminal_observation" in last.info
