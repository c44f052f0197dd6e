"""New hyper-parameters reach models, exploit copies what it says, and callbacks, logs and spaces are SB3's."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_erl import PBT, Choice, IntUniform, LogUniform, Uniform, register
from sb3_erl.core.parameters import read_parameters
from sb3_erl.core.registry import PARTS
from sb3_erl.populations.applying import Scaled
from sb3_erl.populations.exploit import BinaryTournament, GeneticExploit, Truncation
from sb3_erl.populations.explore import Perturb, Resample
from sb3_erl.populations.member import end_episode, unpacked
from sb3_erl.populations.selection import acting_network
from tests.contract.helpers import Witness, differences, snapshot
from tests.envs import ImageEnv, ToyEnv, toy_vec_env
from tests.populations.settings import SHORT, contents, environment, make

# -------------------------------------------------------------------- what a new value becomes

READ: list[tuple[str, str, Any, Any]] = [
    ("ppo", "learning_rate", 0.003, lambda model: model.lr_schedule(0.5)),
    ("ppo", "clip_range", 0.35, lambda model: model.clip_range(0.5)),
    ("ppo", "clip_range_vf", 0.25, lambda model: model.clip_range_vf(0.5)),
    ("ppo", "gamma", 0.9, lambda model: model.rollout_buffer.gamma),
    ("ppo", "gae_lambda", 0.8, lambda model: model.rollout_buffer.gae_lambda),
    ("ppo", "n_steps", 32, lambda model: model.rollout_buffer.buffer_size),
    ("ppo", "n_epochs", 5, lambda model: model.n_epochs),
    ("ppo", "batch_size", 8, lambda model: model.batch_size),
    ("a2c", "ent_coef", 0.02, lambda model: model.ent_coef),
    ("trpo", "target_kl", 0.02, lambda model: model.target_kl),
    ("sac", "ent_coef", 0.3, lambda model: float(model.ent_coef_tensor)),
    ("tqc", "target_entropy", -3.0, lambda model: model.target_entropy),
    ("sac", "tau", 0.02, lambda model: model.tau),
    ("sac", "train_freq", 2, lambda model: model.train_freq.frequency),
    ("sac", "gradient_steps", 3, lambda model: model.gradient_steps),
    ("td3", "target_policy_noise", 0.4, lambda model: model.target_policy_noise),
    ("td3", "policy_delay", 3, lambda model: model.policy_delay),
    ("dqn", "exploration_final_eps", 0.2, lambda model: model.exploration_schedule(0.0)),
    ("dqn", "exploration_fraction", 0.5, lambda model: model.exploration_schedule.end_fraction),
    ("ars", "delta_std", 0.2, lambda model: model.delta_std_schedule(0.5)),
    ("td7", "exploration_noise", 0.25, lambda model: model.exploration_noise),
    ("crossq", "learning_starts", 20, lambda model: model.learning_starts),
]


def knob_around(value: Any) -> Any:
    """A dimension with a value inside."""
    return IntUniform(value - 1, value) if isinstance(value, int) else Uniform(value, value + 0.01)


@pytest.mark.parametrize(("key", "name", "value", "read"), READ, ids=[f"{row[0]}-{row[1]}" for row in READ])
def test_a_new_value_reaches_a_model_that_was_trained(key: str, name: str, value: Any, read: Any) -> None:
    first = value - 1 if isinstance(value, int) else value + 0.01
    few = {**SHORT, "pop_size": 2, "n_report_episodes": 0}
    model = make(key, search_space={name: knob_around(value)}, initial_hyperparameters=[{name: first}] * 2, **few)
    model.learn(2 * 32)
    state = model._members[0]
    again = unpacked(type(state)(state.model, {name: value}, state.buffer, state.statistics), model.recipe, model.env)
    assert read(again) == pytest.approx(value)
    again.learn(32, reset_num_timesteps=False)
    assert read(again) == pytest.approx(value)


def test_n_step_returns_are_discounted_by_the_new_gamma() -> None:
    kwargs = {"buffer_size": 500, "learning_starts": 10, "batch_size": 16, "n_steps": 3}
    model = make("sac", algorithm_kwargs=kwargs, search_space={"gamma": Choice([0.9, 0.99])}).learn(300)
    for number in range(3):
        member = model.individual(number)
        assert isinstance(member.replay_buffer, NStepReplayBuffer) and member.replay_buffer.size() > 0
        assert member.replay_buffer.gamma == member.gamma == model._members[number].hyperparameters["gamma"]


def test_a_schedule_is_scaled_and_follows_the_whole_run() -> None:
    seen: list[float] = []

    class Noting(A2C):
        def train(self) -> None:
            super().train()
            seen.append(self.policy.optimizer.param_groups[0]["lr"])

    rates: dict[str, Any] = {"learning_rate": Choice([0.01, 0.02])}
    common: dict[str, Any] = {"explore": "none", "exploit": "none", "initial_hyperparameters": [{"learning_rate": 0.02}] * 3}
    model = make(
        "a2c", algorithm=Noting, algorithm_kwargs={"n_steps": 16}, learning_rate=linear, search_space=rates, **common
    ).learn(900)
    assert model.n_generations > 2
    assert seen[0] == pytest.approx(0.02 * (1 - 16 / 300)) and max(seen) < 0.02
    assert seen[-1] == min(seen) < 1e-3, "steps of evaluations are progress, too, so the schedule ends with the run"
    assert Scaled(linear, 0.02)(0.5) == pytest.approx(0.01)


def linear(progress_remaining: float) -> float:
    """A user's schedule."""
    return 0.001 * progress_remaining


