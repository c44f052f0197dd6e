"""Worker processes give the answer of the default back-end, whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from benchmarks.faults import unused_memory
from benchmarks.injection import what_stays
from sb3_erl import ALGOS, buffers, remote, rollouts
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.remote.dispatcher import WorkerError
from sb3_erl.remote.env_recipe import environment_maker
from sb3_erl.remote.losses import Losses
from sb3_erl.remote.process import ProcessEvaluator
from tests import envs
from tests.backends.troubles import TroubledEnv, end_of_generation, run, toy
from tests.contract.helpers import Witness, differences, snapshot
from tests.contract.settings import GENERATIONAL, make, n_stored
from tests.envs import ImageEnv, ToyEnv, toy_vec_env
from tests.interruption import call_with_sigint

Evaluators = Callable[..., ProcessEvaluator]


@pytest.fixture
def evaluators() -> Iterator[Evaluators]:
    """Makes evaluators of toy environments and closes them."""
    made: list[ProcessEvaluator] = []

    def make_one(trouble: str = "none", flag: str = "", n_workers: int = 2, **kwargs: Any) -> ProcessEvaluator:
        made.append(ProcessEvaluator(n_workers, partial(TroubledEnv, trouble, flag, n_actions=envs.N_ACTIONS), **kwargs))
        return made[-1]

    before = set(multiprocessing.active_children())
    yield make_one
    for evaluator in made:
        evaluator.close()
    assert set(multiprocessing.active_children()) <= before


def pids(evaluator: ProcessEvaluator) -> list[int]:
    dispatcher: Any = evaluator._dispatcher
    return [dispatcher.pool.process_of(worker).pid for worker in dispatcher.workers]


# ---------------------------------------------------------------- the same answer


@pytest.mark.parametrize(("name", "n_generations"), [("openai_es", 5), ("erl_re2", 3)])
def test_any_number_of_workers(name: str, n_generations: int, evaluators: Evaluators) -> None:
    end = end_of_generation(name, n_generations)
    expected, log = run(name, end)
    assert expected["n_generations"] == n_generations
    assert name == "openai_es" or len(expected["replay_buffer.observations"]) == end
    for n_workers in (1, 2, 4):
        result, other = run(name, end, evaluator=evaluators(n_workers=n_workers))
        assert differences(expected, result) == [] and other == log


@pytest.mark.parametrize("name", GENERATIONAL)
def test_every_class(name: str, evaluators: Evaluators) -> None:
    """Callbacks see every step, and a run ends inside an episode as it would anywhere."""
    seen, remote = Witness(), Witness()
    expected, log = run(name, 131, callback=seen)
    result, other = run(name, 131, callback=remote, evaluator=evaluators())
    assert differences(expected, result) == [] and other == log
    assert seen.counts == remote.counts == list(range(1, 132)) and seen.generation_ends == remote.generation_ends


@pytest.mark.parametrize("name", ["cem", "erl", "openai_es", "deep_ga"])
def test_images(name: str, evaluators: Evaluators) -> None:
    """Networks that NumPy code does not know travel with the parameters of each candidate."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4], "features_extractor_kwargs": {"features_dim": 4}}}
    if name == "openai_es":
        kwargs["policy_kwargs"]["n_reference"] = 6

    def learned(**evaluator: Any) -> dict[str, Any]:
        env = VecTransposeImage(toy_vec_env(1, env_class=ImageEnv, length=3, vary=2))
        model = make(name, env, policy="CnnPolicy", **kwargs, **evaluator)
        model.learn(60)
        assert model.n_generations >= 2
        return snapshot(model)

    evaluator = evaluators()
    evaluator.make_env = partial(ImageEnv, length=3, vary=2)
    assert differences(learned(), learned(evaluator=evaluator)) == []


@pytest.mark.parametrize("name", ["cem", "erl"])
def test_a_callback_that_says_no(name: str, evaluators: Evaluators) -> None:
    expected, _ = run(name, 400, callback=Witness(stop_at=77))
    result, _ = run(name, 400, callback=Witness(stop_at=77), evaluator=evaluators())
    assert expected["num_timesteps"] == 77 and differences(expected, result) == []


