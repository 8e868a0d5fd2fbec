"""The Gaussian optimum: D = 2^(-2b) in every layer, any real number of bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from commpress.allocation._curve import Curve, Curves
from commpress.allocation._objective import (
    Array,
    Ints,
    Numbers,
    check_dims,
    check_numbers,
    check_objective,
    check_weights,
    value_of,
)
from commpress.errors import SpecError

_LN2 = math.log(2.0)
_STEPS = 100
_CLOSE = 1e-14


def solve(
    objective: str,
    dims: Sequence[int] | Ints,
    variances: Numbers,
    total_bits: float,
    *,
    weights: Numbers | None = None,
    gamma: float | None = None,
) -> Array:
    """Bits per coordinate of each layer that make the objective best, with sum d b = ``total_bits``.

    With u = 2^(-2b), variances s and weights w (1 unless given): `fisher` max sum w (d/s)(1-u); `mse` and `weighted`
    min sum w d s u; `unbiased` min sum w d s/(1-u). The first three are water-filling,
    b = 1/2 log2(v/nu) or 0 with v = w/s or w s, exact by sorting. The last is b = log2(e) asinh(sqrt(w s/mu)/2),
    Newton's method on log mu (docs/allocation.md; Cover and Thomas, chapter 10, for water-filling).

    Args:
        objective: `unbiased`, `mse`, `fisher` or `weighted`.
        dims: coordinates of each layer, integers >= 0.
        variances: s of each layer, >= 0, in any unit. A layer with s = 0 is worth nothing and gets no bits.
        total_bits: bits of all layers together, >= 0 (`unbiased`: > 0).
        weights: w of each layer, >= 0; `weighted` needs them or gamma.
        gamma: of `weighted`: w = s^(-gamma).

    Returns:
        float64 of shape (layers,), bits per coordinate, >= 0. Are all layers worth nothing, all get the same; without any
        coordinates nothing can be spent and all are 0.

    Raises:
        SpecError: an argument is malformed, or `unbiased` with no bits.

    Uses logarithms and exponentials: last bits may differ between machines. What ranks must agree on comes from
    :func:`solve_on_curve`.
    """
    check_objective(objective)
    sizes = check_dims(dims)
    s = check_numbers(variances, len(sizes), "variances")
    w = check_weights(objective, weights, gamma, len(sizes))
    if not (math.isfinite(total_bits) and total_bits >= 0):
        raise SpecError(f"total_bits must be finite and at least 0, got {total_bits}")
    d = sizes.astype(np.float64)
    with np.errstate(divide="ignore"):
        log_s, log_w = np.log(s), np.log(w)
    sign = -1.0 if objective == "fisher" else 1.0 if gamma is None else 1.0 - gamma
    active = (d > 0) & (s > 0) & (w > 0)
    bits = np.zeros(len(sizes))
    if not active.any():
        coordinates = d.sum()
        return np.where(d > 0, total_bits / coordinates, 0.0) if coordinates > 0 else bits
    log_v, d = log_w[active] + sign * log_s[active], d[active]
    if objective == "unbiased":
        if total_bits == 0:
            raise SpecError("an unbiased estimate needs some bits: total_bits must be above 0")
        spent = _asinh_bits(d, log_v, total_bits)
    else:
        spent = np.maximum(0.0, (log_v - _water_level(d, log_v, total_bits)) / (2.0 * _LN2))
    used = float(np.dot(d, spent))
    # The level is right to rounding; this makes the total so, too.
    bits[active] = spent * (total_bits / used) if used > 0 else total_bits / d.sum()
    return bits


def objective_value(
    objective: str,
    dims: Sequence[int] | Ints,
    variances: Numbers,
    bits: Numbers,
    *,
    weights: Numbers | None = None,
    gamma: float | None = None,
    curve: Curve | Sequence[Curve] | None = None,
) -> float:
    """The objective's value at given bits per coordinate.

    With G = 1 - 2^(-2b), or the curve's G: `fisher` sum w (d/s) G (larger is better); `mse`, `weighted` sum w d s (1-G);
    `unbiased` sum w d s/G (smaller is better; infinite if a layer with s > 0 has no bits). Layers with s = 0 or w = 0
    count nothing.

    Args:
        objective, dims, variances, weights, gamma: as in :func:`solve`.
        bits: of each layer, >= 0, bits per coordinate.
        curve: the codec's, one for all layers or one for each; None is the Gaussian limit.

    Raises:
        SpecError: an argument is malformed.
    """
    check_objective(objective)
    sizes = check_dims(dims)
    s = check_numbers(variances, len(sizes), "variances")
    b = check_numbers(bits, len(sizes), "bits")
    w = check_weights(objective, weights, gamma, len(sizes))
    if gamma is not None:
        w = np.where(s > 0, np.where(s > 0, s, 1.0) ** -gamma, 0.0)
    d = sizes.astype(np.float64)
    if curve is not None:
        return value_of(objective, d, s, w, Curves(curve, len(sizes)).at(b))
    return value_of(objective, d, s, w, -np.expm1(-2.0 * _LN2 * b), np.exp2(-2.0 * b))


def _water_level(d: Array, log_v: Array, total_bits: float) -> float:
    """log nu such that sum d (log v - log nu)+ / (2 ln 2) is ``total_bits``: the largest k for which the k best layers lie above their own level."""
    order = np.argsort(-log_v, kind="stable")
    d, log_v = d[order], log_v[order]
    levels = (np.cumsum(d * log_v) - 2.0 * _LN2 * total_bits) / np.cumsum(d)
    above = np.flatnonzero(log_v > levels)
    return float(levels[above[-1] if above.size else 0])


def _asinh_bits(d: Array, log_v: Array, total_bits: float) -> Array:
    """b = log2(e) asinh(exp((log v - t)/2)/2) with sum d b = ``total_bits``, by Newton on log(sum) as a function of t = log mu."""
    target = total_bits * _LN2
    # asinh(e^z/2) >= max(z, 0), so the water level lies below the root.
    low, high = _water_level(d, log_v, total_bits), math.inf
    t = low
    for _ in range(_STEPS):
        z = (log_v - t) / 2.0
        nats = np.where(z > 30.0, z, np.arcsinh(np.exp(np.minimum(z, 30.0)) / 2.0))
        have = float(np.dot(d, nats))
        if abs(have - target) <= _CLOSE * target:
            break
        if have > target:
            low = t
        else:
            high = t
        slope = float(np.dot(d, np.tanh(nats))) / 2.0
        if have > 0 and slope > 0:
            t = t + have * math.log(have / target) / slope
        if not low < t < high:
            if high - low <= 4e-16 * max(1.0, abs(low)):
                break
            t = (low + high) / 2.0 if high < math.inf else low + 2.0
    return nats / _LN2
