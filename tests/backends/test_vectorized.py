"""The answer of the vectorized back-end depends neither on the number of environments nor on where they live."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_erl import ALGOS, OpenAIES
from sb3_erl.rollouts.exploration import UniformExploration
from sb3_erl.rollouts.jobs import Job
from tests.backends.records import Record, act, evaluate, table
from tests.contract.helpers import Tables, Witness, differences, snapshot
from tests.contract.settings import DISCRETE, GENERATIONAL, HYBRIDS, STEPWISE, known, make, n_rollouts, variants
from tests.envs import ImageEnv, ToyEnv, toy_vec_env

# ---------------------------------------------------------------- the evaluator alone


def varied_jobs() -> list[Job]:
    whole = [Job(candidate, episode) for candidate in range(3) for episode in range(2)]
    return [*whole, Job(3, horizon=4), Job(4, horizon=2), Job(5, explorer=UniformExploration()), Job(6, horizon=100)]


ENVS: dict[str, Callable[[], VecEnv]] = {
    "one": lambda: toy_vec_env(1, length=4, vary=6, ending="termination"),
    "three": lambda: toy_vec_env(3, length=4, vary=6, ending="termination"),
    "more than jobs": lambda: toy_vec_env(16, length=4, vary=6, ending="termination"),
    "processes": lambda: toy_vec_env(2, subprocess=True, length=4, vary=6, ending="termination"),
}


@pytest.mark.parametrize("kind", list(ENVS)[1:])
def test_same_episodes_from_any_env(kind: str) -> None:
    expected, stored = evaluate(ENVS["one"](), varied_jobs())
    env = ENVS[kind]()
    try:
        batch, record = evaluate(env, varied_jobs())
    finally:
        env.close()
    assert batch is not None and expected is not None
    assert [e.job.candidate for e in batch.episodes] == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6]
    for ours, theirs in zip(batch.episodes, expected.episodes, strict=True):
        assert np.array_equal(ours.rewards, theirs.rewards) and np.array_equal(ours.last_observation, theirs.last_observation)
        assert (ours.terminated, ours.cut, ours.length) == (theirs.terminated, theirs.cut, theirs.length)
    assert table(record) == table(stored)
    assert batch.n_timesteps == record.n_timesteps == stored.n_timesteps == len(table(stored))


@pytest.mark.parametrize("kind", ["three", "processes"])
def test_infos_that_are_not_read_are_not_kept(kind: str) -> None:
    env, again = ENVS[kind](), ENVS[kind]()
    try:
        (_, whole), (_, brief) = evaluate(env, varied_jobs()), evaluate(again, varied_jobs(), Record(reads_infos=False))
        needed = evaluate(again, varied_jobs(), Record(reads_infos=False, needs=("infos",)))[0]
    finally:
        env.close()
        again.close()
    for (_, ours), (_, theirs) in zip(brief.stored, whole.stored, strict=True):
        assert not any(step.info for step in ours[:-1]) and all(step.info for step in theirs)
        assert ours[-1].info.keys() == theirs[-1].info.keys() and len(ours) == len(theirs)
    assert [row[:-1] for row in table(brief)] == [row[:-1] for row in table(whole)], "all but whether a time limit is noted"
    assert needed is not None and all(all(episode.infos) for episode in needed.episodes)


def test_episodes_of_one_candidate_differ() -> None:
    batch, _ = evaluate(toy_vec_env(2), [Job(0, 0), Job(0, 1), Job(1, 0)])
    assert batch is not None
    first, second, other = (episode.total_reward for episode in batch.episodes)
    assert len({first, second, other}) == 3


@pytest.mark.parametrize("n_envs", [1, 2])
def test_cut_rollouts_reset_their_slot(n_envs: int) -> None:
    env = toy_vec_env(n_envs, length=8)
    jobs = [Job(0, horizon=3), Job(1, horizon=8), Job(2, horizon=9), Job(3, horizon=1), Job(4)]
    batch, record = evaluate(env, jobs)
    assert batch is not None
    assert [(e.length, e.cut, e.terminated) for e in batch.episodes] == [
        (3, True, False),
        (8, False, False),  # the environment's own time limit came at the same step
        (8, False, False),
        (1, True, False),
        (8, False, False),
    ]
    starts = [steps[0].observation for _, steps in record.stored]
    fresh, _ = evaluate(toy_vec_env(1, length=8), jobs[:1])
    assert fresh is not None and np.array_equal(fresh.episodes[0].rewards, batch.episodes[0].rewards)
    assert len({start.tobytes() for start in starts}) == len(jobs)
    for (_, steps), episode in zip(record.stored, batch.episodes, strict=True):
        assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
        assert steps[-1].info["TimeLimit.truncated"] is True, "cut or truncated, never a terminal"
        assert np.array_equal(steps[-1].next_observation, episode.last_observation)
        for before, after in itertools.pairwise(steps):
            assert np.array_equal(before.next_observation, after.observation)


@pytest.mark.parametrize("subprocess", [False, True])
def test_idle_slots_are_neither_stepped_nor_counted_nor_stored_nor_shown(subprocess: bool) -> None:
    env = toy_vec_env(4, subprocess, length=5)
    try:
        batch, record = evaluate(env, [Job(0), Job(1, horizon=12), Job(2, horizon=2)])
        assert env.get_attr("n_steps") == [5, 5, 2, 0] and env.get_attr("n_resets") == [1, 1, 1, 0]
        env.reset()
        env.step(np.zeros((4, 2)))  # all of them can go on
    finally:
        env.close()
    assert batch is not None and batch.n_timesteps == 5 + 5 + 2
    assert record.episodes == record.shown == 2, "callbacks see an episode once"
    assert [running.tolist() for running in record.running] == [[True, True, True, False]] * 2 + [
        [True, True, False, False]
    ] * 3
    assert [variables["dones"].tolist() for variables in record.variables[-1:]] == [[True, True, False, False]]
    assert sum(len(steps) for _, steps in record.stored) == 12


def test_callbacks_see_nothing_of_idle_slots() -> None:
    _, record = evaluate(ENVS["three"](), [Job(0), Job(1), Job(2)])
    assert len({episode.length for episode in evaluate(ENVS["one"](), [Job(0), Job(1), Job(2)])[0].episodes}) > 1
    assert record.shown == record.episodes == 3


@pytest.mark.parametrize("n_unobserved", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["one", "three", "processes"])
def test_steps_that_no_callback_observes_are_counted_together(kind: str, n_unobserved: int) -> None:
    """They are reported with the next observed step, at the latest when a job ends."""
    expected, stored = evaluate(ENVS["one"](), varied_jobs())
    env, record = ENVS[kind](), Record(n_unobserved=n_unobserved)
    try:
        batch, _ = evaluate(env, varied_jobs(), record)
    finally:
        env.close()
    assert batch is not None and expected is not None and table(record) == table(stored)
    assert batch.n_timesteps == record.n_timesteps == stored.n_timesteps
    assert 0 < sum(record.unobserved) <= n_unobserved
    assert sum(int(variables["dones"].sum()) for variables in record.variables) == sum(not e.cut for e in batch.episodes)
    if n_unobserved == 1000:  # nothing but the ends of jobs
        assert len(record.running) <= len(varied_jobs())


class Reusing(ToyEnv):
    """Gives the same dict and the same array each time, with other content."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.place, self.said = np.zeros(3, dtype=np.float32), {"time": np.zeros(1)}
        observation, _ = super().reset(**kwargs)
        self.place[:] = observation
        return self.place, self.said

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, *rest, _ = super().step(action)
        self.place[:] = observation
        self.said["time"][:] = self.time
        return self.place, *rest, self.said


