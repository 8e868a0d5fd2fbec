"""Sums with a fixed order: those of docs/wire-format.md, section 5, where every term is >= 0, so that added zeros change nothing; and those of statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def _rows(terms: F32, multiple: int) -> F32:
    """``terms`` as rows of 16 lanes, padded with zeros to a multiple of ``multiple`` rows."""
    rows = -(-terms.size // (16 * multiple)) * multiple
    padded = np.zeros(rows * 16, np.float32)
    padded[: terms.size] = terms
    return padded.reshape(rows, 16)


def _fold(accumulators: F32) -> np.float32:
    """(4, 16) accumulators to one number."""
    lanes = (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3])
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return np.float32(lanes[0])


def _accumulate(sequence: F32) -> F32:
    """Adds (k, 4, 16) along the first axis, strictly one after the other."""
    return np.add.accumulate(sequence, axis=0, dtype=np.float32)[-1]


def energy(x: F32) -> np.float32:
    """E: the sum of squares. Rows 16 k + j in the order j outer, k inner; row 16 k + j goes to accumulator k mod 4."""
    with np.errstate(all="ignore"):
        rows = _rows(x * x, 64).reshape(-1, 4, 16, 16)  # (k div 4, k mod 4, j, lane)
        return _fold(_accumulate(rows.transpose(2, 0, 1, 3).reshape(-1, 4, 16)))


def natural(terms: F32) -> np.float32:
    """P and Q: rows in natural order, row r to accumulator r mod 4."""
    return _fold(_accumulate(_rows(terms, 4).reshape(-1, 4, 16)))


def products(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[float, float, float]:
    """``(x.x, x.y, y.y)`` of statistics, in binary64: coordinate i goes to sum ``i mod 8``, one after the other, and the eight are folded."""
    found = []
    for a, b in ((x, x), (x, y), (y, y)):
        lanes = np.zeros(8)
        for i in range(0, x.size, 8):
            terms = a[i : i + 8].astype(np.float64) * b[i : i + 8].astype(np.float64)
            lanes[: terms.size] += terms
        for half in (4, 2, 1):
            lanes = lanes[:half] + lanes[half : 2 * half]
        found.append(float(lanes[0]))
    return found[0], found[1], found[2]
