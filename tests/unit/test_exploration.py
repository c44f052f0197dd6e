"""When random numbers of exploration are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.noise import NormalActionNoise

from sb3_erl.rollouts.exploration import EpsilonGreedyExploration, NoiseExploration


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


def greedy(epsilon: float, seed: int, n_steps: int = 2000) -> np.ndarray:
    explorer, action = EpsilonGreedyExploration(4, epsilon), np.array([3.0], dtype=np.float32)
    explorer.begin(np.random.SeedSequence(seed))
    taken = [explorer(np.zeros(3), action) for _ in range(n_steps)]
    assert action.tolist() == [3.0], "the greedy action is only read"
    assert all(one.dtype == np.float32 and one.shape == (1,) for one in taken)
    return np.concatenate(taken)


def test_epsilon_greedy_draws_from_the_address() -> None:
    first = greedy(0.4, seed=1)
    assert np.array_equal(first, greedy(0.4, seed=1)) and not np.array_equal(first, greedy(0.4, seed=2))
    shares = np.bincount(first.astype(int), minlength=4) / len(first)
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.7], abs=0.03)
    assert set(greedy(0.0, seed=1)) == {3.0}
    assert np.bincount(greedy(1.0, seed=1).astype(int)) / 2000 == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_actions": 0, "epsilon": 0.1}, "n_actions must be at least 1"),
        ({"n_actions": 2, "epsilon": 1.5}, "epsilon must be at least 0 and at most 1; got 1.5"),
    ],
)
def test_epsilon_greedy_out_of_range(kwargs: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EpsilonGreedyExploration(**kwargs)  # type: ignore[arg-type]


def test_epsilon_falls_within_an_episode() -> None:
    explorer, greedy = EpsilonGreedyExploration(1000, 0.9, fall=0.1, final_epsilon=0.2), np.array([-1.0], dtype=np.float32)
    taken = np.zeros(12)
    for seed in range(2000):
        explorer.begin(np.random.SeedSequence(seed))  # which begins again at 0.9
        taken += [explorer(None, greedy)[0] != -1 for _ in range(12)]
    expected = np.maximum(0.9 - 0.1 * np.arange(12), 0.2)
    assert np.allclose(taken / 2000, expected, atol=0.04)
    with pytest.raises(ValueError, match="fall"):
        EpsilonGreedyExploration(2, 0.5, fall=-0.1)