def test_steps_that_no_callback_observes_are_counted(evaluators: Evaluators) -> None:
    model = make("openai_es", toy(), evaluator=evaluators())
    shown, after_step = [], model.rollouts.after_step

    def keep(variables: dict[str, Any], running: np.ndarray) -> bool:
        shown.append(variables)
        return after_step(variables, running)

    model.rollouts.after_step = keep
    model.learn(100)
    assert model.num_timesteps == 100 and len(shown) < 30
    assert len(model.ep_info_buffer) == model._episode_num == len(shown) - 1
    assert all(not np.isnan(variables["rewards"][0]) and "new_obs" not in variables for variables in shown)


def test_locals_of_callbacks(evaluators: Evaluators) -> None:
    class Seen(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Any] = []

        def _on_step(self) -> bool:
            infos, rewards = self.locals["infos"], self.locals["rewards"]
            own = {key: value for key, value in infos[0].get("episode", {}).items() if key != "t"}
            self.rows.append((rewards.tolist(), self.locals["dones"].tolist(), own, self.locals["actions"].tolist()))
            return True

    seen, remote = Seen(), Seen()
    run("erl", 131, callback=seen)
    run("erl", 131, callback=remote, evaluator=evaluators())
    assert seen.rows == remote.rows and any(row[2] for row in remote.rows)


# ---------------------------------------------------------------- workers die, hang, come and go


@pytest.mark.parametrize("name", ["openai_es", "erl_re2"])
def test_a_worker_dies_in_an_episode(name: str, evaluators: Evaluators, tmp_path: Path) -> None:
    end = end_of_generation(name, 3)
    expected, log = run(name, end)
    evaluator = evaluators("die once", str(tmp_path / "died"))
    result, other = run(name, end, evaluator=evaluator)
    assert evaluator.n_deaths == 1 and differences(expected, result) == [] and other == log


class Killer(BaseCallback):
    """Kills every worker there is, at one step."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            for pid in pids(self.model.workers):
                os.kill(pid, signal.SIGKILL)
        return True


@pytest.mark.parametrize(("name", "n_workers"), [("erl", 1), ("openai_es", 4)])
def test_all_workers_are_killed(name: str, n_workers: int, evaluators: Evaluators) -> None:
    expected, log = run(name, 150)
    evaluator = evaluators(n_workers=n_workers)
    result, other = run(name, 150, callback=Killer(40), evaluator=evaluator)
    assert evaluator.n_deaths == n_workers and differences(expected, result) == [] and other == log


class Taken(BaseCallback):
    """Kills half of the workers again and again, as where machines are lent and taken back."""

    def _on_step(self) -> bool:
        if self.n_calls % 12 == 0:
            alive = pids(self.model.workers)
            for pid in alive[: len(alive) // 2]:
                os.kill(pid, signal.SIGKILL)
        return True


def test_half_of_the_workers_are_replaced_again_and_again(evaluators: Evaluators) -> None:
    expected, log = run("openai_es", 200)
    evaluator = evaluators(n_workers=4)
    result, other = run("openai_es", 200, callback=Taken(), evaluator=evaluator)
    assert evaluator.n_deaths >= 12 and differences(expected, result) == [] and other == log


@pytest.mark.parametrize(
    ("n_done", "losses", "is_to_blame"),
    [
        (50, {7: 3}, True),  # of this job only
        (50, {7: 2}, False),
        (50, {7: 3, **dict.fromkeys(range(20, 40), 1)}, False),  # workers go all the time
        (50, {7: 12, **dict.fromkeys(range(20, 40), 1)}, True),  # but not so often on one job
        (2, {7: 3, 8: 3, 9: 3}, True),  # nothing works
    ],
)
def test_jobs_that_kill_their_workers_are_told_from_bad_luck(n_done: int, losses: dict[int, int], is_to_blame: bool) -> None:
    counted = Losses()
    counted.n_done = n_done
    for number, n_lost in losses.items():
        for _ in range(n_lost):
            counted.count(number)
    assert (counted.error(7) is not None) == is_to_blame


def test_an_episode_that_kills_every_worker_is_an_error(evaluators: Evaluators) -> None:
    evaluator = evaluators("die")
    with pytest.raises(WorkerError, match="3 workers died while they ran job"):
        make("openai_es", toy(), evaluator=evaluator).learn(400)
    assert evaluator.n_deaths >= 3


def test_an_exception_is_shown_with_its_traceback(evaluators: Evaluators) -> None:
    model = make("erl_re2", toy(), evaluator=evaluators("raise"))
    with pytest.raises(WorkerError, match=r"(?s)raised an exception in a worker.*_go_wrong.*the knee is broken"):
        model.learn(400)
    assert n_stored(model) == model.num_timesteps and model.workers.n_deaths == 0
    model.evaluator.make_env = partial(TroubledEnv, "none")
    model.learn(30, reset_num_timesteps=False)
    assert n_stored(model) == model.num_timesteps


def test_an_environment_that_cannot_be_made(evaluators: Evaluators, capfd: pytest.CaptureFixture[str]) -> None:
    evaluator = evaluators()
    evaluator.make_env = partial(ToyEnv, color="red")
    with pytest.raises(WorkerError, match=r"(?s)could not make its environment.*color"):
        make("openai_es", toy(), evaluator=evaluator).learn(10)
    assert "Traceback" not in capfd.readouterr().err, "the error has it, the terminal need not"


class FunctionInInfoEnv(ToyEnv):
    """Puts into its infos what can be copied but not pickled."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *others, info = super().step(action)
        return (*others, {**info, "distance": lambda point: 0.0})  # type: ignore[return-value]


