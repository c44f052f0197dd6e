"""
The rules of novelty search on top of an evolver.

NS-ES, NSR-ES and NSRA-ES (Conti et al. 2018, https://arxiv.org/abs/1712.06560) are evolution strategies that rank novelty,
or a mixture of novelty and return, and that update one of several members per generation. GA-NS (Such et al. 2017,
https://arxiv.org/abs/1712.06567) is a genetic algorithm that selects by novelty. Everything here is arithmetic on numbers
that were measured elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.evolution.base import best_first
from sb3_erl.evolution.fitness.novelty import Behaviors, NoveltyArchive
from sb3_erl.evolution.fitness.shaping import Ties, centered_ranks

Mode = Literal["ns", "nsr", "nsra"]
MemberRule = Literal["novelty_prob", "round_robin"]


def mix_ranks(returns: np.ndarray, novelty: np.ndarray, reward_weight: float, ties: Ties = "average") -> np.ndarray:
    """
    What the evolution strategy maximizes: ranks of the returns and ranks of the novelty, each centered on its own, mixed.

    :param returns: ``(n, 2)`` (or any shape) of all perturbed candidates of a generation
    :param novelty: same shape
    :param reward_weight: share of the returns in [0, 1]: 0 is NS-ES, 0.5 is NSR-ES, 1 is the plain evolution strategy
    :param ties: see :func:`~sb3_erl.evolution.fitness.shaping.centered_ranks`
    :return: float32, same shape, in [-0.5, 0.5]
    :raises ValueError: if the shapes differ or the weight is out of range
    """
    check_range("reward_weight", reward_weight, 0, 1)
    returns, novelty = np.asarray(returns), np.asarray(novelty)
    if returns.shape != novelty.shape:
        raise ValueError(
            f"novelty must have the shape of returns, one value per episode; got {novelty.shape} and {returns.shape}"
        )
    share = np.float32(reward_weight)
    return share * centered_ranks(returns, ties) + (1 - share) * centered_ranks(novelty, ties)


class FixedWeight:
    """
    A share of the returns that never changes.

    :param value: in [0, 1]
    """

    def __init__(self, value: float):
        check_range("reward_weight", value, 0, 1)
        self.value = float(value)

    def update(self, score: float) -> float:
        """:return: :attr:`value`, whatever the updated member's return was"""
        return self.value


class AdaptiveWeight:
    """
    NSRA-ES: more weight on the return whenever a member beats the best return so far, less after a while without that.

    Conti et al. (2018), algorithm 3 (no code of the authors is public). One schedule serves all members. Ask for
    :attr:`value` before a generation and call :meth:`update` after it, so that a change acts from the next one on.

    A return that creeps up a little each generation never lets the patience run out, and each of these gains raises the
    weight; ``improvement_tol`` of about a thousandth of the returns' scale prevents that.

    :param value: initial share of the returns, in [0, 1]
    :param delta: by how much the share goes up or down
    :param patience: updates without improvement after which it goes down
    :param lowest: lower limit of the share, in [0, 1]
    :param improvement_tol: an improvement must be larger than this (the paper: 0)
    :param patience_rule: the share goes down when the count ``"reaches"`` the patience or ``"exceeds"`` it
    :raises ValueError: if a number is out of range

    >>> weight = AdaptiveWeight(1.0, delta=0.25, patience=2)
    >>> [weight.update(score) for score in (5.0, 5.0, 5.0, 6.0)]
    [1.0, 1.0, 0.75, 1.0]
    """

    def __init__(
        self,
        value: float = 1.0,
        delta: float = 0.05,
        patience: int = 50,
        lowest: float = 0.0,
        improvement_tol: float = 0.0,
        patience_rule: Literal["reaches", "exceeds"] = "reaches",
    ):
        for name, number, bound in (("weight_delta", delta, 1.0), ("improvement_tol", improvement_tol, np.inf)):
            check_range(name, number, 0, bound)
        check_range("weight_min", lowest, 0, 1)
        check_range("reward_weight", value, lowest, 1)
        check_range("weight_patience", patience, 1, integer=True)
        check_choice("patience_rule", patience_rule, ("reaches", "exceeds"))
        self.value, self.delta, self.patience, self.lowest = float(value), delta, patience, lowest
        self.improvement_tol, self.patience_rule = improvement_tol, patience_rule
        self.best = -np.inf
        """Best return of an updated member so far."""
        self.n_without = 0
        """Updates since the last improvement or the last decrease."""

    def update(self, score: float) -> float:
        """
        :param score: return of the member that was just updated; NaN is no improvement
        :return: share of the returns in the next generation
        """
        if score > self.best + self.improvement_tol:
            self.value, self.best, self.n_without = min(1.0, self.value + self.delta), float(score), 0
            return self.value
        self.n_without += 1
        if self.n_without >= self.patience + (self.patience_rule == "exceeds"):
            self.value, self.n_without = max(self.lowest, self.value - self.delta), 0
        return self.value


