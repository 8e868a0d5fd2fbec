"""Positions as gaps under a geometric model, range-coded (docs/wire-format.md, section 4.6)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MILLION = 1_000_000
TWO_STREAMS = 256
ONE = 1 << 32


def model_fraction(fraction: int) -> int:
    """The chance of a coordinate to be sent that the model assumes, in millionths."""
    return min(fraction, MILLION // 2)


@functools.cache
def cost(parts: int) -> int:
    """The least integer that is >= 2^16 log2(10^6 / parts), by exact arithmetic."""
    power = 1 << 16
    left, right = MILLION**power, parts**power  # is 2^c right >= left?
    c = left.bit_length() - right.bit_length()
    return c if right << c >= left else c + 1


def nbytes(fraction: int, n: int, m: int) -> int:
    """Bytes for any m positions below n."""
    if m == 0:
        return 0
    p = model_fraction(fraction)
    bits = (m * cost(p) + (n - m) * cost(MILLION - p) >> 16) + (m >> 10) + 2
    return bits // 8 + (1 if m < TWO_STREAMS else 4)


@functools.cache
def model(fraction: int) -> list[int]:
    """Survival S_0 .. S_M: M symbols for the gaps below M, and one that says that M more coordinates are not sent."""
    p = model_fraction(fraction)
    survival = [ONE]
    for _ in range(256):
        survival.append(survival[-1] * (MILLION - p) // MILLION)
    symbols = 256
    while symbols > 1 and survival[symbols] < 1 << 22:
        symbols //= 2
    return survival[: symbols + 1]


def encode_gaps(gaps: Sequence[int], fraction: int, last_bytes: int) -> bytes:
    """One stream. The interval is [low, low + span) of units 2^-(64 + 8 shifts), low an unbounded integer."""
    survival = model(fraction)
    symbols = len(survival) - 1
    low, span, shifts = 0, 2**64 - 1, 0
    for gap in gaps:
        for j in [symbols] * (gap // symbols) + [gap % symbols]:
            begin = (span >> 32) * (ONE - survival[j])
            span = span - begin if j == symbols else (span >> 32) * (survival[j] - survival[j + 1])
            low += begin
            while span < 1 << 56:
                low, span, shifts = low << 8, span << 8, shifts + 1
    low += (1 << 64 - 8 * last_bytes) - 1
    return (low >> 64 - 8 * last_bytes).to_bytes(shifts + last_bytes, "big")


def decode_gaps(data: bytes, count: int, n: int, fraction: int) -> list[int]:
    """The gaps of one stream, which ends early once a gap reaches n."""
    survival = model(fraction)
    symbols = len(survival) - 1
    at, code, span, gaps = 8, int.from_bytes(data[:8].ljust(8, b"\0"), "big"), 2**64 - 1, []
    for _ in range(count):
        gap = 0
        while True:
            unit = span >> 32
            j = next((j for j in range(symbols) if code < unit * (ONE - survival[j + 1])), symbols)
            begin = unit * (ONE - survival[j])
            span = span - begin if j == symbols else unit * (survival[j] - survival[j + 1])
            code -= begin
            while span < 1 << 56:
                code, span, at = code << 8 & 2**64 - 1 | (data[at] if at < len(data) else 0), span << 8, at + 1
            if j < symbols:
                gap += j
                break
            if gap >= n:
                break
            gap += symbols
        gaps.append(gap)
        if gap >= n:
            break
    return gaps


def encode(positions: npt.NDArray[np.int64], n: int, fraction: int) -> bytes:
    """Ascending positions below n, in :func:`nbytes` bytes."""
    m = positions.size
    size = nbytes(fraction, n, m)
    gaps = (np.diff(positions, prepend=-1) - 1).tolist()
    if m < TWO_STREAMS:
        return encode_gaps(gaps, fraction, 1).ljust(size, b"\0") if m else b""
    front, back = encode_gaps(gaps[: m // 2], fraction, 2), encode_gaps(gaps[m // 2 :], fraction, 2)
    assert len(front) + len(back) <= size
    return front + bytes(size - len(front) - len(back)) + back[::-1]


def decode(data: bytes, n: int, m: int, fraction: int) -> npt.NDArray[np.int64]:
    """The m positions; fewer where one would not be below n."""
    if m < TWO_STREAMS:
        gaps = decode_gaps(data, m, n, fraction)
    else:
        gaps = decode_gaps(data, m // 2, n, fraction)
        if len(gaps) == m // 2 and max(gaps) < n:
            gaps += decode_gaps(data[::-1], m - m // 2, n, fraction)
    positions = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    return positions[positions < n]
