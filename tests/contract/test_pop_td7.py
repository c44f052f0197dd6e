"""PopTD7: who acts, steps and updates, which individual is chosen, and what becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl import TD7, PopTD7
from sb3_erl.core.parameters import read_parameters
from tests.contract.helpers import Accountant, Tables, differences, snapshot, transitions
from tests.contract.settings import fast, make
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(6).uniform(-1, 1, (4, 3)).astype(np.float32)
LENGTH = 8
"""Steps of a toy episode, which is an assessment; the warm-up takes two of them, phase 1 lasts to step 64."""


def pop(n_envs: int = 1, **settings: Any) -> Any:
    return make("pop_td7", toy_vec_env(n_envs), **settings)


def of(model: Any, name: str) -> list[Any]:
    """An entry in the state of each individual that is kept."""
    return [member.state[name] for member in model.members]


def set_returns(model: Any, returns: list[list[float]]) -> None:
    for member, values in zip(model.members, returns, strict=True):
        member.state["last_returns"] = values


def state(module: Any) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}


def optimizer_state(member: Any) -> list[th.Tensor]:
    networks = (member.encoder, member.actor, member.critic)
    return [value for net in networks for entry in net.optimizer.state.values() for value in entry.values()]


# ------------------------------------------------------------------ the same as TD7


@pytest.mark.parametrize("n_envs", [1, 2])
def test_one_individual_is_td7(n_envs: int) -> None:
    """Across the phase switch, bit for bit."""
    alone = make("td7", toy_vec_env(n_envs, vary=3)).learn(120)
    model = make("pop_td7", toy_vec_env(n_envs, vary=3), pop_size=1).learn(120)
    assert model.winner == 0 and model._n_updates == alone._n_updates > 50
    member = model.individuals[0]
    assert differences(state(alone.policy), state(member)) == []
    assert differences(transitions(alone), transitions(model)) == []
    pairs = zip(optimizer_state(alone.policy), optimizer_state(member), strict=True)
    assert all(th.equal(a, b) for a, b in pairs)
    assert differences(state(alone.policy.deployed), state(model.policy.deployed)) == []
    assert alone.assessment_state == model.members[0].assessment.state


# ------------------------------------------------------------------ who acts, steps and updates


class Books(Accountant):
    """After each assessment: the sums of steps and updates, and who acts next."""

    def __init__(self) -> None:
        super().__init__()
        self.actors: list[int] = []

    def _on_step(self) -> bool:
        going = super()._on_step()
        model: Any = self.model
        if model.n_assessments > len(self.actors):
            self.actors.append(model.active)
            assert self.n_stored - self.model.n_envs == model.n_stored
            if model.update_budget == "own":
                trained = [m.own_steps - m.assessment.untrained_steps for m in model.members]
                assert (
                    of(model, "own_updates") == [max(0, n) for n in trained]
                    and sum(of(model, "own_updates")) == model._n_updates
                )
            if model.winner is None:
                longest = (LENGTH + 5) * (1 if model.n_envs == 1 else 2 * model.n_envs)  # episodes that ran before it included
                assert max(of(model, "own_steps")) - min(of(model, "own_steps")) <= longest
                assert of(model, "own_steps")[model.active] == min(of(model, "own_steps"))
        return going


@pytest.mark.parametrize("n_envs", [1, 3])
def test_steps_and_updates_add_up(n_envs: int) -> None:
    books = Books()
    explore_steps = 100 if n_envs == 1 else 180
    model = make("pop_td7", toy_vec_env(n_envs, vary=5), explore_steps=explore_steps).learn(explore_steps + 80, books)
    books.check()
    warm_up = model.num_timesteps - books.n_policy_steps
    assert model.num_timesteps == warm_up + sum(of(model, "own_steps")) and model.n_policy_steps == sum(of(model, "own_steps"))
    assert set(books.actors) == {0, 1, 2} and model.winner is not None
    assert len(set(books.actors[-2:])) == 1, "phase 2"


def test_the_fewest_own_steps_come_next_and_ties_go_to_the_lowest_index() -> None:
    books = Books()
    model = pop(explore_steps=1000).learn(16 + 7 * LENGTH + 1, books)
    assert books.actors == [1, 2, 0, 1, 2, 0, 1]
    assert of(model, "own_steps") == [24, 17, 16] and of(model, "own_updates") == [24, 16, 16] and model.winner is None


def test_the_first_learn_fixes_where_phase_1_ends() -> None:
    model = pop(explore_steps=None, explore_fraction=0.5)
    model.learn(40)
    assert model.switch_at == 20 and model.winner is not None
    assert pop(explore_steps=30, explore_fraction=0.5).learn(10).switch_at == 30
    later = pop(explore_steps=None, explore_fraction=1.0)
    for _ in range(2):
        later.learn(30)
    assert later.switch_at == 30 and later.winner is not None, "counted over the life of the model"


@pytest.mark.parametrize("n_envs", [1, 2])
def test_phase_1_lasts_until_each_individual_was_assessed(n_envs: int) -> None:
    """Also where the warm-up takes all of its steps, which is said."""
    with pytest.warns(
        UserWarning, match=r"phase 1 ends at step 60, within the warm-up of learning_starts=70: each individual"
    ):
        model = pop(n_envs, learning_starts=70, explore_steps=60).learn(72 + 10 * LENGTH)
    assert model.winner is not None and min(of(model, "own_steps")) >= LENGTH and min(of(model, "own_updates")) >= LENGTH
    assert [*map(len, of(model, "last_returns"))].count(n_envs) >= 2, "the others had one assessment each"
    with pytest.warns(UserWarning, match="phase 1 ends at step 20"):
        early = pop(n_envs, explore_steps=None, explore_fraction=0.25, learning_starts=40).learn(80)
    assert early.winner is None or min(of(early, "own_steps")) >= LENGTH


def test_a_phase_1_that_outlasts_the_warm_up_needs_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    pop(explore_steps=11, learning_starts=10).learn(20)
    pop(pop_size=1, explore_steps=5, learning_starts=10).learn(20)
    assert not [warning for warning in recwarn if "phase 1" in str(warning.message)]


def test_budget_of_the_population() -> None:
    model = pop(update_budget="population", explore_steps=1000).learn(16 + 6 * LENGTH + 1)
    assert of(model, "own_steps") == [17, 16, 16]
    assert of(model, "own_updates") == of(model, "trained_at") == [4 * LENGTH, 5 * LENGTH, 6 * LENGTH], (
        "steps of all individuals"
    )
    assert model._n_updates == 15 * LENGTH


# ------------------------------------------------------------------ phase 2


@pytest.fixture(scope="module")
def switched() -> Any:
    """A model whose phase 2 has just begun, and what it was then."""
    model = pop().learn(64)
    assert model.winner is not None
    before = [state(member) for member in model.individuals]
    steps, updates = of(model, "own_steps"), of(model, "own_updates")
    rows = [tree.priority.copy() for tree in model.replay_buffer.trees]
    model.learn(50, reset_num_timesteps=False)
    return model, before, steps, updates, rows


def test_losers_are_frozen(switched: Any) -> None:
    model, before, steps, updates, rows = switched
    for place, member in enumerate(model.individuals):
        same = differences(before[place], state(member)) == []
        assert same == (place != model.winner)
        assert (of(model, "own_steps")[place] == steps[place]) == (place != model.winner)
        assert (of(model, "own_updates")[place] == updates[place]) == (place != model.winner)
        assert np.array_equal(model.replay_buffer.trees[place].priority[:64], rows[place][:64]) == (place != model.winner)
    assert of(model, "own_steps")[model.winner] == steps[model.winner] + 50
    assert model.active == model.winner


def test_predict_acts_with_the_winners_checkpoint(switched: Any) -> None:
    model = switched[0]
    member = model.individuals[model.winner]
    actions = member.deployed.predict(OBSERVATIONS, deterministic=True)[0]
    assert np.array_equal(model.predict(OBSERVATIONS, deterministic=True)[0], actions)
    assert np.array_equal(
        model.predict(OBSERVATIONS, deterministic=False)[0], member.actor.predict(OBSERVATIONS, deterministic=True)[0]
    )


def test_individuals_at_hand(switched: Any) -> None:
    model = switched[0]
    actions = [model.individual(i).predict(OBSERVATIONS, deterministic=True)[0] for i in range(3)]
    assert not np.allclose(actions[0], actions[1]) and not np.allclose(actions[1], actions[2])
    assert model.individual(model.winner) is model.learner_agent is model.actor
    with pytest.raises(IndexError, match=r"index.*3"):
        model.individual(3)


def test_log(switched: Any) -> None:
    model = switched[0]
    tables = Tables(model)
    model.learn(20, log_interval=1)
    table = tables.tables[-1]
    assert (table["population/phase"], table["population/winner"]) == (2, model.winner)
    for place in range(3):
        assert table[f"individual_{place}/own_steps"] <= of(model, "own_steps")[place]
        assert {f"individual_{place}/{key}" for key in ("n_updates", "training_return", "checkpoint_score")} <= set(table)
    young = pop()
    tables = Tables(young)
    young.learn(32, log_interval=1)
    assert (tables.tables[-1]["population/phase"], tables.tables[-1]["population/winner"]) == (1, -1)


@pytest.mark.parametrize("settings", [{}, {"update_budget": "population"}], ids=["own", "population"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_freeing_the_losers_changes_nothing_for_the_winner(settings: dict[str, Any], n_envs: int, tmp_path: Path) -> None:
    kept = pop(n_envs, **settings).learn(120)
    freed = pop(n_envs, keep_losers=False, **settings).learn(120)
    winner = kept.winner
    assert of(freed, "number") == [winner] and len(freed.individuals) == len(freed.replay_buffer.trees) == 1
    assert differences(state(kept.individuals[winner]), state(freed.individuals[0])) == []
    assert np.array_equal(kept.replay_buffer.trees[winner].priority, freed.replay_buffer.trees[0].priority)
    assert np.array_equal(kept.replay_buffer.actions, freed.replay_buffer.actions)
    assert of(freed, "own_updates") == [of(kept, "own_updates")[winner]]
    freed.save(tmp_path / "model")
    freed.save_replay_buffer(tmp_path / "buffer")
    loaded = PopTD7.load(tmp_path / "model", env=toy_vec_env(n_envs))
    loaded.load_replay_buffer(tmp_path / "buffer")
    for model in (freed, loaded):
        model.learn(20, reset_num_timesteps=False)
    assert differences(snapshot(freed), snapshot(loaded)) == []
    assert loaded.individual(winner) is loaded.actor
    with pytest.raises(IndexError):
        loaded.individual((winner + 1) % 3)


# ------------------------------------------------------------------ who wins


def test_the_mean_of_the_last_returns_decides_and_not_the_checkpoint() -> None:
    model = pop().learn(63)
    set_returns(model, [[0.0, 0.0], [2000.0, 1000.0], [9000.0, -9000.0]])
    for place, score in enumerate((5000.0, -5000.0, 9000.0)):
        model.members[place].assessment.state["score"] = score
    assert model.best == 1
    model.learn(LENGTH, reset_num_timesteps=False)
    assert model.winner == 1
    model = pop()
    assert model.best == 0, "before any episode"
    set_returns(model, [[1.0], [3.0], [3.0]])
    assert model.best == 1, "ties go to the lowest index"


def test_window_of_the_returns() -> None:
    returns: list[float] = []

    def keep(variables: dict[str, Any], _: Any) -> bool:
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        return True

    model = pop(pop_size=1, selection_window=2, gradient_steps=0).learn(64, keep)
    assert of(model, "last_returns") == [pytest.approx(returns[-2:], abs=1e-5)]


class Trials(BaseCallback):
    """
    Who was tried with which return in the evaluation that chooses the winner.

    :param stop_at: end training at this step of the evaluation
    """

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.n_steps = 0
        self.n_after = 0
        self.returns: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def _on_training_start(self) -> None:
        self.seen = np.array(self.model._last_obs)

    def _on_step(self) -> bool:
        model: Any = self.model
        self.n_after += bool(self.n_steps == self.stop_at)
        if model._trials.is_running:
            self.n_steps += 1
            if self.n_steps % LENGTH != 1:  # the first observation of an episode is not shown to callbacks
                with th.no_grad():
                    expected = model.individuals[model.active].actor(th.as_tensor(self.seen)).numpy()
                assert np.allclose(self.locals["buffer_actions"], expected, atol=1e-6), "no noise"
            if self.locals["dones"][0]:
                self.returns[model.active].append(self.locals["infos"][0]["episode"]["r"])
        self.seen = self.locals["new_obs"]
        return self.n_steps != self.stop_at or not model._trials.is_running


TRIAL = {"selection": "evaluation", "n_selection_episodes": 2}


def test_an_evaluation_decides() -> None:
    trials, accountant = Trials(), Accountant()
    model = pop(**TRIAL).learn(140, [trials, accountant])
    accountant.check()
    assert {place: len(returns) for place, returns in trials.returns.items()} == {0: 2, 1: 2, 2: 2}
    assert trials.n_steps == 3 * 2 * LENGTH == model.n_policy_steps - sum(of(model, "own_steps"))
    assert model.num_timesteps == 140 == model.replay_buffer.size()
    assert model.winner == max(trials.returns, key=lambda place: np.mean(trials.returns[place]))
    assert (
        of(model, "own_updates")[model.winner]
        == of(model, "own_steps")[model.winner] + trials.n_steps - model.assessment.untrained_steps
    )
    assert model.trial_steps == 0 and not model.is_choosing


@pytest.mark.parametrize("reason", ["callback", "budget"])
def test_an_interrupted_evaluation_begins_anew(reason: str, tmp_path: Path) -> None:
    trials = Trials(stop_at=20 if reason == "callback" else None)
    model = pop(**TRIAL).learn(200 if reason == "callback" else 84, trials)
    assert model.num_timesteps == 84 and trials.n_after == 0, "ends at once"
    assert model.is_choosing and model.winner is None
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PopTD7.load(tmp_path / "model", env=toy_vec_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    again = Trials()
    loaded.learn(60, again, reset_num_timesteps=False)
    assert again.n_steps == 48 and loaded.winner is not None
    model.learn(60, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(loaded)) == []
    stored = 19 if reason == "callback" else 20
    assert (
        sum(of(loaded, "own_steps")) + 48 + stored
        == loaded.n_policy_steps
        == loaded._n_updates + loaded.assessment.untrained_steps
    )


@pytest.mark.parametrize("selection", ["training", "evaluation"])
def test_the_winner_catches_up(selection: str) -> None:
    settings = {**TRIAL, "selection": selection}
    lagging, model = pop(**settings).learn(130), pop(catch_up=1.0, **settings).learn(130)
    assert of(lagging, "own_updates")[lagging.winner] < lagging.n_policy_steps - lagging.assessment.untrained_steps
    assert of(model, "own_updates")[model.winner] == model.n_policy_steps - model.assessment.untrained_steps
    half = pop(catch_up=0.5).learn(64)
    assert (
        of(half, "own_updates")[half.winner]
        == of(half, "own_steps")[half.winner] + (48 - of(half, "own_steps")[half.winner]) // 2
    )


@pytest.mark.parametrize("catch_up", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("selection", ["training", "evaluation"])
def test_steps_that_the_winner_has_caught_up_with_bring_no_further_updates(selection: str, catch_up: float) -> None:
    """With a budget of the population, in which each step of any individual is worth one update; another one acted last."""
    settings = {**TRIAL, "selection": selection}
    model = pop(update_budget="population", catch_up=catch_up, explore_steps=110, **settings).learn(63)
    set_returns(model, [[9000.0], [0.0], [0.0]])
    choose = model._trials.run
    model._trials.run = lambda callback: choose(callback) and [9000.0, 0.0, 0.0]
    model.learn(150, reset_num_timesteps=False)
    assert (model.winner, model._member.number) == (0, 0) and of(model, "own_updates")[2] < of(model, "own_updates")[0]
    assert model._member.own_updates == model._member.state["trained_at"]
    assert model._member.own_updates == model.n_policy_steps - model.assessment.untrained_steps


# ------------------------------------------------------------------ priorities and copies


def test_priorities_per_individual() -> None:
    model = pop(lap_min_priority=0.01, target_update_interval=1000).learn(63)
    buffer = model.replay_buffer
    rows = [tree.priority[:63] for tree in buffer.trees]
    assert all((rows[i] != rows[j]).sum() > 20 for i, j in ((0, 1), (1, 2), (0, 2)))
    for place, tree in enumerate(buffer.trees):
        tree.max_priority = 5.0 + place
    model.learn(3, reset_num_timesteps=False)
    assert [tree.priority[63:66].tolist() for tree in buffer.trees] == [[5.0] * 3, [6.0] * 3, [7.0] * 3]
    for tree in buffer.trees:
        tree.priority[63:66] = 0.5
    model.members[1].learner.buffer = buffer
    model.members[1].learner.hard_update()
    assert [tree.max_priority for tree in buffer.trees] == [5.0, buffer.trees[1].priority.max(), 7.0]


def test_shared_priorities() -> None:
    model = pop(priorities="shared", lap_min_priority=0.01).learn(100)
    assert len(model.replay_buffer.trees) == 1 and [member.learner.priority_set for member in model.members] == [0, 0, 0]
    assert model.winner is not None and min(of(model, "own_updates")) >= LENGTH
    assert len(np.unique(model.replay_buffer.trees[0].priority[:100])) > 20


def test_copies_of_the_best_over_the_worst() -> None:
    settings: dict[str, Any] = {"explore_steps": 1000, "gradient_steps": 3}
    crafted = [[0.0], [9000.0], [-9000.0]]  # the second one is active

    def run(**extra: Any) -> tuple[Any, dict[str, np.ndarray]]:
        model = pop(**settings, **extra).learn(48)
        set_returns(model, [list(returns) for returns in crafted])
        checkpoint = state(model.individuals[2].deployed)
        model.learn(LENGTH, reset_num_timesteps=False)
        return model, checkpoint

    alone, _ = run()
    model, checkpoint = run(copy_interval=5)
    assert model.n_assessments == alone.n_assessments == 5
    best, worst = model.individuals[1], model.individuals[2]
    for net in ("actor", "critic", "encoder"):
        assert th.equal(read_parameters(getattr(worst, net)), read_parameters(getattr(best, net)))
    assert all(th.equal(a, b) for a, b in zip(optimizer_state(worst), optimizer_state(best), strict=True))
    assert th.equal(worst.value_range, best.value_range)
    assert differences(checkpoint, state(worst.deployed)) == [], "checkpoints stay"
    assert not {p.data_ptr() for p in worst.parameters()} & {p.data_ptr() for p in best.parameters()}
    assert not th.equal(read_parameters(alone.individuals[1].actor), read_parameters(alone.individuals[2].actor))
    model.learn(30, reset_num_timesteps=False)
    assert not th.equal(read_parameters(worst.actor), read_parameters(best.actor)), "they go separate ways"


def test_late_phase_is_reached_by_every_way_of_updating() -> None:
    """Per individual, at its own number of updates; also where it makes more updates at once than its assessment had steps."""
    for settings in ({"update_budget": "population"}, {"gradient_steps": 30}, {"catch_up": 1.0}):
        model = pop(updates_before_late_phase=29, **settings).learn(64)
        late = [member.assessment.state["is_late"] for member in model.members]
        assert late == [n > 29 for n in of(model, "own_updates")] and any(late)


def test_a_buffer_with_other_priorities_is_refused(tmp_path: Path) -> None:
    TD7(toy_vec_env(), **fast("td7")).learn(20).save_replay_buffer(tmp_path / "buffer")
    model = make("pop_td7").learn(20)
    kept = model.replay_buffer
    with pytest.raises(ValueError, match="sets of priorities"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is kept
