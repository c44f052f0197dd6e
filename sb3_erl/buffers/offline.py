"""Learning from recorded data: fills a model's replay buffer from a Minari dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import maybe_transpose

from sb3_erl.core.action_spaces import ActsInSpace
from sb3_erl.core.extras import missing_extra


def fill_replay_buffer(model: OffPolicyAlgorithm, dataset: Any) -> int:
    """
    Add every transition of a dataset to a model's replay buffer.

    Works with every off-policy class of SB3 and of this package; :class:`~sb3_erl.TD7` with ``offline=True`` then learns
    from the buffer alone. Time limits are stored as truncations. Needs the extra ``offline`` (``pip install
    'sb3-erl[offline]'``) where ``dataset`` is an id.

    :param model: a model with a replay buffer of one environment
    :param dataset: a ``minari.MinariDataset``, the id of one that is on this machine, or an iterable of its episodes
        (``observations (T + 1, ...)``, ``actions (T, ...)`` in the environment's units, ``rewards``, ``terminations`` and
        ``truncations (T,)``)
    :return: number of transitions added
    :raises ValueError: if the spaces do not match, the buffer has several environments, or it is too small for the data; for a
        class of SB3's, also if discrete actions do not count from 0
    :raises ImportError: if ``dataset`` is an id and Minari is not installed
    """
    buffer = model.replay_buffer
    if buffer is None or buffer.n_envs != 1:
        raise ValueError(
            "model must have the replay buffer of a single environment to be filled from a dataset; got "
            f"{'none' if buffer is None else f'one for n_envs={buffer.n_envs}'}. Create the model with one environment"
        )
    episodes = _episodes(dataset)
    total, n_before, n_added = getattr(dataset, "total_steps", None), buffer.size(), 0
    beside = f" beside the {n_before} that it holds" if n_before else ""
    if total is not None and int(total) + n_before > buffer.buffer_size:
        raise ValueError(
            f"buffer_size must be at least the {int(total)} steps of the dataset{beside}; got {buffer.buffer_size}"
        )
    for episode in episodes:
        observations = maybe_transpose(np.asarray(episode.observations), model.observation_space)
        actions = np.asarray(episode.actions)
        _check_shapes(model, observations, actions)
        stored = _as_stored(model, actions)
        for t in range(len(actions)):
            over = bool(episode.terminations[t])
            cut = bool(episode.truncations[t]) or (t + 1 == len(actions) and not over)  # no step of another one follows
            if n_before + n_added == buffer.buffer_size:
                raise ValueError(
                    f"buffer_size must be at least the number of steps in the dataset{beside}; got {buffer.buffer_size}"
                )
            buffer.add(
                observations[t][None],
                observations[t + 1][None],
                stored[t][None],
                np.array([episode.rewards[t]]),
                np.array([over or cut]),
                [{"TimeLimit.truncated": cut and not over}],
            )
            n_added += 1
    return n_added


class LoadDataset(BaseCallback):
    """
    Fill the replay buffer when training begins, so that a YAML file of the Zoo can name the dataset.

    A buffer that holds transitions already, as that of a resumed run, is left as it is.

    :param dataset: see :func:`fill_replay_buffer`, whose errors it raises
    :param verbose: 1 to print how many transitions there are
    """

    def __init__(self, dataset: Any, verbose: int = 0):
        super().__init__(verbose)
        self.dataset = dataset

    def _on_training_start(self) -> None:
        model: Any = self.model
        if model.replay_buffer is None or model.replay_buffer.size() == 0:
            n_added = fill_replay_buffer(model, self.dataset)
            if self.verbose:
                print(f"{n_added} transitions of the dataset are in the replay buffer")

    def _on_step(self) -> bool:
        return True


def _episodes(dataset: Any) -> Iterable[Any]:
    if isinstance(dataset, str):
        try:
            import minari
        except ImportError as error:
            raise missing_extra("ids of datasets need Minari", "offline") from error
        dataset = minari.load_dataset(dataset)
    return dataset.iterate_episodes() if hasattr(dataset, "iterate_episodes") else dataset


def _check_shapes(model: OffPolicyAlgorithm, observations: np.ndarray, actions: np.ndarray) -> None:
    wanted = (model.observation_space.shape, model.action_space.shape)
    found = (observations.shape[1:], actions.shape[1:])
    if wanted != found:
        raise ValueError(
            f"dataset must have observations of shape {wanted[0]} and actions of shape {wanted[1]}, as the model's "
            f"environment has; got {found[0]} and {found[1]}"
        )


def _as_stored(model: OffPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """:return: actions as the model stores its own: scaled to [-1, 1], or numbers of choices that count from 0"""
    space = model.action_space
    if isinstance(space, spaces.Box):
        is_fixed = space.high == space.low  # 0 of 0 in SB3's scaling
        with np.errstate(invalid="ignore"):
            return np.where(is_fixed, np.zeros_like(actions), model.policy.scale_action(actions))
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"model must have Box or Discrete actions to be filled from a dataset; got {space}. A gymnasium.ActionWrapper can "
            "number all combinations"
        )
    if space.start != 0 and not isinstance(model.policy, ActsInSpace):
        raise ValueError(
            f"model must have actions that count from 0, since {type(model).__name__} acts so; got {space}. Use a class of "
            "this package that takes Discrete actions, or subtract the start in a gymnasium.ActionWrapper and in the dataset"
        )
    numbers = actions.astype(np.int64) - int(space.start)
    if ((numbers < 0) | (numbers >= space.n)).any():
        raise ValueError(
            f"dataset must have actions of {space}, from {space.start} to {space.start + space.n - 1}, as the model's "
            f"environment has; got {actions.min()} to {actions.max()}"
        )
    return numbers
