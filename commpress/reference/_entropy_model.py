"""Probability tables of the entropy-coded quantisers: integers only (docs/wire-format.md, section 4.8)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from commpress.codecs import _entropy_tables as tables

I64 = npt.NDArray[np.int64]

PRECISION = 12  # frequencies add up to 4096
TOTAL = 1 << PRECISION
LARGEST = 31  # largest magnitude with a symbol; symbol = value + 32, and 0 is the escape
CELLS = 8  # of the dither's magnitude
HALF = 1 << 15  # one half, in 2^-16 of a step
SURVIVAL = np.array(tables.SURVIVAL, np.int64)


def step_of(j: int) -> float:
    """2^(j / 2048), from two tables; a double."""
    f = j % 2048
    return float(np.ldexp(tables.STEP_COARSE[f >> 6] * tables.STEP_FINE[f & 63], j // 2048))


def interpolated(table: tuple[int, ...], relative: int, scale: int) -> int:
    """``scale * table`` at a level given in 1/2048 octave."""
    place = min(max(relative + 64 * 128, 0), 128 * 128 - 1)
    i, f = place >> 7, place & 127
    return (table[i] * (128 - f) + table[i + 1] * f) * scale >> 7


def dead_zone(relative: int) -> int:
    """The offset f of floor(|v| + f) in 2^-16, for a class whose mean magnitude is 2^(relative / 2048) steps."""
    return HALF if raw_bits(relative) else interpolated(tables.DEAD_ZONE, relative, 256)


def nominal(relative: int) -> int:
    """The level of a class in 1/32 octave."""
    return (relative + 32) >> 6


def raw_bits(relative: int) -> int:
    """Low bits of a value that are sent as they are: levels above 2 octaves are brought down to them."""
    return max(0, (nominal(relative) - 64 + 31) >> 5)


@functools.cache
def lengths() -> I64:
    """-log2(f / 4096) for f = 0..4096 in 2^-16 bit, by squaring; entry 0 is 0."""
    out = np.zeros(TOTAL + 1, np.int64)
    for f in range(1, TOTAL + 1):
        whole = f.bit_length() - 1
        m, log = f << (30 - whole), whole
        for _ in range(16):
            m = m * m >> 30
            log = log << 1 | m >> 31
            m >>= m >> 31
        out[f] = (PRECISION << 16) - log
    return out


def survival(shape: int, z: I64) -> I64:
    """P(X > z) in 2^-30; z in 2^-16, any size."""
    z = np.minimum(z, (1 << 21) - 1)
    e = np.frexp(np.maximum(z, 1 << 12).astype(np.float64))[1].astype(np.int64) - 1
    s = SURVIVAL[shape]
    i, shift = ((e - 12) << 5) + ((z >> (e - 5)) & 31), e - 5
    i = np.where(z < 1 << 12, 0, i)
    high = s[i] - ((s[i] - s[i + 1]) * (z & ((1 << shift) - 1)) >> shift)
    return np.where(z < 1 << 12, (1 << 29) - (((1 << 29) - s[0]) * z >> 12), high)


def scaled(t: I64, level: int) -> I64:
    """Thresholds in 2^-16 step to multiples of the mean magnitude, in 2^-16."""
    level = min(max(level, -320), 320)
    return t * tables.INVERSE[level & 31] >> (16 + (level >> 5))


def frequencies(shape: int, level: int, offset: int, largest: int, escape: int) -> I64 | None:
    """The 64 frequencies of ``floor(|v| + offset / 65536)``; None where there is none left for zero."""
    t = (np.arange(1, largest + 2, dtype=np.int64) << 16) - offset
    above = survival(shape, scaled(t, level))
    f = np.maximum(1, (((above[:-1] - above[1:]) << PRECISION) + (1 << 29)) >> 30)
    zero = TOTAL - escape - 2 * int(f.sum())
    if zero < 1:
        return None
    out = np.zeros(64, np.int64)
    out[0], out[32] = escape, zero
    out[33 : 33 + largest] = f
    out[32 - largest : 32] = f[::-1]
    return out


def dithered_frequencies(shape: int, level: int, cell: int, largest: int, escape: int) -> I64 | None:
    """The 64 frequencies of ``round(v + u)`` for a dither u of about (cell + 1/2) / 16."""
    t = (np.arange(-largest, largest + 2, dtype=np.int64) << 16) - HALF - ((2 * cell + 1) << 11)
    tail = survival(shape, scaled(np.abs(t), level))
    above = np.where(t < 0, (1 << 30) - tail, tail)
    f = np.maximum(1, (((above[:-1] - above[1:]) << PRECISION) + (1 << 29)) >> 30)
    f[largest] = 0
    f[largest] = TOTAL - escape - int(f.sum())
    if f[largest] < 1:
        return None
    out = np.zeros(64, np.int64)
    out[0] = escape
    out[32 - largest : 33 + largest] = f
    return out


class Table(NamedTuple):
    """What the wire says of a class: shape, level above the nominal, largest magnitude, whether there are escapes."""

    shape: int
    shift: int
    largest: int
    escape: int

    @property
    def empty(self) -> bool:
        """Whether every value is zero, which takes no bits."""
        return self.largest == 0 and not self.escape


def all_frequencies(table: Table, relative: int, dithered: bool) -> list[I64] | None:
    """One table, or one for each cell of the dither. None if impossible."""
    raw = raw_bits(relative)
    level = nominal(relative) - 32 * raw + table.shift
    if dithered and not raw:
        made = [dithered_frequencies(table.shape, level, c, table.largest, table.escape) for c in range(CELLS)]
    else:
        made = [frequencies(table.shape, level, dead_zone(relative), table.largest, table.escape)]
    found = [f for f in made if f is not None]
    return found if len(found) == len(made) else None


def largest_symbol(counts: I64) -> int:
    """Fewest symbols where giving up a magnitude's two costs less in escapes than it saves. ``counts``: escapes, then magnitudes 0..31."""
    total = int(counts.sum())
    magnitudes = counts[1:]
    top = int(np.flatnonzero(magnitudes)[-1]) if magnitudes.any() else 0
    best, least, rare = 0, None, 0
    left = int(magnitudes[1:].sum()) + int(counts[0])
    for k in range(LARGEST + 1):
        if k:
            left -= int(magnitudes[k])
            rare += int(magnitudes[k]) * 2048 < total
        cost = left * (34 << 11) + rare * total + (total if left else 0)
        if least is None or cost < least:
            best, least = k, cost
        if k == top:
            break
    return best


