"""Truncation selection on individuals that are lists of seeds, from which their parameters are rebuilt."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.base import Evolver, PopulationSizeError, best_first, check_told
from sb3_erl.evolution.fitness.shaping import nan_is_worst
from sb3_erl.evolution.operators.origins import Origins
from sb3_erl.evolution.rebuilt import AskedCandidates, refuse_injection
from sb3_erl.evolution.seed_genome import Genome, GenomeDecoder, GenomeSource, Initialization, genomes_in, rows_of

ELITE = -1
"""Stands for the elite of the previous generation where individuals are numbered."""


def finalists(fitness: np.ndarray, n_finalists: int, has_elite: bool) -> list[int]:
    """
    Such et al. (2017), algorithm 1: the individuals that are evaluated on further episodes to find the elite.

    :param fitness: ``(n,)``
    :param n_finalists: how many, of which one at least is not the elite
    :param has_elite: whether there is an elite of the previous generation
    :return: individuals, best first; ``ELITE`` takes the first place if there is one
    """
    order = best_first(fitness).tolist()
    return [ELITE, *order[: max(1, n_finalists - 1)]] if has_elite else order[:n_finalists]


def parents_after(fitness: np.ndarray, elite: int, truncation: int) -> list[int]:
    """
    :param fitness: ``(n,)``
    :param elite: the individual that became or stayed the elite
    :param truncation: how many parents
    :return: the best ``truncation`` individuals if the elite is one of them, otherwise it and all of them but the last
    """
    top = best_first(fitness)[:truncation].tolist()
    return top if elite in top or truncation == 0 else [elite, *top[:-1]]


@dataclass(frozen=True)
class Footprint:
    """
    Memory of an individual.

    :param n_params: number of parameters
    :param parameter_bytes: size of its parameters
    :param genome_bytes: mean size of a genome in the population
    :param kept_bytes: size of the parameters that are held for the parents of the current children, all together
    """

    n_params: int
    parameter_bytes: int
    genome_bytes: float
    kept_bytes: int


class SeedGA(Evolver):
    """
    Genetic algorithm without crossover: mutants of the best, and an elite that is evaluated again in every generation.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, algorithm 1; authors' code: uber-research/deep-neuroevolution,
    ``gpu_implementation/ga.py``. Per generation: :meth:`ask`, evaluate, evaluate :meth:`finalists` on further episodes,
    :meth:`tell`. What is saved are genomes; parameters are rebuilt when they are needed. ``sigma`` may be set before each
    generation, since a genome holds the power of each mutation. Difference: 25 million noise numbers where the authors have
    250 million.

    :param layout: tensors of one individual
    :param pop_size: children per generation, at least 2
    :param truncation: how many of the best become parents; 0 is random search
    :param sigma: mutation power, the standard deviation of the noise that a mutation adds to every parameter
    :param n_finalists: candidates for the elite, at least 1 and at most ``pop_size``
    :param init: see :class:`Initialization`
    :param init_output_std: see :class:`Initialization`
    :param table: where noise comes from, ``None`` for ``NoiseTable()``
    :raises ValueError: if a number is out of range, ``init`` unknown or the table too short
    """

    takes_vectors = False
    shown = ("truncation", "sigma", "n_finalists")
    pool: Tensor
    ancestors: Tensor
    offspring: Tensor
    fitness: Tensor
    elite_score: Tensor

    def __init__(
        self,
        layout: ParameterLayout,
        pop_size: int = 1000,
        truncation: int = 20,
        sigma: float = 0.002,
        n_finalists: int = 10,
        init: Literal["fan_in", "unit_norm"] = "fan_in",
        init_output_std: float = 0.1,
        table: NoiseTable | None = None,
    ):
        super().__init__()  # candidates are rebuilt when they are needed, not stored
        check_range("pop_size", pop_size, 2, integer=True)
        check_range("truncation", truncation, 0, pop_size, integer=True)
        check_range("n_finalists", n_finalists, 1, pop_size, integer=True)
        self.truncation, self.n_finalists, self.sigma = truncation, n_finalists, sigma
        table = NoiseTable() if table is None else table
        table.check_length(layout.n_params)
        self.decoder = GenomeDecoder(table, Initialization(layout, init, output_std=init_output_std))
        # Rows of genomes: (offset, power) per window, -1 after the last; whole numbers as floats because SB3 wants floats.
        self.register_buffer("pool", rows_of([None] * (1 + truncation)))  # the elite, then the next parents
        self.register_buffer("ancestors", rows_of([None] * (1 + truncation)))  # those of the current children
        self.register_buffer("offspring", torch.tensor([[-1.0, -1.0, 0.0]]).repeat(pop_size, 1).double())
        self.register_buffer("fitness", torch.full((pop_size,), -torch.inf, dtype=torch.float64))
        self.register_buffer("elite_score", torch.tensor(-torch.inf, dtype=torch.float64))
        self._asked: AskedCandidates | None = None
        """``None`` before :meth:`ask` and after :meth:`tell`."""
        self._last_made: tuple[weakref.ref[Tensor] | None, Sequence[int]] = (None, ())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last_made": (None, ())}  # a copy did not make the vectors

    @property
    def sigma(self) -> float:
        """Power of the next mutations."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        check_range("sigma", value, 0, open_low=True)
        self._sigma = float(value)

    # ---------------------------------------------------------------- genomes

    @property
    def pop_size(self) -> int:
        """Children per generation."""
        return len(self.offspring)

    @property
    def n_params(self) -> int:
        """See :attr:`Evolver.n_params`."""
        return self.decoder.n_params

    @property
    def elite(self) -> Genome | None:
        """The elite's genome, ``None`` before the first :meth:`tell`."""
        return genomes_in(self.pool)[0]

    @property
    def parents(self) -> list[Genome]:
        """Genomes of the next children's parents, best first; empty before the first :meth:`tell`."""
        return [genome for genome in genomes_in(self.pool)[1:] if genome is not None]

    @property
    def population(self) -> list[Genome]:
        """Genomes of the children last asked for; empty before the first :meth:`ask`."""
        return self._genomes_of(range(self.pop_size)) if self.offspring[0, 1] >= 0 else []

    def _genomes_of(self, chosen: Sequence[int]) -> list[Genome]:
        """Genomes of the elite and of children by their number."""
        source = self._source_of(chosen)
        return [source.genome(index) for index in range(len(chosen))]

    def _source_of(self, chosen: Sequence[int]) -> GenomeSource:
        ancestors = genomes_in(self.ancestors)
        elite = ancestors[0]
        wholes = {place: elite for place, index in enumerate(chosen) if index == ELITE and elite is not None}
        offspring = self.offspring[[max(index, 0) for index in chosen]].cpu().numpy()
        return GenomeSource(self.decoder, tuple(ancestors), offspring, wholes)

    def source_of(self, vectors: Tensor, first: int = 0) -> GenomeSource | None:
        """
        What individuals are made of, for workers.

        :param vectors: what :meth:`ask` or :meth:`finalists` returned last
        :param first: number of the first of them within the generation
        :return: makes them one at a time; ``None`` for other vectors
        """
        made, chosen = self._last_made
        return replace(self._source_of(chosen), first=first) if made is not None and made() is vectors else None

    def rebuild(self, genome: Genome) -> Tensor:
        """
        :param genome: of this or any earlier generation
        :return: ``(n_params,)``
        """
        return torch.from_numpy(self.decoder(genome)).to(self.pool.device)

    @property
    def candidates(self) -> Tensor:  # type: ignore[override]
        """``(pop_size, n_params)`` as last asked for, rebuilt from their genomes."""
        return self._stack(self.population)

    @property
    def footprint(self) -> Footprint:
        """Memory of an individual, to be read after :meth:`ask`."""
        sizes = [genome.n_bytes for genome in self.population] or [0]
        n_params = self.decoder.n_params
        return Footprint(n_params, 4 * n_params, float(np.mean(sizes)), self.decoder.kept_bytes)

    # ---------------------------------------------------------------- a generation

    def ask(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Evolver.ask`; mutants of parents that are picked uniformly, or random individuals if there are none."""
        self.ancestors = self.pool.clone()
        n_parents = len(self.parents)
        offsets = self.decoder.table.offsets(rng, self.pop_size, self.decoder.n_params)
        picked = 1 + rng.integers(n_parents, size=self.pop_size) if n_parents else np.full(self.pop_size, -1)
        bred = np.stack([picked, offsets, np.full(self.pop_size, self.sigma)], axis=1)
        self.offspring.copy_(torch.from_numpy(bred))
        children = self._made(range(self.pop_size))
        self._asked = AskedCandidates(children, seed=int(offsets[0]))
        return children

    def finalists(self, fitness: np.ndarray) -> Tensor:
        """
        The individuals that have to be evaluated, not trained, on further episodes.

        :param fitness: ``(pop_size,)`` of the children
        :return: ``(n_finalists, n_params)``; the previous elite first, if there is one
        """
        return self._made(self._finalists(fitness))

    def _made(self, chosen: Sequence[int]) -> Tensor:
        vectors = self._stack(self._genomes_of(chosen))
        self._last_made = weakref.ref(vectors), chosen
        return vectors

    def tell(
        self,
        candidates: Tensor,
        fitness: np.ndarray,
        rng: np.random.Generator | None = None,
        validation: np.ndarray | None = None,
    ) -> None:
        """
        Choose the elite and the next parents.

        :param candidates: ``(pop_size, n_params)`` as asked for; compared with these, see
            :class:`~sb3_erl.evolution.rebuilt.AskedCandidates`
        :param fitness: ``(pop_size,)``, higher is better, NaN is worst
        :param rng: not used
        :param validation: ``(n_finalists,)`` mean fitness of :meth:`finalists` on further episodes. Without it a child counts
            by its fitness and the elite by the score by which it was chosen, which is right only where episodes do not vary
        :raises ValueError: before :meth:`ask`, if sizes do not fit, or if candidates were changed since they were asked for
        """
        if self._asked is None:
            raise ValueError("ask() must be called before every tell(); got no candidates to tell about")
        check_told(candidates, fitness, self.pop_size)
        self._asked.check(candidates)
        named = self._finalists(fitness)
        if validation is None:
            validation = np.array([float(self.elite_score) if index == ELITE else fitness[index] for index in named])
        if np.shape(validation) != (len(named),):
            raise ValueError(
                f"validation must have shape ({len(named)},), one mean per individual of finalists(); "
                f"got {np.shape(validation)}"
            )
        scores = nan_is_worst(validation)
        elite = named[int(scores.argmax())]
        self.choose([elite, *parents_after(fitness, elite, self.truncation)], fitness, float(scores.max()))

    def choose(self, chosen: Sequence[int], fitness: np.ndarray, elite_score: float) -> None:
        """
        Close a generation with an elite and parents that were selected elsewhere.

        :param chosen: ``(1 + n_parents,)``, the elite and then the parents, best first: numbers of children, or ``ELITE`` for
            the previous elite
        :param fitness: ``(pop_size,)`` of the children, higher is better, NaN is worst
        :param elite_score: fitness by which the elite was chosen
        """
        self.pool = rows_of([*self._genomes_of(chosen)]).to(self.pool.device)
        self.elite_score.fill_(elite_score)
        self.fitness.copy_(torch.from_numpy(nan_is_worst(fitness)))
        self._asked = None

    def best(self) -> Tensor | None:
        """See :meth:`Evolver.best`; the elite, whose genome is saved."""
        return None if self.elite is None else self.rebuild(self.elite)

    def inject(self, vectors: Tensor, slots: Sequence[int]) -> NoReturn:
        """
        Not available.

        :raises ValueError: always
        """
        refuse_injection(self, "individuals are lists of seeds", slots)

    def origins(self) -> Origins | None:
        """See :meth:`Evolver.origins`; mutants of parents, or random individuals; ``None`` but between ask and tell."""
        if self._asked is None:
            return None
        kind, founders = "mutation" if self.offspring[0, 0] >= 0 else "random", (g.offsets[0] for g in self.population)
        return replace(Origins.all_of(kind, self.pop_size), founders=tuple(founders))

    def metrics(self) -> dict[str, float]:
        """See :meth:`Evolver.metrics`; the number of windows in the elite's genome."""
        return {} if self.elite is None else {"elite_genome_length": float(len(self.elite.offsets))}

    def _finalists(self, fitness: np.ndarray) -> list[int]:
        return finalists(fitness, self.n_finalists, self.elite is not None)

    def _stack(self, genomes: Sequence[Genome]) -> Tensor:
        self.decoder.keep([genome for genome in genomes_in(self.ancestors) if genome is not None])
        stack = np.empty((len(genomes), self.decoder.n_params), dtype=np.float32)
        for row, genome in zip(stack, genomes, strict=True):
            self.decoder(genome, out=row)
        return torch.from_numpy(stack).to(self.pool.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if name in ("offspring", "fitness") and len(saved) != len(buffer):
                raise PopulationSizeError(
                    f"pop_size must be that of the saved model: it holds {len(saved)} children, this model {self.pop_size} "
                    "of them; load without changing pop_size, or start a new model"
                )
            if saved.shape != buffer.shape:  # genomes grow, and another truncation may be wanted
                setattr(self, name, buffer.new_full(saved.shape, -1.0))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._asked = None
