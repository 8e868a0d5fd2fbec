"""Random signs of many coordinates at once: Philox4x32-10 in place, on arrays that stay in a cache.

The same bits as `commpress.reference` draws, which defines them; several times as fast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commpress.codecs import Key

PER_COUNTER = 128  # bits
_PURPOSE = 1  # of the first rotation's signs
_MASK = 0xFFFFFFFF
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_CHUNK = 2048  # counters: six arrays of 16 KiB


def sign_bits(key: Key, first: int, count: int) -> NDArray[np.uint8]:
    """Bits, 0 or 1 each, of `count` counters from `first` on (mod 2^32): 128 of each, of every byte the highest first."""
    found = np.empty((count, 4), np.uint32)
    second, third, fourth = key.words()
    arrays = np.empty((6, min(count, _CHUNK)), np.uint64)
    mask, half = np.uint64(_MASK), np.uint64(32)
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        c0, c1, c2, c3, p, q = arrays[:, :n]
        c0[:] = np.arange(first + start, first + start + n, dtype=np.uint64)
        c0 &= mask
        c1[:], c2[:], c3[:] = second, third | _PURPOSE, fourth
        k0, k1 = key.seed & _MASK, key.seed >> 32
        for _ in range(_ROUNDS):
            np.multiply(c0, _MULTIPLIERS[0], out=p)
            np.multiply(c2, _MULTIPLIERS[1], out=q)
            np.right_shift(q, half, out=c0)
            c0 ^= c1
            c0 ^= np.uint64(k0)
            np.bitwise_and(q, mask, out=c1)
            np.right_shift(p, half, out=c2)
            c2 ^= c3
            c2 ^= np.uint64(k1)
            np.bitwise_and(p, mask, out=c3)
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
        for i, word in enumerate((c0, c1, c2, c3)):
            found[start : start + n, i] = word
    return np.unpackbits(found.view(np.uint8))
