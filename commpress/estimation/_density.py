"""From where thresholds are drawn when nothing but a bound on the tails is known.

    E[X - c] = int_0^inf P(X > c + t) dt - int_-inf^0 P(X <= c + t) dt,

so with T drawn from a density p the value ``1{X > c + T} / p(T)`` for T >= 0 and ``-1{X <= c + T} / p(T)`` for T < 0 has the mean ``E[X] - c``, whatever X's distribution, as far as p
reaches. Its variance is at most ``int tail(|t|) / p(t) dt``, least for p in proportion to sqrt(tail), where it is ``(int sqrt(tail))^2`` (Lau and Scarlett, order-optimal sequential 1-bit mean estimation).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import final

import numpy as np

from commpress.errors import SpecError
from commpress.estimation._normal import Array, cdf

_CELLS = 4096
_FINE = 1 << 14
_GAUSSIAN_REACH = 9.0  # standard deviations; 1e-19 of the mean is beyond


@final
class ThresholdDensity:
    """A density of thresholds around 0, of so many cells of equal probability, even within each: so drawing and weighing agree to the last digit.

    Args:
        edges: of the cells, increasing.

    Attributes:
        reach: thresholds lie in [-reach, reach].
    """

    def __init__(self, edges: Array) -> None:
        self._edges = edges
        self._widths = np.diff(edges)
        self.reach = float(edges[-1])

    @classmethod
    def gaussian(cls, sigma: float) -> ThresholdDensity:
        """For tails like those of N(0, sigma^2): p in proportion to sqrt(Q(|t| / sigma)); ``n Var`` is then 3.40 sigma^2 for a normal X about its mean."""
        return cls(sigma * _gaussian_edges())

    @classmethod
    def moment(cls, order: float, sigma: float, reach: float) -> ThresholdDensity:
        """For a k-th central moment of at most sigma^k, k = order > 1: tails of at most (t / sigma)^-k, cut at `reach`.

        What is beyond the reach is left out, at most ``sigma (sigma / reach)^(k - 1) / (k - 1)`` of the mean. Raises SpecError.
        """
        if not order > 1 or not reach > 0 or not sigma > 0:
            raise SpecError(
                f"a moment's order must be above 1, sigma and the reach positive, got {order}, {sigma} and {reach}"
            )
        return cls(sigma * _moment_edges(order, reach / sigma))

    def draw(self, u: Array) -> tuple[Array, Array]:
        """Thresholds, and ``1 / p`` of each, for uniform `u` in [0, 1), of any shape."""
        at = u * _CELLS
        cell = at.astype(np.int32)
        width = np.take(self._widths, cell)
        at -= cell
        at *= width
        at += np.take(self._edges, cell)
        width *= _CELLS
        return at, width

    def variance(self, above: Callable[[Array], Array], centre: float = 0.0) -> float:
        """Of one answer's value: ``above(t)`` is P(X > t) on an array; `centre`: where the thresholds are centred."""
        middle = 0.5 * (self._edges[1:] + self._edges[:-1])
        t = centre + middle
        hit = np.where(middle >= 0, above(t), 1.0 - above(t))
        signed = np.where(middle >= 0, 1.0, -1.0) * hit
        mean = float((signed * self._widths).sum())
        return float((hit * np.square(self._widths)).sum() * _CELLS) - mean * mean


@functools.cache
def _gaussian_edges() -> Array:
    return _edges(lambda t: np.sqrt(cdf(-t)), _GAUSSIAN_REACH)


@functools.lru_cache(maxsize=64)
def _moment_edges(order: float, reach: float) -> Array:
    return _edges(lambda t: np.maximum(t, 1.0) ** (-order / 2), reach)


def _edges(root_tail: Callable[[Array], Array], reach: float) -> Array:
    # Fine near 0, and by ratio far out, where a heavy tail's density hardly changes.
    near = np.linspace(0.0, min(1.0, reach), _FINE)
    far = np.geomspace(1.0, reach, _FINE)[1:] if reach > 1 else np.zeros(0)
    t = np.concatenate([near, far])
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (root_tail(t[1:]) + root_tail(t[:-1])) * np.diff(t))])
    half = np.interp(np.linspace(0.0, mass[-1], _CELLS // 2 + 1), mass, t)
    return np.concatenate([-half[:0:-1], half])


def order_of(noise: str | float) -> float:
    """The moment that is bounded: infinite for the named tails. Raises SpecError."""
    if noise in ("gaussian", "subgaussian"):
        return math.inf
    if isinstance(noise, (int, float)) and not isinstance(noise, bool) and 1 < noise < math.inf:
        return float(noise)
    raise SpecError(
        f'noise must be "gaussian", "subgaussian" or the order of a moment, a number above 1; got {noise!r}'
    )
