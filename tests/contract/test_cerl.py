"""What only CERL does: discount factors per learner, shares of the rollouts, migration of all learners, mixed portfolios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_erl import CERL
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.learner_host import rates_of
from sb3_erl.learners.allocation import ResourceManager
from sb3_erl.policies.cerl import CERLActor, CERLNetworks
from tests.contract.helpers import Tables, Witness, differences, snapshot
from tests.contract.settings import make
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)


def make_cerl(**overrides: Any) -> Any:
    return make("cerl", **{"train_freq": 1, **overrides})


# ---------------------------------------------------------------- learners


@pytest.mark.parametrize("learner", ["td3", "ddpg", "td7", "sac", ["td7", "sac"]])
def test_every_learner_has_its_own_discount_factor(learner: Any) -> None:
    model = make_cerl(learner=learner, gammas=(0.25, 0.75), learner_kwargs=None).learn(60)
    found = [member.model.gamma if hasattr(member, "model") else member.settings.gamma for member in model.learner.members]
    assert found == [0.25, 0.75] and model._n_updates > 0


def test_targets_differ_by_the_discount_factor() -> None:
    """With equal networks and batches the critics' losses are those of ``r + gamma * min Q``."""
    model = make_cerl(gammas=(0.0, 0.5), learner_kwargs={"target_policy_noise": 0.0})
    first, second = model.policy.members
    second.load_state_dict(first.state_dict())
    n = 8
    tensor = lambda *shape: th.rand(shape, generator=th.Generator().manual_seed(sum(shape)))  # noqa: E731
    batch = ReplayBufferSamples(tensor(n, 3), tensor(n, 2), tensor(n, 3) + 1, th.zeros(n, 1), tensor(n, 1))
    with th.no_grad():
        action = first.actor_target(batch.next_observations)
        following = first.critic_target(batch.next_observations, action).amin(dim=0)
        values = first.critic(batch.observations, batch.actions)
    expected = [float((values - (batch.rewards + g * following)).square().mean(dim=(1, 2)).sum()) for g in (0.0, 0.5)]
    model.learner.begin(rates_of(model, n), model.replay_buffer)
    metrics = model.learner.update(lambda: batch, 1)
    assert [metrics[f"learner_{i}/critic_loss"] for i in (0, 1)] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_every_learner_takes_the_same_number_of_updates() -> None:
    model = make_cerl(learner=["td3", "td7", SAC], gammas=(0.9, 0.95, 0.99), rollout_size=3, learner_kwargs=None).learn(100)
    td3, td7, sac = model.learner.members
    assert model._n_updates == td3.n_updates == td7.n_updates == sac.model._n_updates > 0


def test_critic_target_moves_at_every_update_and_the_actors_at_every_second() -> None:
    model = make_cerl(learning_starts=0, gradient_steps=1, train_freq=1000).learn(40)
    member = model.policy.members[0]
    before = [read_parameters(network) for network in (member.critic_target, member.actor_target)]
    model.learner.begin(rates_of(model, 16), model.replay_buffer)
    for member_rule in model.learner.members:
        member_rule.n_updates = 0
    model.learner.update(lambda: model._sample(16), 1)
    after = [read_parameters(network) for network in (member.critic_target, member.actor_target)]
    assert not th.equal(before[0], after[0]) and th.equal(before[1], after[1])


def test_networks_are_the_published_ones() -> None:
    model = CERL("MlpPolicy", toy_vec_env(), device="cpu", seed=0, buffer_size=10)
    assert len(model.policy.members) == 4 and len({read_parameters(a).sum().item() for a in model.learner_agents}) == 4
    actor = model.policy.actor
    names = [type(layer).__name__ for layer in actor.mu]
    assert names == ["Linear", "ELU", "PlainNorm", "Linear", "ELU", "PlainNorm", "Linear", "Tanh"]
    assert [layer.out_features for layer in actor.mu if isinstance(layer, nn.Linear)] == [400, 300, 2]
    assert all((layer.bias == 0.01).all() for layer in actor.mu if isinstance(layer, nn.Linear))
    bound = lambda layer: float(layer.weight.detach().abs().max()) * layer.weight.shape[1] ** 0.5  # noqa: E731
    assert bound(actor.mu[3]) == pytest.approx(6**0.5, rel=1e-2), "Kaiming-uniform"
    individual: Any = model.individual(0)
    assert isinstance(individual, CERLActor) and bound(individual.mu[3]) == pytest.approx(1.0, rel=1e-2), "torch's default"
    critic = model.policy.critic
    assert critic.towers.hidden[1].weight.shape == (2, 400, 300) and (critic.towers.out.bias == 0.01).all()
    assert th.equal(read_parameters(critic), read_parameters(model.policy.critic_target))
    assert th.equal(read_parameters(actor), read_parameters(model.policy.actor_target))


