"""The protocol of evolvers: ask for candidates, tell their fitness; and abilities that only some of them have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence, Sized
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.core.array_text import in_short
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.fitness.shaping import nan_is_worst
from sb3_erl.evolution.operators.origins import Origins


class PopulationSizeError(ValueError, RuntimeError):
    """A saved population that does not fit (also a RuntimeError, because SB3's ``load`` swallows a mere ValueError)."""


class Evolver(nn.Module):
    """
    Base of all evolvers: ``ask`` for candidates, ``tell`` their fitness.

    Its state is made of float buffers, so it moves with the device and is saved like a network. Fitness is maximized
    everywhere and NaN is worst. Random numbers come from the generator that is handed in.

    A subclass that keeps a population is constructed as ``cls(candidates, layout, **kwargs)``; it proposes
    :attr:`candidates` in :meth:`ask` and calls :meth:`keep_best` in :meth:`tell`. Search distributions extend
    :class:`Distribution`.

    :param candidates: ``(pop_size, n_params)``, the initial population; ``None`` for evolvers that store something smaller
        and define :attr:`candidates` themselves
    :param layout: tensors of one individual, for subclasses that need them
    """

    starts_from: ClassVar[Literal["population", "mean"]] = "population"
    """Whether the first argument of the constructor is a whole population or one vector, the mean."""
    takes_vectors: ClassVar[bool] = True
    """Whether :meth:`inject` is available, and :meth:`tell` takes other candidates than those that were asked for."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Attributes that ``print`` shows beside the sizes."""
    candidates: Tensor
    champion: Tensor | None
    outsiders: frozenset[int] = frozenset()
    """Slots into which :meth:`inject` has put individuals since the last generation was told."""

    def __init__(self, candidates: Tensor | None = None, layout: ParameterLayout | None = None):
        super().__init__()
        if candidates is not None:
            self.register_buffer("candidates", candidates.detach().clone())
        self.register_buffer("champion", None, persistent=False)

    @property
    def pop_size(self) -> int:
        """Number of candidates."""
        return self.candidates.shape[0]

    @property
    def n_params(self) -> int:
        """Parameters of a candidate."""
        return self.candidates.shape[1]

    def ask(self, rng: np.random.Generator) -> Tensor:
        """
        :param rng: generator
        :return: ``(pop_size, n_params)``, a copy that the evolver does not keep
        """
        raise NotImplementedError

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator) -> None:
        """
        :param candidates: ``(pop_size, n_params)`` as they were evaluated; not written
        :param fitness: ``(pop_size,)``, higher is better
        :param rng: generator
        """
        raise NotImplementedError

    def best(self) -> Tensor | None:
        """
        :return: ``(n_params,)``, a copy of the best candidate of the last :meth:`tell`, which later changes of the
            population do not reach; ``None`` before the first one. It is not saved: ``None`` after loading, too
        """
        return None if self.champion is None else self.champion.clone()

    def keep_best(self, candidate: Tensor) -> None:
        """
        Take the snapshot that :meth:`best` returns; for subclasses, in :meth:`tell`.

        :param candidate: ``(n_params,)``, copied
        """
        self.champion = candidate.detach().clone()

    def center(self) -> Tensor | None:
        """:return: ``(n_params,)``, a copy of the mean of a search distribution; ``None`` for a population"""
        return None

    def inject(self, vectors: Tensor, slots: Sequence[int]) -> None:
        """
        Put individuals from outside into the next generation; between :meth:`tell` and the next :meth:`ask`.

        :param vectors: ``(k, n_params)``, copied
        :param slots: ``(k,)`` different rows of the next :meth:`ask` that hold them; those in :attr:`protected` are valid
            too, so the caller decides whether to overwrite what they hold
        :raises ValueError: if shapes do not fit or a slot does not exist
        """
        check_injected(vectors, slots, self.candidates)
        self.candidates[list(slots)] = vectors.detach().to(self.candidates)
        self.outsiders = self.outsiders.union(slots)

    @property
    def protected(self) -> list[int]:
        """Slots that should not be overwritten, because they hold unchanged elites; best first."""
        return []

    def origins(self) -> Origins | None:
        """
        How the individuals came about that :meth:`ask` proposes next, or between :meth:`ask` and :meth:`tell` has proposed.

        For pictures of a run (:class:`~sb3_erl.pictures.callback.PopulationCallback`); an evolver of a user's own may leave it
        out, then the origin of what it breeds is unknown.

        :return: one entry per candidate; ``None`` if it is not known: not decided yet, or not saved
        """
        return None

    def metrics(self) -> dict[str, float]:
        """:return: what is worth logging, by name; an algorithm logs it under ``population/``"""
        return {}

    def __repr__(self) -> str:
        names = [name for name in ("pop_size", "n_params", *self.shown) if hasattr(self, name)]
        words = [f"{name}={in_short(getattr(self, name))}" for name in names]
        return f"{type(self).__name__}({', '.join(words)})"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "candidates")
        if saved is not None and saved.shape != self.candidates.shape:
            raise PopulationSizeError(
                f"pop_size and network sizes must be those of the saved model: it holds {saved.shape[0]} candidates of "
                f"{saved.shape[1]} parameters, this model {self.candidates.shape[0]} of {self.candidates.shape[1]}; "
                "load without changing pop_size, or start a new model"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.champion = None


class Distribution(Evolver):
    """
    Base of evolvers that sample a search distribution: :meth:`propose`, :meth:`refit` and :meth:`center` are theirs to write.

    A subclass is constructed as ``cls(mean, pop_size, **kwargs)``. Injected rows are part of what is asked for until the
    next :meth:`tell`, so a generation that was interrupted can be asked for again; they are saved.

    :param mean: ``(n_params,)``, where the search starts
    :param pop_size: number of candidates
    """

    starts_from = "mean"
    injected: Tensor | None
    injected_slots: Tensor | None

    def __init__(self, mean: Tensor, pop_size: int):
        super().__init__(mean.expand(pop_size, -1))
        self.register_buffer("injected", None)
        self.register_buffer("injected_slots", None)

    def propose(self, rng: np.random.Generator) -> Tensor:
        """
        :param rng: generator
        :return: ``(pop_size, n_params)`` draws of the distribution, a new tensor
        """
        raise NotImplementedError

    def refit(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        """
        :param candidates: ``(pop_size, n_params)`` as they were evaluated; not written
        :param fitness: ``(pop_size,)``, higher is better, NaN is worst
        :param rng: generator
        """
        raise NotImplementedError

    def ask(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Evolver.ask`; draws, with injected vectors in their slots."""
        candidates = self.propose(rng)
        if self.injected is not None and self.injected_slots is not None:
            candidates[self.injected_slots.long()] = self.injected.to(candidates)
        return candidates

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator | None = None) -> None:
        """See :meth:`Evolver.tell`."""
        check_told(candidates, fitness, self.pop_size)
        self.refit(candidates, fitness, rng)
        self.keep_best(candidates[best_index(fitness)])
        write_into(self.candidates, candidates)
        self.injected = self.injected_slots = None

    def inject(self, vectors: Tensor, slots: Sequence[int]) -> None:
        """See :meth:`Evolver.inject`; a second call before the next :meth:`tell` adds to the first."""
        check_injected(vectors, slots, self.candidates)
        rows = {} if self.injected is None else dict(zip(self._slots(), self.injected, strict=True))
        rows.update(zip((int(slot) for slot in slots), vectors.detach().to(self.candidates), strict=True))
        if rows:
            self.injected = torch.stack(list(rows.values()))
            self.injected_slots = torch.tensor(list(rows), dtype=torch.float64, device=self.injected.device)

    def origins(self) -> Origins:
        """See :meth:`Evolver.origins`; all are drawn but those that were injected."""
        return Origins.all_of("sample", self.pop_size).with_outsiders(self._slots())

    def _slots(self) -> list[int]:
        return [] if self.injected_slots is None else [int(slot) for slot in self.injected_slots.tolist()]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("injected", "injected_slots"):
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else saved.detach().clone().to(self.candidates.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Migration(Protocol):
    """The population can take in individuals from outside that were not evaluated with it."""

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator, migrants: Tensor | None = None) -> None:
        """See :meth:`Evolver.tell`; ``migrants`` ``(n, n_params)`` join the next population."""


class ImportanceMixing(Protocol):
    """The search distribution is a diagonal Gaussian, so that old samples can be reused as draws of the new one."""

    mean: Tensor
    """``(n_params,)``"""
    variance: Tensor
    """``(n_params,)``"""

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """:return: ``(n, n_params)`` independent draws"""


class MirroredPairs(Protocol):
    """Candidates 2k and 2k + 1 are mirrored at the center, and are rebuilt from a few numbers."""

    source: Any
    """Rebuilds the candidates one at a time, here or in another process."""

    def ask_more(self, rng: np.random.Generator, n_pairs: int) -> Tensor:
        """:return: ``(2 * n_pairs, n_params)``, further candidates of the same generation"""

    def update(self, shaped: np.ndarray) -> None:
        """Move the center by weights ``(n,)`` of the candidates."""


def check_capability(evolver: Evolver, capability: type[Any], argument: str) -> None:
    """
    Refuse an evolver that lacks an ability which a setting needs.

    :param evolver: the evolver
    :param capability: :class:`Migration`, :class:`ImportanceMixing` or :class:`MirroredPairs`
    :param argument: what needs it, for the message: a setting such as ``"importance_mixing=True"``, or a class
    :raises ValueError: if members of the protocol, or parameters of its methods, are missing
    """
    members = {name: vars(capability).get(name) for name in (*vars(capability), *inspect.get_annotations(capability))}
    missing, known = [], set(dir(evolver))
    for name, method in members.items():
        if name.startswith("_"):
            continue
        if name not in known:
            missing.append(f"{name}()" if inspect.isfunction(method) else name)
        elif inspect.isfunction(method):
            lacking = _parameters(method) - _parameters(getattr(type(evolver), name))
            missing += [f"{name}(..., {parameter})" for parameter in sorted(lacking)]
    if missing:
        setting, is_setting, _ = argument.partition("=")
        raise ValueError(
            f"{argument} needs an evolver with {', '.join(missing)} (sb3_erl.evolution.base.{capability.__name__}); "
            f"got {type(evolver).__name__}. Add them to it, or choose another evolver"
            + (f", or leave out {setting}" if is_setting else "")
        )


def _parameters(method: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(method).parameters)


def best_index(fitness: np.ndarray) -> int:
    """
    :param fitness: ``(n,)``, higher is better, NaN is worst
    :return: index of the best; among equals the lowest

    >>> best_index(np.array([np.nan, 2.0, 3.0, 3.0]))
    2
    """
    return int(np.argmax(nan_is_worst(fitness)))


def best_first(fitness: np.ndarray) -> np.ndarray:
    """
    :param fitness: ``(n,)``, higher is better, NaN is worst
    :return: ``(n,)`` indices, best first; among equals the lower index first

    >>> best_first(np.array([1.0, np.nan, 3.0, 1.0])).tolist()
    [2, 0, 3, 1]
    """
    return np.argsort(-nan_is_worst(fitness), kind="stable")


def check_told(candidates: Sized, fitness: np.ndarray, pop_size: int | None = None) -> None:
    """
    :param candidates: ``(n, n_params)``
    :param fitness: of the same candidates
    :param pop_size: how many there must be; ``None`` for evolvers that can be told about some of them
    :raises ValueError: if there is not one fitness value per candidate, or another number of candidates
    """
    n = len(candidates) if pop_size is None else pop_size
    if fitness.shape != (n,) or len(candidates) != n:
        raise ValueError(
            f"fitness must have shape ({n},), one value per candidate from ask(); got {fitness.shape} for {len(candidates)} "
            "candidates"
        )


def check_injected(vectors: Tensor, slots: Sequence[int], candidates: Tensor) -> None:
    """:raises ValueError: if the vectors are not like the candidates, or there is not one existing slot for each"""
    pop_size, n_params = candidates.shape
    if vectors.shape != (len(slots), n_params):
        raise ValueError(
            f"vectors must have shape ({len(slots)}, {n_params}), one row of {n_params} parameters per slot; "
            f"got {tuple(vectors.shape)}"
        )
    if len(set(slots)) < len(slots) or not all(0 <= slot < pop_size for slot in slots):
        raise ValueError(f"slots must be different numbers from 0 to {pop_size - 1}; got {list(slots)}")


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A CPU copy as NumPy array."""
    return tensor.detach().cpu().numpy().astype(np.float32, order="C", copy=tensor.device.type == "cpu")


def write_into(target: Tensor, source: Tensor) -> None:
    """Copy a large tensor; on the CPU, NumPy takes half of PyTorch's time."""
    if target.device.type == source.device.type == "cpu":
        np.copyto(target.detach().numpy(), source.detach().numpy(), casting="same_kind")
    else:
        target.copy_(source)
