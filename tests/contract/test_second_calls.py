"""What one call of ``learn`` leaves to the next one, and to files: schedules, warm-ups, buffers, folders of logs."""

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
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.utils import LinearSchedule

from sb3_erl import ALGOS, CERL, ERL, GenerationCheckpoint, PopulationCallback, newest_checkpoint
from sb3_erl.buffers.offline import fill_replay_buffer
from sb3_erl.engine.learner_host import rates_of
from sb3_erl.evolution.seed_ga import ELITE, finalists
from sb3_erl.pictures.curves import draw_curves
from sb3_erl.pictures.generation_files import ascending
from sb3_erl.pictures.population_figure import PopulationTable, draw_population
from sb3_erl.runs.description import deployed, warm_up
from sb3_erl.zoo.plot import kinds_of
from tests.contract.settings import make
from tests.envs import ImageEnv, ToyEnv, toy_vec_env

# -------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", ["openai_es", "ns_es", "deep_ga", "ga_ns"])
def test_a_sigma_that_ends_at_zero(name: str, tmp_path: Path) -> None:
    model = make(name, seed=1, sigma=LinearSchedule(0.1, 0.0, 1.0))
    model.learn(300)
    model.save(tmp_path / "model")
    again = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    again.learn(300)
    model.learn(300)
    assert model.num_timesteps >= 300 and again.num_timesteps >= 300


