"""What a population of value functions has beside its networks: target networks, and who of it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from sb3_erl.core.checks import check_range
from sb3_erl.core.registry import resolve
from sb3_erl.core.seeding import Stream, scoped_generators
from sb3_erl.evolution.base import Distribution, Evolver, best_first
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.ga import GA


class ValueTargets(nn.Module):
    """
    Target networks of the slots of a population, and the slots whose individuals act; saved like a network.

    :param candidates: ``(pop_size, n_params)``, copied: each individual begins as its own target
    :param n_acting: how many individuals act, at least 0; in the beginning those of the first slots
    """

    vectors: Tensor
    ranks: Tensor

    def __init__(self, candidates: Tensor, n_acting: int):
        super().__init__()
        self.register_buffer("vectors", candidates.detach().to(torch.float32, copy=True))
        self.register_buffer("ranks", torch.zeros(len(candidates)))
        self.act(range(n_acting))

    @property
    def acting(self) -> list[int]:
        """Slots whose individuals act, best first."""
        ranks = self.ranks.tolist()
        return sorted((slot for slot, rank in enumerate(ranks) if rank > 0), key=lambda slot: ranks[slot])

    def act(self, slots: Sequence[int]) -> None:
        """
        :param slots: of those that act from now on, best first; different ones
        """
        self.ranks.zero_()
        for rank, slot in enumerate(slots, start=1):
            self.ranks[slot] = rank

    def choose(self, evolver: Any, fitness: np.ndarray, n: int, copy_targets: bool) -> None:
        """
        Choose who acts next, after the evolver was told the fitness.

        :param evolver: that was told
        :param fitness: ``(pop_size,)``, higher is better
        :param n: how many act, at least 0
        :param copy_targets: whether the copies that a genetic algorithm has made take the targets of their originals with them
        """
        self.act(elite_slots(evolver, fitness, n))
        if copy_targets:
            self.inherit(evolver.epoch.copies)

    def copy_from(self, vectors: Tensor) -> None:
        """
        :param vectors: ``(pop_size, n_params)``, the networks of all slots, which become their targets
        """
        self.vectors.copy_(vectors)

    def inherit(self, copies: Sequence[Sequence[tuple[int, int]]]) -> None:
        """
        Let the copies that a genetic algorithm makes take the targets of their parents with them.

        :param copies: (parent, slot), in order; the parents are slots of the population before
        """
        before = self.vectors.clone()
        for parent, slot in (copy for batch in copies for copy in batch):
            self.vectors[slot] = before[parent]

    def put(self, vector: Tensor, slot: int) -> None:
        """
        :param vector: ``(n_params,)``, becomes the target of one slot
        :param slot: which one
        """
        self.vectors[slot] = vector


def elite_slots(evolver: Evolver, fitness: np.ndarray, n: int) -> list[int]:
    """
    Where the best individuals are after the evolver was told their fitness.

    :param evolver: that was told; a genetic algorithm holds copies of its elites in protected slots, a search distribution
        keeps the candidates where they were evaluated
    :param fitness: ``(pop_size,)``, higher is better, NaN is worst
    :param n: how many, at least 0
    :return: at most ``n`` slots, best first
    """
    if evolver.protected and not isinstance(evolver, Distribution):
        return evolver.protected[:n]
    return [int(slot) for slot in best_first(fitness)[:n]]


def uniform_batch(
    buffer: ReplayBuffer, n: int, sequence: np.random.SeedSequence, env: VecNormalize | None = None
) -> ReplayBufferSamples:
    """
    :param buffer: with one column
    :param n: number of transitions, drawn without replacement; all that there are if there are fewer
    :param sequence: seed of the draw
    :param env: normalizes observations and rewards
    :return: the batch
    """
    rows = np.arange(buffer.size())
    if buffer.optimize_memory_usage and buffer.full:  # the observation after the newest transition is overwritten
        rows = np.delete(rows, buffer.pos)
    chosen = np.random.default_rng(sequence).choice(rows, size=min(n, len(rows)), replace=False)
    with scoped_generators(sequence):  # SB3 draws the only column from the global generator
        samples: Any = buffer._get_samples(chosen, env=env)
    return samples


def td_fitness(model: Any, candidates: Tensor) -> np.ndarray | None:
    """
    Minus the mean squared temporal-difference error of each candidate against the target of its slot, on one batch.

    Li et al. (ICML 2024), authors' code yeshenpy/VEB-RL, ``run_GA_VEB.py: caculate_TD_error``.

    :param model: with ``targets``, a learner with ``td_errors_of``, and a replay buffer
    :param candidates: ``(pop_size, n_params)``
    :return: ``(pop_size,)``, higher is better; ``None`` while the replay buffer is empty
    """
    if model.replay_buffer.size() == 0:
        return None
    sequence = model.run.address.sequence(Stream.FITNESS)
    batch = uniform_batch(model.replay_buffer, model.fitness_batch_size, sequence, model.get_vec_normalize_env())
    model.learner.settings.gamma = model.gamma  # an update sets it, but the first fitness may come before the first update
    errors = model.learner.td_errors_of(batch, candidates, model.targets.vectors)
    return -errors.double().square().mean(dim=1).cpu().numpy()


def value_evolver_arguments(model: Any) -> dict[str, Any]:
    """:return: what VEB-RL's authors gave to the model's evolver: a GA or a cross-entropy method, nothing to others"""
    found = resolve("evolver", model.evolver_class)
    if found is GA:
        return {"crossover": "linear_rows", "mutation": "linear_gaussian", "min_elites": max(1, model.n_acting_elites)}
    return {"variance_init": model.sigma_init} if found is DiagonalCEM else {}


def check_value_arguments(model: Any) -> None:
    """:raises ValueError: if an argument of a population of value functions is out of range"""
    for name in ("n_learner_episodes", "fitness_batch_size", "fitness_interval", "sync_period"):
        check_range(name, getattr(model, name), 1, integer=True)
    for name in ("population_target_interval", "exploration_decay_steps"):
        if getattr(model, name) is not None:
            check_range(name, getattr(model, name), 1, integer=True)
    check_range("n_acting_elites", model.n_acting_elites, 0, model.pop_size - 1, integer=True)
    check_range("sigma_init", model.sigma_init, 0, open_low=True)
    check_range("exploration_initial_eps", model.exploration_initial_eps, 0, 1)
    check_range("exploration_final_eps", model.exploration_final_eps, 0, model.exploration_initial_eps)
    if model.action_noise is not None:
        raise ValueError(
            f"action_noise must be None with discrete actions; got {model.action_noise}. Set exploration_final_eps"
        )
    if model.prioritized and model.n_steps > 1:
        raise ValueError(f"prioritized must be False with n-step returns; got n_steps={model.n_steps}. Set n_steps=1")


def make_targets(model: Any) -> ValueTargets:
    """
    :param model: with an evolver
    :return: targets of its individuals
    :raises ValueError: if an argument asks for something that the evolver does not do
    """
    if model.copy_targets and not hasattr(model.evolver, "epoch"):
        raise ValueError(f"copy_targets must be False with evolver={model.evolver_class!r}, which copies nobody; got True")
    if model.deploy == "mean" and model.evolver.center() is None:
        raise ValueError(f"deploy must be 'learner' or 'champion' with evolver={model.evolver_class!r}; got 'mean'")
    return ValueTargets(model.evolver.candidates, model.n_acting_elites).to(model.device)
