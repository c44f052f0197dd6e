"""Images that virtual batch normalization refers to, collected by random actions before the first generation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.generation import Generation
from sb3_erl.policies.es_pixels import PixelActor
from sb3_erl.rollouts.jobs import Job, Summarizer

NO_CANDIDATE = 2**32 - 1
"""In the address of an episode of random actions, in place of the number of a candidate."""


class RandomActions:
    """
    An :class:`~sb3_erl.rollouts.jobs.Explorer` that takes uniformly random actions instead of the policy's.

    :param space: of actions, with finite bounds
    """

    def __init__(self, space: spaces.Space):
        self.space = space
        self._rng = np.random.default_rng(0)

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :meth:`Explorer.begin`."""
        self._rng = np.random.default_rng(sequence)

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """:return: ``(action_dim,)`` in the units of the action space"""
        if isinstance(self.space, spaces.Discrete):
            return np.array([self._rng.integers(self.space.n)], dtype=action.dtype)
        if isinstance(self.space, spaces.MultiDiscrete | spaces.MultiBinary):
            n_choices = self.space.nvec.ravel() if isinstance(self.space, spaces.MultiDiscrete) else 2
            return self._rng.integers(n_choices, size=action.shape).astype(action.dtype)
        assert isinstance(self.space, spaces.Box)
        return self._rng.uniform(self.space.low, self.space.high).astype(action.dtype).reshape(action.shape)


class ImageStore:
    """
    Keeps the images that follow actions, while they are being collected; a
    :class:`~sb3_erl.engine.rollout_phase.StepStore`.
    """

    summarizer: Summarizer | None = None
    reads_infos = False

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def store(self, job: Job, summary: Steps) -> None:
        """See :class:`~sb3_erl.engine.rollout_phase.StepStore`."""
        self.images += list(summary.observations[1:])


def collect_reference(model: Any, generation: Generation, networks: Iterable[Any] = ()) -> bool:
    """
    Collect the reference batch of a :class:`~sb3_erl.policies.es_pixels.PixelActor`, if the deployed network needs one.

    uber-research/deep-neuroevolution, ``es_distributed/policies.py: get_ref_batch``: the image after each step of episodes of
    random actions. Difference: these steps count as steps of the run, and callbacks see them. The images depend on the seed
    of the run only; they are collected once in the life of a model.

    :param model: of pure evolution
    :param generation: in which it is done
    :param networks: further networks that get the same batch
    :return: ``False`` if a callback or the budget stopped it
    """
    deployed = model.policy.deployed
    if not isinstance(deployed, PixelActor) or not deployed.needs_reference:
        return True
    actor, n_images, episode = model.population.act(read_parameters(deployed)[None]), deployed.n_reference, 0
    store, callback = ImageStore(), generation.callback
    while len(store.images) < n_images:
        job = Job(0, episode, n_images - len(store.images), RandomActions(model.action_space), NO_CANDIDATE)
        if model.rollouts.run([job], actor, callback, store, is_first=episode == 0, is_last=False) is None:
            return False
        episode += 1
    callback.on_rollout_end()
    images = th.as_tensor(np.stack(store.images))
    for network in (deployed, *networks):
        network.set_reference(images)
    return True
