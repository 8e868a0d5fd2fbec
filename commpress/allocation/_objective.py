"""Objectives, and the checks that every entry of this room shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from commpress.errors import SpecError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers = Sequence[float] | Array

OBJECTIVES = ("unbiased", "mse", "fisher", "weighted")
MICRO = 1_000_000
"""Rates are counted in millionths of a bit per coordinate, as in the codecs' specs."""
MOST_COORDINATES = 1 << 38
"""Up to here the bits of a plan, in millionths, are exact in 64-bit integers even at 32 bits per coordinate."""
_FAINT = 2.0**-40
_FAINTEST = 1e-300


def check_objective(objective: str) -> str:
    """``objective`` if it is one of :data:`OBJECTIVES`; else SpecError."""
    if objective == "time":
        raise SpecError("the objective 'time' has a target of its own: call allocation.fastest(...)")
    if objective not in OBJECTIVES:
        raise SpecError(f"unknown objective {objective!r}; choose one of {', '.join(OBJECTIVES)}")
    return objective


def check_dims(dims: Sequence[int] | Ints) -> Ints:
    """Layer sizes as int64, shape (layers,): integers >= 0 with a sum of at most 2^38."""
    try:
        array = np.asarray(dims)
        sizes = array.astype(np.int64) if array.size else np.zeros(0, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"dims must be a sequence of integers: {error}") from None
    if (
        array.ndim != 1
        or (array.size and (array.dtype.kind not in "iu" or (array != sizes).any()))
        or (sizes < 0).any()
    ):
        raise SpecError("dims must be a sequence of integers that are at least 0")
    if (sizes > MOST_COORDINATES).any() or sum(sizes.tolist()) > MOST_COORDINATES:
        raise SpecError(f"a plan is for at most 2^38 coordinates, got {sum(sizes.tolist())}")
    return sizes


def check_numbers(values: Numbers, layers: int, name: str) -> Array:
    """Finite numbers >= 0, one per layer, as a new float64 array of shape (layers,)."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name} must be a sequence of numbers: {error}") from None
    if array.shape != (layers,):
        raise SpecError(f"{name} must have one number per layer, {layers} in all, got shape {array.shape}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if wrong.size:
        raise SpecError(f"{name} must be finite and at least 0; layer {wrong[0]} has {array[wrong[0]]}")
    return array


def check_weights(
    objective: str, weights: Numbers | None, gamma: float | None, layers: int, *, gamma_allowed: bool = True
) -> Array:
    """The layers' weights, ones if none are given; ``gamma`` is only checked here, it takes their place elsewhere."""
    if gamma is not None:
        if objective != "weighted":
            raise SpecError(f"gamma belongs to the objective 'weighted', not to {objective!r}")
        if weights is not None:
            raise SpecError("give weights or gamma, not both")
        if not gamma_allowed or not abs(gamma) <= 4:
            raise SpecError(f"gamma must be a number from -4 to 4, got {gamma}")
    elif objective == "weighted" and weights is None:
        raise SpecError("the objective 'weighted' needs weights, or gamma for weights s^-gamma")
    return np.ones(layers) if weights is None else check_numbers(weights, layers, "weights")


def weights_from_gamma(variances: Numbers, gamma: float) -> Array:
    """Weights ``s^-gamma`` by multiplications, divisions and square roots alone, so that every machine gets the same bits.

    Args:
        variances: s, shape (layers,), >= 0. A layer with s = 0 gets weight 0.
        gamma: a multiple of 1/4 from -4 to 4: 0 is `mse`, 1 equal bits, 2 `fisher` (theory: min sum w d s u).

    Returns:
        float64 of shape (layers,).

    Raises:
        SpecError: gamma is not such a number, or a weight is not representable.
    """
    if not abs(gamma) <= 4 or gamma * 4 != int(gamma * 4):
        raise SpecError(f"gamma must be a multiple of 1/4 from -4 to 4, got {gamma}")
    s = check_numbers(variances, len(variances), "variances")
    base = np.where(s > 0, s, 1.0)
    quarter = np.sqrt(np.sqrt(base))
    power = np.ones_like(base)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        for _ in range(int(abs(gamma)) if abs(gamma) >= 1 else 0):
            power = power * base
        for _ in range(int(abs(gamma) * 4) % 4):
            power = power * quarter
        weights = 1.0 / power if gamma > 0 else power
    if not np.isfinite(weights).all():
        raise SpecError(f"s^-{gamma} overflows for these variances; scale them or choose a smaller gamma")
    return np.where(s > 0, weights, 0.0)


def total(values: Array) -> float:
    """Sum from left to right: the order is part of the result, and numpy's own ``sum`` doesn't promise one."""
    return float(np.add.accumulate(values)[-1]) if values.size else 0.0


def importance(objective: str, variances: Array, weights: Array) -> Array:
    """What a coordinate's distortion costs, relative to the layer that costs most: in (0, 1], shape (layers,).

    Layers that are worth nothing (variance or weight 0) come after all others: they get a value far below the
    smallest one. Are all worth nothing, then all are worth the same.
    """
    worth = (variances > 0) & (weights > 0)
    if not worth.any():
        return np.ones_like(variances)
    s, w = variances[worth], weights[worth]
    values = np.zeros_like(variances)
    with np.errstate(under="ignore"):
        values[worth] = (s.min() / s if objective == "fisher" else s / s.max()) * (w / w.max())
        if not values.any():  # the products underflowed, each of them
            values[worth] = 1.0
        return np.where(values > 0, values, max(float(values[values > 0].min()) * _FAINT, _FAINTEST))


def value_of(
    objective: str, dims: Array, variances: Array, weights: Array, captured: Array, lost: Array | None = None
) -> float:
    """The objective's value from the captured fractions G, all of shape (layers,); see :func:`objective_value`.

    ``lost`` is 1 - G where it is known more exactly than by that subtraction.
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        if objective == "fisher":
            terms = weights * dims / variances * captured
        elif objective == "unbiased":
            terms = weights * dims * variances / captured
        else:
            terms = weights * dims * variances * (1.0 - captured if lost is None else lost)
    return total(np.where((variances > 0) & (weights > 0) & (dims > 0), terms, 0.0))


def loss_of(objective: str, dims: Array, variances: Array, weights: Array, captured: Array) -> float:
    """What exact layers would remove from the objective: 0 at G = 1. Plans are compared by it.

    mse, weighted: sum w d s (1-G). unbiased: sum w d s (1/G - 1). fisher: sum w (d/s) (1-G).
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        terms = weights * dims * (1.0 - captured)
        terms = terms / variances if objective == "fisher" else terms * variances
        if objective == "unbiased":
            terms = terms / captured
    return total(np.where((variances > 0) & (weights > 0) & (dims > 0), terms, 0.0))
