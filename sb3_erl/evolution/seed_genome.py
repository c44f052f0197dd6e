"""Individuals that are lists of seeds, from which their parameters are rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout


@dataclass(frozen=True)
class Genome:
    """
    Parameters in compressed form: the initial window of a noise table and the windows that mutations added.

    :param offsets: where the windows begin, the initial one first
    :param powers: one mutation power per further window
    """

    offsets: tuple[int, ...]
    powers: tuple[float, ...] = ()

    def child(self, offset: int, power: float) -> Genome:
        """The genome of a mutant."""
        return Genome((*self.offsets, int(offset)), (*self.powers, float(power)))

    @property
    def n_bytes(self) -> int:
        """Size as 64-bit numbers, one per offset and power."""
        return 8 * (len(self.offsets) + len(self.powers))


class Initialization:
    """
    The parameters that an initial window stands for; vectors (biases) are 0, scales of norm layers 1.

    Such et al. (2017), https://arxiv.org/abs/1712.06567; authors' code: uber-research/deep-neuroevolution,
    ``gpu_implementation/neuroevolution/models`` for ``"fan_in"``, ``es_distributed/tf_util.py`` for ``"unit_norm"``.

    :param layout: tensors of one individual
    :param kind: ``"fan_in"`` divides noise by the root of a unit's number of inputs, ``"unit_norm"`` scales each unit's
        incoming weights to a length
    :param hidden_std: that standard deviation or length for hidden layers
    :param output_std: that of the last layer
    :param unit_axis: axis of weights along which units lie: 0 in PyTorch, -1 where weights are stored (inputs, units)
    :raises ValueError: if a number is not positive or ``kind`` unknown
    """

    def __init__(
        self,
        layout: ParameterLayout,
        kind: Literal["fan_in", "unit_norm"] = "fan_in",
        hidden_std: float = 1.0,
        output_std: float = 0.1,
        unit_axis: Literal[0, -1] = 0,
    ):
        check_choice("init", kind, ("fan_in", "unit_norm"))
        check_range("init_hidden_std", hidden_std, 0, open_low=True)
        check_range("init_output_std", output_std, 0, open_low=True)
        self.layout, self.kind, self.unit_axis = layout, kind, unit_axis
        self.given = hidden_std, output_std
        weights = [name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) > 1]
        self.stds = {name: output_std if name in weights[-1:] else hidden_std for name in weights}
        self.start = np.zeros(layout.n_params, dtype=np.float32)
        self.scale = np.zeros(layout.n_params, dtype=np.float32)
        """``(n_params,)`` what ``"fan_in"`` multiplies a window with."""
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if name in self.stds:
                fan_in = int(np.prod(shape)) // shape[unit_axis]
                self.scale[layout.slices[name]] = self.stds[name] / np.sqrt(fan_in)
            elif name.rpartition(".")[2] in ("weight", "scale"):
                self.start[layout.slices[name]] = 1

    def __call__(self, window: np.ndarray) -> np.ndarray:
        """
        :param window: ``(n_params,)`` float32 standard normal numbers
        :return: ``(n_params,)`` float32
        """
        if self.kind == "fan_in":
            return self.start + window * self.scale
        parameters = self.start.copy()
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            if name in self.stds:
                weights = window[self.layout.slices[name]].reshape(shape)
                inputs = tuple(axis for axis in range(len(shape)) if axis != self.unit_axis % len(shape))
                lengths = np.sqrt(np.square(weights).sum(axis=inputs, keepdims=True))
                parameters[self.layout.slices[name]] = (weights * (np.float32(self.stds[name]) / lengths)).ravel()
        return parameters


class GenomeDecoder:
    """
    Rebuilds parameters from genomes, from the nearest kept ancestor on. The additions are the same in the same order
    whatever is kept, so the result is the same to the last bit.

    :param table: noise table that offsets point into
    :param initialization: of the first window
    """

    def __init__(self, table: NoiseTable, initialization: Initialization):
        self.table, self.initialization = table, initialization
        self.n_params = initialization.layout.n_params
        self._kept: dict[Genome, np.ndarray] = {}
        self._kept_lengths: list[int] = []

    def __call__(self, genome: Genome, out: np.ndarray | None = None) -> np.ndarray:
        """
        :param genome: of the individual
        :param out: ``(n_params,)`` float32, overwritten; ``None`` for a new array
        :return: ``(n_params,)`` float32, ``out`` or a copy
        :raises ValueError: if an offset lies outside the table
        """
        n_known, vector = self._nearest(genome)
        if vector is None:
            vector = self.initialization(self.table.window(genome.offsets[0], self.n_params))
        out = np.empty_like(vector) if out is None else out
        if n_known == len(genome.offsets):
            out[:] = vector
        for offset, power in zip(genome.offsets[n_known:], genome.powers[n_known - 1 :], strict=True):
            vector = np.add(vector, np.float32(power) * self.table.window(offset, self.n_params), out=out)
        return out

    def _nearest(self, genome: Genome) -> tuple[int, np.ndarray | None]:
        """Windows of the nearest kept ancestor, or of the genome itself, and its parameters; 1 and ``None`` without one."""
        for n in self._kept_lengths:
            ancestor = Genome(genome.offsets[:n], genome.powers[: n - 1])
            if n <= len(genome.offsets) and ancestor in self._kept:
                return n, self._kept[ancestor]
        return 1, None

    def keep(self, genomes: Sequence[Genome]) -> None:
        """Hold the parameters of these individuals, and of no others, for their children."""
        self._kept = {
            genome: self._kept[genome] if genome in self._kept else self(genome) for genome in dict.fromkeys(genomes)
        }
        self._kept_lengths = sorted({len(genome.offsets) for genome in self._kept}, reverse=True)

    @property
    def kept_bytes(self) -> int:
        """Memory that kept parameters take."""
        return sum(parameters.nbytes for parameters in self._kept.values())


_decoders: dict[tuple[Any, ...], GenomeDecoder] = {}
"""In workers: decoders live longer than the sources that come with each generation."""


@dataclass(frozen=True)
class GenomeSource:
    """
    Makes individuals of their genomes one at a time; see :class:`~sb3_erl.remote.recipes.CandidateSource`.

    :param decoder: makes them
    :param ancestors: genomes of parents, ``None`` where there is none yet; kept by the decoder
    :param offspring: ``(n, 3)`` for each individual the parent's number (-1 for none), offset and power of its own window
    :param wholes: genomes of individuals that are no parent's child, by number
    :param first: number of the first individual within the generation
    """

    decoder: GenomeDecoder
    ancestors: tuple[Genome | None, ...]
    offspring: np.ndarray
    wholes: dict[int, Genome]
    first: int = 0

    @property
    def noise_tables(self) -> tuple[NoiseTable, ...]:
        """See :class:`~sb3_erl.remote.recipes.CandidateSource`."""
        return (self.decoder.table,)

    def genome(self, index: int) -> Genome:
        """
        :param index: of the individual among those of this source
        :return: its genome
        """
        if index in self.wholes:
            return self.wholes[index]
        parent, offset, power = self.offspring[index].tolist()
        source = self.ancestors[int(parent)] if parent >= 0 else None
        return Genome((int(offset),)) if source is None else source.child(offset, power)

    def __call__(self, candidate: int) -> np.ndarray:
        """See :class:`~sb3_erl.remote.recipes.CandidateSource`."""
        return self.decoder(self.genome(candidate - self.first))

    def __reduce__(self) -> tuple[Any, ...]:
        start = self.decoder.initialization
        made_with = (start.layout, start.kind, *start.given, start.unit_axis)
        ancestors = rows_of(self.ancestors).numpy()
        return _genome_source, (self.decoder.table, made_with, ancestors, self.offspring, self.wholes, self.first)


def _genome_source(table: NoiseTable, made_with: tuple[Any, ...], ancestors: np.ndarray, *rest: Any) -> GenomeSource:
    """Inverse of :meth:`GenomeSource.__reduce__`, with a decoder that knows the parents of the last generation."""
    key = table, made_with
    decoder = _decoders.setdefault(key, GenomeDecoder(table, Initialization(*made_with)))
    genomes = genomes_in(torch.from_numpy(ancestors))
    decoder.keep([genome for genome in genomes if genome is not None])
    return GenomeSource(decoder, tuple(genomes), *rest)


def rows_of(genomes: Sequence[Genome | None]) -> Tensor:
    """:return: ``(n, longest, 2)`` float64: (offset, power) per window, (offset, 0) for the initial one, -1 after the last"""
    longest = max((len(genome.offsets) for genome in genomes if genome is not None), default=1)
    rows = np.full((len(genomes), longest, 2), -1.0)
    for row, genome in zip(rows, genomes, strict=True):
        if genome is not None:
            row[: len(genome.offsets)] = np.stack([genome.offsets, (0.0, *genome.powers)], axis=1)
    return torch.from_numpy(rows)


def genomes_in(rows: Tensor) -> list[Genome | None]:
    """Inverse of :func:`rows_of`."""
    found: list[Genome | None] = []
    for row in rows.cpu().numpy():
        row = row[: int((row[:, 0] >= 0).sum())]
        found.append(Genome(tuple(row[:, 0].astype(int).tolist()), tuple(row[1:, 1].tolist())) if len(row) else None)
    return found