def test_an_info_that_cannot_be_pickled(evaluators: Evaluators) -> None:
    evaluator = evaluators()
    evaluator.make_env = FunctionInInfoEnv
    model = make("erl", toy(), evaluator=evaluator)
    with pytest.raises(WorkerError, match=r"(?s)raised an exception in a worker.*pickle.*lambda"):
        model.learn(400)
    assert model.workers.n_deaths == 0


@pytest.mark.parametrize("name", ["openai_es", "erl"])
def test_a_hanging_environment_is_cut_off(name: str, evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluators("hang", episode_timeout=1.5)
    model = make(name, toy(), evaluator=evaluator)
    batches, evaluate = [], evaluator.evaluate

    def keep(*args: Any) -> Any:
        batches.append(evaluate(*args))
        return batches[-1]

    monkeypatch.setattr(evaluator, "evaluate", keep)
    with pytest.warns(UserWarning, match=r"did not end within episode_timeout=1\.5 seconds"):
        model.learn(200, OneGeneration(), log_interval=None)
    episodes, address = batches[0].episodes, Address(model.run_seed, 1)
    failed = [episode.failed for episode in episodes]
    assert failed == [address.seed(Stream.ENVIRONMENT, *episode.job.key) % 3 == 0 for episode in episodes]
    assert True in failed and False in failed and model.logger.name_to_value["rollout/failed_episodes"] == sum(failed)
    for episode in episodes:
        assert episode.failed == np.isnan(episode.total_reward) == (episode.length == 0)
    assert model.num_timesteps == sum(episode.length for episode in episodes) + 1
    if name == "erl":
        assert n_stored(model) == model.num_timesteps and np.isfinite(model.replay_buffer.rewards).all()


class OneGeneration(BaseCallback):
    """Stops at the first step after the first complete generation."""

    is_complete = False

    def _on_rollout_end(self) -> None:
        self.is_complete = True

    def _on_step(self) -> bool:
        return not self.is_complete


class Elastic(BaseCallback):
    """Other numbers of workers as the run goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def _on_rollout_start(self) -> None:
        self.numbers.append(len(pids(self.model.workers)))

    def _on_step(self) -> bool:
        if self.n_calls == 10:
            self.model.workers.add_workers(3)
        if self.n_calls == 60:
            self.model.workers.remove_workers(4)
        return True


def test_workers_come_and_go(evaluators: Evaluators) -> None:
    expected, _ = run("openai_es", 200)
    elastic, evaluator = Elastic(), evaluators(n_workers=2)
    result, _ = run("openai_es", 200, callback=elastic, evaluator=evaluator)
    assert differences(expected, result) == []
    assert elastic.numbers[0] == 2 and 5 in elastic.numbers and elastic.numbers[-1] == 1 == evaluator.n_workers
    with pytest.raises(ValueError, match="n_workers must be at least 1; got 0"):
        evaluator.remove_workers(1)


def test_workers_are_kept_between_runs(evaluators: Evaluators) -> None:
    model = make("openai_es", toy(), evaluator=evaluators())
    model.learn(30)
    before = pids(model.evaluator)
    model.learn(30)
    assert pids(model.evaluator) == before


def test_interrupt_leaves_nobody(evaluators: Evaluators) -> None:
    def interrupt(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return True

    calls: list[int] = []
    model = make("erl", toy(), evaluator=evaluators())
    with pytest.raises(KeyboardInterrupt):
        model.learn(400, interrupt)
    assert pids(model.evaluator) == [] and n_stored(model) == model.num_timesteps - 1 == 29
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps == 60


@pytest.mark.parametrize("name", ["openai_es", "erl"])
def test_interrupt_in_any_line(name: str, evaluators: Evaluators) -> None:
    """In lines of the back-end and of multiprocessing drawn by chance; the same evaluator goes on and leaves nothing."""
    folders = tuple(str(Path(module.__file__).parent) for module in (buffers, remote, rollouts, multiprocessing))
    others, segments = set(multiprocessing.active_children()), unused_memory()

    def interrupt(number: int) -> tuple[Any, tuple[str, int]]:
        model = make(name, toy(), evaluator=evaluators())
        learn = partial(model.learn, 40, log_interval=None)
        return model, call_with_sigint(learn, number, lambda file: file.startswith(folders))

    model, (_, n_lines) = interrupt(0)
    model.evaluator.close()
    for number in np.random.default_rng(0).integers(1, n_lines, 12).tolist():
        model, (line, _) = interrupt(number)
        before = model.num_timesteps
        model.learn(40, reset_num_timesteps=False, log_interval=None)
        assert model.num_timesteps == before + 40, line
        model.evaluator.close()
        assert not what_stays(lambda: {*multiprocessing.active_children()} - others), line
        assert not what_stays(lambda: unused_memory() - segments), line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_follow_a_killed_main_process(number: int, tmp_path: Path) -> None:
    """Also while their environments hang, and shared memory goes; and Ray is not imported unless somebody asks for it."""
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            from functools import partial
            from tests.backends.troubles import TroubledEnv, toy
            from tests.contract.settings import make
            from sb3_erl import ProcessEvaluator, RayEvaluator

            if __name__ == "__main__":
                RayEvaluator(n_workers=2)
                model = make("openai_es", toy(), evaluator=ProcessEvaluator(2, partial(TroubledEnv, "hang")))

                def report(variables, _):
                    assert "ray" not in sys.modules
                    pool = model.workers._dispatcher.pool
                    print(*(pool.process_of(w).pid for w in model.workers._dispatcher.workers))
                    print(*(memory.name for memory in (pool._memory, *pool._tables.values())), flush=True)
                    os.kill(os.getpid(), int(sys.argv[1]))

                model.learn(100, report)
            """
        )
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, script, str(int(number))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    workers, segments = (line.split() for line in done.stdout.splitlines())
    assert done.returncode == -number and len(workers) == 2 and len(segments) == 2, done.stderr
    left = {*(Path(f"/proc/{pid}") for pid in workers), *(Path(f"/dev/shm/{name}") for name in segments)}
    assert not what_stays(lambda: {path for path in left if path.exists()}, 20)


