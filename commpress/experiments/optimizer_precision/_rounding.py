"""Rounding of many rows of an array at once, each to a mantissa of its own: what `float:e8mY` does, row by row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def masks(mantissas: I32) -> tuple[I32, I32]:
    """(bits that go, their mask) for each row of a three-dimensional array. 23 bits of mantissa are float32's own."""
    shift = (23 - mantissas.astype(np.int32))[:, None, None]
    return shift, ((1 << shift) - 1).astype(np.int32)


def round_nearest(x: F32, shift: I32, mask: I32) -> None:
    """In place, ties to even; rows must lose at least one bit. Values beyond the largest finite one are not expected."""
    bits = x.view(np.int32)
    bits += (mask >> 1) + ((bits >> shift) & 1)
    bits &= ~mask


def round_stochastic(x: F32, mask: I32, generator: np.random.Generator) -> None:
    """In place, up with the probability that makes the mean right."""
    bits = x.view(np.int32)
    bits += generator.integers(0, 1 << 23, bits.shape, dtype=np.int32) & mask
    bits &= ~mask
