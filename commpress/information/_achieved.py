"""What messages did carry: from inner products of a gradient with its decoded form, against the limits.

A layer x of d coordinates was decoded as y. G = <x,y>^2 / (|x|^2 |y|^2) is the share of x's energy that the best multiple
of y captures. Where the gradient is mostly noise of variance s (the usual case; otherwise G is taken of gradient and
noise together), the message carried (d/s) G of Fisher information, up to sampling error of order 1/sqrt(d). The limit is Gaussian: heavy-tailed gradients can
exceed it. Rates have to count every byte sent: headers, scales, padding, indices.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, final, overload

import numpy as np

from commpress.errors import SpecError, TensorError
from commpress.information._check import Array, count, layers, vector
from commpress.information._limits import fisher_optimum, layer_limits

Binding = Literal["memoryless", "with memory"]

_OVER_ONE = 1e-3  # what sums in single precision may be off


@overload
def captured(dot: float, energy: float, energy_decoded: float) -> float: ...
@overload
def captured(dot: Array, energy: Array, energy_decoded: Array) -> Array: ...
def captured(dot: Any, energy: Any, energy_decoded: Any) -> Any:
    """G = <x,y>^2 / (|x|^2 |y|^2), between 0 and 1; 0 where x or y is zero.

    Args:
        dot: <x,y>. energy: |x|^2 >= 0. energy_decoded: |y|^2 >= 0. Numbers, or arrays of one shape.

    Returns:
        a float for numbers, else float64 of that shape. Excess over 1 of up to 1e-3 (rounding in the sums) is cut.

    Raises:
        SpecError: not finite, a negative energy, or a product that no two vectors have. TensorError: shapes differ.
    """
    c, e, f = (_same(v, n) for v, n in ((dot, "dot"), (energy, "energy"), (energy_decoded, "energy_decoded")))
    if not c.shape == e.shape == f.shape:
        raise TensorError(f"dot, energy and energy_decoded must have one shape, got {c.shape}, {e.shape}, {f.shape}")
    if not (np.isfinite(c).all() and np.isfinite(e).all() and np.isfinite(f).all()) or (e < 0).any() or (f < 0).any():
        raise SpecError("dot and energies must be finite, energies >= 0; leave out steps whose gradient is not finite")
    live = (e > 0) & (f > 0)
    # One root at a time: the product of two energies may leave the range of a double.
    cosine = np.divide(c, np.sqrt(e), out=np.zeros_like(c), where=live)
    cosine = np.divide(cosine, np.sqrt(f), out=np.zeros_like(c), where=live)
    g = np.square(cosine)
    if (g > 1 + _OVER_ONE).any():
        raise SpecError(f"<x,y>^2 exceeds |x|^2 |y|^2 by a factor of {g.max():g}; the sums are of different vectors")
    return _like(np.minimum(g, 1.0), dot)


@overload
def efficiency(captured: float, rate: float) -> float: ...
@overload
def efficiency(captured: Array, rate: Array) -> Array: ...
def efficiency(captured: Any, rate: Any) -> Any:
    """eta = G / (1 - 2^(-2R)): captured information over the limit at the rate that was really sent.

    Args:
        captured: G in [0, 1]. rate: R >= 0, all bits sent over d (may be infinite). Numbers, or arrays of one shape.

    Returns:
        eta. Nothing captured with no bits is NaN (there is no limit to compare with); something captured with no bits,
        as prediction can do, is infinite.

    Raises:
        SpecError: a value out of its range. TensorError: shapes differ.
    """
    g, r = _same(captured, "captured"), _same(rate, "rate")
    if g.shape != r.shape:
        raise TensorError(f"captured and rate must have one shape, got {g.shape} and {r.shape}")
    if not ((g >= 0) & (g <= 1)).all() or not (r >= 0).all():
        raise SpecError("captured must be in [0, 1] and rate >= 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        return _like(g / -np.expm1(-2 * np.log(2) * r), captured)


@overload
def vnmse(captured: float) -> float: ...
@overload
def vnmse(captured: Array) -> Array: ...
def vnmse(captured: Any) -> Any:
    """1/G - 1: squared error over energy once the decoded vector is scaled by 1/G to be unbiased.

    With G = 1 - D of a codebook it is D/(1 - D), EDEN's error (Vargaftik et al., 2022). Infinite where G is 0.

    Raises:
        SpecError: captured not in [0, 1].
    """
    g = _same(captured, "captured")
    if not ((g >= 0) & (g <= 1)).all():
        raise SpecError("captured must be in [0, 1]")
    with np.errstate(divide="ignore"):
        return _like((1 - g) / g, captured)


@final
@dataclasses.dataclass(frozen=True)
class Information:
    """One step's information about the true gradient, in units of 1/variance, and its two ratios. "Of the Gaussian limit"."""

    achieved: float
    """Sum of (d_l/s_l) G_l."""
    allocated: float
    """The limit at the bits that each layer got."""
    optimum: float
    """The limit at the best allocation of the same total."""
    eta_codec: float
    """achieved / allocated: what the codec makes of its bits. NaN where no bit was sent."""
    eta_alloc: float
    """allocated / optimum, at most 1: what the allocation makes of the budget. NaN where no bit was sent."""
    binding: Binding
    """Which limit allocated and optimum are taken from: an encoder with memory (error feedback, prediction) is not held
    by the memoryless one."""

    def as_dict(self) -> dict[str, float | str]:
        """The fields, by name."""
        return dataclasses.asdict(self)