# -------------------------------------------------------------------- exploit and explore


def test_truncation_copies_the_best_over_the_worst() -> None:
    scores = np.array([5.0, 1.0, 9.0, 3.0, 8.0, 2.0, 7.0, 6.0, 4.0, 0.0])
    parents = Truncation(0.2)(scores, np.random.default_rng(0))
    assert [i for i, parent in enumerate(parents) if parent != i] == [1, 9]
    assert {parents[1], parents[9]} <= {2, 4}


def test_a_tournament_is_won_by_the_higher_score() -> None:
    scores = np.array([1.0, 2.0])
    assert BinaryTournament()(scores, np.random.default_rng(0)) == [1, 1]
    assert BinaryTournament()(np.array([1.0, 1.0]), np.random.default_rng(0)) == [0, 1]


def test_values_stay_inside_their_space() -> None:
    rng = np.random.default_rng(0)
    space: dict[str, Any] = {
        "a": LogUniform(1e-4, 1e-2),
        "b": Uniform(0.0, 1.0),
        "c": IntUniform(1, 9),
        "d": Choice([1, 2, 4]),
        "e": Choice(["one", None]),
    }
    values = {name: knob.sample(rng) for name, knob in space.items()}
    for explore in (Perturb(), Perturb(resample_prob=0.5), Perturb((0.5, 3.0)), Resample(0.5)):
        seen = []
        for _ in range(100):
            values = explore(values, space, rng)
            assert all(space[name].holds(value) for name, value in values.items())
            seen.append(tuple(values.values()))
        assert len(set(seen)) > 20


def test_members_take_over_weights_buffers_and_hyper_parameters() -> None:
    def trained(**kwargs: Any) -> Any:
        return make("sac", VecNormalize(environment("sac")), explore="none", **kwargs).learn(3 * 48)

    model = trained()
    (loser,) = [i for i, parent in enumerate(model.born_of) if parent != i]
    winner = model.born_of[loser]
    first, second = model.individual(loser), model.individual(winner)
    assert differences(snapshot(first), snapshot(second)) == []
    assert model._members[loser] == model._members[winner] and model.champion == winner
    apart = trained(copy_replay_buffer=False, copy_normalizer=False)
    assert apart.born_of == model.born_of
    different = differences(snapshot(apart.individual(loser)), snapshot(apart.individual(winner)))
    assert different and all(name.startswith("replay_buffer.") for name in different), "weights and optimizer are copied"
    assert (
        apart._members[loser].statistics["obs_rms"].mean.tolist() != apart._members[winner].statistics["obs_rms"].mean.tolist()
    )


