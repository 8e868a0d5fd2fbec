"""Where what is sent of a tensor by factors lies in the buffers of its rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import final

import torch

from commpress.codecs import Codec, LayeredCodec, LowRankCodec
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

    def __init__(self, exact: int, shapes: Sequence[MatrixShape], dimensions: Sequence[int], inner: Codec) -> None:
        head = exact + FACTS * len(shapes)
        rows = [r * s.rows for r, s in zip(dimensions, shapes, strict=True)]
        columns = [r * s.columns for r, s in zip(dimensions, shapes, strict=True)]
        self.left = torch.zeros(head + sum(rows))
        self.right = torch.zeros(sum(columns))
        self.exact = self.left[:exact]
        self.facts = self.left[exact:head].view(-1, FACTS)
        self.lefts = _views(self.left[head:], rows, dimensions)
        self.rights = _views(self.right, columns, dimensions)
        self.left_codec = self.right_codec = _EXACT
        if not inner.lossless:
            self.left_codec = LayeredCodec([(head, _EXACT), *((n, inner) for n in rows)])
            self.right_codec = LayeredCodec([(n, inner) for n in columns])


def _views(flat: torch.Tensor, sizes: Sequence[int], dimensions: Sequence[int]) -> list[torch.Tensor]:
    return [part.view(r, -1) for part, r in zip(flat.split(list(sizes)), dimensions, strict=True)]


@final
class FactorPlan:
    """How one flat tensor is reduced by factors. One passage at a time may use it: the buffers are kept.

    Args:
        numel: coordinates of the tensor.
        shapes: the matrices in it that are worth factors, in order; the rest goes exactly.
        codec: equal on all ranks.
        dimensions: of each matrix; those of the codec unless given.
    """

    def __init__(
        self,
        numel: int,
        shapes: Sequence[MatrixShape],
        codec: LowRankCodec,
        dimensions: Sequence[int] | None = None,
    ) -> None:
        self.numel = numel
        self.shapes = tuple(shapes)
        self.codec = codec
        self.dimensions = (codec.dimension,) * len(self.shapes) if dimensions is None else tuple(dimensions)
        edges = [0, *(edge for s in self.shapes for edge in (s.start, s.stop)), numel]
        self.exact = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        self._rounds: dict[tuple[int, ...] | None, Round] = {}

    @property
    def compressed_numel(self) -> int:
        """Coordinates of the matrices."""
        return sum(s.rows * s.columns for s in self.shapes)

    def sent_numbers(self, i: int) -> int:
        """How many stand for matrix i in a final round."""
        return self.dimensions[i] * (self.shapes[i].rows + self.shapes[i].columns) + FACTS

    def limit(self, i: int) -> int:
        """Most power iterations of matrix i before a step's own: with them a step sends no more than the matrix has coordinates."""
        s = self.shapes[i]
        return min(self.codec.iterations, s.rows * s.columns // (self.dimensions[i] * (s.rows + s.columns)) - 1)

    def final(self) -> Round:
        """Everything: the round that every step ends with."""
        if None not in self._rounds:
            exact = sum(b - a for a, b in self.exact)
            self._rounds[None] = Round(exact, self.shapes, self.dimensions, self.codec.factors)
        return self._rounds[None]

    def iteration(self, matrices: tuple[int, ...]) -> Round:
        """The factors of some matrices only."""
        if matrices not in self._rounds:
            for other in [key for key in self._rounds if key is not None]:
                del self._rounds[other]  # resets are rare, and seldom of the same matrices
            some = [self.shapes[i] for i in matrices], [self.dimensions[i] for i in matrices]
            self._rounds[matrices] = Round(0, *some, self.codec.factors)
        return self._rounds[matrices]


def worth(shape: MatrixShape, codec: LowRankCodec) -> bool:
    """Whether its factors are fewer numbers than the matrix; without a dimension, at one."""
    return worth_factors(shape.rows, shape.columns, codec.dimension or 1)


def most_dimensions(shape: MatrixShape) -> int:
    """The largest dimension that is worth factors."""
    return (shape.rows * shape.columns - 1) // (shape.rows + shape.columns)


def factor_nbytes(shape: MatrixShape, dimension: int, inner: Codec) -> int:
    """Payload of the matrix in one phase, both factors and `FACTS`."""
    factors = [dimension * shape.rows, dimension * shape.columns]
    return 4 * FACTS + sum(4 * n if inner.lossless else inner.payload_nbytes(n) for n in factors)
