"""Tables of the trellis of `trellis`: what the wire says of a class, and what fits best (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import dataclasses

import numpy as np

from commpress.reference import _entropy_model as model
from commpress.reference._ecsq_format import I64

LANES, SPAN, INDICES = 32, 32, 32
LEAST_NBYTES = 8192  # shorter segments are those of ecsq
MOST_LEVEL, COARSER = (
    6144,
    1704,
)  # classes above that level are uniformly quantised, with a step so much coarser; 1/2048 octave
FARTHEST = 63 * 256  # 1/256 step


@dataclasses.dataclass(frozen=True)
class Table:
    """``places``: (2, 3), for each quantiser, in 1/128 step. ``codes``: (2, largest). ``ample``: whether 1 and -1 get what is left, and the first code is zero's."""

    largest: int = 0
    escape: int = 0
    ample: tuple[bool, bool] = (False, False)
    places: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (0, 0, 0))
    codes: tuple[tuple[int, ...], ...] = ((), ())

    @property
    def empty(self) -> bool:
        """Whether every index is zero, which takes no bits."""
        return self.largest == 0 and not self.escape

    def to_bytes(self) -> bytes:
        """As on the wire."""
        head = self.largest | self.ample[0] << 5 | self.ample[1] << 6 | self.escape << 7
        return bytes([head, *(p & 255 for row in self.places for p in row), *self.codes[0], *self.codes[1]])


def from_bytes(data: bytes) -> Table | None:
    """A table that begins here; None if it is cut off."""
    largest = data[0] & 31 if data else 0
    if len(data) < 7 + 2 * largest:
        return None
    places = np.frombuffer(data[1:7], np.int8).astype(int).tolist()
    codes = tuple(data[7 : 7 + largest]), tuple(data[7 + largest : 7 + 2 * largest])
    ample = bool(data[0] >> 5 & 1), bool(data[0] >> 6 & 1)
    return Table(largest, data[0] >> 7, ample, (tuple(places[:3]), tuple(places[3:])), codes)


def frequency(code: int) -> int:
    """A float of five bits: exact below 64."""
    return code if code < 32 else (32 + (code & 31)) << ((code >> 5) - 1)


def code_of(f: int) -> int:
    """The code nearest to a frequency."""
    if f < 32:
        return f
    e = f.bit_length() - 6
    m = (f + (1 << e >> 1)) >> e
    return (e + 2) << 5 if m == 64 else (e + 1) << 5 | m & 31


def frequencies(table: Table) -> I64 | None:
    """(2, 64), for each quantiser and symbol; None if impossible."""
    out = np.zeros((2, 64), np.int64)
    for q in range(2):
        left = model.TOTAL - table.escape
        for k, code in enumerate(table.codes[q], 1):
            f = frequency(code)
            if f == 0:
                return None
            if k == 1 and table.ample[q]:
                out[q, 32] = f
                left -= f
            else:
                out[q, [32 - k, 32 + k]] = f
                left -= 2 * f
        if table.ample[q]:
            if table.largest == 0 or left < 2:
                return None
            out[q, [31, 33]] = left // 2
            out[q, 32] += left % 2
        else:
            out[q, 32] = left
        out[q, 0] = table.escape
        if out[q, 32] < 1:
            return None
    return out


def levels(table: Table) -> I64:
    """(2, 32): what index |k| of each quantiser stands for, in 1/4096 step."""
    k = np.arange(INDICES)
    out = np.stack([4096 * (2 * k - q) + 32 * np.array(table.places[q])[np.clip(k, 1, 3) - 1] for q in range(2)])
    out[:, 0] = 0
    return out


def mean(total: int, count: int) -> int:
    """To nearest, in [-127, 127]."""
    return min(max((2 * total + count) // (2 * count), -127), 127) if count else 0


def fit(counts: I64, wide: I64, beyond: I64) -> tuple[Table, int]:
    """The table, and the cost in 2^-16 bit, its own bytes and escaped values included.

    Args:
        counts, wide: (2, 32), coordinates with each index, and the sums of their magnitudes in 1/256 step.
        beyond: (2,), coordinates farther than FARTHEST.
    """
    magnitudes = np.concatenate([[beyond.sum()], counts.sum(0)])
    largest = model.largest_symbol(magnitudes)
    escaped = (beyond + counts[:, largest + 1 :].sum(1)).tolist()
    escape = int(sum(escaped) > 0)
    if largest == 0 and not escape:
        return Table(), 8 * 65536 * 7
    n, ample, codes, places = counts.tolist(), [], [], []
    for q in range(2):
        total = escaped[q] + sum(n[q][: largest + 1])
        ample.append(largest > 0 and n[q][0] < n[q][1])
        shares = [1 if k == 1 and ample[q] else 2 for k in range(1, largest + 1)]
        met = [n[q][0] if k == 1 and ample[q] else n[q][k] for k in range(1, largest + 1)]
        row = [
            code_of(max(1, (2 * m * model.TOTAL + s * total) // (2 * s * total) if total else 0))
            for m, s in zip(met, shares, strict=True)
        ]
        while model.TOTAL - escape - sum(s * frequency(c) for s, c in zip(shares, row, strict=True)) < 2:
            row[row.index(max(row))] -= 1  # rounded up too often
        codes.append(tuple(row))
        sums = [(int(wide[q, k]) - 256 * (2 * k - q) * n[q][k], n[q][k]) for k in range(1, largest + 1)]
        parts = [sums[0:1], sums[1:2], sums[2:]]
        a, b, c = (mean(sum(t for t, _ in part), 2 * sum(m for _, m in part)) for part in parts)
        places.append((a, b, c))
    table = Table(largest, escape, (ample[0], ample[1]), tuple(places), tuple(codes))
    f = frequencies(table)
    assert f is not None
    length = model.lengths()
    cost = 8 * 65536 * (7 + 2 * largest)
    for q in range(2):
        cost += escaped[q] * (int(length[f[q, 0]]) + 32 * 65536)
        cost += int((counts[q, : largest + 1] * length[f[q, 32 : 33 + largest]]).sum())
    return table, cost
