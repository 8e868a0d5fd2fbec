"""Trellis-coded quantisation for an entropy coder: indices and levels (csrc/kernels/tcq.h), for Ungerboeck's codes of 8 to 256 states.

Values are in units of the step. Index k of quantiser q stands for about ``2 |k| - q`` with k's sign; the state's lowest bit is q, the parity of k moves it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I16 = npt.NDArray[np.int16]

INDICES = 64
# Parity-check polynomials h0, h1 of the one-dimensional codes (Ungerboeck 1982, 1987), octal.
POLYNOMIALS = {8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126)}
POLYNOMIALS[256] = (0o515, 0o362)


def next_state(states: int, state: int, parity: int) -> int:
    """The state after an index of the given parity."""
    h0, h1 = POLYNOMIALS[states]
    return state >> 1 ^ (h0 >> 1) * (state & 1) ^ (h1 >> 1) * parity


def candidates(v: F32, q: int, parity: int, levels: F32, prices: F32) -> tuple[npt.NDArray[np.int64], F32]:
    """|k| of one quantiser and parity for each value, and its cost: the nearest or the next one towards zero, whichever costs less."""
    a = np.abs(v)
    clamped = np.where(a < 2 * INDICES - 4, a, np.float32(2 * INDICES - 4))
    near = 2 * np.rint((clamped + np.float32(q - 2 * parity)) * np.float32(0.25)).astype(np.int64) + parity
    small = np.where(near >= 2, near - 2, near)
    cost = [(a - levels[q][k]) * (a - levels[q][k]) + prices[q][k] for k in (near, small)]
    smaller = cost[1] < cost[0]
    return np.where(smaller, small, near), np.where(smaller, cost[1], cost[0])


def quantise(v: F32, levels: F32, prices: F32, states: int = 8) -> I16:
    """Indices (blocks, n) of values (blocks, n), each row from state 0 on; ``levels`` and ``prices`` are (2, 64)."""
    blocks, n = v.shape
    found = [[candidates(v, q, p, levels, prices) for p in range(2)] for q in range(2)]
    origins: list[list[tuple[int, int]]] = [[] for _ in range(states)]  # (state, parity) that lead to each
    for state in range(states):
        for parity in range(2):
            origins[next_state(states, state, parity)].append((state, parity))
    cost = np.full((states, blocks), 1e30, np.float32)
    cost[0] = 0
    second = np.empty((n, states, blocks), bool)
    for i in range(n):
        after = np.empty_like(cost)
        for state, ((s0, p0), (s1, p1)) in enumerate(origins):
            a = cost[s0] + found[s0 & 1][p0][1][:, i]
            b = cost[s1] + found[s1 & 1][p1][1][:, i]
            second[i, state] = b < a
            after[state] = np.where(b < a, b, a)
        cost = after
    indices = np.empty((blocks, n), np.int16)
    for block in range(blocks):
        state = int(cost[:, block].argmin())
        for i in reversed(range(n)):
            state, parity = origins[state][int(second[i, state, block])]
            k = found[state & 1][parity][0][block, i]
            indices[block, i] = -k if v[block, i] < 0 else k
    return indices


def dequantise(indices: I16, levels: F32, states: int = 8) -> F32:
    """Levels (blocks, n) of indices (blocks, n)."""
    out = np.empty(indices.shape, np.float32)
    for block, row in enumerate(indices.astype(np.int64)):
        state = 0
        for i, k in enumerate(row):
            level = levels[state & 1][min(abs(k), INDICES - 1)]
            out[block, i] = -level if k < 0 else level
            state = next_state(states, state, int(k) & 1)
    return out