def fit(counts: I64, relative: int, dithered: bool) -> tuple[Table, int]:
    """The table for a class, found by descent over level and shape, and its cost in 2^-16 bit (without escaped values).

    Args:
        counts: (cells, 64) symbols met, one row for every table of the class; row 0 alone without dither. An escape stands for values without a symbol.
    """
    folded = np.zeros(33, np.int64)
    both = counts.sum(0)
    folded[0] = both[0]
    folded[1:] = both[32:]
    folded[2:] += both[31:0:-1]
    largest = largest_symbol(folded)
    escaped = int(folded[0] + folded[2 + largest :].sum())
    base = Table(1, 0, largest, int(escaped > 0))
    if base.empty:
        return base, 0
    kept = counts.copy()
    kept[:, 1 : 32 - largest] = 0
    kept[:, 33 + largest :] = 0
    kept[:, 0] = counts.sum(1) - kept[:, 1:].sum(1)

    def cost(table: Table) -> int:
        made = all_frequencies(table, relative, dithered)
        if made is None:
            return 1 << 62
        return sum(int((row * lengths()[f]).sum()) for row, f in zip(kept, made, strict=True))

    best, least = base, cost(base)
    for shape in range(len(SURVIVAL)):
        here, value = base._replace(shape=shape, shift=best.shift), cost(base._replace(shape=shape, shift=best.shift))
        for direction in (1, -1):
            while True:
                moved = here._replace(shift=here.shift + direction)
                if not -64 <= moved.shift <= 63:
                    break
                there = cost(moved)
                if there >= value:
                    break
                here, value = moved, there
        if value < least:
            best, least = here, value
    return best, least + 32 * escaped * 65536