@pytest.mark.parametrize("n_unobserved", [0, 1000])
def test_environments_may_use_their_memory_again(n_unobserved: int) -> None:
    record = Record(n_unobserved=n_unobserved)
    evaluate(toy_vec_env(1, env_class=Reusing), [Job(0), Job(1, horizon=3)], record)
    _, expected = evaluate(toy_vec_env(1), [Job(0), Job(1, horizon=3)])
    assert table(record) == table(expected)
    for _, steps in record.stored:
        assert [step.info["time"].tolist() for step in steps] == [[t + 1.0] for t in range(len(steps))]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_stopped_phase_stores_what_was_stepped(n_envs: int) -> None:
    batch, record = evaluate(toy_vec_env(n_envs), [Job(i) for i in range(4)], Record(stop_after=11))
    assert batch is None and len(record.running) == 11
    assert len(table(record)) == record.n_timesteps >= 11
    begun = [job.candidate for job, _ in record.stored]
    assert begun == list(range(len(begun))) and len(begun) >= max(2, n_envs)
    assert all(len(steps) > 0 for _, steps in record.stored)  # nothing of a job that never began


def test_a_budget_that_ends_with_the_last_job_completes_the_phase() -> None:
    jobs = [Job(0), Job(1)]
    assert evaluate(toy_vec_env(1), jobs, Record(budget=15))[0] is None
    complete, record = evaluate(toy_vec_env(1), jobs, Record(budget=16))
    assert complete is not None and complete.n_timesteps == record.n_timesteps == 16
    assert evaluate(toy_vec_env(1), jobs, Record(stop_after=16))[0] is None, "unlike a callback's False"