class Rates(BaseCallback):
    """Keeps the progress that schedules follow as each rollout begins."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[float] = []

    def _on_rollout_start(self) -> None:
        self.progress.append(self.model._current_progress_remaining)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["erl", "cem_rl", "openai_es", "deep_ga", "td7"])
def test_schedules_begin_anew_with_each_call(name: str, tmp_path: Path) -> None:
    model = make(name, seed=1)
    first, second, third, loaded = Rates(), Rates(), Rates(), Rates()
    model.learn(200, callback=first)
    model.save(tmp_path / "model")
    model.learn(200, callback=second)
    assert first.progress[0] == second.progress[0] == 1.0 and first.progress[-1] < 1.0
    before = model.num_timesteps
    model.learn(200, callback=third, reset_num_timesteps=False)
    assert third.progress[0] == pytest.approx(1 - before / (before + 200))
    again = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    again.learn(200, callback=loaded)
    assert loaded.progress[0] == 1.0


# -------------------------------------------------------------------- warm-ups


@pytest.mark.parametrize("name", ["erl", "pderl", "cerl"])
@pytest.mark.parametrize("buffer_size", [60, 100])
def test_a_buffer_that_is_smaller_than_the_warm_up(name: str, buffer_size: int) -> None:
    model = make(name, seed=1, buffer_size=buffer_size, learning_starts=100)
    model.learn(400)
    assert model._n_updates > 0 and warm_up(model) is None
    assert model.replay_buffer.size() == buffer_size


@pytest.mark.parametrize("name", ["td7", "pop_td7"])
def test_the_note_of_a_warm_up_counts_transitions(name: str, tmp_path: Path) -> None:
    model = make(name, toy_vec_env(2), seed=1, learning_starts=100)
    model.learn(60)
    assert (
        warm_up(model) == f"{model.n_stored} of 100 steps"
        and model.n_stored == model.num_timesteps > model.replay_buffer.size()
    )
    model.learn(160, reset_num_timesteps=False)
    assert model._n_updates > 0 and warm_up(model) is None
    model.save(tmp_path / "model")
    assert warm_up(ALGOS[name].load(tmp_path / "model")) is None


def test_offline_learning_waits_for_nothing(tmp_path: Path) -> None:
    recorded = make("td7", seed=1)
    recorded.learn(100)
    recorded.save_replay_buffer(tmp_path / "buffer")
    model = make("td7", seed=1, offline=True, learning_starts=1000)
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(5)
    assert warm_up(model) is None and model._n_updates == 5


# -------------------------------------------------------------------- episodes with goals


@pytest.mark.parametrize("name", ["td7", "pop_td7"])
def test_an_episode_with_goals_that_was_cut_is_one_of_its_own(name: str) -> None:
    class Long(BitFlippingEnv):
        """Never reaches its goal."""

        def compute_reward(self, *args: Any) -> Any:
            return super().compute_reward(*args) * 0 - 1.0

        def step(self, action: Any) -> Any:
            seen, reward, _, _, info = super().step(action)
            return seen, reward, False, self.current_step >= 20, info

    env = Long(n_bits=4, continuous=True, max_steps=20)
    model = make(name, env, "MultiInputPolicy", seed=1, replay_buffer_class=HerReplayBuffer, learning_starts=10_000)
    model.learn(30)
    model.learn(30, reset_num_timesteps=False)
    buffer = model.replay_buffer
    lengths, starts = (array[: buffer.pos, 0] for array in (buffer.ep_length, buffer.ep_start))
    is_end = (buffer.dones[: buffer.pos, 0] == 1).nonzero()[0]
    assert set(lengths[starts == 20]) == {10} and 29 in is_end and buffer.timeouts[29, 0] == 1
    assert {int(length) for length in lengths} <= {0, 10, 20}


# -------------------------------------------------------------------- buffers with returns of several steps


def test_a_portfolio_reads_the_buffer_that_it_wrote(tmp_path: Path) -> None:
    model = make("cerl", seed=1, n_steps=3, learning_starts=50)
    model.learn(300)
    assert model._n_updates > 0
    model.save_replay_buffer(tmp_path / "buffer.npz")
    again = make("cerl", seed=1, n_steps=3, learning_starts=50)
    again.load_replay_buffer(tmp_path / "buffer.npz")
    assert isinstance(again, CERL) and again.replay_buffer is not None
    assert again.replay_buffer.size() == model.replay_buffer.size()


def test_one_step_in_place_of_several(tmp_path: Path) -> None:
    given = {"handle_timeout_termination": True}
    model = make("erl", seed=1, n_steps=3, replay_buffer_kwargs=given)
    assert given == {"handle_timeout_termination": True}
    model.save(tmp_path / "model")
    again = ERL.load(tmp_path / "model", env=toy_vec_env(), n_steps=1)
    again.learn(200)
    assert again.n_steps == 1 and type(again.replay_buffer).__name__ == "ReplayBuffer"
    assert again.replay_buffer_kwargs == given


# -------------------------------------------------------------------- logs


@pytest.mark.parametrize("name", ["erl", "cem", "td7"])
def test_a_resumed_run_logs_where_it_did(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = str(tmp_path / "tb")
    for seed in (1, 2):
        model = make(name, seed=seed, tensorboard_log=log)
        model.learn(150, callback=GenerationCheckpoint(60, tmp_path / f"checkpoints_{seed}"))
    folders = sorted(Path(log).iterdir())
    counts = [len(list(folder.iterdir())) for folder in folders]
    folder = newest_checkpoint(tmp_path / "checkpoints_1")
    resumed: Any = ALGOS[name].resume_from(folder, env=toy_vec_env())
    resumed.learn(150)
    assert Path(resumed.logger.dir) == folders[0] and not resumed._custom_logger
    assert [len(list(each.iterdir())) for each in folders] == [counts[0] + 1, counts[1]]
    resumed.learn(100)
    assert Path(resumed.logger.dir) not in folders


def test_a_resumed_run_may_log_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = make("erl", seed=1, tensorboard_log=str(tmp_path / "here"))
    model.learn(150, callback=GenerationCheckpoint(60, tmp_path / "checkpoints"))
    folder = newest_checkpoint(tmp_path / "checkpoints")
    resumed: Any = ERL.resume_from(folder, env=toy_vec_env(), tensorboard_log=str(tmp_path / "there"))
    resumed.learn(150)
    assert Path(resumed.logger.dir).parent == tmp_path / "there"


# -------------------------------------------------------------------- returns of any size


@pytest.mark.parametrize(("name", "arguments"), [("td7", {}), ("pop_td7", {}), ("erl_re2", {"learner": "td7"})])
def test_the_first_policy_that_was_assessed_is_kept(name: str, arguments: dict[str, Any]) -> None:
    env = gym.wrappers.TransformReward(ToyEnv(), lambda reward: 1e9 * reward - 1e9)
    model = make(name, env, seed=1, **arguments)
    model.learn(400)
    states = [member.assessment.state for member in getattr(model, "members", [])] or [model.assessment.state]
    assert all(state["n_accepted"] > 0 and state["score"] < -1e8 for state in states)
    assert np.isfinite(model.predict(env.reset(seed=1)[0])[0]).all()


# -------------------------------------------------------------------- what acts, and at which rate


class UntilGeneration(BaseCallback):
    """Stops once so many generations are finished."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def _on_step(self) -> bool:
        return self.model.n_generations < self.number  # type: ignore[attr-defined]