def test_settings_for_single_learners() -> None:
    kwargs = {"net_arch": [8], "by_learner": [{}, {"net_arch": [4]}]}
    model = make_cerl(policy_kwargs=kwargs, learner_kwargs=[{"policy_delay": 3}, {}])
    assert [member.settings.policy_delay for member in model.learner.members] == [3, 2]
    assert [member.actor.net_arch for member in model.policy.members] == [[8], [4]]
    assert model.learner.migrants == [0]
    with pytest.raises(ValueError, match=r"by_learner must hold one mapping per learner, 2; got 1"):
        make_cerl(policy_kwargs={"net_arch": [8], "by_learner": [{}]})


def test_n_step_returns_are_discounted_by_each_learner() -> None:
    model = make_cerl(gammas=(0.5, 0.9), n_steps=3).learn(60)
    buffer = model.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer) and model._n_updates > 0
    for model.learner.active, gamma in enumerate((0.5, 0.9)):
        discounts = model._sample(64).discounts
        assert np.isclose(discounts.numpy(), gamma ** np.arange(1, 4)).any(axis=1).all() and discounts.min() < gamma**2


# ---------------------------------------------------------------- shares of the rollouts


def test_manager_hears_of_every_episode_and_shares_them_out() -> None:
    model = make_cerl(gammas=(0.9, 0.95, 0.99), rollout_size=5, seed=1)
    tables, returns, allocations = Tables(model), [], [model.manager.allocation.tolist()]
    assert allocations == [[0, 1, 2, 0, 1]], "round robin before anything is known"

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        if len(returns) == 8 * len(allocations) + 1 and variables["dones"][0]:
            allocations.append(model.manager.allocation.tolist())
        return True

    model.learn(4 * 8 * 8 + 8, keep)
    expected = ResourceManager(3, 5)
    for generation in range(4):
        assert len(allocations[generation]) == 5
        expected.allocation = np.array(allocations[generation])
        for slot, learner in enumerate(allocations[generation]):
            expected.report(learner, float(returns[8 * generation + 3 + slot]))
        for learner in range(3):
            assert tables.column(f"learner_{learner}/value")[generation] == pytest.approx(expected.values[learner], abs=1e-4)
            assert tables.column(f"learner_{learner}/visits")[generation] == expected.visits[learner]
            share = allocations[generation].count(learner) / 5
            assert tables.column(f"learner_{learner}/share")[generation] == share
    assert expected.visits.sum() == 20 == model.manager.visits.sum()
    assert len(set(map(tuple, allocations))) > 1


def test_better_learners_get_more_rollouts() -> None:
    manager = ResourceManager(2, 10, coefficient=0.1)
    for learner, total in ((0, -100.0), (1, 300.0)):
        manager.report(learner, total)
    counts = np.bincount(manager.reallocate(np.random.default_rng(0).random(10)), minlength=2)
    assert counts.sum() == 10 and counts[1] > 6


def test_a_return_that_is_not_finite_is_a_visit_without_a_value() -> None:
    manager = ResourceManager(2, 2)
    for total in (4.0, np.nan, np.inf):
        manager.report(0, total)
    assert manager.values.tolist() == [4.0, 0.0] and manager.visits.tolist() == [3, 0]


def test_each_slot_acts_with_its_learners_actor() -> None:
    model = make_cerl(learner=["td3", "sac", "td7"], gammas=(0.9, 0.95, 0.99), rollout_size=4, learner_kwargs=None)
    model.policy.set_training_mode(False)
    model.manager.allocation = np.array([2, 0, 1, 2])
    jobs, actor = model._plan_rollouts(model.evolver.ask(np.random.default_rng(0)))
    assert [job.candidate for job in jobs] == list(range(7)) and [job.explorer is None for job in jobs] == [True] * 3 + [
        False
    ] * 4
    agents = [*(model.individual(i) for i in range(3)), *(model.learner_agents[i] for i in (2, 0, 1, 2))]
    order = [6, 0, 4, 3, 5, 2]
    together = actor(OBSERVATIONS, order)
    for row, candidate in enumerate(order):
        alone = actor(OBSERVATIONS[row : row + 1], [candidate])[0]
        assert np.array_equal(alone, together[row]), "whoever acts beside it"
        expected = model.policy.scale_action(agents[candidate].predict(OBSERVATIONS[row], deterministic=True)[0])
        np.testing.assert_allclose(together[row], expected, atol=1e-5)


