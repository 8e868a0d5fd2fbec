"""Where what is sent of a tensor by factors lies in the buffers of its rounds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import final

import torch

from commpress.codecs import LayeredCodec, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.lowrank import worth_factors

FACTS = 2  # numbers that travel with each matrix: norm of what the rank sends, and whether it has a gradient
_EXACT = make_codec("none")


@dataclasses.dataclass(frozen=True)
class MatrixShape:
    """A matrix in a flat tensor: coordinates [start, start + rows * columns), row after row."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns


def matrix_shape(start: int, shape: Sequence[int], strides: Sequence[int], numel: int) -> MatrixShape:
    """A parameter of this shape and these strides as a matrix: (shape[0], the rest), or, if another dimension is outermost in memory, that one and the rest.

    Args:
        start: of its coordinates in the flat tensor. numel: how many they are (twice the elements where they are complex).
    """
    outer = max(((s, d) for s, d in zip(strides, shape, strict=True) if d > 1), default=(0, 1))[1]
    return MatrixShape(start, outer, numel // outer)


@final
class Round:
    """Buffers of one exchange of both factors of some matrices, and the codecs that they go through.

    Attributes:
        left: exact coordinates, then `FACTS` numbers and the left factor of each matrix. right: the right factors.
        exact: the part of `left` for exact coordinates. facts: (matrices, FACTS). lefts, rights: views (r, rows) and (r, columns) of each matrix.
    """

    def __init__(self, exact: int, shapes: Sequence[MatrixShape], codec: LowRankCodec) -> None:
        r, inner = codec.dimension, codec.factors
        head = exact + FACTS * len(shapes)
        rows, columns = [r * s.rows for s in shapes], [r * s.columns for s in shapes]
        self.left = torch.zeros(head + sum(rows))
        self.right = torch.zeros(sum(columns))
        self.exact = self.left[:exact]
        self.facts = self.left[exact:head].view(-1, FACTS)
        self.lefts = _views(self.left, head, r, [s.rows for s in shapes])
        self.rights = _views(self.right, 0, r, [s.columns for s in shapes])
        self.left_codec = self.right_codec = _EXACT
        if not inner.lossless:
            self.left_codec = LayeredCodec([(head, _EXACT), *((n, inner) for n in rows)])
            self.right_codec = LayeredCodec([(n, inner) for n in columns])


def _views(flat: torch.Tensor, start: int, r: int, lengths: Sequence[int]) -> list[torch.Tensor]:
    starts = itertools.accumulate((r * n for n in lengths), initial=start)
    return [flat[a : a + r * n].view(r, n) for a, n in zip(starts, lengths, strict=False)]


@final
class FactorPlan:
    """How one flat tensor is reduced by factors. One passage at a time may use it: the buffers are kept.

    Args:
        numel: coordinates of the tensor.
        shapes: the matrices in it that are worth factors, in order; the rest goes exactly.
        codec: equal on all ranks.
    """

    def __init__(self, numel: int, shapes: Sequence[MatrixShape], codec: LowRankCodec) -> None:
        self.numel = numel
        self.shapes = tuple(shapes)
        self.codec = codec
        edges = [0, *(edge for s in self.shapes for edge in (s.start, s.stop)), numel]
        self.exact = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        self._rounds: dict[tuple[int, ...] | None, Round] = {}

    @property
    def compressed_numel(self) -> int:
        """Coordinates of the matrices."""
        return sum(s.rows * s.columns for s in self.shapes)

    def sent_numbers(self, i: int) -> int:
        """How many stand for matrix i in a final round."""
        return self.codec.dimension * (self.shapes[i].rows + self.shapes[i].columns) + FACTS

    def limit(self, i: int) -> int:
        """Most power iterations of matrix i before a step's own: with them a step sends no more than the matrix has coordinates."""
        s = self.shapes[i]
        return min(self.codec.iterations, s.rows * s.columns // (self.codec.dimension * (s.rows + s.columns)) - 1)

    def final(self) -> Round:
        """Everything: the round that every step ends with."""
        if None not in self._rounds:
            self._rounds[None] = Round(sum(b - a for a, b in self.exact), self.shapes, self.codec)
        return self._rounds[None]

    def iteration(self, matrices: tuple[int, ...]) -> Round:
        """The factors of some matrices only."""
        if matrices not in self._rounds:
            for other in [key for key in self._rounds if key is not None]:
                del self._rounds[other]  # resets are rare, and seldom of the same matrices
            self._rounds[matrices] = Round(0, [self.shapes[i] for i in matrices], self.codec)
        return self._rounds[matrices]


def worth(shape: MatrixShape, codec: LowRankCodec) -> bool:
    """Whether its factors are fewer numbers than the matrix."""
    return worth_factors(shape.rows, shape.columns, codec.dimension)
