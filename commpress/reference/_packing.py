"""Packed codes (docs/wire-format.md, sections 3 and 4.7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference._rates import GROUP

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Codes = npt.NDArray[Any]  # of an unsigned integer type


def pack(codes: Codes, bits: int) -> U8:
    """The bytes of one run of at most 512 codes, each below ``2 ** bits``; up to 32 bits."""
    as_bits = (codes.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & np.uint32(1)  # (n, bits)
    if codes.size == GROUP:  # a bit string for each lane; words of all lanes side by side: (word, lane, bit)
        as_bits = as_bits.reshape(32, 16, bits).transpose(1, 0, 2).reshape(16, bits, 32).transpose(1, 0, 2)
    return np.packbits(as_bits.reshape(-1).astype(np.uint8), bitorder="little")


def unpack(data: U8, n: int, bits: int) -> I64:
    """The inverse of :func:`pack` for a run of ``n`` codes."""
    as_bits = np.unpackbits(data, bitorder="little")[: n * bits]
    if n == GROUP:
        as_bits = as_bits.reshape(bits, 16, 32).transpose(1, 0, 2).reshape(16, 32, bits).transpose(1, 0, 2)
    return as_bits.reshape(n, bits).astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))


def pack_block(codes: Codes, bits: int) -> U8:
    """Any number of codes, in runs of 512."""
    return np.concatenate([pack(codes[at : at + GROUP], bits) for at in range(0, codes.size, GROUP)])


def unpack_block(data: U8, n: int, bits: int) -> I64:
    """The inverse of :func:`pack_block`."""
    out, at = [], 0
    for begin in range(0, n, GROUP):
        m = min(GROUP, n - begin)
        nbytes = (m * bits + 7) // 8
        out.append(unpack(data[at : at + nbytes], m, bits))
        at += nbytes
    return np.concatenate(out)


def pack_trits(codes: Codes) -> U8:
    """Byte i holds, in base three, the bytes i, i + N, ... of the codes packed as eight bits each; N = ceil(n / 5)."""
    count = -(-codes.size // 5)
    digits = np.ones(5 * count, np.int64)
    digits[: codes.size] = pack_block(codes, 8)
    return (3 ** np.arange(5) @ digits.reshape(5, count)).astype(np.uint8)


def unpack_trits(data: U8, n: int) -> I64:
    """The inverse of :func:`pack_trits`. Raises WireError for a byte that is no five digits."""
    if (data > 242).any():
        raise WireError(f"a byte {data.max()} is no five digits of base three")
    digits = (data.astype(np.int64) // 3 ** np.arange(5)[:, None] % 3).reshape(-1)[:n]
    return unpack_block(digits.astype(np.uint8), n, 8)
