"""VEB-RL: who acts, whose target a fitness is measured against, when anything evolves, and MinAtar."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl import ERL, VEBRL
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.parameters import read_parameters
from sb3_erl.envs.minatar import GAMES, TIME_LIMIT
from sb3_erl.evolution.base import best_first
from sb3_erl.evolution.value_targets import td_fitness
from sb3_erl.policies.q_network import GridCNN
from tests.contract.helpers import Tables, differences, snapshot, tensors, watch_phases
from tests.contract.settings import make
from tests.envs import ImageEnv, ToyEnv, toy_vec_env

BOTH = pytest.mark.parametrize("evolver", ["cem", "ga"])
WARM = 60
"""Random steps: more than seven toy episodes of eight steps."""


def toy(**overrides: Any) -> Any:
    settings = {"n_acting_elites": 1, "n_learner_episodes": 1, "learning_starts": WARM, "train_freq": 1, **overrides}
    return make("veb_rl", toy_vec_env(n_actions=3), **settings)


class Diary:
    """Fitness, acting slots before and after, and injections of each generation of a run."""

    def __init__(self, model: Any):
        self.model, self.rows = model, []
        model.extra_steps = [self]
        self.after = "exchange"
        self.acting = model.targets.acting

    def __call__(self, model: Any, generation: Any) -> None:
        before, self.acting = self.acting, model.targets.acting
        injected = None if generation.fitness is None else model._injected_slot
        self.rows.append((generation.fitness, before, self.acting, injected, model.num_timesteps, model._n_updates))


# ------------------------------------------------------------------ fitness


def test_fitness_is_measured_against_the_individuals_own_target() -> None:
    model = toy().learn(200)
    candidates = model.evolver.candidates
    first = td_fitness(model, candidates)
    with th.no_grad():
        for parameter in model.policy.q_net_target.parameters():
            parameter.add_(1.0)
    assert np.array_equal(td_fitness(model, candidates), first), "the learner's target has no part in it"
    model.targets.vectors[1] += 0.5
    assert (td_fitness(model, candidates) != first).tolist() == [False, True, False]
    buffer, network, target = model.replay_buffer, model.individual(0), model.individual(0)
    model.fitness_batch_size = 10_000  # all transitions that there are
    th.nn.utils.vector_to_parameters(model.targets.vectors[0], target.parameters())
    batch = buffer._get_samples(np.arange(buffer.size()))
    expected = -float(model.learner.td_errors(batch, network, target).square().mean())
    assert td_fitness(model, candidates)[0] == pytest.approx(expected, rel=1e-4)


def test_fitness_has_the_discount_of_the_model_also_before_the_first_update() -> None:
    model = toy(gamma=0.5, gradient_steps=0, fitness_batch_size=10_000).learn(200)
    buffer, network, target = model.replay_buffer, model.individual(0), model.individual(0)
    th.nn.utils.vector_to_parameters(model.targets.vectors[0], target.parameters())
    batch = buffer._get_samples(np.arange(buffer.size()))
    with th.no_grad():
        values = network(batch.observations).gather(1, batch.actions.long())
        aims = batch.rewards + 0.5 * (1 - batch.dones) * target(batch.next_observations).amax(dim=1, keepdim=True)
    assert model._n_updates == 0
    assert td_fitness(model, model.evolver.candidates)[0] == pytest.approx(-float((values - aims).square().mean()), rel=1e-4)


@BOTH
def test_nothing_evolves_in_the_random_phase(evolver: str) -> None:
    model = toy(evolver=evolver)
    before, acting = tensors(model), model.targets.acting
    phases = watch_phases(model)
    model.learn(56)
    assert {len(jobs) for jobs, _ in phases} == {1} and all(jobs[0].explorer.epsilon == 1.0 for jobs, _ in phases)
    changed = set(differences(before, tensors(model)))
    assert changed == ({".targets.vectors"} if evolver == "cem" else set()), "a CEM's individuals are drawn anew"
    assert model.targets.acting == acting and model._n_updates == 0 and model.population.champion is None


# ------------------------------------------------------------------ who acts, and what pays for updates


@BOTH
def test_the_best_of_the_last_generation_act_greedily(evolver: str) -> None:
    model = toy(evolver=evolver, n_acting_elites=2, pop_size=4)
    diary, phases = Diary(model), watch_phases(model)
    model.learn(400)
    greedy = [[job for job in jobs if job.explorer is None] for jobs, _ in phases]
    n_random = -(-WARM // 8)
    assert [len(jobs) for jobs in greedy] == [0] * n_random + [2] * (len(phases) - n_random) and len(phases) > n_random + 5
    assert all(all(job.explorer is None for job in jobs[:-1]) and jobs[-1].explorer for jobs, _ in phases)
    for fitness, _, acting, injected, *_ in diary.rows[n_random - 1 :]:
        assert len(acting) == 2 and injected not in acting
        if evolver == "cem":
            assert acting == best_first(fitness)[:2].tolist()
            order = [(int(np.argmin(fitness)) + k) % 4 for k in range(4)]
            assert injected in (None, next(slot for slot in order if slot not in acting))
    if evolver == "ga":
        assert diary.rows[-1][2] == model.evolver.protected[:2] and model.evolver.n_elites == 2


def test_epsilon_falls_on_the_learners_steps_only() -> None:
    model = toy(exploration_decay_steps=100, exploration_initial_eps=0.8, exploration_final_eps=0.3)
    phases = watch_phases(model)
    model.learn(400)
    n_learner = 0
    for jobs, episodes in phases:
        explorer, steps = jobs[-1].explorer, episodes.episodes[-1].n_steps
        if len(jobs) == 1:
            assert explorer.epsilon == 1.0
            continue
        assert explorer.epsilon == pytest.approx(
            max(0.3, 0.8 - 0.005 * n_learner)
        ) and explorer.final_epsilon == pytest.approx(0.3)
        assert explorer.fall == pytest.approx(0.005)
        n_learner += steps
    assert n_learner > 100 and model._explorer().epsilon == pytest.approx(0.3)
    assert toy(n_acting_elites=2)._explorer().epsilon == 1.0


@BOTH
def test_updates_are_those_that_steps_after_the_random_phase_pay_for(evolver: str) -> None:
    model = toy(evolver=evolver)
    diary = Diary(model)
    model.learn(300)
    assert [row[5] for row in diary.rows] == [max(0, row[4] - WARM) for row in diary.rows]
    assert diary.rows[-1][5] > 100


def test_a_whole_float_says_when_learning_starts() -> None:
    models = [toy(learning_starts=n, gradient_steps=-1).learn(200) for n in (WARM, float(WARM))]
    assert models[1]._n_updates > 100 and differences(snapshot(models[0]), snapshot(models[1])) == []


@BOTH
@pytest.mark.parametrize("fitness_interval", [1, 2])
def test_a_cut_inside_the_generation_that_ends_the_random_phase(evolver: str, fitness_interval: int) -> None:
    """The next one stands for it: nobody acts whom no fitness has chosen, all targets are copied, nothing is injected."""
    model = toy(evolver=evolver, fitness_interval=fitness_interval).learn(WARM + 2)
    assert model.n_generations == WARM // 8 and model.n_learner_steps == WARM + 2 and model.population.champion is None
    diary, phases, copies, copy_from = Diary(model), watch_phases(model), [], model.targets.copy_from
    model.targets.copy_from = lambda vectors: [copies.append(model.n_generations), copy_from(vectors)]  # type: ignore[func-returns-value]
    model.learn(96, reset_num_timesteps=False)
    assert [len(jobs) for jobs, episodes in phases[:-1]] == [1, *[2] * (len(phases) - 2)] and len(phases) > 4
    assert all(jobs[-1].explorer.epsilon <= 1 - model._explorer().fall * 8 * k for k, (jobs, _) in enumerate(phases))
    evolved = [i for i, row in enumerate(diary.rows) if row[0] is not None]
    first = (WARM // 8) % fitness_interval
    assert evolved == list(range(first, len(diary.rows), fitness_interval))
    assert [row[3] is not None for row in diary.rows[: first + 1]] == [False] * first + [first > 0]
    assert copies[0] == WARM // 8 + first and diary.rows[0][5] == 8, "each of its steps pays for an update"


@BOTH
def test_the_learner_and_its_target_are_injected(evolver: str) -> None:
    model = toy(evolver=evolver, target_update_interval=7, population_target_interval=1)
    diary = Diary(model)
    slots = []

    def look(model: Any, generation: Any) -> None:
        if model._injected_slot is not None:
            slot = model._injected_slot
            slots.append(slot)
            assert th.equal(model.targets.vectors[slot], read_parameters(model.policy.q_net_target))
            is_copied = model._n_updates % 7 == 0
            assert th.equal(model.targets.vectors[slot], read_parameters(model.policy.q_net)) == is_copied
            asked = model.evolver.ask(np.random.default_rng(0))[slot].float()
            assert th.equal(asked, read_parameters(model.policy.q_net))
            others = [i for i in range(3) if i != slot]
            assert th.equal(model.targets.vectors[others], model.evolver.candidates[others].float()), "copied before"

    look.after = "exchange"  # type: ignore[attr-defined]
    model.extra_steps = [diary, look]
    model.learn(300)
    first = next(i for i, row in enumerate(diary.rows) if row[0] is not None)
    assert diary.rows[first][3] is None and len(slots) >= 8, "not in the generation that ends the random phase"


def test_intervals() -> None:
    copies, model = [], toy(evolver="ga", fitness_interval=3, population_target_interval=2, sync_period=2)
    diary, copy_from = Diary(model), model.targets.copy_from
    model.targets.copy_from = lambda vectors: [copies.append(model.n_generations), copy_from(vectors)]  # type: ignore[func-returns-value]
    model.learn(800)
    evolved = [i for i, row in enumerate(diary.rows) if row[0] is not None]
    assert evolved == list(range(9, len(diary.rows), 3)), "the random phase ends in generation 7, counted from 0"
    assert [i for i, row in enumerate(diary.rows) if row[3] is not None] == [i for i in evolved if i // 3 % 2 == 0]
    counts = {i: max(0, i - 7) // 3 for i in range(0, len(diary.rows), 3)}
    assert copies == [i for i, n in counts.items() if n % 2 == 0]


def test_copies_of_individuals_may_keep_their_targets() -> None:
    for keep in (False, True):
        model = toy(evolver="ga", copy_targets=keep, population_target_interval=1000, sync_period=1000)
        while model.evolver.epoch is None:
            before = model.targets.vectors.clone()
            model.learn(8, reset_num_timesteps=False)
        model.targets.vectors.copy_(th.arange(3.0)[:, None].expand(3, model.targets.vectors.shape[1]))
        before = model.targets.vectors.clone()
        model.learn(16, reset_num_timesteps=False)
        owners = np.arange(3)
        for source, slot in (copy for batch in model.evolver.epoch.copies for copy in batch):
            owners[slot] = source
        assert model.targets.vectors[:, 0].tolist() == (owners.tolist() if keep else [0.0, 1.0, 2.0])
        assert not keep or owners.tolist() != [0, 1, 2]
        assert before.shape == model.targets.vectors.shape


# ------------------------------------------------------------------ the DQN


@BOTH
def test_without_evolution_it_is_the_same_dqn(evolver: str) -> None:
    """Bit for bit: individuals that do not act leave no trace in the learner."""
    alone = toy(evolution=False, n_acting_elites=0).learn(300)
    beside = toy(evolver=evolver, n_acting_elites=0).learn(300)
    changed = differences(snapshot(alone), snapshot(beside))
    assert changed and all(key.startswith((".evolver.", ".targets.")) for key in changed)
    assert alone._n_updates == beside._n_updates == 300 - 300 % 8 - WARM
    assert alone.n_warm_generations > 20 and differences(tensors(alone), tensors(toy(evolution=False))) != []
    also = toy(evolution=False, n_acting_elites=1, exploration_decay_steps=100_000).learn(300)
    assert [key for key in differences(snapshot(alone), snapshot(also)) if key != ".targets.ranks"] == []


def test_options_of_the_learner() -> None:
    plain = toy().learner.settings
    assert (plain.loss, plain.double, plain.max_grad_norm, plain.target_update_interval) == ("mse", False, None, 20)
    assert VEBRL("CartPole-v1", device="cpu").learner.settings.target_update_interval == 1000
    model = toy(double_q=True, prioritized=True, max_grad_norm=5.0, learner_kwargs={"lap_alpha": 0.6}).learn(150)
    settings = model.learner.settings
    assert (settings.loss, settings.double, settings.max_grad_norm, settings.lap_alpha) == ("huber", True, 5.0, 0.6)
    assert type(model.replay_buffer) is LAPReplayBuffer and len(np.unique(model.replay_buffer.trees[0].priority)) > 2
    assert type(toy(n_steps=3).learn(150).replay_buffer) is NStepReplayBuffer
    assert type(toy(prioritized=True, loss="mse").learner.settings.loss) is str


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}, "action_noise must be None.*exploration_final_eps"),
        ({"prioritized": True, "n_steps": 3}, "prioritized must be False.*n_steps=3"),
        ({"deploy": "mean", "evolver": "ga"}, "deploy must be 'learner' or 'champion'.*'ga'.*'mean'"),
        ({"learner": "td3"}, "learner must be 'dqn'.*'td3'.*ERL"),
        ({"exploration_final_eps": 0.5, "exploration_initial_eps": 0.2}, "exploration_final_eps must be.*0.2.*0.5"),
    ],
)
def test_what_does_not_fit_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**arguments)


@pytest.mark.parametrize(("deploy", "evolver"), [("learner", "cem"), ("champion", "ga"), ("mean", "cem")])
def test_deployed(deploy: str, evolver: str) -> None:
    model = toy(deploy=deploy, evolver=evolver)
    tables = Tables(model)
    model.learn(4 * 8 + WARM // 8 * 8 + 8 * 8)
    deployed = read_parameters(model.policy.deployed)
    expected = {"learner": read_parameters(model.policy.q_net), "mean": model.evolver.center()}
    expected["champion"] = model.population.champion.vector
    assert th.equal(deployed, expected[deploy].float())
    assert len(tables.column("population/return_mean")) >= 4 and tables.column("rollout/exploration_rate")[0] == 1.0


# ------------------------------------------------------------------ grids and images


class GridEnv(ToyEnv):
    """A toy environment seen as a MinAtar grid: bool, channels last."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observation_space = gym.spaces.Box(0, 1, (5, 4, 3), np.bool_)

    def _grid(self, state: np.ndarray) -> np.ndarray:
        return np.resize(state > 0, (5, 4, 3)) ^ np.resize(np.arange(60) % 7 == 0, (5, 4, 3))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[override]
        state, info = super().reset(**kwargs)
        return self._grid(state), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state, *rest = super().step(action)
        return self._grid(state), *rest


