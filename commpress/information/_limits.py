"""What a message of so many bits can carry at most: the Gaussian limit of Fisher information, and its best allocation.

One observation X ~ N(theta, s I_d) is described by a message of B bits; public coins are free. The score of the
message is E[X - theta | message] / s, so the trace of its Fisher information about theta is
(d s - mmse) / s^2, and the rate-distortion function of a Gaussian bounds the mmse from below:

    Tr I  <=  (d / s) (1 - 2^(-2 B / d))  <=  min(d / s, 2 ln2 B / s)

Source: Kim, arXiv 2606.00703; the linear form is that of Barnes, Han and Ozgur (arXiv 1902.02890), with the exact constant
of Barnes and Ozgur (arXiv 2102.05802). For messages of variable length B is the expected length. It is the limit for *Gaussian* noise: on heavy-tailed gradients figures taken
against it can exceed 100 %.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from commpress.errors import SpecError
from commpress.information._check import Array, layers, number, vector

_TWO_LN2 = 2 * math.log(2)


def fisher_fraction(bits: float) -> float:
    """1 - 2^(-2b): the largest share of a Gaussian observation's information that b bits per coordinate carry.

    Args:
        bits: b >= 0, bits per coordinate; may be infinite.

    Raises:
        SpecError: negative or NaN. TensorError: not one number.
    """
    return -math.expm1(-_TWO_LN2 * number(bits, "bits", infinite=True))


def fisher_limit(numel: float, variance: float, bits: float) -> float:
    """(d/s)(1 - 2^(-2b)): the exact limit of the trace of Fisher information, for isotropic noise.

    Args:
        numel: d >= 0, coordinates.
        variance: s > 0, noise variance of one coordinate (squared units of the gradient).
        bits: b = B/d >= 0, bits per coordinate; may be infinite, which gives d/s.

    Returns:
        the trace, in units of 1/variance.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    return number(numel, "numel") / number(variance, "variance", above=True) * fisher_fraction(bits)


def fisher_limit_linear(numel: float, variance: float, bits: float) -> float:
    """min(d/s, 2 ln2 B/s) with B = b d: the simpler bound, never below :func:`fisher_limit`. Arguments as there."""
    d, s = number(numel, "numel"), number(variance, "variance", above=True)
    return d / s * min(1.0, _TWO_LN2 * number(bits, "bits", infinite=True))


def layer_limits(dims: Any, variances: Any, bits: Any) -> Array:
    """:func:`fisher_limit` of each layer.

    Args:
        dims: d_l > 0, coordinates of each layer, shape (layers,).
        variances: s_l > 0, noise variance of one coordinate, shape (layers,).
        bits: b_l >= 0, bits per coordinate, shape (layers,).

    Returns:
        float64, shape (layers,). Independent layers add, so the limit of the whole is the sum (:func:`total_limit`).

    Raises:
        SpecError: a value out of its range. TensorError: not one-dimensional, or of different lengths.
    """
    d, s = layers(dims, variances)
    b = vector(bits, "bits", length=d.size)
    return d / s * -np.expm1(-_TWO_LN2 * b)


def layer_limits_linear(dims: Any, variances: Any, bits: Any) -> Array:
    """:func:`fisher_limit_linear` of each layer; arguments and errors as :func:`layer_limits`."""
    d, s = layers(dims, variances)
    b = vector(bits, "bits", length=d.size)
    return d / s * np.minimum(1.0, _TWO_LN2 * b)


def total_limit(dims: Any, variances: Any, bits: Any) -> float:
    """Sum of :func:`layer_limits`: what an allocation of bits allows at most, whatever the codec."""
    return float(layer_limits(dims, variances, bits).sum())


def fisher_waterfilling(dims: Any, variances: Any, total_bits: float) -> Array:
    """The allocation that allows most information: b_l = 1/2 log2(1/(nu s_l)), or 0 where that is negative.

    It is exact: one sort finds which layers get bits, then the level nu follows in closed form. Quiet layers (small
    s_l) get the bits first, as each of their bits tells more.

    Args:
        dims: d_l > 0, shape (layers,).
        variances: s_l > 0, shape (layers,).
        total_bits: B >= 0, the sum of d_l b_l.

    Returns:
        b_l, bits per coordinate, float64, shape (layers,); the sum of d_l b_l is B up to rounding.

    Raises:
        SpecError: a value out of its range, or bits to share and no layer. TensorError: see :func:`layer_limits`.
    """
    d, s = layers(dims, variances)
    budget = number(total_bits, "total_bits")
    if d.size == 0:
        if budget > 0:
            raise SpecError(f"total_bits is {total_bits} but there is no layer to give them to; pass 0")
        return np.zeros(0)
    order = np.argsort(s, kind="stable")
    # Heights over the quietest layer, so that a tiny budget is not lost against the size of log2(s).
    heights = np.log2(s[order])
    heights -= heights[0]
    width = np.cumsum(d[order])
    filled = np.cumsum(d[order] * heights)
    # Bits that it takes before layer k gets its first; it rises with k.
    need = np.maximum.accumulate((heights[1:] * width[:-1] - filled[:-1]) / 2)
    last = int(np.searchsorted(need, budget, side="left"))
    level = 2 * (budget / width[last]) + filled[last] / width[last]
    bits = np.zeros_like(d)
    bits[order] = np.maximum(level - heights, 0.0) / 2
    return bits


def fisher_optimum(dims: Any, variances: Any, total_bits: float) -> float:
    """Sum of d_l [1/s_l - nu]_+: the most information that B bits can carry over all ways to share them out.

    The value of :func:`total_limit` at :func:`fisher_waterfilling`; arguments and errors as there.
    """
    return total_limit(dims, variances, fisher_waterfilling(dims, variances, total_bits))