@pytest.mark.parametrize("evolver", ["cem", "ga"])
def test_a_loaded_champion_acts_until_there_is_another(evolver: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"evolver": evolver, "deploy": "champion", "fitness_interval": 4, "pop_size": 4}
    model = make("veb_rl", seed=1, learning_starts=20, **arguments)
    model.learn(2000, callback=UntilGeneration(9))  # of which the first, the fifth and the ninth evolve
    assert model.n_generations == 9 and model.population.champion is not None
    model.save(tmp_path / "model")
    champion = {name: tensor.clone() for name, tensor in model.policy.deployed.state_dict().items()}
    learner = model.policy.q_net.state_dict()
    assert any(not th.equal(champion[name], learner[name]) for name in champion), "the learner is another network"
    loaded: Any = ALGOS["veb_rl"].load(tmp_path / "model", env=model.env)
    loaded.learn(2000, callback=UntilGeneration(11), reset_num_timesteps=False)
    assert loaded.n_generations == 11 and loaded.population.champion is None
    assert deployed(loaded)[0] == "champion"
    assert all(th.equal(champion[name], tensor) for name, tensor in loaded.policy.deployed.state_dict().items())


class Schedule(BaseCallback):
    """Puts another schedule in place of the model's, as users of SB3 do."""

    def _on_training_start(self) -> None:
        self.model.lr_schedule = lambda remaining: 0.0  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


class Attribute(BaseCallback):
    """Writes an attribute that SB3 does not read again."""

    def _on_training_start(self) -> None:
        self.model.learning_rate = 1e-6

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["erl", "erl_re2", "cem_rl", "evo_rainbow", "td7"])
def test_a_schedule_that_a_callback_puts_in_place_is_followed(name: str) -> None:
    model = make(name, seed=1, compile=False)
    frozen = {key: value.clone() for key, value in model.policy.critic.state_dict().items()}
    model.learn(300, callback=Schedule())
    assert model._n_updates > 0
    assert all(th.equal(frozen[key], value) for key, value in model.policy.critic.state_dict().items())


@pytest.mark.parametrize("name", ["erl", "cem_rl"])
def test_an_attribute_that_nobody_reads_changes_nothing(name: str) -> None:
    ends = []
    for callback in (None, Attribute()):
        model = make(name, seed=1)
        model.learn(300, callback=callback)
        ends.append([value.clone() for value in model.policy.state_dict().values()])
    assert all(th.equal(one, other) for one, other in zip(*ends, strict=True))


def test_published_rates_stay_after_files_and_copies(tmp_path: Path) -> None:
    model = make("erl", seed=1)
    model.learn(200)
    model.save(tmp_path / "model")
    other: Any
    for other in (ERL.load(tmp_path / "model", env=toy_vec_env()), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.lr_schedule is other.published_schedule
        assert rates_of(other, 8).learning_rate is None
    assert rates_of(ERL.load(tmp_path / "model", env=toy_vec_env(), learning_rate=1e-3), 8).learning_rate == 1e-3


# -------------------------------------------------------------------- numbers and spaces


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("openai_es", {"n_pairs": np.int64(3), "episode_cutoff": np.int64(5)}),
        ("ns_es", {"n_pairs": np.int32(3)}),
        ("esac", {"n_pairs": np.int64(2)}),
        ("pop_td7", {"pop_size": np.int64(2)}),
        ("erl", {"pop_size": np.int64(3), "gamma": np.float32(0.5)}),
    ],
)
def test_numbers_of_numpy(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, **{"seed": np.int64(1), **arguments})
    model.learn(60)
    model.save(tmp_path / "model")
    again = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    for key, value in arguments.items():
        assert getattr(again, key) == value and not isinstance(getattr(model, key), np.generic)
    if name == "openai_es":
        assert ALGOS[name].load(tmp_path / "model", env=toy_vec_env(), n_pairs=np.int64(3)).pop_size == 6  # type: ignore[attr-defined]


