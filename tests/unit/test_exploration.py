"""When random numbers of exploration are drawn."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise

from sb3_erl.rollouts.exploration import NoiseExploration


class FadingNoise(NormalActionNoise):
    """A user's noise, which is smaller each time, and says how often it was asked."""

    asked = 0

    def __call__(self) -> np.ndarray:
        type(self).asked += 1
        return super().__call__() / self.asked


def test_noise_of_a_users_class_is_drawn_when_it_is_needed() -> None:
    explorer = NoiseExploration(FadingNoise(np.zeros(2), np.ones(2)))
    explorer.begin(np.random.SeedSequence(1))
    for step in range(1, 6):
        explorer(np.zeros(3), np.zeros(2, dtype=np.float32))
        assert FadingNoise.asked == step
