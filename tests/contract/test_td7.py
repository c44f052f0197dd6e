"""What TD7 promises beside what SB3 promises: assessments, checkpoints, replay buffers, warm-up, offline learning."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS, TD7
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from tests.contract.helpers import Accountant, Tables, Witness, differences, snapshot, tensors, transitions
from tests.contract.settings import LEARNERS, STEPWISE, make
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(5).uniform(-1, 1, (4, 3)).astype(np.float32)
LATE = {"updates_before_late_phase": 40}


def live_actions(model: Any, observations: np.ndarray = OBSERVATIONS) -> np.ndarray:
    """Actions of the live actor in [-1, 1]."""
    with th.no_grad():
        return model.actor(th.as_tensor(observations)).numpy()


# ------------------------------------------------------------------ steps and updates


@pytest.mark.parametrize("settings", [{}, LATE, {"use_checkpoints": False}], ids=["early", "late", "no checkpoints"])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_every_step_of_the_policy_has_its_update_or_waits_for_it(n_envs: int, settings: dict[str, Any]) -> None:
    accountant = Accountant()
    model = make("td7", toy_vec_env(n_envs, vary=5), **settings).learn(90, accountant)
    model.learn(61, accountant)  # counts anew, but the warm-up is over
    accountant.check()
    assert accountant.n_policy_steps >= 151 - 4 * 13 and model._n_updates > 50
    assert model.assessment_state["is_late"] == (settings is LATE)


def test_warm_up_lasts_to_the_end_of_the_episode_and_is_uniform() -> None:
    model = make("td7", learning_starts=100, exploration_noise=0.0).learn(110)
    actions, observations = model.replay_buffer.actions[:110, 0], model.replay_buffer.observations[:110, 0]
    assert np.allclose(actions[104:], live_actions(model, observations[104:]), atol=1e-6)
    assert not np.isclose(actions[96:104], live_actions(model, observations[96:104]), atol=1e-3).any()
    assert np.abs(actions[:104]).max() < 1 and abs(np.square(actions[:104]).mean() - 1 / 3) < 0.1
    assert model.assessment.untrained_steps == 6 and model._n_updates == 0


@pytest.mark.parametrize("n_envs", [1, 2])
def test_action_noise_of_the_user_replaces_ours_but_not_the_warm_up(n_envs: int) -> None:
    noise = NormalActionNoise(np.array([5.0, -5.0]), np.zeros(2))
    model = make("td7", toy_vec_env(n_envs), action_noise=noise, exploration_noise=0.0).learn(60)
    actions = model.replay_buffer.actions[: model.replay_buffer.size()]
    first = 16 // n_envs
    assert (actions[first:] == [1.0, -1.0]).all() and np.abs(actions[:first]).max() < 1


# ------------------------------------------------------------------ checkpoints


class Diary(BaseCallback):
    """At each step: deterministic actions, those of the live actor, how many assessments ended which way."""

    def __init__(self) -> None:
        super().__init__()
        self.deployed: list[np.ndarray] = []
        self.live: list[np.ndarray] = []
        self.outcomes: list[tuple[int, int]] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        self.deployed.append(model.policy.deployed(th.as_tensor(OBSERVATIONS)).detach().numpy())
        assert np.allclose(2 * self.deployed[-1], model.predict(OBSERVATIONS, deterministic=True)[0], atol=1e-6)
        self.live.append(live_actions(model))
        assert np.allclose(2 * self.live[-1], model.predict(OBSERVATIONS, deterministic=False)[0], atol=1e-6)
        self.outcomes.append((model.assessment_state["n_accepted"], model.assessment_state["n_rejected"]))
        return True


def test_predict_changes_with_accepted_assessments_only() -> None:
    diary = Diary()
    make("td7").learn(150, diary)
    for before, after in itertools.pairwise(range(150)):
        accepted, rejected = np.subtract(diary.outcomes[after], diary.outcomes[before])
        frozen = np.array_equal(diary.live[before], diary.live[after])
        assert frozen == (accepted + rejected == 0), "the live policy is frozen during an assessment"
        expected = diary.live[before] if accepted else diary.deployed[before]
        assert np.array_equal(diary.deployed[after], expected), "the policy that was tried, before it is trained"
    assert diary.outcomes[-1][0] >= 2 and diary.outcomes[-1][1] >= 2


def test_deploy_learner_acts_with_the_live_actor() -> None:
    model = make("td7", deploy="learner").learn(60)
    assert model.assessment_state["n_accepted"] > 0
    assert np.allclose(model.predict(OBSERVATIONS, deterministic=True)[0], 2 * live_actions(model), atol=1e-6)
    assert not np.allclose(live_actions(model), live_actions(make("td7")), atol=1e-6)


def test_without_checkpoints_it_learns_after_each_step() -> None:
    updates: list[int] = []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        updates.append(variables["self"]._n_updates)
        return True

    model = make("td7", toy_vec_env(2), use_checkpoints=False).learn(60, keep)
    assert updates == [0] * 9 + list(range(2, 44, 2)) and model._n_updates == 44
    assert np.allclose(model.predict(OBSERVATIONS, deterministic=True)[0], 2 * live_actions(model), atol=1e-6)
    assert model.assessment_state["n_accepted"] == model.assessment_state["n_rejected"] == 0
    with pytest.raises(ValueError, match=r"deploy.*learner"):
        make("td7", use_checkpoints=False, deploy="checkpoint")


@pytest.mark.parametrize("name", STEPWISE)
def test_no_updates_but_assessments_with_gradient_steps_zero(name: str) -> None:
    model = make(name, gradient_steps=0)
    before = tensors(model)
    model.learn(80)
    changed = differences(before, tensors(model))
    assert model._n_updates == 0 and model.assessment.untrained_steps == 0
    assert all("deployed" in key for key in changed), "no network learned"
    if name == "td7":
        assert model.assessment_state["n_accepted"] + model.assessment_state["n_rejected"] == 8
    else:
        assert model.winner is not None, "all individuals act and phase 2 begins"
        own_steps = [member.own_steps for member in model.members]
        assert max(own_steps) - min(own_steps) <= 8 + (80 - 60 - 4)


@pytest.mark.parametrize(("settings", "expected"), [({}, 3 * 8), ({"use_checkpoints": False}, 3 * 64)])
def test_gradient_steps_per_training_call(settings: dict[str, Any], expected: int) -> None:
    model = make("td7", gradient_steps=3, **settings).learn(80)
    assert model._n_updates == expected and model.assessment.untrained_steps == 0


def test_many_gradient_steps_do_not_jump_over_the_late_phase() -> None:
    model = make("td7", gradient_steps=25, updates_before_late_phase=10).learn(24)
    assert model._n_updates == 25 and model.assessment_state["is_late"]
    assert model.assessment.n_episodes == 3


# ------------------------------------------------------------------ the rule of assessment


def section_6(episodes: list[tuple[int, float]], late: int, switch: int, weight: float) -> list[tuple[Any, ...]]:
    """The authors' rule as the paper's code runs it, update by update."""
    k, bar, worst, eps, waiting, n = 1, -1e8, 1e8, 0, 0, 0
    seen: list[tuple[Any, ...]] = []
    for length, total in episodes:
        eps, waiting, worst = eps + 1, waiting + length, min(worst, total)
        outcome = "reject" if worst < bar else "accept" if eps == k else None
        if outcome is not None:
            bar = worst if outcome == "accept" else bar
            for _ in range(waiting):
                if n == switch:
                    bar, k = bar * weight, late
                n += 1
            eps, waiting, worst = 0, 0, 1e8
        seen.append((outcome, k, bar, eps, waiting, n))
    return seen


@pytest.mark.parametrize("seed", range(20))
def test_with_one_environment_it_is_the_authors_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    episodes = [(int(rng.integers(1, 9)), float(rng.integers(-9, 10))) for _ in range(80)]
    switch, late = int(rng.integers(0, 150)), int(rng.integers(1, 5))
    assessment = Assessment({}, AssessmentSettings(1, late, switch, 0.8))
    n_updates, seen = 0, []
    for length, total in episodes:
        assessment.begin(0)
        for _ in range(length):
            assert assessment.outcome is None
            assessment.step(1)
        assert assessment.finish(0, total)
        outcome = assessment.outcome
        n_updates += 0 if outcome is None else assessment.close(outcome, n_updates)
        n_finished = assessment.state["n_finished"]
        seen.append((outcome, assessment.n_episodes, assessment.score, n_finished, assessment.untrained_steps, n_updates))
    assert seen == section_6(episodes, late, switch, 0.8)
    assert {outcome for outcome, *_ in seen} >= {"accept", "reject"}


def test_episodes_count_in_the_order_of_starts() -> None:
    assessment = Assessment({}, AssessmentSettings(early_episodes=3), n_envs=2)
    assessment.begin(0)
    assessment.begin(1)
    for total in (3.0, 2.0):  # the second environment is faster, its second episode is the last that counts
        assessment.step(2)
        assert assessment.finish(1, total) and assessment.outcome is None
        assessment.begin(1)
    assessment.step(2)
    assert not assessment.finish(1, -100.0), "its third episode does not count"
    assessment.begin(1)
    assert assessment.outcome is None, "the slow episode is waited for"
    assessment.step(2)
    assert assessment.finish(0, 5.0) and assessment.outcome == "accept"
    assessment.begin(0)
    assert assessment.close("accept", 0) == 8 and assessment.score == 2.0
    assessment.step(2)
    assert not assessment.finish(1, -100.0), "it ran while the weights changed"
    assert not assessment.finish(0, -100.0), "so did the one that had begun before the outcome"
    assert assessment.untrained_steps == 2 and assessment.outcome is None, "but its steps wait for updates"


def test_at_least_one_episode_per_environment_and_one_bad_one_is_enough() -> None:
    assessment = Assessment({}, AssessmentSettings(early_episodes=1), n_envs=3)
    for env in range(3):
        assessment.begin(env)
    for env, expected in ((2, None), (0, None), (1, "accept")):
        assert assessment.finish(env, 4.0 + env) and assessment.outcome == expected
    assessment.close("accept", 0)
    for env in range(3):
        assessment.begin(env)
    assert assessment.finish(1, 4.0) and assessment.outcome is None, "an equal return survives"
    assert assessment.finish(0, 3.9) and assessment.outcome == "reject"
    assessment.close("reject", 0)
    assert assessment.score == 4.0 and assessment.state["n_rejected"] == 1


def test_another_episode_counts_in_place_of_an_interrupted_one() -> None:
    state: dict[str, Any] = {}
    assessment = Assessment(state, AssessmentSettings(early_episodes=2))
    assessment.begin(0)
    assessment.finish(0, 1.0)
    assessment.begin(0)
    assessment.step(5)
    for again in (assessment, Assessment(state, assessment.settings)):  # the same one, and one from a file
        again.abandon(0)
        again.begin(0)
        assert (again.state["n_finished"], again.untrained_steps, again.outcome) == (1, 5, None)
    assert again.finish(0, 2.0) and again.outcome == "accept"


@pytest.mark.parametrize("n_envs", [2, 3])
def test_an_episode_that_counts_was_played_by_one_policy(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("td7", toy_vec_env(n_envs, vary=5))
    begun_at, counted_after, passed_over = np.full(n_envs, -1), [], []
    begin, finish = model.assessment.begin, model.assessment.finish

    def begins(env: int) -> None:
        begun_at[env] = model._n_updates
        begin(env)

    def finishes(env: int, total_reward: float) -> bool:
        counts = finish(env, total_reward)
        (counted_after if counts else passed_over).append(model._n_updates - begun_at[env])
        return counts

    monkeypatch.setattr(model.assessment, "begin", begins)
    monkeypatch.setattr(model.assessment, "finish", finishes)
    model.learn(200)
    assert set(counted_after) == {0} and len(counted_after) > 5
    assert max(passed_over) > 0, "there were episodes with a change of weights in them"


@pytest.mark.parametrize(("rule", "score", "expected"), [("scale", -75, -67.5), ("relax", -75, -82.5), ("relax", 75, 67.5)])
def test_reset_rules(rule: Any, score: float, expected: float) -> None:
    assessment = Assessment({}, AssessmentSettings(1, 4, 10, 0.9, rule))
    for n_updates, late in ((0, False), (5, False), (10, True)):
        assessment.begin(0)
        assessment.step(5)
        assessment.finish(0, score)
        assessment.close("accept", n_updates)
        assert (assessment.state["is_late"], assessment.n_episodes) == (late, 4 if late else 1)
        assert assessment.score == pytest.approx(expected if late else score)
    model = make("td7", checkpoint_reset_rule=rule, checkpoint_reset_weight=0.5)
    assert (model.assessment.settings.reset_rule, model.assessment.settings.reset_weight) == (rule, 0.5)


# ------------------------------------------------------------------ files

CONTINUE = """
import sys
import numpy as np
from sb3_erl import ALGOS
from tests.contract.helpers import snapshot
from tests.envs import toy_vec_env
name, folder, n_steps = sys.argv[1:]
model = ALGOS[name].load(folder + "/model", env=toy_vec_env(vary=5))
model.load_replay_buffer(folder + "/buffer")
model.learn(int(n_steps), reset_num_timesteps=False)
np.savez(folder + "/snapshot.npz", **snapshot(model))
"""


@pytest.mark.parametrize("name", STEPWISE)
def test_continued_in_another_process(name: str, tmp_path: Path) -> None:
    """Saved in mid-episode and in phase 1, also with assessments of several episodes."""
    model = make(name, toy_vec_env(vary=5), **LATE).learn(54)
    assert model.assessment.untrained_steps > 0, "in the middle of an assessment"
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    words = [sys.executable, "-c", CONTINUE, name, str(tmp_path), "70"]
    folder = Path(__file__).parents[2]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    model.learn(70, reset_num_timesteps=False)
    with np.load(tmp_path / "snapshot.npz") as theirs:
        assert differences(snapshot(model), dict(theirs)) == []
    assert model._n_updates > 40
    assert name == "td7" or model.winner is not None


@pytest.mark.parametrize("name", STEPWISE)
def test_continued_with_several_environments(name: str, tmp_path: Path) -> None:
    straight = make(name, toy_vec_env(3, vary=5)).learn(80)
    straight.save(tmp_path / "model")
    straight.save_replay_buffer(tmp_path / "buffer")
    resumed = ALGOS[name].load(tmp_path / "model", env=toy_vec_env(3, vary=5))
    resumed.load_replay_buffer(tmp_path / "buffer")
    for model in (straight, resumed):
        model.learn(70, reset_num_timesteps=False)
    assert differences(snapshot(straight), snapshot(resumed)) == []


# ------------------------------------------------------------------ replay buffers


def test_lap_serves_td3_of_sb3(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"learning_starts": 10, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    model = TD3("MlpPolicy", toy_vec_env(2), replay_buffer_class=LAPReplayBuffer, buffer_size=100, seed=0, **kwargs)
    model.learn(160)
    buffer: Any = model.replay_buffer
    assert model._n_updates == 75 and buffer.full and buffer.trees[0].size == 100
    assert buffer.trees[0].priority.tolist() == [1.0] * 100, "nobody writes priorities, so all are equal"
    np.random.seed(0)
    buffer.sample(2000)
    assert len(np.unique(buffer._drawn)) == 100
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(20, reset_num_timesteps=False)


def test_td7_writes_priorities_for_each_environment() -> None:
    model = make("td7", toy_vec_env(2), lap_min_priority=0.01, buffer_size=60).learn(150)
    buffer = model.replay_buffer
    assert buffer.buffer_size == 30 and buffer.full and buffer.trees[0].capacity == 60
    for column in range(2):
        assert len(np.unique(buffer.trees[0].priority[column::2])) > 10
    batch = buffer.sample(64)
    rows, columns = np.divmod(buffer._drawn, 2)
    assert np.array_equal(batch.rewards[:, 0].numpy(), buffer.rewards[rows, columns])
    assert np.array_equal(batch.actions.numpy(), buffer.actions[rows, columns])


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", STEPWISE)
@pytest.mark.parametrize("buffer_class", [ReplayBuffer, NStepReplayBuffer])
def test_other_buffers_have_no_priorities(name: str, buffer_class: Any, n_envs: int, tmp_path: Path) -> None:
    kwargs = {"n_steps": 3, "gamma": 0.9} if buffer_class is NStepReplayBuffer else None
    model = make(name, toy_vec_env(n_envs), replay_buffer_class=buffer_class, replay_buffer_kwargs=kwargs, gamma=0.9)
    tables = Tables(model)
    model.learn(60, log_interval=1)
    assert type(model.replay_buffer) is buffer_class and model._n_updates > 0
    assert tables.column("train/critic_loss") and not tables.column("train/max_priority")
    batch = model._sample(32)
    prepared = model.learner._prepare(batch)
    discounts = th.full((32, 1), 0.9) if batch.discounts is None else batch.discounts
    assert th.allclose(prepared.discounts, discounts * (1 - batch.dones))
    assert (len(discounts.unique()) > 1) == (buffer_class is NStepReplayBuffer)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env(n_envs))
    assert type(loaded.replay_buffer) is buffer_class and loaded.replay_buffer_class is buffer_class


# ------------------------------------------------------------------ warnings, rates, offline


@pytest.mark.parametrize("name", STEPWISE)
def test_warns_of_statistics_that_move_under_a_checkpoint(name: str) -> None:
    with pytest.warns(UserWarning, match=r"norm_obs=False") as caught:
        make(name, VecNormalize(toy_vec_env())).learn(5)
    assert [warning.filename for warning in caught] == [__file__], "once, and it points to the user's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, VecNormalize(toy_vec_env(), norm_obs=False)).learn(5)
        make("td7", VecNormalize(toy_vec_env()), use_checkpoints=False).learn(5)


@pytest.mark.parametrize("name", STEPWISE)
def test_learning_rates(name: str) -> None:
    rates = {"learning_rate": 1e-3, "encoder_lr": 2e-3, "actor_lr": 0.0}
    model = make(name, **rates)
    actor = model.actor
    before = [parameter.clone() for parameter in actor.parameters()]
    model.learn(100)
    used = {key: optimizer.param_groups[0]["lr"] for key, optimizer in model.learner.optimizers.items()}
    assert used == {"encoder.optimizer": 2e-3, "critic.optimizer": 1e-3, "actor.optimizer": 0.0}
    assert all(th.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True)) and model._n_updates > 50


def test_offline_it_learns_from_the_buffer_alone(tmp_path: Path) -> None:
    make("td7").learn(60).save_replay_buffer(tmp_path / "buffer")
    env, witness = toy_vec_env(), Witness()
    model = make("td7", env, offline=True)
    with pytest.raises(ValueError, match=r"replay_buffer.*empty"):
        model.learn(10)
    model.load_replay_buffer(tmp_path / "buffer")
    stored = transitions(model)
    model.learn(12, witness)
    assert env.get_attr("n_steps") == [0] and model._n_updates == model.num_timesteps == 12
    assert witness.counts == list(range(1, 13))
    model.learn(50, Witness(stop_at=3))
    assert model._n_updates == 15
    assert np.allclose(model.predict(OBSERVATIONS, deterministic=True)[0], 2 * live_actions(model), atol=1e-6)
    changed = [key for key in differences(stored, transitions(model)) if "priority" not in key]
    assert changed == [], "the data are only read"
    assert model.learner.settings.bc_coef == 0.1 and TD7(env).learner.settings.bc_coef == 0.0
    with pytest.raises(ValueError, match="use_checkpoints"):
        make("td7", offline=True, use_checkpoints=True)


@pytest.mark.parametrize("name", STEPWISE)
def test_the_next_call_of_learn_cuts_episodes(name: str) -> None:
    """What was stored last is then the end of its episode, cut by time: episodes begin anew."""
    model = make(name).learn(13)
    buffer = model.replay_buffer
    assert buffer.dones[:13, 0].nonzero()[0].tolist() == [7], "in the middle of the second episode"
    model.learn(1, reset_num_timesteps=False)
    assert buffer.dones[:13, 0].nonzero()[0].tolist() == [7, 12]
    assert buffer.timeouts[12, 0] == 1


@pytest.mark.parametrize("name", [name for name, learners in LEARNERS.items() if "td7" in learners])
def test_learner_brings_its_buffer(name: str) -> None:
    assert isinstance(make(name, learner="td7").replay_buffer, LAPReplayBuffer)
