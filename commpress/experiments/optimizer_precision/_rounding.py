"""Rounding of many numbers at once, each to a mantissa of its own that the last index of the array decides: what `float:e8mY` does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def masks(mantissas: I32) -> tuple[I32, I32]:
    """(bits that go, their mask) for the last index of an array."""
    shift = 23 - mantissas.astype(np.int32)
    return shift, ((1 << shift) - 1).astype(np.int32)


def round_nearest(x: F32, shift: I32, mask: I32) -> None:
    """In place, ties to even; every mantissa must be below float32's. Values beyond the largest finite one are not expected."""
    bits = x.view(np.int32)
    bits += (mask >> 1) + ((bits >> shift) & 1)
    bits &= ~mask


def round_stochastic(x: F32, mask: I32, generator: np.random.Generator) -> None:
    """In place, up with the probability that makes the mean right."""
    bits = x.view(np.int32)
    bits += generator.integers(0, 1 << 23, bits.shape, dtype=np.int32) & mask
    bits &= ~mask