# ---------------------------------------------------------------- the user's environments


def pendulum(**kwargs: Any) -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=12, **kwargs)


def zoo_style() -> VecEnv:
    def one() -> gym.Env:
        return gym.wrappers.RescaleAction(Monitor(pendulum(g=9.0)), np.float32(-1.0), np.float32(1.0))

    return VecFrameStack(DummyVecEnv([one]), 2)


def frozen() -> VecEnv:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(pendulum())]), training=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.2, -0.1, 0.0]), np.array([0.5, 2.0, 1.0])
    env.ret_rms.var = np.array(9.0)
    return env


@pytest.mark.parametrize("make_vec_env", [zoo_style, frozen])
@pytest.mark.parametrize("name", ["openai_es", "erl"])
def test_environments_are_made_again(name: str, make_vec_env: Callable[[], VecEnv]) -> None:
    expected, log = run(name, 100, make_vec_env())
    evaluator = ProcessEvaluator(2)
    with evaluator:
        result, other = run(name, 100, make_vec_env(), evaluator=evaluator)
    assert differences(expected, result) == [] and other == log and "rollout/ep_rew_mean" in log


def test_stacked_frames_of_dict_observations_are_made_again() -> None:
    env = VecFrameStack(DummyVecEnv([SimpleMultiObsEnv]), 2, {"img": "first", "vec": "last"})
    made = pickle.loads(cloudpickle.dumps(environment_maker(env, SimpleMultiObsEnv)))()
    assert made.observation_space == env.observation_space
    np.testing.assert_equal({key: part.shape for key, part in made.reset().items()}, {"img": (1, 128, 64, 1), "vec": (1, 10)})


