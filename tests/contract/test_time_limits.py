"""Time limits and cut rollouts bootstrap, true terminals do not; no transition reaches into the next episode."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.helpers import Witness
from tests.contract.settings import HYBRIDS, STEPWISE, all_transitions, having, make, whole
from tests.envs import toy_vec_env


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", HYBRIDS)
def test_truncations_are_not_terminals(name: str, n_envs: int) -> None:
    model = make(name, toy_vec_env(n_envs, ending="truncation")).learn(150)
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    assert buffer.handle_timeout_termination
    assert buffer.dones[:size].sum() > 10
    assert np.array_equal(buffer.dones[:size], buffer.timeouts[:size])
    assert buffer._get_samples(all_transitions(model)).dones.sum() == 0


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", HYBRIDS)
def test_terminals_are_terminals_and_cuts_are_not(name: str, n_envs: int) -> None:
    witness = Witness()
    model = make(name, toy_vec_env(n_envs, ending="termination")).learn(150, witness)
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    terminal = buffer._get_samples(all_transitions(model)).dones.numpy().sum()
    assert terminal == model._episode_num > 0
    assert np.array_equal(buffer.dones[:size].sum() - buffer.timeouts[:size].sum(), terminal)


@pytest.mark.parametrize("name", HYBRIDS)
def test_whole_episodes_of_a_terminating_task_have_no_timeouts(name: str) -> None:
    buffer = make(name, toy_vec_env(ending="termination"), **whole(name)).learn(152).replay_buffer
    assert buffer.timeouts.sum() == 0 and buffer.dones.sum() == 152 // 8


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name not in STEPWISE])
def test_an_episode_that_the_budget_interrupts_bootstraps(name: str) -> None:
    buffer = make(name, toy_vec_env(ending="termination"), **whole(name)).learn(150).replay_buffer
    assert np.flatnonzero(buffer.timeouts).tolist() == [149] and buffer.dones[149] == 1


@pytest.mark.parametrize("name", STEPWISE)
def test_an_episode_that_learn_interrupts_bootstraps(name: str) -> None:
    """SB3's own loop stores it as it is; the next ``learn``, which begins a new one, closes it."""
    model = make(name, toy_vec_env(2, ending="termination")).learn(60)
    buffer = model.replay_buffer
    assert not buffer.dones[29].any() and not buffer.timeouts.any()
    model.learn(40, reset_num_timesteps=False)
    assert np.argwhere(buffer.timeouts).tolist() == [[29, 0], [29, 1]] and buffer.dones[29].all()
    assert buffer._get_samples(all_transitions(model)).dones.sum() == 2 * (3 + 2)


@pytest.mark.parametrize("ending", ["truncation", "termination"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_transitions_are_chained_within_rollouts_only(name: str, ending: str) -> None:
    buffer = make(name, toy_vec_env(ending=ending)).learn(120).replay_buffer
    size = buffer.size()
    ends = buffer.dones[: size - 1, 0].astype(bool)
    chained = (buffer.next_observations[: size - 1, 0] == buffer.observations[1:size, 0]).all(axis=1)
    assert np.array_equal(chained, ~ends)
    assert np.abs(buffer.next_observations[:size]).max() > 0


@pytest.mark.parametrize("name", having("optimize_memory_usage"))
def test_memory_saving_buffer_without_timeouts(name: str) -> None:
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    buffer = make(name, toy_vec_env(ending="termination"), **kwargs).learn(150).replay_buffer
    assert buffer.optimize_memory_usage and buffer.size() == 150
    assert 0 < buffer.dones.sum() <= 150 / 5