def reward_weight(
    mode: Mode, value: float = 1.0, delta: float = 0.05, patience: int = 50, lowest: float = 0.0, improvement_tol: float = 0.0
) -> FixedWeight | AdaptiveWeight:
    """
    :param mode: ``"ns"`` ranks novelty only, ``"nsr"`` half and half, ``"nsra"`` adapts
    :param value: initial share of the returns (``"nsra"`` only, as are the following); see :class:`AdaptiveWeight`
    :param delta: step of the share
    :param patience: updates without improvement before the share goes down
    :param lowest: lower limit of the share
    :param improvement_tol: smallest improvement that counts
    :return: the share of the returns over time
    :raises ValueError: if ``mode`` is unknown or a number is out of range
    """
    check_choice("mode", mode, ("ns", "nsr", "nsra"))
    if mode == "nsra":
        return AdaptiveWeight(value, delta, patience, lowest, improvement_tol)
    return FixedWeight(0.0 if mode == "ns" else 0.5)


def member_probabilities(novelty: np.ndarray) -> np.ndarray:
    """
    Conti et al. (2018), eq. 2: a member is updated next with a probability proportional to its novelty.

    :param novelty: ``(n_members,)``, at least 0, of each member's mean behavior against the archive
    :return: ``(n_members,)``, summing to 1; all equal if the sum is 0 or not finite (the authors' code: NaN)
    :raises ValueError: if there is no member, or a novelty is negative

    >>> member_probabilities(np.array([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    novelty = np.asarray(novelty, dtype=np.float64)
    if novelty.ndim != 1 or not novelty.size or (novelty < 0).any():
        raise ValueError(f"novelty must hold one number of at least 0 per member; got {novelty}")
    total = novelty.sum()
    if not np.isfinite(total) or total <= 0:
        return np.full(novelty.size, 1 / novelty.size)
    return novelty / total


def next_member(
    current: int, novelty: np.ndarray, rng: np.random.Generator | None = None, rule: MemberRule = "novelty_prob"
) -> int:
    """
    Which member of the meta-population is updated next. The first generation updates member 0.

    :param current: member that was just updated
    :param novelty: ``(n_members,)``, see :func:`member_probabilities`
    :param rng: generator, needed for ``"novelty_prob"``
    :param rule: ``"novelty_prob"``, or ``"round_robin"`` for one after the other
    :return: index of a member
    :raises ValueError: if ``rule`` is unknown or needs a generator that is not given
    """
    check_choice("parent_selection", rule, ("novelty_prob", "round_robin"))
    if rule == "round_robin":
        return (current + 1) % len(novelty)
    if rng is None:
        raise ValueError('rng must be a generator with parent_selection="novelty_prob"; got None')
    return int(rng.choice(len(novelty), p=member_probabilities(novelty)))


def truncation_parents(fitness: np.ndarray, n_parents: int) -> np.ndarray:
    """
    The best of a population, all of which are equally likely parents.

    :param fitness: ``(n,)``, higher is better, NaN is worst
    :param n_parents: from 1 to n
    :return: ``(n_parents,)`` indices, best first; among equals the lower index first
    :raises ValueError: if ``n_parents`` is out of range

    >>> truncation_parents(np.array([1.0, np.nan, 3.0, 1.0]), 3).tolist()
    [2, 0, 3]
    """
    check_range("n_parents", n_parents, 1, len(fitness), integer=True)
    return best_first(fitness)[:n_parents]


@dataclass(frozen=True)
class NoveltySelection:
    """
    A generation of GA-NS in terms of its population.

    :param novelty: ``(n,)``, the fitness
    :param parents: ``(n_parents,)`` indices, most novel first
    :param archived: ``(n,)`` whose behavior entered the archive
    """

    novelty: np.ndarray
    parents: np.ndarray
    archived: np.ndarray

    @property
    def elite(self) -> int:
        """The most novel individual, which the next population contains unchanged and measures again."""
        return int(self.parents[0])


def select_by_novelty(
    archive: NoveltyArchive,
    behaviors: Behaviors,
    uniforms: np.ndarray,
    *,
    k: int = 25,
    n_parents: int,
    archive_prob: float = 0.01,
) -> NoveltySelection:
    """
    One generation of GA-NS: measure novelty, select parents, then let a random part of the population into the archive.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, section 3.1 (no code of the authors is public). An individual's
    neighbors are the archive as it was before this generation and the other individuals, not itself.

    :param archive: is extended; the paper's maze uses ``distance="sqeuclidean"``
    :param behaviors: n behaviors of the population, an elite that was carried over among them
    :param uniforms: ``(n,)`` independent numbers in [0, 1), one coin per individual
    :param k: number of neighbors
    :param n_parents: how many survive as parents, from 1 to n
    :param archive_prob: probability with which an individual enters the archive
    :return: what was measured and decided
    :raises ValueError: if a number is out of range or ``uniforms`` does not fit
    """
    check_range("archive_prob", archive_prob, 0, 1)
    n, uniforms = len(behaviors), np.asarray(uniforms)
    if uniforms.shape != (n,):
        raise ValueError(f"uniforms must have shape ({n},), one coin per individual; got {uniforms.shape}")
    novelty = archive.novelty_among(behaviors, k)
    parents = truncation_parents(novelty, n_parents)
    heads = uniforms < archive_prob
    archived = np.array([bool(coin) and archive.append(behaviors[i]) for i, coin in enumerate(heads)], dtype=bool)
    return NoveltySelection(novelty, parents, archived)
