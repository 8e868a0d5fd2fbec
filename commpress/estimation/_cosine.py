"""The cosine of two vectors from random projections of b bits each.

A projection ``y = <r, x> / |x|`` with random signs or normal entries r is nearly N(0, 1), and those of two vectors have their cosine for a correlation. Both sides keep the cell of a quantiser,
b bits, of each projection; the counts of pairs of cells are multinomial with the probabilities of bivariate-normal rectangles, and the likelihood's top is the estimate
(Li, Mitzenmacher and Slawski 2016). Its variance is ``1 / (m I_b(rho))`` for m projections.
"""

from __future__ import annotations

import functools
import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from commpress.errors import SpecError, TensorError
from commpress.estimation._cells import lloyd_max_cells, rectangle_probabilities, rectangle_slopes
from commpress.estimation._normal import Array

_GRID = 2049
_LEAST = 1e-300
_EDGE = 0.999999


@functools.lru_cache(maxsize=8)
def _likelihood(bits: int) -> tuple[Array, Array]:
    """Angles t, evenly spaced over [-pi/2, pi/2], and log P of each pair of cells at rho = sin t: (grid, cells^2)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, _GRID)
    boundaries, _ = lloyd_max_cells(bits)
    parts = [rectangle_probabilities(boundaries, np.sin(part)) for part in np.array_split(angles, 64)]
    return angles, np.log(np.maximum(np.concatenate(parts), _LEAST)).reshape(_GRID, -1)


def fisher_information_unquantised(rho: Array) -> Array:
    """I_inf = (1 + rho^2) / (1 - rho^2)^2 of one pair of whole projections."""
    square = np.square(np.asarray(rho, dtype=np.float64))
    found: Array = (1 + square) / np.square(1 - square)
    return found


def best_bits(rho: float, *, budget_bits: bool = True) -> int:
    """Of 1 to 4, what estimates a cosine of about `rho` best: for a given number of bits in all, or (`budget_bits` false) of projections.

    Raises:
        SpecError: rho is not in (-1, 1).
    """
    costs = [(bits if budget_bits else 1) * CosineEstimator(bits).variance(rho) for bits in (1, 2, 3, 4)]
    return 1 + int(np.argmin(costs))


@final
class CosineEstimator:
    """Cells, information and estimates for projections of b bits.

    Args:
        bits: b, 1 to 4.

    Raises:
        SpecError: another number.
    """

    def __init__(self, bits: int) -> None:
        self.boundaries, self.levels = lloyd_max_cells(bits)
        self.bits = bits

    def cells(self, projections: Array) -> NDArray[np.uint8]:
        """The cell, 0 to 2^b - 1, of each projection; any shape. They should have variance 1."""
        found = np.zeros(projections.shape, dtype=np.uint8)
        for boundary in self.boundaries:  # few: faster than a search, whose branches nobody can predict
            found += projections > boundary
        return found

    def fisher_information(self, rho: float) -> float:
        """I_b: sum over pairs of cells of (dP / d rho)^2 / P, of one pair of projections. Raises SpecError: rho is not in (-1, 1)."""
        if not -1 < rho < 1:
            raise SpecError(f"rho must be in (-1, 1), got {rho!r}")
        at = np.array([min(max(rho, -_EDGE), _EDGE)])
        p, slope = rectangle_probabilities(self.boundaries, at)[0], rectangle_slopes(self.boundaries, at)[0]
        there = p > 1e-14  # less is rounding
        return float((np.square(slope[there]) / p[there]).sum())

    def variance(self, rho: float, projections: int = 1) -> float:
        """V_b / m = 1 / (m I_b(rho)), of the maximum-likelihood estimate from m projections. Raises SpecError."""
        return 1.0 / (projections * self.fisher_information(rho))

    def counts(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Array:
        """How often each pair of cells occurs: (rows, cells^2) for cells of shape (rows, m). Raises TensorError: the shapes differ."""
        if a.shape != b.shape or a.ndim != 2:
            raise TensorError(
                f"cells of two vectors must have one shape (rows, projections), got {a.shape} and {b.shape}"
            )
        width = 1 << 2 * self.bits
        pairs = (a.astype(np.int64) << self.bits | b) + width * np.arange(len(a))[:, None]
        return np.bincount(pairs.ravel(), minlength=width * len(a)).reshape(len(a), width).astype(np.float64)

    def maximum_likelihood(self, counts: Array) -> Array:
        """The estimate for each row of :meth:`counts`, in [-1, 1]."""
        angles, logs = _likelihood(self.bits)
        values = counts @ logs.T
        best = np.clip(values.argmax(1), 1, _GRID - 2)
        rows = np.arange(len(counts))
        left, top, right = values[rows, best - 1], values[rows, best], values[rows, best + 1]
        bend = left - 2 * top + right
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.where(bend < 0, 0.5 * (left - right) / bend, np.sign(right - left))
        found: Array = np.sin(angles[best] + np.clip(shift, -1.0, 1.0) * (angles[1] - angles[0]))
        return found

    def naive(self, counts: Array) -> Array:
        """The cosine of the decoded projections, as if they were whole: for each row of :meth:`counts`. Biased."""
        table = counts.reshape(len(counts), 1 << self.bits, 1 << self.bits)
        squares = np.square(self.levels)
        dot = np.einsum("rij,i,j->r", table, self.levels, self.levels)
        found: Array = dot / np.sqrt((table.sum(2) @ squares) * (table.sum(1) @ squares))
        return found

    def naive_limit(self, rho: float) -> float:
        """What :meth:`naive` tends to. Raises SpecError: rho is not in (-1, 1)."""
        if not -1 < rho < 1:
            raise SpecError(f"rho must be in (-1, 1), got {rho!r}")
        p = rectangle_probabilities(self.boundaries, np.array([rho]))[0]
        return float(self.levels @ p @ self.levels / (np.square(self.levels) @ p.sum(1)))
