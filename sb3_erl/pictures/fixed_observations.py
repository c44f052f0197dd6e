"""A few observations of the beginning of a run, on which individuals are compared throughout."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_erl.core.observations import Observation, copied, take


class FixedObservations:
    """
    So many observations, evenly spaced over the steps of the first generation that was seen.

    While they are collected the spacing doubles whenever there are twice as many as wanted, so that the number of steps need
    not be known.

    :param n: how many
    """

    def __init__(self, n: int):
        self.n = n
        self.batch: Observation | None = None
        """``(n, *obs_shape)`` as networks see them; ``None`` before :meth:`complete`, and if none are wanted."""
        self._seen: list[Observation] = []
        self._spacing, self._n_steps = 1, 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is to be collected any longer."""
        return self.batch is not None or self.n == 0

    def look(self, observations: Observation) -> None:
        """:param observations: ``(n_envs, *obs_shape)`` of a vector step, of which the first is kept if it is the time"""
        if self._n_steps % self._spacing == 0:
            self._seen.append(copied(take(observations, 0)))
            if len(self._seen) >= 2 * self.n:
                self._seen, self._spacing = self._seen[::2], 2 * self._spacing
        self._n_steps += 1

    def complete(self, space: spaces.Space) -> None:
        """
        The first generation is over: keep what was seen; where workers report no observations, draw some of the space.

        :param space: of the observations
        """
        if self.is_complete:
            return
        if not self._seen:
            space = copy.deepcopy(space)
            space.seed(0)
            self._seen = [space.sample() for _ in range(self.n)]
        places = np.linspace(0, len(self._seen) - 1, min(self.n, len(self._seen))).astype(int)
        chosen: list[Any] = [self._seen[i] for i in places]
        if isinstance(chosen[0], dict):
            self.batch = {key: np.stack([row[key] for row in chosen]) for key in chosen[0]}
        else:
            self.batch = np.stack(chosen)
        self._seen = []

    def state(self) -> dict[str, Any]:
        """:return: what a checkpoint keeps"""
        return {"batch": self.batch}

    def restore(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`state`"""
        self.batch = state["batch"]
