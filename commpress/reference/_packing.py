"""Packed codes (docs/wire-format.md, section 3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.reference._rates import GROUP

Codes = npt.NDArray[np.uint8]


def pack(codes: Codes, bits: int) -> Codes:
    """The bytes of one run of at most 512 codes, each below ``2 ** bits``."""
    as_bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]  # (n, bits), least significant first
    if codes.size == GROUP:
        lanes = as_bits.reshape(32, 16, bits).transpose(1, 0, 2).reshape(16, 32 * bits)  # a bit string for each lane
        words = np.packbits(lanes, axis=1, bitorder="little").reshape(16, bits, 4)  # (lane, word, byte)
        return words.transpose(1, 0, 2).reshape(-1)
    return np.packbits(as_bits.reshape(-1), bitorder="little")


def unpack(data: Codes, n: int, bits: int) -> Codes:
    """The inverse of :func:`pack` for a run of ``n`` codes."""
    if n == GROUP:
        words = data.reshape(bits, 16, 4).transpose(1, 0, 2).reshape(16, 4 * bits)
        lanes = np.unpackbits(words, axis=1, bitorder="little")
        as_bits = lanes.reshape(16, 32, bits).transpose(1, 0, 2).reshape(n, bits)
    else:
        as_bits = np.unpackbits(data, bitorder="little")[: n * bits].reshape(n, bits)
    return np.packbits(as_bits, axis=1, bitorder="little")[:, 0]
