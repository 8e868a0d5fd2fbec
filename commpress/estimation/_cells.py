"""Cells of b-bit quantisers of N(0, 1), and the chance that two correlated normal variables fall into a pair of them."""

from __future__ import annotations

import functools
import math

import numpy as np

from commpress.errors import SpecError
from commpress.estimation._normal import Array, cdf, density

_NODES = 96
_LLOYD = 4000


@functools.cache
def lloyd_max_cells(bits: int) -> tuple[Array, Array]:
    """Inner boundaries (2^b - 1) and levels (2^b) of the quantiser of N(0, 1) with the least squared error. Raises SpecError unless bits is 1 to 4."""
    if isinstance(bits, bool) or bits not in (1, 2, 3, 4):
        raise SpecError(f"bits must be 1, 2, 3 or 4, got {bits!r}")
    levels = np.linspace(-2.0, 2.0, 1 << bits)
    boundaries = 0.5 * (levels[1:] + levels[:-1])
    for _ in range(_LLOYD):
        edges = np.concatenate([[-np.inf], boundaries, [np.inf]])
        levels = -np.diff(density(edges)) / np.diff(cdf(edges))
        boundaries = 0.5 * (levels[1:] + levels[:-1])
    boundaries = 0.5 * (boundaries - boundaries[::-1])  # symmetric to the last digit
    return boundaries, 0.5 * (levels - levels[::-1])


def rectangle_probabilities(boundaries: Array, rho: Array) -> Array:
    """P(X in cell i, Y in cell j) for standard normal X and Y with correlation rho in [-1, 1]: shape (rhos, cells, cells).

    Plackett's identity: the distribution function's derivative in rho is the density, so with rho = sin t

        Phi_2(h, k; rho) = Phi(h) Phi(k) + (1 / 2 pi) int_0^asin(rho) exp(-(h^2 - 2 h k sin t + k^2) / (2 cos^2 t)) dt,

    a smooth integrand: Gauss-Legendre with 96 nodes. Rounding can leave less than nothing in a cell near |rho| = 1: 0 then.
    """
    rho = np.asarray(rho, dtype=np.float64)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = 0.5 * np.arcsin(np.clip(rho, -1.0, 1.0))
    angles = half[:, None] * (nodes + 1.0)[None, :]
    h, k = boundaries[:, None], boundaries[None, :]
    sine, cosine2 = np.sin(angles)[:, :, None, None], np.maximum(np.square(np.cos(angles)), 1e-300)[:, :, None, None]
    with np.errstate(under="ignore"):
        values = np.exp(-(h * h - 2 * h * k * sine + k * k) / (2 * cosine2))
    inner = cdf(h) * cdf(k) + np.einsum("rn,rnij->rij", half[:, None] * weights, values) / (2 * math.pi)
    corner = np.zeros((len(rho), len(boundaries) + 2, len(boundaries) + 2))
    corner[:, 1:-1, 1:-1] = inner
    corner[:, -1, 1:-1] = corner[:, 1:-1, -1] = cdf(boundaries)
    corner[:, -1, -1] = 1.0
    found: Array = np.maximum(np.diff(np.diff(corner, axis=1), axis=2), 0.0)
    return found


def rectangle_slopes(boundaries: Array, rho: Array) -> Array:
    """d/d rho of :func:`rectangle_probabilities`, |rho| < 1: the bivariate density at the corners."""
    rho = np.asarray(rho, dtype=np.float64)
    h, k, r = boundaries[:, None], boundaries[None, :], rho[:, None, None]
    rest = 1.0 - r * r
    with np.errstate(under="ignore"):
        inner = np.exp(-(h * h - 2 * r * h * k + k * k) / (2 * rest)) / (2 * math.pi * np.sqrt(rest))
    corner = np.zeros((len(rho), len(boundaries) + 2, len(boundaries) + 2))
    corner[:, 1:-1, 1:-1] = inner
    found: Array = np.diff(np.diff(corner, axis=1), axis=2)
    return found
