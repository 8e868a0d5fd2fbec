"""Philox4x32-10 and the four uses of its words (docs/wire-format.md, section 1)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

ROTATION_1, ROTATION_2, ROUNDING, SELECTION, DITHER, DITHER_STRIDE = 1, 2, 3, 4, 5, 10
MASK32 = 0xFFFFFFFF


class KeyLike(Protocol):
    """What a key must offer; :class:`commpress.Key` does."""

    @property
    def seed(self) -> int: ...

    def words(self) -> tuple[int, int, int]: ...


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> U32:
    """Philox4x32-10 of ``counter`` (..., 4), each element below 2^32; the result has the same shape."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    mask, shift = np.uint64(MASK32), np.uint64(32)
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(key: KeyLike, purpose: int, first: int, count: int) -> U32:
    """Output words (count, 4) of the counters c0 = first, first + 1, ... (mod 2^32) for one purpose."""
    c1, c2, c3 = key.words()
    counter = np.empty((count, 4), np.uint64)
    counter[:, 0] = (first + np.arange(count, dtype=np.uint64)) & np.uint64(MASK32)
    counter[:, 1:] = (c1, c2 | purpose, c3)
    return philox(counter, (key.seed & MASK32, key.seed >> 32))


def _by_lane(outputs: U32) -> U32:
    """The word of (v, lane): output 2 (v mod 2) + (lane mod 2) of counter 8 (v div 2) + lane div 2. Shape (v, 16)."""
    # (counter = (v div 2, lane div 2), output = (v mod 2, lane mod 2)) -> (v div 2, v mod 2, lane div 2, lane mod 2)
    return outputs.reshape(-1, 8, 2, 2).transpose(0, 2, 1, 3).reshape(-1, 16)


def rotl32(x: U32, k: int) -> U32:
    """Rotate left by k bits."""
    return (x << np.uint32(k)) | (x >> np.uint32(32 - k)) if k else x


def rounding_words(key: KeyLike, s: int) -> U32:
    """The 512 rounding words of the group that begins at index ``s``, a multiple of 512, in its coordinates' order."""
    return group_words(key, ROUNDING, s)


def group_words(key: KeyLike, purpose: int, s: int) -> U32:
    """512 words of another purpose in the layout of rounding words."""
    lanes = _by_lane(words(key, purpose, s // 16, 32))  # (8, 16)
    return np.stack([rotl32(lanes, 8 * q) for q in range(4)], axis=1).reshape(512)


def rotation_signs(key: KeyLike, purpose: int, s: int, n: int) -> F32:
    """The signs (+1, -1) of a block of ``n`` coordinates from index ``s`` on; n: a power of two from 128 to 4096."""
    rows = n // 16
    lanes = _by_lane(words(key, purpose, s // 128, 32))  # (8, 16): bit r mod 32 of lanes[r div 32] belongs to row r
    bits = (lanes[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & np.uint32(1)
    return (1.0 - 2.0 * bits.reshape(256, 16)[:rows].reshape(n)).astype(np.float32)


def selection(key: KeyLike, s: int, n: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which ``count`` of the ``n`` coordinates from index ``s`` on are selected, and the widths of their strata."""
    u = words(key, SELECTION, s // 4, (count + 3) // 4).reshape(-1)[:count].astype(np.int64)
    edges = np.arange(count + 1, dtype=np.int64) * n // count
    width = np.diff(edges)
    return edges[:-1] + (u * width >> 32), width
