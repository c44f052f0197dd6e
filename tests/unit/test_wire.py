"""What is sent is small, and is what arrives."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sb3_erl import OpenAIES
from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.messages import RECORD, Answer, Score, pack_scores, pack_steps, unpack_score, unpack_steps
from sb3_erl.rollouts.jobs import Episode, EpisodeRecord, Job
from tests.contract.settings import make


def episode(n_steps: int = 5, **kwargs: Any) -> Episode:
    rewards = np.random.default_rng(n_steps).standard_normal(n_steps).astype(np.float32).astype(np.float64)
    ends = {"terminated": True, "cut": False, **kwargs}
    return Episode.from_rewards(Job(3), rewards, **ends)


def test_scores() -> None:
    episodes = [episode(5), episode(9, terminated=False), episode(2, cut=True, terminated=False, behavior=np.arange(2.0))]
    infos: list[dict[str, Any]] = [
        {"episode": {"r": 1.25, "l": 5, "t": 0.5}, "TimeLimit.truncated": False, "terminal_observation": np.zeros(100)},
        {"episode": {"r": 1.25, "l": 9, "t": 0.5, "color": "red"}, "TimeLimit.truncated": True, "is_success": True},
        {"TimeLimit.truncated": True},
    ]
    bodies = pack_scores([Score(e, info, None) for e, info in zip(episodes, infos, strict=True)])
    for place, (sent, info) in enumerate(zip(episodes, infos, strict=True)):
        outcome = unpack_score(pickle.loads(pickle.dumps(bodies)), place, sent.job)
        found = outcome.episode
        for name in ("length", "total_reward", "sign_sum", "terminated", "cut", "failed"):
            assert getattr(found, name) == pytest.approx(getattr(sent, name), abs=0), name
        assert (found.behavior is None) == (sent.behavior is None)
        assert outcome.last_info == {key: value for key, value in info.items() if key != "terminal_observation"}
        assert outcome.steps is None and found.record is None and found.last_observation is None


@pytest.mark.parametrize("names", [("rewards",), ("actions", "infos"), ("rewards", "actions", "observations", "infos")])
def test_scores_with_parts_of_the_episode(names: tuple[str, ...]) -> None:
    """Parts that were recorded arrive unchanged; any other raises, and is never an empty array."""
    plain = episode(4)
    values: dict[str, Any] = {
        "rewards": np.arange(4.0),
        "actions": np.ones((4, 2), dtype=np.float32),
        "observations": {"x": np.arange(5), "y": np.zeros((5, 2))},
        "infos": [{"t": t} for t in range(4)],
    }
    sent = replace(plain, record=EpisodeRecord(**{name: values[name] for name in names}))
    bodies = pickle.loads(pickle.dumps(pack_scores([Score(plain, {}, None), Score(sent, {}, None)])))
    found = unpack_score(bodies, 1, sent.job).episode
    for name in values:
        if name in names:
            np.testing.assert_equal(getattr(found, name), values[name])
        else:
            with pytest.raises(ValueError, match=rf"must declare that it needs '{name}'"):
                getattr(found, name)
    assert len(bodies[0]) == 2 * 29 and list(bodies[1]) == [1]


def test_a_pair_of_episodes_takes_few_bytes() -> None:
    """Numbers of an episode, and a message with one pair; Salimans et al. (2017) need 16 and their code 347 bytes."""
    infos = [{"episode": {"r": 1.25, "l": 5, "t": 0.5}, "TimeLimit.truncated": False}] * 2
    bodies = pack_scores([Score(episode(), info, None) for info in infos])
    assert RECORD.itemsize == 29 and len(bodies[0]) == 2 * 29 and bodies[1] == {}
    assert len(Answer(10, bodies, 2, 0.1, None).packed()) < 2 * 347


def test_transitions() -> None:
    rng = np.random.default_rng(0)
    sent = episode(5, behavior=np.arange(3.0), last_observation=np.full(3, 7.0, dtype=np.float32))
    own_rewards = np.random.default_rng(5).standard_normal(5).astype(np.float32).astype(np.float64)
    infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False, "x": t} for t in range(5)]
    infos[3] = {"TimeLimit.truncated": False}
    observations, actions = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal((5, 2))
    steps = Steps(observations, actions, own_rewards, infos, done=True)
    body = pickle.loads(pickle.dumps(pack_steps(sent, steps, step_infos=True)))
    outcome = unpack_steps(body, sent.job, frozenset({"rewards"}))
    assert np.array_equal(outcome.episode.rewards, own_rewards) and outcome.episode.total_reward == sent.total_reward
    assert outcome.steps is not None
    assert np.array_equal(outcome.episode.last_observation, sent.last_observation)
    assert outcome.episode.behavior is not None and outcome.episode.terminated
    for t, (ours, theirs) in enumerate(zip(outcome.steps, steps, strict=True)):
        assert all(np.array_equal(a, b) for a, b in zip(ours[:5], theirs[:5], strict=True)) and ours.info == theirs.info
        assert np.array_equal(ours.next_observation, observations[t + 1]) and ours.done == (t == 4)
    brief = unpack_steps(pack_steps(sent, steps, step_infos=False), sent.job, frozenset()).steps
    assert brief is not None and [info.get("x") for info in brief.infos] == [None, None, None, None, 4]
    stopped = outcome.stored_until(2)
    assert [step.done for step in stopped] == [False, True] and stopped[-1].info["TimeLimit.truncated"] is True


@pytest.mark.parametrize("name", ["openai_es", "deep_ga", "random_search"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "LinearPolicy"])
def test_candidates_are_rebuilt_to_the_last_bit(name: str, policy: str) -> None:
    """What is sent of a generation is smaller than its parameters, and a worker acts as the main process does."""
    model = make(name, policy=policy, policy_kwargs={} if policy == "LinearPolicy" else {"net_arch": [64, 64]})
    sent: list[Any] = []
    evaluate = model.rollouts.run

    def keep(jobs: Any, actor: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append((jobs, actor))
        return evaluate(jobs, actor, *args, **kwargs)

    model.rollouts.run = keep
    model.learn(400)
    assert len(sent) >= 2
    observations = np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32)
    for jobs, actor in sent[-2:]:
        packed = pickle.dumps(actor)
        elsewhere, numbers = pickle.loads(packed), sorted({job.candidate for job in jobs})
        assert policy == "LinearPolicy" or len(packed) < 4 * model.policy.deployed.mu[-1].in_features * 200
        for number in numbers:
            assert np.array_equal(elsewhere(observations, [number]), actor(observations, [number]))
        assert elsewhere.noise_tables == (NoiseTable(model.noise_table_size, 123),)


def test_partial_perturbations_are_rebuilt() -> None:
    model: OpenAIES = make("openai_es", perturb_fraction=0.3, policy_kwargs={"net_arch": [16]})
    candidates = model.evolver.ask(np.random.default_rng(0))
    source = pickle.loads(pickle.dumps(model.evolver.source))
    assert np.array_equal(source(0), model.evolver.mean.numpy())
    assert all(np.array_equal(source(i + 1), row.numpy()) for i, row in enumerate(candidates))


def test_tables_can_be_shared() -> None:
    values = np.arange(1000, dtype=np.float32)
    NoiseTable.adopt(1000, 987, values)
    assert NoiseTable(1000, 987).values is values
