"""Sums with a fixed order (docs/wire-format.md, section 5). Every term is >= 0, so added zeros change nothing."""

from __future__ import annotations

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