# ---------------------------------------------------------------- wrappers


class Offset(VecEnvWrapper):
    """Changes observations (and announces it) without a way to reset one environment."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv, gym.spaces.Box(-5, 5, (3,), np.float32))

    def reset(self) -> np.ndarray:
        return self.venv.reset() + 1  # type: ignore[operator]

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return observations + 1, *rest  # type: ignore[operator]


class ResettableOffset(Offset):
    def reset_slot(self, index: int, observation: np.ndarray) -> np.ndarray:
        return observation + 1


@pytest.mark.parametrize("wrapper", [Offset, ResettableOffset])
@pytest.mark.parametrize("subprocess", [False, True])
def test_first_observations_pass_wrappers_of_the_users_own(wrapper: type[Offset], subprocess: bool) -> None:
    jobs = [Job(0), Job(1, horizon=3), Job(2), Job(3), Job(4, horizon=2), Job(5)]
    _, reference = evaluate(toy_vec_env(2), jobs, actor=still)
    env = wrapper(toy_vec_env(2, subprocess))
    try:
        _, record = evaluate(env, jobs, actor=still)
    finally:
        env.close()
    for (_, ours), (_, theirs) in zip(record.stored, reference.stored, strict=True):
        assert len(ours) == len(theirs) > 0
        for own, other in zip(ours, theirs, strict=True):
            assert np.array_equal(own.observation, other.observation + 1)


def still(observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """An actor that does not look at what it sees."""
    return np.zeros((len(observations), 2), dtype=np.float32)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_frame_stack(n_envs: int) -> None:
    """Stacks begin with zeros and never mix two rollouts."""
    stacked, _ = evaluate_with_record(VecFrameStack(toy_vec_env(n_envs, length=5), 3))
    for steps in stacked:
        single = [step.observation[-3:] for step in steps]
        for t, step in enumerate(steps):
            past = [single[t - k] if t >= k else np.zeros(3, dtype=np.float32) for k in (2, 1, 0)]
            assert np.array_equal(step.observation, np.concatenate(past))
            assert np.array_equal(step.next_observation[:6], step.observation[3:])


def evaluate_with_record(env: VecEnv) -> tuple[list[Any], Record]:
    _, record = evaluate(env, [Job(0, horizon=3), Job(1), Job(2, horizon=2), Job(3)])
    return [steps for _, steps in record.stored], record


@pytest.mark.parametrize("n_envs", [1, 3])
def test_vec_monitor_counts_whole_episodes_only(n_envs: int) -> None:
    env = VecMonitor(DummyVecEnv([ToyEnv for _ in range(n_envs)]))
    jobs = [Job(0, horizon=3), Job(1), Job(2, horizon=2), Job(3)]
    batch, record = evaluate(env, jobs)
    assert batch is not None
    reported = [step.info["episode"] for _, steps in record.stored for step in steps if "episode" in step.info]
    assert [episode["l"] for episode in reported] == [8, 8]
    expected = [batch.episodes[i].total_reward for i in (1, 3)]
    assert [float(episode["r"]) for episode in reported] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_frozen_vec_normalize(n_envs: int) -> None:
    """The policy sees normalized observations; buffer and fitness get the environment's own."""

    def normalized(n: int) -> VecNormalize:
        env = VecNormalize(toy_vec_env(n), training=False)
        env.obs_rms.mean, env.obs_rms.var = np.array([0.2, -0.1, 0.0]), np.array([0.5, 2.0, 1.0])
        env.ret_rms.var = np.array(9.0)
        return env

    batch, record = evaluate(normalized(n_envs), varied_jobs())
    expected, reference = evaluate(normalized(1), varied_jobs())
    assert batch is not None and expected is not None
    assert table(record) == table(reference)
    raw = {
        start.tobytes() for start in (steps[0].observation for _, steps in evaluate(toy_vec_env(1), varied_jobs())[1].stored)
    }
    assert {steps[0].observation.tobytes() for _, steps in record.stored} == raw
    env = normalized(1)
    first = record.stored[0][1][0]
    scaled = env.normalize_obs(first.observation[None])
    assert np.allclose(first.action, act(scaled, [0])[0])
    for (_, steps), episode in zip(record.stored, batch.episodes, strict=True):
        assert [step.reward for step in steps] == episode.rewards.tolist()
    assert np.allclose(
        [v["rewards"][0] for v in record.variables[:4]], [s.reward / 3 for s in record.stored[0][1][:4]], atol=1e-3
    )


# ---------------------------------------------------------------- whole runs


