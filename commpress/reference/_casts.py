"""`none` and `cast` (docs/wire-format.md, section 4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def to_bits16(x: F32, family: str) -> npt.NDArray[np.uint16]:
    """The patterns of binary16 or bfloat16, rounded to nearest even; a NaN becomes the quiet NaN with its sign."""
    sign = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16) & np.uint16(0x8000)
    if family == "cast:fp16":
        out, quiet = x.astype(np.float16).view(np.uint16), 0x7E00
    else:
        bits = x.view(np.uint32).astype(np.uint64)
        out, quiet = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), 0x7FC0
    return np.where(np.isnan(x), sign | np.uint16(quiet), out).astype(np.uint16)


def from_bits16(bits: npt.NDArray[np.uint16], family: str) -> F32:
    """The values of those patterns."""
    if family == "cast:fp16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
