"""What callbacks find when they see the steps of a generation, and what becomes of it when they say stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import PBT
from sb3_erl.populations.episodes import Steps
from tests.contract.helpers import Tables, Witness, differences, snapshot
from tests.envs import toy_vec_env
from tests.populations.settings import contents, environment, make


class Weights(BaseCallback):
    """Notes at each step the weights with which ``predict`` acts, the generation and the statistics of the environments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, dict[str, np.ndarray], float]] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        normalizer = model.get_vec_normalize_env()
        count = 0.0 if normalizer is None else normalizer.obs_rms.count
        self.seen.append((model.n_generations, weights(model), count))
        return True


def weights(model: Any) -> dict[str, np.ndarray]:
    """Copies of the weights of a model's policy."""
    return {name: value.numpy().copy() for name, value in model.policy.state_dict().items()}


def test_the_steps_of_a_generation_are_seen_with_its_champion() -> None:
    model, witness = make("ppo", VecNormalize(environment("ppo"))), Weights()
    untrained = weights(model)
    model.learn(300, witness)
    assert model.n_generations == 2 and {generation for generation, *_ in witness.seen} == {1, 2}
    last = [[entry for entry in witness.seen if entry[0] == generation] for generation in (1, 2)]
    for entries in last:
        assert all(differences(entries[0][1], other[1]) == [] and entries[0][2] == other[2] for other in entries)
    assert differences(untrained, last[0][0][1]) and differences(last[0][0][1], last[1][0][1])
    assert differences(weights(model), last[1][0][1]) == [] and model.env.obs_rms.count == last[1][0][2]


@pytest.mark.parametrize("sizes", [{"pop_size": 2, "ready_steps": 10_000}, {"pop_size": 8, "ready_steps": 20}])
def test_an_evaluation_at_the_end_of_the_budget_measures_what_was_trained(sizes: dict[str, Any], tmp_path: Path) -> None:
    """As ``rl_zoo3 train -optimize`` does, with populations that make but one generation, too."""
    env = toy_vec_env(vary=3)
    evaluation = EvalCallback(env, eval_freq=200, n_eval_episodes=3, best_model_save_path=str(tmp_path), verbose=0)
    model = make("a2c", **sizes)
    untrained = weights(model)
    model.learn(200, evaluation)
    assert evaluation.last_mean_reward == evaluation.best_mean_reward > -np.inf
    best = PBT.load(tmp_path / "best_model", environment("a2c"), device="cpu")
    assert differences(weights(best), weights(model)) == [] and differences(weights(best), untrained)
    different = differences(contents(best), contents(model))
    assert different in ([], ["own._episode_num"]), "with the members and the steps of the generation"


def test_a_callback_that_says_stop_ends_training_with_the_generation() -> None:
    """The generation was whole when its steps were shown, so it is kept and all of its steps count."""
    whole = make("ppo").learn(300)
    witness = Witness()
    model = make("ppo")
    tables = Tables(model)
    model.learn(900, [StopTrainingOnMaxEpisodes(30), witness])
    assert model.n_generations == whole.n_generations == 2 == len(tables.column("population/fitness_max"))
    assert model.num_timesteps == whole.num_timesteps > witness.counts[-1], "steps that callbacks have not seen"
    assert len(witness.generation_ends) == 1
    states = [[snapshot(model.individual(i)) for i in range(3)] for model in (whole, model)]
    assert [differences(*pair) for pair in zip(*states, strict=True)] == [[], [], []]
    assert model.learn(50, reset_num_timesteps=False).n_generations == 3


def test_training_stops_with_the_model_that_reached_the_threshold() -> None:
    env = toy_vec_env()
    evaluation = EvalCallback(env, StopTrainingOnRewardThreshold(-1e9), eval_freq=50, n_eval_episodes=2, verbose=0)
    evaluation.callback_on_new_best.parent = evaluation  # type: ignore[union-attr]
    model = make("ppo").learn(900, evaluation)
    assert model.n_generations == 1 and model.num_timesteps < 300
    env.seed(0)
    first = evaluate_policy(model, env, 2)[0]
    env.seed(0)
    assert first == pytest.approx(evaluate_policy(model.individual(model.champion), env, 2)[0], abs=1.0)
    assert differences(weights(model), weights(model.individual(model.champion))) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_of_a_callback_loses_no_step_and_no_member(error: type[BaseException]) -> None:
    def fail(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if variables["self"].num_timesteps == 50:
            raise error
        return True

    whole, model = make("ppo").learn(50), make("ppo")
    with pytest.raises(error):
        model.learn(50, fail)
    assert differences(snapshot(whole.individual(0)), snapshot(model.individual(0))) == []
    assert (model.num_timesteps, model.n_generations) == (whole.num_timesteps, 1)


def test_members_without_a_score_act_as_they_were_trained() -> None:
    """Where no training episode has ended yet, the champion stays the same member, with its weights of now."""
    model, witness = make("ppo", toy_vec_env(length=1000), score="training", n_report_episodes=0), Weights()
    untrained = weights(model)
    model.learn(2 * 3 * 48, witness)
    assert model.n_generations == 2 and model.lineage().score.isna().all() and model.champion == 0
    assert differences(weights(model), weights(model.individual(0))) == [] and differences(weights(model), untrained)
    assert all(differences(untrained, seen) for _, seen, _ in witness.seen)


def test_steps_are_counted_when_the_selection_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    add = Steps.add

    def count_and_add(steps: Steps, count: int, *rest: Any) -> None:
        counts.append(count)
        add(steps, count, *rest)

    monkeypatch.setattr(Steps, "add", count_and_add)
    model = make("ppo", exploit=lambda scores, rng: [9, 9, 9])
    with pytest.raises(ValueError, match="exploit must give a place"):
        model.learn(100)
    assert model.num_timesteps == sum(counts) > 3 * 48 and model.n_generations == 0
