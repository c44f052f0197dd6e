"""Episodes carry what is needed, the same in every back-end, also with Dict observations and discrete actions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.rollouts.exploration import EpsilonGreedyExploration, UniformExploration
from sb3_erl.rollouts.jobs import EPISODE_PARTS, EpisodeBatch, Job, NoSummary
from tests.backends.records import Record, assert_same_episodes, evaluate, transitions
from tests.envs import ImageEnv, ToyEnv, toy_vec_env

SCORES, STEPS = NoSummary(), None
"""Summarizers of algorithms without and with a replay buffer."""
toy = partial(ToyEnv, length=4, vary=5, ending="termination")


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteEvaluator]:
    with ProcessEvaluator(2, toy) as evaluator:
        yield evaluator


def jobs() -> list[Job]:
    return [Job(0), Job(1), Job(1, 1), Job(2, horizon=3), Job(3, explorer=UniformExploration())]


def energy(batch: EpisodeBatch | None) -> np.ndarray:
    """A fitness that reads rewards and actions."""
    assert batch is not None
    return np.array([episode.rewards.sum() - 0.1 * np.square(episode.actions).sum() for episode in batch.episodes])


@pytest.mark.parametrize("needs", [["rewards", "actions"], ["behavior"], ["infos", "observations"], sorted(EPISODE_PARTS)])
@pytest.mark.parametrize("summarizer", [SCORES, STEPS], ids=["scores", "steps"])
def test_what_is_needed_is_there_in_every_backend(summarizer: Any, needs: list[str], remote: ProcessEvaluator) -> None:
    def record() -> Record:
        return Record(n_unobserved=10**6, summarizer=summarizer, needs=needs)

    expected, _ = evaluate(DummyVecEnv([toy]), jobs(), record())
    for n_envs, evaluator in ((3, None), (1, remote)):
        batch, _ = evaluate(DummyVecEnv([toy] * n_envs), jobs(), record(), remote=evaluator)
        assert_same_episodes(batch, expected)
        if "actions" in needs and "rewards" in needs:
            fitness = energy(batch)
            assert np.array_equal(fitness, energy(expected)) and len(np.unique(fitness)) == len(fitness)
    assert expected is not None
    for episode in expected.episodes:
        shapes = {"rewards": (episode.n_steps,), "actions": (episode.n_steps, 2), "observations": (episode.n_steps + 1, 3)}
        for part, shape in shapes.items():
            if part in needs:
                assert getattr(episode, part).shape == shape
        if "observations" in needs:
            assert np.array_equal(episode.observations[-1], episode.last_observation)
            assert [set(info) - {"terminal_observation"} for info in episode.infos] == [
                {"TimeLimit.truncated"}
            ] * episode.n_steps


@pytest.mark.parametrize("summarizer", [SCORES, STEPS], ids=["scores", "steps"])
@pytest.mark.parametrize("part", ["rewards", "actions", "observations", "infos"])
def test_what_is_not_declared_raises_in_every_backend(part: str, summarizer: Any, remote: ProcessEvaluator) -> None:
    """Never an empty array, of which a fitness of 0 would be made for all."""
    for evaluator in (None, remote):
        for needs in ([], sorted(EPISODE_PARTS - {part})):
            record = Record(summarizer=summarizer, needs=needs)
            batch, _ = evaluate(DummyVecEnv([toy]), [Job(0)], record, remote=evaluator)
            assert batch is not None
            with pytest.raises(ValueError, match=rf"reads episode.{part} must declare that it needs '{part}'"):
                getattr(batch.episodes[0], part)
            assert needs or (batch.episodes[0].last_observation is None) == (summarizer is SCORES)


def test_an_unknown_part_is_refused(remote: ProcessEvaluator) -> None:
    for evaluator in (None, remote):
        with pytest.raises(ValueError, match=r"needs must be some of \['actions'.*got \['reward'\]"):
            evaluate(DummyVecEnv([toy]), [Job(0)], Record(needs=["reward"]), remote=evaluator)


def test_scores_without_needs_are_29_bytes(remote: ProcessEvaluator) -> None:
    def received(needs: Sequence[str]) -> int:
        before = remote.traffic.bytes_in
        record = Record(n_unobserved=10**6, summarizer=SCORES, needs=needs)
        evaluate(DummyVecEnv([toy]), [Job(candidate) for candidate in range(40)], record, remote=remote)
        return remote.traffic.bytes_in - before

    assert received([]) < 40 * (29 + 130) < received(["rewards", "actions", "observations"])


# ---------------------------------------------------------------- Dict observations, discrete actions


class Grid(SimpleMultiObsEnv):
    """The same states in every process and a start that the seed chooses, which SB3's environment takes from NumPy."""

    def __init__(self) -> None:
        state = np.random.get_state()
        np.random.seed(0)
        super().__init__()
        np.random.set_state(state)
        self.max_count = 12

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        if seed is not None:
            self.state = int(np.random.default_rng(seed).integers(self.max_state))
            observation = self.get_state_mapping()
        return observation, info