def test_the_ga_never_changes_convolution_kernels() -> None:
    env = toy_vec_env(env_class=GridEnv, n_actions=3)
    model = make("veb_rl", env, policy="AutoPolicy", evolver="ga", sync_period=10_000, learning_starts=20, pop_size=6)
    split = model.population.representation.layout.split
    kernels, linear = (
        next(n for n in split(model.evolver.candidates) if n.endswith(end)) for end in ("layers.0.weight", "q_net.0.weight")
    )
    before = {name: split(model.evolver.candidates)[name].clone() for name in (kernels, linear)}
    model.learn(400)
    after = split(model.evolver.candidates)
    assert model.evolver.epoch is not None and before[kernels].shape[1:] == (16, 3, 3, 3)
    assert all(any(th.equal(one, old) for old in before[kernels]) for one in after[kernels])
    assert not all(any(th.equal(one, old) for old in before[linear]) for one in after[linear])


@pytest.mark.parametrize(
    ("env_class", "extractor"),
    [(GridEnv, GridCNN), (ImageEnv, NatureCNN), (ToyEnv, FlattenExtractor)],
    ids=lambda x: x.__name__,
)
def test_the_policy_fits_the_observations(env_class: type[gym.Env], extractor: type) -> None:
    env = toy_vec_env(env_class=env_class, n_actions=3)
    model = VEBRL(env, device="cpu", learning_starts=20, buffer_size=200, fitness_batch_size=30, pop_size=2)
    assert type(model.policy.q_net.features_extractor) is extractor
    if extractor is GridCNN:
        network = model.policy.q_net
        grid = th.rand(2, 5, 4, 3)
        expected = th.relu(network.features_extractor.layers[0](grid.permute(0, 3, 1, 2))).flatten(1)
        assert th.equal(network.features_extractor(grid), expected) and network.q_net[0].out_features == 128
        assert model.replay_buffer.observations.dtype == np.bool_
    model.learn(60)
    assert model._n_updates > 0
    own = VEBRL(env, device="cpu", policy_kwargs={"features_extractor_class": FlattenExtractor, "net_arch": [4]})
    assert type(own.policy.q_net.features_extractor) is FlattenExtractor


