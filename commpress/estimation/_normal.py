"""The normal distribution on float64 arrays."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def _on(function: torch._ops.OpOverload, x: Array) -> Array:
    values: Array = function(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))).numpy()
    return values


def cdf(x: Array) -> Array:
    """Phi."""
    return _on(torch.special.ndtr, x)


def log_cdf(x: Array) -> Array:
    """log Phi, exact far into the tail."""
    return _on(torch.special.log_ndtr, x)


def quantile(p: Array) -> Array:
    """Phi's inverse; infinite at 0 and 1."""
    return _on(torch.special.ndtri, p)


def density(x: Array) -> Array:
    """phi."""
    with np.errstate(under="ignore"):
        values: Array = np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)
    return values