def achieved_information(
    dims: Any, variances: Any, bits: Any, captured: Any, *, memory_rounds: int | None = None
) -> Information:
    """Information that a step's messages carried, and what limits it.

    Args:
        dims: d_l > 0, coordinates of each layer, shape (layers,).
        variances: s_l > 0, noise variance of one coordinate, shape (layers,).
        bits: b_l >= 0, all bits sent over d_l, shape (layers,).
        captured: G_l in [0, 1], shape (layers,).
        memory_rounds: None for memoryless encoders. T >= 1 if the encoder has memory and this is its T-th round: the
            limit of T rounds together is then (T d/s)(1 - 2^(-2 T b)), and a round's share of it is used.

    Raises:
        SpecError: a value out of its range. TensorError: not one-dimensional, or of different lengths.
    """
    d, s = layers(dims, variances)
    b, g = vector(bits, "bits", length=d.size), _captured(captured, d.size)
    if memory_rounds is not None:
        b = b * count(memory_rounds, "memory_rounds")
    achieved = float((d / s * g).sum())
    allocated = float(layer_limits(d, s, b).sum())
    # Rounding must not let the sum of a given allocation pass the optimum.
    optimum = max(fisher_optimum(d, s, float((d * b).sum())), allocated)
    return Information(
        achieved=achieved,
        allocated=allocated,
        optimum=optimum,
        eta_codec=_ratio(achieved, allocated),
        eta_alloc=_ratio(allocated, optimum),
        binding="memoryless" if memory_rounds is None else "with memory",
    )


def eta_codec(dims: Any, variances: Any, bits: Any, captured: Any) -> float:
    """Sum of (d_l/s_l) G_l over sum of (d_l/s_l)(1 - 2^(-2 b_l)). Arguments and errors as :func:`achieved_information`."""
    return achieved_information(dims, variances, bits, captured).eta_codec


def eta_alloc(dims: Any, variances: Any, bits: Any) -> float:
    """Sum of (d_l/s_l)(1 - 2^(-2 b_l)) over the optimum at the same total, at most 1. Arguments as :func:`achieved_information`."""
    return achieved_information(dims, variances, bits, np.zeros(np.size(dims))).eta_alloc


def _captured(values: Any, length: int) -> Array:
    g = vector(values, "captured", length=length)
    if (g > 1).any():
        raise SpecError(f"captured must be at most 1, got {g.max()}")
    return g


def _ratio(a: float, b: float) -> float:
    if b > 0:
        return a / b
    return float("inf") if a > 0 else float("nan")


def _same(value: Any, name: str) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TensorError(f"{name} must be a number or an array of numbers, got {type(value).__name__}") from None


def _like(result: Array, argument: Any) -> Any:
    return float(result) if np.ndim(argument) == 0 else result
