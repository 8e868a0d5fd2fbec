"""Codes of up to 16 bits, and words for dithers (docs/wire-format.md, sections 1, 3 and 4.11)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.reference import _random
from commpress.reference._rates import GROUP

DIGITS = 19  # of a dither, and behind the point of a rounded value
ONE = 1 << DIGITS

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def nbytes(numel: int, width: int) -> int:
    """Of packed codes."""
    return numel // GROUP * (GROUP // 8) * width + -(-(numel % GROUP) * width // 8)


def pack(codes: Integers, width: int) -> bytes:
    """Whole groups of 512, then a bit string."""
    out = []
    for at in range(0, codes.size, GROUP):
        run = codes[at : at + GROUP]
        as_bits = (run[:, None] >> np.arange(width)) & 1
        if run.size == GROUP:
            words = as_bits.reshape(32, 16, width).transpose(1, 0, 2).reshape(16, width, 32)  # (lane, word, bit)
            as_bits = words.transpose(1, 0, 2)
        out.append(np.packbits(as_bits.reshape(-1).astype(np.uint8), bitorder="little").tobytes())
    return b"".join(out)


def unpack(data: Bytes, numel: int, width: int) -> Integers:
    """The inverse of :func:`pack`."""
    out, at = np.empty(numel, np.int64), 0
    for first in range(0, numel, GROUP):
        n = min(GROUP, numel - first)
        end = at + nbytes(n, width)
        as_bits = np.unpackbits(data[at:end], bitorder="little")[: n * width].astype(np.int64)
        if n == GROUP:
            lanes = as_bits.reshape(width, 16, 32).transpose(1, 0, 2).reshape(16, 32, width)
            as_bits = lanes.transpose(1, 0, 2)
        out[first : first + n] = as_bits.reshape(n, width) @ (1 << np.arange(width))
        at = end
    return out


def words(key: _random.KeyLike, purpose: int, index: int, numel: int) -> Integers:
    """A 32-bit word for each coordinate from ``index``, a multiple of 512, on."""
    groups = [_random.group_words(key, purpose, index + at) for at in range(0, numel, GROUP)]
    return np.concatenate([np.empty(0, np.uint32), *groups])[:numel].astype(np.int64)


def dithers(words: Integers) -> Integers:
    """0 to 2^19 - 1."""
    return (words & 0xFFFFFFFF) >> (32 - DIGITS)
