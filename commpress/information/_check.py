"""Argument checks of this room. Values out of range raise SpecError, wrong types and shapes TensorError."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from commpress.errors import SpecError, TensorError

Array: TypeAlias = NDArray[np.float64]


def number(value: Any, name: str, *, least: float = 0.0, above: bool = False, infinite: bool = False) -> float:
    """A real number >= least (> least with ``above``), finite unless ``infinite``; as a float."""
    if isinstance(value, (str, bytes)) or np.ndim(value) != 0:
        raise TensorError(f"{name} must be one number, got {type(value).__name__}")
    try:
        x = float(value)
    except (TypeError, ValueError):
        raise TensorError(f"{name} must be one number, got {type(value).__name__}") from None
    except OverflowError:
        x = math.inf
    if math.isnan(x) or (math.isinf(x) and not infinite) or x < least or (above and x == least):
        sign = ">" if above else ">="
        range_ = (
            "any finite number" if least == -math.inf else f"{sign} {least:g}" + ("" if infinite else " and finite")
        )
        raise SpecError(f"{name} must be {range_}, got {value}")
    return x


def square(x: float, name: str) -> float:
    """x^2 of a checked number, which must not leave the range of a double."""
    if math.isinf(x * x):
        raise SpecError(f"{name} is too large to square, got {x:g}; use another unit")
    return x * x


def count(value: Any, name: str, *, least: int = 1) -> int:
    """A whole number >= least; as an int."""
    x = number(value, name, least=least)
    if x != math.floor(x):
        raise SpecError(f"{name} must be a whole number, got {value}")
    return int(value)


def vector(values: Any, name: str, *, least: float = 0.0, above: bool = False, length: int | None = None) -> Array:
    """A 1-D float64 array of finite values >= least (> least with ``above``); a copy only where the dtype differs."""
    try:
        x = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TensorError(f"{name} must hold numbers, one for each layer") from None
    if x.ndim != 1:
        raise TensorError(f"{name} must be one-dimensional, one value for each layer; got shape {x.shape}")
    if length is not None and x.size != length:
        raise TensorError(f"{name} has {x.size} values for {length} layers; pass one for each")
    bad = ~np.isfinite(x) | ((x <= least) if above else (x < least))
    if bad.any():
        i = int(np.argmax(bad))
        raise SpecError(f"{name} must be finite and {'>' if above else '>='} {least:g}; layer {i} has {x[i]}")
    return x


def layers(dims: Any, variances: Any) -> tuple[Array, Array]:
    """The two arrays that describe layers: numbers of coordinates and noise variances, all > 0."""
    d = vector(dims, "dims", above=True)
    return d, vector(variances, "variances", above=True, length=d.size)