class Unrecorded(gym.Wrapper):
    pass


@pytest.mark.parametrize(
    ("env", "match"),
    [
        (lambda: DummyVecEnv([lambda: Unrecorded(pendulum())]), r"record their arguments.*Unrecorded.*make_env"),
        (lambda: VecNormalize(DummyVecEnv([pendulum])), r"VecNormalize.*training=False"),
        (lambda: toy_vec_env(1), r"without a spec.*make_env"),
    ],
)
def test_what_cannot_be_made_again_is_refused(env: Callable[[], VecEnv], match: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){match}.*evaluator='vec'|{match}"):
        make("openai_es", env(), evaluator="process").learn(10)


def test_other_spaces_are_refused(evaluators: Evaluators) -> None:
    evaluator = evaluators()
    evaluator.make_env = partial(ToyEnv, action_shape=(3,))
    with pytest.raises(ValueError, match=r"make_env must make environments with the spaces of the model's env"):
        make("openai_es", toy(), evaluator=evaluator).learn(10)


@pytest.mark.parametrize(
    ("evaluator", "error", "match"),
    [("threads", ValueError, r"evaluator must be one of \['vec', 'process', 'ray'\].*'threads'"), (3, TypeError, "got 3")],
)
def test_unknown_evaluators(evaluator: Any, error: type[Exception], match: str) -> None:
    for name in ("openai_es", "erl"):
        with pytest.raises(error, match=match):
            make(name, evaluator=evaluator)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_workers": 0}, "n_workers must be at least 1"),
        ({"episode_timeout": 0.0}, "episode_timeout must be greater than 0"),
        ({"start_method": "fork"}, "start_method must be None or one of"),
    ],
)
def test_wrong_settings(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ProcessEvaluator(**kwargs)


# ---------------------------------------------------------------- saving, importing


@pytest.mark.parametrize("name", ["openai_es", "erl"])
def test_settings_are_saved(name: str, evaluators: Evaluators, tmp_path: Path) -> None:
    model = make(name, toy(), evaluator=evaluators(episode_timeout=60.0, n_workers=2))
    model.learn(40)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=toy())
    assert loaded.evaluator is not model.evaluator and repr(loaded.evaluator) == repr(model.evaluator)
    assert loaded.evaluator.episode_timeout == 60.0 and loaded.evaluator.n_workers == 2 and loaded.workers is None
    here = ALGOS[name].load(tmp_path / "model", env=toy(), evaluator="vec")
    for other in (loaded, here):
        other.learn(40, reset_num_timesteps=False)
    assert differences(snapshot(loaded), snapshot(here)) == [] and loaded.workers is not None and here.workers is None
    loaded.workers.close()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-erl\[ray\]'.*evaluator='process'"):
        make("openai_es", DummyVecEnv([pendulum]), evaluator="ray").learn(10)
