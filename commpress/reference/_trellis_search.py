"""Viterbi's search of `trellis`, in whole numbers (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.reference import _tcq
from commpress.reference import _trellis_model as trellis
from commpress.reference._ecsq_format import F32, I64

U8 = npt.NDArray[np.uint8]

MOST_PRICE, MOST_COST = 2600, 4095  # in 1/256 squared step


def weights(table: trellis.Table, lengths: I64, worth: int) -> I64:
    """(4, 33): for 2 quantiser + parity and |k| div 2 the levels in 1/512 step and the prices in 1/256 squared step, and the offset that a magnitude gets before it is divided by four steps."""
    out = np.zeros((4, 33), np.int64)
    level = (trellis.levels(table) + 4) >> 3
    price = np.minimum(lengths * worth >> 20, MOST_PRICE)
    for q in range(2):
        for p in range(2):
            row = out[2 * q + p]
            row[:16], row[16:32] = level[q, p::2], price[q, p::2]
            a, b, more = int(row[0]), int(row[1]), int(row[17] - row[16])
            row[32] = 2048 - min(max((a + b >> 1) + 512 * more // max(b - a, 256), 16), 2816)
    return out


def search(states: int, v: F32, tables: I64) -> U8:
    """Cells 32 q + |k| of values (spans, rows, 32) in steps, under :func:`weights` (spans, rows, 4, 33); every chain (span, lane) begins in state 0."""
    spans, rows, lanes = v.shape
    a = np.rint(np.minimum(np.abs(v), np.float32(60)) * np.float32(512)).astype(np.int64)
    costs, halves = np.empty((2, 4, *a.shape), np.int64)
    span, row = np.arange(spans)[:, None, None], np.arange(rows)[None, :, None]
    for c in range(4):
        halves[c] = np.maximum(a + tables[:, :, c, 32, None], 0) >> 11
        error = 8 * (a - tables[span, row, c, halves[c]])
        costs[c] = np.minimum((error * error >> 16) + tables[span, row, c, 16 + halves[c]], MOST_COST)
    feedback, moved = (h >> 1 for h in _tcq.POLYNOMIALS[states])
    state = np.arange(states)
    q = state >> (states.bit_length() - 2)  # of both predecessors
    froms = np.stack([(state ^ q * feedback ^ p * moved) << 1 | q for p in range(2)])
    cost = np.where(state == 0, 0, 0x8000)[:, None, None] + np.zeros((1, spans, lanes), np.int64)
    odd = np.empty((rows, states, spans, lanes), bool)
    for at in range(rows):
        even_way, odd_way = (cost[froms[p]] + costs[2 * q + p, :, at] for p in range(2))
        odd[at] = odd_way < even_way
        cost = np.minimum(even_way, odd_way)
    at_end, cells = cost.argmin(0), np.empty(a.shape, np.uint8)
    chain, lane = np.arange(spans)[:, None], np.arange(lanes)[None]
    for at in reversed(range(rows)):
        p = odd[at, at_end, chain, lane].astype(np.int64)
        at_end = froms[p, at_end]
        which = at_end & 1
        cells[:, at] = 32 * which + 2 * halves[2 * which + p, chain, at, lane] + p
    return cells