# ---------------------------------------------------------------- migration


def test_all_learners_migrate_before_their_updates_into_unselected_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_cerl(pop_size=8, sync_period=2, learning_starts=0, mutation_prob=0.0)
    tell, told, before = model.evolver.tell, [], []

    def watch(candidates: th.Tensor, fitness: np.ndarray, rng: Any, migrants: th.Tensor | None = None) -> None:
        tell(candidates, fitness, rng, migrants)
        told.append((migrants, model.evolver.epoch, model.evolver.candidates.clone()))

    monkeypatch.setattr(model.evolver, "tell", watch)
    train = model.train

    def note_and_train(n_updates: int) -> None:
        before.append([read_parameters(agent) for agent in model.learner_agents])
        train(n_updates)

    monkeypatch.setattr(model, "train", note_and_train)
    model.learn(4 * 10 * 8)
    assert [migrants is not None for migrants, _, _ in told] == [False, True, False, True]
    for generation in (1, 3):
        migrants, epoch, after = told[generation]
        learners = th.stack(before[generation])
        assert th.equal(migrants, learners) and not th.equal(migrants[0], read_parameters(model.learner_agents[0]))
        assert len(epoch.migrants) == 2 and not set(epoch.migrants) & {*epoch.winners, *epoch.protected}
        crossed = {slot for batch in epoch.crossings for pair in batch for slot in pair}
        for row, slot in enumerate(epoch.migrants):
            assert slot in crossed or th.equal(after[slot], learners[row])
    assert not th.equal(before[1][0], before[2][0])


def test_who_migrates() -> None:
    def migrants(learner: Any, **kwargs: Any) -> list[int]:
        return make_cerl(learner=learner, gammas=(0.9,) * len(learner), rollout_size=3, **kwargs).learner.migrants

    assert migrants(["td3", "ddpg", "td3"]) == [0, 1, 2]
    assert migrants(["td3", "sac", "td3"]) == [0, 2]
    assert migrants(["td7", "td7", "td3"]) == [0], "an embedding of its own is not the population's"
    assert migrants(["sac", SAC, TD3]) == [0, 1]
    other = [{}, {"activation_fn": nn.Tanh}, {}]
    assert migrants(["td3"] * 3, policy_kwargs={"net_arch": [8], "by_learner": other}) == [0, 2], "the same sizes"


def test_deployed_is_the_champion_or_the_best_learner() -> None:
    witness = Witness()
    make_cerl().learn(100, witness)
    model = make_cerl().learn(witness.generation_ends[-1])
    champion = model.evolver.candidates[model.evolver.epoch.protected[0]]
    assert th.equal(read_parameters(model.policy.deployed), champion)
    model = make_cerl(deploy="learner").learn(witness.generation_ends[-1])
    best = int(np.argmax(model.manager.values))
    assert th.equal(read_parameters(model.policy.deployed), read_parameters(model.learner_agents[best]))
    assert model.learner_agent is model.learner_agents[best]


def test_published_variation_can_be_changed_in_part() -> None:
    model = make_cerl(evolver_kwargs={"mutation_kwargs": {"strength": 0.5}})
    mutation, crossover = model.evolver.mutation, model.evolver.crossover
    assert (mutation.strength, mutation.fraction, mutation.super_strength) == (0.5, 0.03, 1.0)
    assert crossover.vector_skip_prob == 0.8 and crossover.single_entry
    assert model.evolver.odd_winners == "last" and CERL("MlpPolicy", toy_vec_env(), buffer_size=10).evolver.n_elites == 2


# ---------------------------------------------------------------- updates


def test_the_first_training_pays_for_the_warm_up() -> None:
    witness = Witness()
    model = make_cerl(learning_starts=50).learn(100, witness)
    assert witness.generation_ends == [40, 80] and model._n_updates == 80 and model.updates_owed == 0
    assert make_cerl(learning_starts=80).learn(100)._n_updates == 0, "more than so many"


# ---------------------------------------------------------------- mixed portfolios and files


