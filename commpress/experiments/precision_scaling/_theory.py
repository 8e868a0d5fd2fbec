"""Closed forms of the risk (after the precision scaling laws of arXiv 2602.19241).

Feature i has variance (eigenvalue) ``i^-2`` and carries ``i^-1.5`` of the label's energy; the first M features are kept, quantised, and regressed on. If the quantiser adds an
error of variance v_i, uncorrelated with the feature, the best coefficient keeps the part ``lambda_i / (lambda_i + v_i)`` of what the feature carries:

    risk(M) = sum_{i <= M} i^-1.5 v_i / (lambda_i + v_i) + sum_{i > M} i^-1.5

Multiplicative noise, ``v_i = eps lambda_i``, loses the constant part eps / (1 + eps) of each; additive noise, ``v_i = eps``, loses all features of variance below eps, so that
``M_eff ~ min(M, eps^(-1/2))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

EPS = 1e-4
SIZES = (100, 1000, 10000)
SLOPE_RANGE = (300, 3000)
_EXPONENT = 1.5


def eigenvalues(size: int) -> torch.Tensor:
    """Variances ``i^-2`` of features 1 to `size`, float64."""
    return torch.arange(1, size + 1, dtype=torch.float64) ** -2.0


def signal(size: int) -> torch.Tensor:
    """Energies ``i^-1.5`` that features 1 to `size` carry, float64."""
    return torch.arange(1, size + 1, dtype=torch.float64) ** -_EXPONENT


def tail(size: float) -> float:
    """Energy of all features beyond the first `size`: a Hurwitz zeta value, by Euler and Maclaurin's formula."""
    n = size + 1.0
    head = 0.0
    while n < 32.0:
        head, n = head + n**-_EXPONENT, n + 1.0
    return head + 2.0 / math.sqrt(n) + 0.5 * n**-1.5 + 0.125 * n**-2.5 - 0.0182291667 * n**-4.5


def risk(size: int, noise: torch.Tensor | None = None) -> float:
    """Risk of the first `size` features with errors of these variances (float64, at least `size` of them); without noise if None."""
    left = tail(size)
    if noise is None:
        return left
    v = noise[:size].double()
    return float((signal(size) * v / (eigenvalues(size) + v)).sum()) + left


def multiplicative(size: int, eps: float) -> torch.Tensor:
    """Variances of an error in proportion to the feature."""
    return eps * eigenvalues(size)


def additive(size: int, eps: float) -> torch.Tensor:
    """Variances of an error that is the same for all features."""
    return torch.full((size,), eps, dtype=torch.float64)


def floating(size: int, mantissa: int) -> torch.Tensor:
    """Variances of stochastic rounding of normal features to floats of so many bits of mantissa: between 2^e and 2^(e+1) a step is ``2^(e - mantissa)``, and costs a sixth of its square on average."""
    deviation = eigenvalues(size).sqrt()
    total = torch.zeros(size, dtype=torch.float64)
    for octave in range(-40, 4):
        low, high = (torch.erf(2.0**e / (math.sqrt(2.0) * deviation)) for e in (octave, octave + 1))
        total += 4.0**octave * (high - low)
    return total * 4.0**-mantissa / 6.0


def effective(value: float) -> float:
    """The number of unquantised features with that risk."""
    low, high = 0.0, 1.0
    if value >= tail(0):
        return 0.0
    while tail(high) > value:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tail(middle) > value else (low, middle)
    return high


def slope(sizes: Sequence[int], risks: Sequence[float]) -> float:
    """Least-squares slope of log risk over log M."""
    x = torch.tensor(list(sizes), dtype=torch.float64).log()
    y = torch.tensor(list(risks), dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def slope_sizes(count: int = 8) -> tuple[int, ...]:
    """Sizes from 300 to 3000, evenly spaced in their logarithm."""
    low, high = SLOPE_RANGE
    return tuple(round(low * (high / low) ** (i / (count - 1))) for i in range(count))