def test_agents_act_in_the_space() -> None:
    class FromOne(ToyEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(2, start=1)

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return super().step(np.array([float(action)]))

    observations = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) * 5
    found: dict[str, Any] = {}
    for name, arguments in {"erl": {"learner": "dqn"}, "ga_ns": {}, "ns_es": {}}.items():
        model = make(name, FromOne(), seed=1, **arguments)
        model.learn(100)
        found |= {f"{name}.{key}": agent for key, agent in model.candidates_for_report().items()}
        if name == "erl":
            found["learner_agent"] = model.learner_agent
        elif name == "ga_ns":
            found["most_novel"] = model.most_novel()
        else:
            found["member"] = model.member(0)
    for name, agent in found.items():
        assert set(np.unique(agent.predict(observations, deterministic=True)[0])) <= {1, 2}, name


@pytest.mark.parametrize("n_finalists", [1, 2])
def test_an_elite_can_be_beaten(n_finalists: int) -> None:
    assert finalists(np.array([1.0, 3.0, 2.0]), n_finalists, has_elite=True) == [ELITE, 1]
    assert finalists(np.array([1.0, 3.0, 2.0]), n_finalists, has_elite=False) == [1, 2][:n_finalists]


# -------------------------------------------------------------------- recorded data


class Recorded:
    """An episode of random steps."""

    def __init__(self, n: int, observation: Any):
        self.observations = np.stack([observation() for _ in range(n + 1)])
        self.actions = np.random.default_rng(0).uniform(-1, 1, (n, 2)).astype(np.float32)
        self.rewards = np.zeros(n)
        self.terminations = np.zeros(n, dtype=bool)
        self.truncations = np.arange(n) == n - 1


def test_recorded_images_are_transposed_as_the_environment_is() -> None:
    env = ImageEnv()
    model = make("td7", env, "CnnPolicy", offline=True)
    n = fill_replay_buffer(model, [Recorded(5, env.observation_space.sample)])
    assert n == 5 and model.replay_buffer.size() == 5 and model.replay_buffer.observations.shape[-3:] == (1, 36, 36)


def test_a_second_dataset_does_not_overwrite_the_first() -> None:
    env = ToyEnv()
    model = make("td7", env, offline=True, buffer_size=100)
    episode = Recorded(60, env.observation_space.sample)
    assert fill_replay_buffer(model, [episode]) == 60
    with pytest.raises(
        ValueError, match=r"buffer_size must be at least .* in the dataset beside the 60 that it holds; got 100"
    ):
        fill_replay_buffer(model, [episode])


# -------------------------------------------------------------------- pictures


def test_curves_and_populations_of_several_calls_go_on(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = make("erl", seed=1)
    for _ in range(2):
        evaluation = EvalCallback(toy_vec_env(), eval_freq=60, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
        model.learn(200, callback=[evaluation, PopulationCallback(tmp_path)])
    table = PopulationTable(tmp_path)
    steps = table["timesteps"]
    assert (np.diff(steps) > 0).all() and steps[-1] > 300
    np.testing.assert_array_equal(ascending(np.array([400.0, 800.0, 300.0, 700.0, 100.0])), [400, 800, 1100, 1500, 1600])


def test_a_run_without_a_generation_has_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    env = make_vec_env(ToyEnv, monitor_dir=str(tmp_path))
    make("td7", env, seed=1).learn(40)
    env.close()
    (tmp_path / "population.csv").write_text('#{"algorithm": "ERL"}\ngeneration,timesteps,warm_up\n')
    assert kinds_of([tmp_path]) == ["curves"] and draw_curves([tmp_path]) is not None
    for monitor in tmp_path.glob("*monitor.csv"):
        monitor.unlink()
    with pytest.raises(ValueError, match="run must have finished a generation"):
        draw_population(tmp_path)
    assert kinds_of([tmp_path]) == ["population"]


def test_a_population_callback_of_several_models() -> None:
    watch = PopulationCallback(n_observations=np.int64(8))  # type: ignore[arg-type]
    make("cem", seed=1).learn(200, callback=watch)
    make("cem", "Pendulum-v1", seed=1, pop_size=2).learn(900, callback=watch)
    assert watch.rows and watch.rows[0]["generation"] == 1
    seen: Any = watch._observations.batch
    np.testing.assert_allclose(
        np.square(seen[:, :2]).sum(axis=1), 1.0, rtol=1e-5
    )  # a cosine and a sine, so the second model's