def test_priorities_for_each_td7_and_uniform_draws_for_the_others() -> None:
    model = make_cerl(learner=["td7", "td3", "td7"], gammas=(0.9, 0.95, 0.99), rollout_size=3, learner_kwargs=None).learn(90)
    buffer = model.replay_buffer
    assert isinstance(buffer, LAPReplayBuffer) and len(buffer.trees) == 2
    assert [member.priority_set for member in model.learner.members] == [0, None, 1]
    first, second = (tree.priority[:90] for tree in buffer.trees)
    assert not np.array_equal(first, second) and (first != 1).any() and (second != 1).any()
    for tree in buffer.trees:
        tree.write(np.arange(90), np.r_[1.0, np.zeros(89)])
    rows = []
    for model.learner.active in range(3):
        rows.append(len(np.unique(model._sample(64).rewards.numpy())))
    assert rows[0] == rows[2] == 1 and rows[1] > 20
    assert model.replay_buffer_kwargs == {}


def test_a_buffer_with_other_priorities_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gammas": (0.9, 0.99), "learner_kwargs": None}
    make_cerl(learner=["td7", "td3"], **settings).learn(50).save_replay_buffer(tmp_path / "one")
    model = make_cerl(learner=["td7", "td7"], **settings)
    kept = model.replay_buffer
    with pytest.raises(ValueError, match=r"must hold a replay buffer with 2 sets .*got one with 1"):
        model.load_replay_buffer(tmp_path / "one")
    assert model.replay_buffer is kept
    make_cerl().learn(50).save_replay_buffer(tmp_path / "plain")
    model.load_replay_buffer(tmp_path / "plain")
    assert model.learn(60)._n_updates > 0, "without priorities TD7 draws uniformly"


@pytest.mark.parametrize("learner", [["td3", TD3], [SAC, "td7"]])
def test_mixed_portfolios_learn_and_go_on_after_loading(learner: Any, tmp_path: Path) -> None:
    witness = Witness()
    make_cerl(learner=learner, learner_kwargs=None).learn(200, witness)
    middle, end = witness.generation_ends[1], witness.generation_ends[3]
    straight = make_cerl(learner=learner, learner_kwargs=None)
    untrained = [read_parameters(agent) for agent in straight.learner_agents]
    straight.learn(end)
    assert not any(th.equal(a, read_parameters(b)) for a, b in zip(untrained, straight.learner_agents, strict=True))
    first = make_cerl(learner=learner, learner_kwargs=None).learn(middle)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    resumed = CERL.load(tmp_path / "model", env=toy_vec_env())
    assert resumed.manager.state == first.manager.state and resumed.manager.visits.sum() == 4
    resumed.load_replay_buffer(tmp_path / "buffer")
    resumed.learn(end - middle, reset_num_timesteps=False)
    assert resumed.manager.visits.sum() == 8
    assert differences(snapshot(straight), snapshot(resumed)) == []


def test_another_portfolio_is_refused_and_another_rollout_size_begins_anew(tmp_path: Path) -> None:
    model = make_cerl().learn(100)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"gammas must stay as they were saved.*2 learners; got 3"):
        CERL.load(tmp_path / "model", gammas=(0.9, 0.95, 0.99), rollout_size=3)
    loaded = CERL.load(tmp_path / "model", env=toy_vec_env(), rollout_size=3)
    assert loaded.manager.allocation.tolist() == [0, 1, 0]
    assert loaded.manager.visits.tolist() == model.manager.visits.tolist()
    assert loaded.learn(60, reset_num_timesteps=False).manager.visits.sum() == model.manager.visits.sum() + 3


# ---------------------------------------------------------------- errors


def test_wrong_portfolios() -> None:
    with pytest.raises(ValueError, match=r"gammas must be a sequence of discount factors.*got \(\)"):
        make_cerl(gammas=())
    with pytest.raises(ValueError, match=r"rollout_size must be at least the number of learners, 2.*got 1.*fewer gammas"):
        make_cerl(rollout_size=1)
    with pytest.raises(ValueError, match=r"learner must be one for all learners or a sequence.*\[0\.9, 0\.99\].*got 1"):
        make_cerl(learner=["td3"])
    with pytest.raises(ValueError, match=r"subclass of CERLPolicy; got CERLNetworks.*networks_class"):
        CERL(CERLNetworks, toy_vec_env())
    with pytest.raises(TypeError, match=r"gammas must be a number; got 'near'"):
        make_cerl(gammas=("near", 0.9))
