"""Images that virtual batch normalization refers to, collected by random actions before the first generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.policies.es_pixels import PixelActor
from sb3_erl.rollouts.jobs import Job, Summarizer

NOBODY = 2**32 - 1
"""Stands where the number of a candidate would in the address of an episode of random actions."""


class RandomActions:
    """
    An :class:`~sb3_erl.rollouts.jobs.Explorer` that takes uniformly random actions instead of the policy's.

    :param space: discrete actions, or a box with finite bounds
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
        assert isinstance(self.space, spaces.Box)
        return self._rng.uniform(self.space.low, self.space.high).astype(action.dtype).reshape(action.shape)


class ReferenceBatchMixin(EvolutionaryAlgorithm):
    """
    Collects the reference batch of a :class:`~sb3_erl.policies.es_pixels.PixelActor`.

    uber-research/deep-neuroevolution, ``es_distributed/policies.py: get_ref_batch``: the image after each step of episodes of
    random actions. Difference: these steps count as steps of the run, and callbacks see them. The images depend on the seed
    of the run only; they are collected once in the life of a model.
    """

    _reference_images: list[np.ndarray] | None = None
    """Those collected so far, while they are being collected."""

    def _collect_reference(self, callback: BaseCallback) -> bool:
        """
        To be called at the beginning of a generation.

        :param callback: called at every vector step
        :return: ``False`` if a callback or the budget stopped it
        """
        deployed = self.policy.deployed
        if not isinstance(deployed, PixelActor) or not deployed.needs_reference:
            return True
        actor, n_images, episode = self._population_actor(read_parameters(deployed)[None]), deployed.n_reference, 0
        images: list[np.ndarray] = []
        self._reference_images = images
        while len(images) < n_images:
            job = Job(0, episode, n_images - len(images), RandomActions(self.action_space), NOBODY)
            if self._evaluate([job], actor, callback, is_first=episode == 0, is_last=False) is None:
                return False
            episode += 1
        callback.on_rollout_end()
        deployed.set_reference(th.as_tensor(np.stack(images)))
        return True

    @property
    def summarizer(self) -> Summarizer | None:
        """See :class:`~sb3_erl.rollouts.jobs.Recorder`; images are taken from the steps themselves."""
        return super().summarizer if self._reference_images is None else None

    def store(self, job: Job, summary: Any) -> None:
        """Keep the images that follow random actions."""
        if self._reference_images is not None:
            self._reference_images += list(summary.observations[1:])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_reference_images"]
