"""What one call of ``learn`` leaves to the next one, and to files: schedules, warm-ups, buffers, folders of logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.utils import LinearSchedule

from sb3_erl import ALGOS, CERL, ERL, TD7, GenerationCheckpoint, newest_checkpoint
from sb3_erl.runs.description import warm_up
from tests.contract.settings import make
from tests.envs import ToyEnv, toy_vec_env

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
    learner = TD7 if name == "td7" else None
    assert learner is None or np.isfinite(model.predict(env.reset(seed=1)[0])[0]).all()