def run(name: str, env: VecEnv, total: int, **overrides: Any) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """What a model is after ``total`` steps, and the fitness of each of its generations."""
    model = make(name, env, **overrides)
    tables = Tables(model)
    try:
        model.learn(total)
    finally:
        env.close()
    return snapshot(model), [tables.column(f"population/fitness_{kind}") for kind in ("max", "mean", "std")]


def last_generation(name: str, env: VecEnv, total: int, longest: int = 9, **overrides: Any) -> int:
    """
    :param name: key in ALGOS
    :param env: environment
    :param total: steps, more for classes with many rollouts in a generation
    :param longest: steps of the longest episode
    :param overrides: arguments of the class
    :return: steps at the end of the last generation that was finished, the third or a later one
    """
    witness = Witness()
    make(name, env, **overrides).learn(max(total, int(3.5 * n_rollouts(name) * longest)), witness)
    assert len(witness.generation_ends) >= 3
    return witness.generation_ends[-1]


def toy(n_envs: int, subprocess: bool = False) -> VecEnv:
    return toy_vec_env(n_envs, subprocess, length=4, vary=5, ending="termination")


@pytest.mark.parametrize(("name", "extra"), variants(GENERATIONAL))
def test_same_run_for_any_number_of_envs(name: str, extra: dict[str, Any]) -> None:
    end = last_generation(name, toy(1), 160, **extra)
    expected, fitness = run(name, toy(1), end, **extra)
    assert len(fitness[0]) >= 2 and (name not in HYBRIDS or expected["_n_updates"] > 0)
    for n_envs in (2, 4):
        result, other = run(name, toy(n_envs), end, **extra)
        assert differences(expected, result) == [] and other == fitness


@pytest.mark.parametrize("name", GENERATIONAL)
def test_same_run_in_processes(name: str) -> None:
    end = last_generation(name, toy(1), 160)
    expected, fitness = run(name, toy(1), end)
    result, other = run(name, toy(3, subprocess=True), end)
    assert differences(expected, result) == [] and other == fitness


@pytest.mark.parametrize("name", STEPWISE)
def test_step_by_step_in_processes(name: str) -> None:
    """A learner that goes step by step depends on the number of environments, but not on where they live."""
    expected, _ = run(name, toy(2), 100)
    result, _ = run(name, toy(2, subprocess=True), 100)
    assert expected["_n_updates"] > 0 and differences(expected, result) == []


def real(name: str, n_envs: int) -> VecEnv:
    env_id = "CartPole-v1" if name in DISCRETE else "Pendulum-v1"
    return DummyVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=30)) for _ in range(n_envs)])


@pytest.mark.parametrize("name", GENERATIONAL)
def test_same_run_on_a_real_task(name: str) -> None:
    end = last_generation(name, real(name, 1), 460, 30)
    expected, fitness = run(name, real(name, 1), end)
    result, other = run(name, real(name, 4), end)
    assert differences(expected, result) == [] and other == fitness


def stacked(n_envs: int) -> VecEnv:
    return VecFrameStack(toy(n_envs), 2)


def monitored(n_envs: int) -> VecEnv:
    return VecMonitor(DummyVecEnv([lambda: ToyEnv(length=4, vary=5) for _ in range(n_envs)]))


@pytest.mark.parametrize("wrap", [stacked, monitored], ids=["frames", "monitor"])
@pytest.mark.parametrize("name", GENERATIONAL)
def test_same_run_behind_wrappers(name: str, wrap: Callable[[int], VecEnv]) -> None:
    end = last_generation(name, wrap(1), 160)
    expected, fitness = run(name, wrap(1), end)
    result, other = run(name, wrap(3), end)
    assert differences(expected, result) == [] and other == fitness


def pictures(n_envs: int) -> VecEnv:
    return VecTransposeImage(VecFrameStack(toy_vec_env(n_envs, env_class=ImageEnv, length=3, vary=2), 2))


@pytest.mark.parametrize("name", GENERATIONAL)
def test_same_run_on_stacked_images(name: str) -> None:
    kwargs: dict[str, Any] = {
        **known(name, {"buffer_size": 200, "train_freq": 8}),
        "policy": "CnnPolicy",
        "policy_kwargs": {"net_arch": [4], "features_extractor_kwargs": {"features_dim": 4}},
    }
    if issubclass(ALGOS[name], OpenAIES):
        kwargs["policy_kwargs"]["n_reference"] = 6
    end = last_generation(name, pictures(1), 64, 7, **kwargs)
    expected, fitness = run(name, pictures(1), end, **kwargs)
    result, other = run(name, pictures(3), end, **kwargs)
    assert name not in HYBRIDS or expected["replay_buffer.observations"].shape[-3:] == (2, 36, 36)
    assert differences(expected, result) == [] and other == fitness