@pytest.mark.parametrize("key", ["ppo", "sac", "dqn", "ars"])
def test_the_genetic_algorithm_crosses_weights(key: str) -> None:
    kwargs = {
        "exploit": "ga",
        "exploit_kwargs": {"elite_fraction": 0.3, "tournament_size": 2, "crossover_prob": 1.0},
        "pop_size": 6,
        **SHORT,
    }
    policy = {} if key == "ars" else {"policy_kwargs": {"net_arch": [8]}}
    plain, crossed = (make(key, **{**kwargs, **policy, **more}) for more in ({"exploit": "none", "exploit_kwargs": None}, {}))
    before, after = plain.learn(6 * 32), crossed.learn(6 * 32)
    vectors = [read_parameters(acting_network(before.individual(i))).numpy() for i in range(6)]
    children = [read_parameters(acting_network(after.individual(i))).numpy() for i in range(6)]
    changed = [i for i in range(6) if not np.array_equal(vectors[i], children[i])]
    assert changed
    everything = np.stack(vectors)
    for i in changed:
        assert (children[i] == everything).any(axis=0).all(), "each number comes from a member"
    assert any(not (children[i] == everything).all(axis=1).any() for i in changed), "and some children have two parents"
    if key == "ars":
        member = after.individual(changed[0])
        assert th.equal(member.weights, th.nn.utils.parameters_to_vector(member.policy.parameters()).detach())


def test_the_genetic_algorithm_needs_no_weights_to_say_who_is_copied() -> None:
    parents = GeneticExploit(elite_fraction=0.3)(np.arange(6.0), np.random.default_rng(0))
    assert len(parents) == 6 and 5 in parents


def test_parts_of_ones_own() -> None:
    calls = []

    def champion_for_all(scores: np.ndarray, rng: np.random.Generator) -> list[int]:
        calls.append(scores)
        return [int(np.argmax(scores))] * len(scores)

    register("exploit", "champion_for_all", champion_for_all)
    try:
        model = make("ppo", exploit="champion_for_all", explore=lambda values, space, rng: dict(values)).learn(300)
    finally:
        del PARTS["exploit"]["champion_for_all"]
    assert len(calls) == model.n_generations and len(set(model.born_of)) == 1
    with pytest.raises(ValueError, match="exploit must give a place in 0 to 2 for each of 3 members"):
        make("ppo", exploit=lambda scores, rng: [7, 7, 7]).learn(150)


# -------------------------------------------------------------------- callbacks, logs, spaces


def test_callbacks_and_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    model = make("ppo", tensorboard_log=str(tmp_path))
    evaluation = EvalCallback(environment("ppo"), eval_freq=100, n_eval_episodes=1, verbose=0)
    witness = Witness()
    model.learn(500, CallbackList([evaluation, witness]), progress_bar=True)
    assert evaluation.n_calls == len(witness.counts) == model.num_timesteps >= 500
    assert len(witness.generation_ends) == witness.n_begun == model.n_generations
    curves = EventAccumulator(str(tmp_path / "PBT_1")).Reload()
    names = set(curves.Tags()["scalars"])
    assert {f"member_{i}/{part}" for i in range(3) for part in ("score", "learning_rate", "gamma")} <= names
    assert len(curves.Scalars("member_1/learning_rate")) == model.n_generations
    assert {"population/champion_return", "population/fitness_max", "rollout/ep_rew_mean"} <= names


def test_scores_of_training_episodes() -> None:
    model = make("ppo", score="training", n_eval_episodes=3).learn(3 * 48)
    assert model.num_timesteps == 3 * 48 and np.isfinite(model.lineage().score).all()
    member = model.individual(model.champion)
    last = [info["r"] for info in list(member.ep_info_buffer)[-3:]]
    assert model.lineage().score.max() == pytest.approx(np.mean(last))


def test_reports_are_of_other_episodes_than_scores() -> None:
    model = make("ppo", n_report_episodes=2).learn(150)
    assert model.champion_return != model.lineage().score.max()