def test_a_grid_of_two_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space must have three axes.*MlpPolicy"):
        GridCNN(gym.spaces.Box(0, 1, (5, 4), np.float32))


def test_discrete_hybrids_read_grids_too() -> None:
    env = toy_vec_env(env_class=GridEnv, n_actions=3)
    model = ERL("AutoPolicy", env, learner="dqn", pop_size=2, learning_starts=20, buffer_size=200, device="cpu").learn(60)
    assert type(model.policy.q_net.features_extractor) is GridCNN


# ------------------------------------------------------------------ MinAtar

minatar = pytest.mark.skipif(find_spec("minatar") is None, reason="the extra is not installed")


@minatar
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", list(GAMES))
def test_minatar(name: str, version: int) -> None:
    env = gym.make(f"MinAtar/{name}-v{version}", disable_env_checker=True)
    n_actions = {"Asterix": 5, "Breakout": 3, "Freeway": 3, "Seaquest": 6, "SpaceInvaders": 4}[name] if version else 6
    assert env.action_space == gym.spaces.Discrete(n_actions) and env.spec.max_episode_steps == TIME_LIMIT
    channels = {"Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}.get(name, 4)
    assert env.observation_space == gym.spaces.Box(0, 1, (10, 10, channels), np.bool_)

    def play(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        seen, over = [env.reset(seed=seed)[0]], False
        while not over and len(seen) < 80:
            observation, reward, terminated, truncated, _ = env.step(int(rng.integers(n_actions)))
            seen.append(observation)
            over = terminated or truncated
        assert env.observation_space.contains(observation) and isinstance(reward, float)
        return [one.tobytes() for one in seen]

    first = play(1)
    assert play(2) != first and play(1) == first, "an episode depends on its seed alone"


@minatar
def test_minatar_time_limits_are_truncations() -> None:
    def short() -> gym.Env:
        return gym.make("MinAtar/Freeway-v1", max_episode_steps=7)

    model = VEBRL(DummyVecEnv([short]), evolution=False, learning_starts=0, buffer_size=100, device="cpu", seed=0).learn(21)
    buffer = model.replay_buffer
    assert buffer.dones[:21, 0].tolist() == buffer.timeouts[:21, 0].tolist() == ([0.0] * 6 + [1.0]) * 3
    assert buffer._get_samples(np.arange(21)).dones.sum() == 0


def test_minatar_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-erl\[minatar\]'"):
        VEBRL("MinAtar/Breakout-v1")
    with pytest.raises(ValueError, match=r"game must be one of.*'pong'"):
        gym.make("MinAtar/Breakout-v1", game="pong")


@minatar
def test_minatar_pictures() -> None:
    env = gym.make("MinAtar/Breakout-v1", render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8 and len(np.unique(picture)) > 2