def act_on_views(observations: dict[str, np.ndarray], candidates: Sequence[int]) -> np.ndarray:
    """A different policy for each candidate that reads both parts of the observation."""
    vector, image = observations["vec"], observations["img"]
    assert vector.shape == (len(candidates), 5) and image.shape[0] == len(candidates)
    score = vector.sum(axis=1) + image.reshape(len(image), -1).mean(axis=1) / 255
    return (np.floor(score * 7 + np.array(candidates)) % 4).astype(np.float32)[:, None]


def grid_jobs() -> list[Job]:
    explored = [Job(3, k, explorer=EpsilonGreedyExploration(4, 0.5)) for k in range(3)]
    return [Job(0), Job(1), Job(2, horizon=3), *explored, Job(3)]


@pytest.mark.parametrize("summarizer", [SCORES, STEPS], ids=["scores", "steps"])
def test_dict_observations_and_discrete_actions(summarizer: Any) -> None:
    def run(env: VecEnv, evaluator: ProcessEvaluator | None = None) -> tuple[EpisodeBatch | None, Record]:
        record = Record(summarizer=summarizer, needs=sorted(EPISODE_PARTS))
        return evaluate(env, grid_jobs(), record, act_on_views, evaluator)

    expected, stored = run(DummyVecEnv([Grid]))
    assert expected is not None
    with ProcessEvaluator(2, Grid) as remote:
        results = [run(DummyVecEnv([Grid] * 3)), run(DummyVecEnv([Grid]), remote)]
    for batch, record in results:
        assert_same_episodes(batch, expected)
        assert record.n_timesteps == stored.n_timesteps > 30
        if summarizer is STEPS:
            np.testing.assert_equal(transitions(record), transitions(stored))
    for episode in expected.episodes:
        shapes = {key: array.shape for key, array in episode.observations.items()}
        assert shapes == {"vec": (episode.n_steps + 1, 5), "img": (episode.n_steps + 1, 64, 64, 1)}
        assert episode.actions.shape == (episode.n_steps,) and set(episode.actions) <= {0, 1, 2, 3}
    greedy, explored = expected.episodes[-1], expected.episodes[3:6]
    wanted = act_on_views({key: array[:-1] for key, array in greedy.observations.items()}, [3] * greedy.n_steps)
    assert np.array_equal(greedy.actions, wanted[:, 0]), "the action that the actor chose at this observation"
    changed = [
        act_on_views({key: array[:-1] for key, array in episode.observations.items()}, [3] * episode.n_steps)[:, 0]
        != episode.actions
        for episode in explored
    ]
    assert 0.15 < np.concatenate(changed).mean() < 0.6, "half of the steps are random, a quarter of these the greedy action"


@pytest.mark.parametrize("wrap", [lambda env: VecFrameStack(env, 2), VecTransposeImage, VecNormalize])
def test_wrappers_around_dict_observations(wrap: Any) -> None:
    """Policies see what the wrappers make of the observations, for any number of environments."""
    kwargs = {"training": False, "norm_obs_keys": ["vec"]} if wrap is VecNormalize else {}
    results = []
    for n_envs in (1, 3):
        seen: list[Any] = []

        def watch(observations: Any, candidates: Sequence[int], seen: list[Any] = seen) -> np.ndarray:
            seen.append({key: array.shape[1:] for key, array in observations.items()})
            own = observations["vec"].sum(axis=1) + observations["img"].reshape(len(candidates), -1).mean(axis=1)
            return (np.floor(own * 7) % 4).astype(np.float32)[:, None]

        env = wrap(DummyVecEnv([Grid] * n_envs), **kwargs)
        if wrap is VecNormalize:
            env.obs_rms["vec"].mean = np.full(5, 0.5)
        record = Record(needs=["rewards", "observations"])
        results.append(evaluate(env, [Job(0), Job(1), Job(2, horizon=3), Job(3)], record, watch))
        assert seen[0] == {key: part.shape for key, part in env.observation_space.spaces.items()}
    (batch, record), (expected, stored) = results
    assert_same_episodes(batch, expected)
    np.testing.assert_equal(transitions(record), transitions(stored))
    if wrap is VecNormalize:
        last = batch.episodes[0]
        assert np.allclose(last.last_observation["vec"], (last.observations["vec"][-1] - 0.5), atol=1e-4)


def test_an_observation_that_lacks_a_part_is_explained() -> None:
    class Broken(Grid):
        def step(self, action: Any) -> Any:
            observation: Any
            observation, *others = super().step(action)
            return {"vec": observation["vec"]}, *others

    with pytest.raises(
        ValueError, match=r"env must give observations of shape \{.*'vec': \(5,\).*got shape \{'vec': \(5,\)\}"
    ):
        evaluate(DummyVecEnv([Broken]), [Job(0)], actor=act_on_views)