class Several(ToyEnv):
    """:class:`ToyEnv` with two switches in place of a box of actions."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.action_space = spaces.MultiDiscrete([2, 3])


def goals() -> gym.Env:
    """A goal environment."""
    return BitFlippingEnv(n_bits=4, continuous=True)


HER = {"replay_buffer_class": HerReplayBuffer, "buffer_size": 500, "learning_starts": 20, "batch_size": 16, "train_freq": 4}


@pytest.mark.parametrize(
    ("key", "policy", "env", "kwargs"),
    [
        ("ppo", "MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False, discrete_actions=False), {"n_steps": 16}),
        (
            "dqn",
            "MultiInputPolicy",
            lambda: SimpleMultiObsEnv(random_start=False),
            {"buffer_size": 200, "learning_starts": 20},
        ),
        ("a2c", "CnnPolicy", lambda: ImageEnv(), {"n_steps": 16}),
        ("ppo", "MlpPolicy", lambda: Several(), {"n_steps": 16}),
        ("sac", "MultiInputPolicy", goals, HER),
    ],
    ids=["dict", "dict-buffer", "images", "multi-discrete", "her"],
)
def test_observations_and_actions_of_any_form(key: str, policy: str, env: Any, kwargs: dict[str, Any]) -> None:
    common: dict[str, Any] = {"pop_size": 2, "ready_steps": 32, "n_eval_episodes": 1, "n_report_episodes": 1, "seed": 1}
    model = PBT(policy, env(), algorithm=key, algorithm_kwargs=kwargs, device="cpu", **common).learn(130)
    assert set(model.lineage().outcome) == {"trained"} and model.n_generations >= 1
    observation = model.env.reset()  # type: ignore[union-attr]
    action, _ = model.predict(observation, deterministic=True)
    assert model.action_space.contains(action[0])
    assert type(model.individual(0)).__name__.lower() == key


def test_populations_are_copied_and_pickled() -> None:
    model = make("sac").learn(150)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert differences(contents(model), contents(again)) == []


def test_members_in_memory_have_no_bytes_for_what_their_buffers_do_not_hold_yet() -> None:
    model = make("sac", algorithm_kwargs={"buffer_size": 200_000, "learning_starts": 100}).learn(100)
    assert all(len(state.buffer) < 50_000 for state in model._members)
    buffer = model.individual(0).replay_buffer
    assert len(buffer.observations) == 200_000 and buffer.size() == buffer.pos > 0 and buffer.rewards[: buffer.pos].any()


def test_several_environments() -> None:
    """An environment that has played its share of an evaluation goes on unseen: its steps do not count, nor its episodes."""
    counts: dict[bool, list[int]] = {True: [0], False: [0]}
    ends: list[int] = []

    def look(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        is_evaluation, total = variables["is_evaluation"], variables["self"].num_timesteps
        counts[is_evaluation].append(total - sum(counts[True]) - sum(counts[False]))
        ends.append(int(variables["dones"].sum()) if is_evaluation else 0)
        return True

    model = make("ppo", toy_vec_env(3, vary=3), n_eval_episodes=2).learn(300, look)
    assert model.n_envs == 3 and set(model.lineage().num_timesteps % 3) == {0}
    assert set(counts[False][1:]) == {3} and set(counts[True][1:]) == {1, 2}
    assert sum(ends) == 2 * 3 * model.n_generations


def test_export(tmp_path: Path) -> None:
    assert make("td7").learn(150).export(tmp_path / "champion.pt").exists()
    with pytest.raises(ValueError, match=r"export\(\) needs members of a class of this package, such as 'td7'; got PPO"):
        make("ppo").export(tmp_path / "champion.pt2")


@pytest.mark.parametrize("saves_memory", [True, False])
def test_an_episode_that_a_generation_cut_does_not_go_on_in_the_next(saves_memory: bool) -> None:
    kwargs: Any = {"optimize_memory_usage": saves_memory, "handle_timeout_termination": not saves_memory}
    buffer = ReplayBuffer(10, spaces.Box(-99, 99, (1,)), spaces.Box(-1, 1, (1,)), "cpu", **kwargs)

    def add(first: float, following: float) -> None:
        buffer.add(*(np.full((1, 1), x) for x in (first, following)), np.zeros((1, 1)), np.ones(1), np.zeros(1), [{}])

    add(0, 1)
    add(1, 2)
    end_episode(buffer)
    add(77, 78)
    sample = buffer._get_samples(np.array([1]))
    value_counts = 1 - float(sample.dones)
    assert (value_counts, float(sample.next_observations)) == ((0, 77) if saves_memory else (1, 2)), "never a value of 77"