def test_a_part_that_is_not_finite_fails_the_episode() -> None:
    class Faulty(Grid):
        def step(self, action: Any) -> Any:
            observation: Any
            observation, *others = super().step(action)
            return {**observation, "vec": np.full(5, np.nan)}, *others

    record = Record()
    batch, _ = evaluate(DummyVecEnv([Faulty]), [Job(0)], record, act_on_views)
    assert batch is not None and "nan" in batch.episodes[0].failure and np.isnan(batch.episodes[0].total_reward)
    assert record.stored == [] and [job.candidate for job in record.discarded] == [0]


# ---------------------------------------------------------------- other VecEnvs


class Batched(VecEnv):
    """A VecEnv of a user's own, which steps all its states at once and has no single environments."""

    def __init__(self, n_envs: int):
        self._all = [toy() for _ in range(n_envs)]
        super().__init__(n_envs, self._all[0].observation_space, self._all[0].action_space)

    def reset(self) -> np.ndarray:
        return np.stack([one.reset()[0] for one in self._all])

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        rows = []
        for one, action in zip(self._all, self._actions, strict=True):
            observation, reward, terminated, truncated, _ = one.step(action)
            info: dict[str, Any] = {"TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, _ = one.reset()
            rows.append((observation, reward, terminated or truncated, info))
        observations, rewards, dones, infos = zip(*rows, strict=True)
        return np.stack(observations), np.array(rewards, dtype=np.float32), np.array(dones), list(infos)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        if method_name != "reset":
            raise NotImplementedError(method_name)
        return [self._all[index].reset(**kwargs) for index in indices]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None: ...


class Unable(Batched):
    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_vec_env_without_single_environments(n_envs: int) -> None:
    needs = sorted(EPISODE_PARTS)
    expected, stored = evaluate(DummyVecEnv([toy]), jobs(), Record(needs=needs))
    batch, record = evaluate(Batched(n_envs), jobs(), Record(needs=needs))
    assert_same_episodes(batch, expected)
    np.testing.assert_equal(transitions(record), transitions(stored))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_vec_env_that_cannot_reset_one_environment(n_envs: int) -> None:
    """All begin together; a slot whose job was cut waits until its episode ends, or until all wait."""
    batch, record = evaluate(Unable(n_envs), jobs())
    assert batch is not None and len(batch.episodes) == len(jobs())
    for job, episode, (_, steps) in zip(jobs(), batch.episodes, record.stored, strict=True):
        assert episode.cut == (job.horizon is not None and episode.n_steps == job.horizon) and len(steps) == episode.n_steps
        for before, after in itertools.pairwise(steps):
            assert np.array_equal(before.next_observation, after.observation)


class Named(DummyVecEnv):
    """A subclass that leaves stepping as it is."""

    name = "mine"


class Shouting(DummyVecEnv):
    """A subclass that changes rewards when all environments are stepped."""

    def step_wait(self) -> Any:
        observations, rewards, *others = super().step_wait()
        return observations, rewards + 100, *others


@pytest.mark.parametrize(("env_class", "n_steps"), [(Named, [4, 4, 0]), (Shouting, [4, 4, 4])])
def test_subclasses_of_dummy_vec_env(env_class: type[DummyVecEnv], n_steps: list[int]) -> None:
    """Single environments are stepped only if the subclass does nothing of its own in a step."""
    env = env_class([partial(ToyEnv, length=4)] * 3)
    batch, _ = evaluate(env, [Job(0), Job(1)])
    assert batch is not None and env.get_attr("n_steps") == n_steps
    assert all((episode.total_reward > 100) == (env_class is Shouting) for episode in batch.episodes)


def test_a_method_replaced_on_the_object_is_called() -> None:
    env, calls = DummyVecEnv([toy]), []
    step = env.step_wait
    env.step_wait = lambda: [calls.append(1), step()][1]  # type: ignore[method-assign, func-returns-value, assignment]
    _, record = evaluate(env, [Job(0)])
    assert len(calls) == record.n_timesteps > 0


def test_frames_with_channels_first_begin_with_zeros() -> None:
    env = VecFrameStack(VecTransposeImage(toy_vec_env(2, env_class=ImageEnv, length=3)), 3, channels_order="first")
    first: list[np.ndarray] = []

    def watch(observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        first.append(observations.copy())
        return np.zeros((len(candidates), 2), dtype=np.float32)

    evaluate(env, [Job(0), Job(1)], actor=watch)
    assert first[0].shape == (2, 3, 36, 36) and not first[0][:, :2].any() and first[0][:, 2].any(axis=(1, 2)).all()
    assert np.array_equal(first[1][:, 1], first[0][:, 2])


def test_steps_of_a_job_that_was_stopped(remote: ProcessEvaluator) -> None:
    for evaluator in (None, remote):
        record = Record(stop_after=3)
        batch, _ = evaluate(DummyVecEnv([toy]), [Job(0)], record, remote=evaluator)
        (_, steps), *others = record.stored
        assert batch is None and len(steps) == 3 and not others and steps[-1].info["TimeLimit.truncated"] is True
