"""Encoding of a segment of `ecsq` and `ecdq`: rate control, streams."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from commpress.reference import _entropy_model as model
from commpress.reference import _substreams
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_format import BLOCK, F32, I64, MODE_CODED, cells_of


class Encoder:
    """One segment."""

    def __init__(self, source: Classes) -> None:
        self.source, self.spec, self.n, self.nbytes, self.lanes = (
            source,
            source.spec,
            source.n,
            source.nbytes,
            source.lanes,
        )

    def payload(self) -> bytes | None:
        """The payload, None if there is no room even for a coarse step."""
        found = self._search()
        if found is None:
            return None
        j, made = found
        while (payload := self._write(j, made)) is None:  # coding took more than the sum of its logarithms
            j += 16
            made = self.cost(j, 1)[1]
        return payload

    def quantised(self, kind: int, j: int, at: I64) -> tuple[I64, I64, F32, I64]:
        """Values with all bits, symbols' values, v = x / step, for the coordinates ``at`` of one class; cells."""
        relative = self.source.relative(kind, j)
        raw = model.raw_bits(relative)
        inverse = np.float32(1.0 / model.step_of(j))
        v = self.source.y[at] * inverse
        if self.spec.dither:
            m = np.clip(v + self.source.w[at].astype(np.float32) * np.float32(2**-24), -(2.0**22), 2.0**22)
            q = np.rint(m).astype(np.int64)
        else:
            offset = np.float32(model.dead_zone(relative) / 65536)
            q = np.minimum(np.abs(v) + offset, np.float32(2.0**22)).astype(np.int64)
            q = np.where(v < 0, -q, q)
        high = (q + (1 << raw >> 1)) >> raw
        return q, high, v, self.source.w[at]

    def counts(self, kind: int, j: int, at: I64) -> I64:
        """Symbols met, for every table of the class."""
        _, high, _, w = self.quantised(kind, j, at)
        symbol = np.where(np.abs(high) <= model.LARGEST, high, -32)
        if not self.spec.dither or model.raw_bits(self.source.relative(kind, j)):
            return np.bincount(symbol + 32, minlength=64)[None]
        symbol = np.where((w < 0) & (symbol != -32), -symbol, symbol)
        return np.bincount(cells_of(w) * 64 + symbol + 32, minlength=64 * model.CELLS).reshape(-1, 64)

    def cost(self, j: int, stride: int) -> tuple[int, dict[int, model.Table]]:
        """Bytes for every ``stride``-th block, times ``stride``; tables."""
        bits, rest, made = 0, 0, {}
        chosen = self.source.block_of % stride == 0
        for kind in self.source.present:
            at = np.flatnonzero((self.source.of == kind) & chosen)
            raw = model.raw_bits(self.source.relative(kind, j))
            made[kind], cost = model.fit(self.counts(kind, j, at), self.source.relative(kind, j), self.spec.dither)
            bits += cost
            mine = (np.array(self.source.kinds) == kind) & (np.arange(len(self.source.kinds)) % stride == 0)
            rest += int(((self.source.sizes[mine] * raw + 7) // 8).sum())
        return ((bits + (1 << 19) - 1 >> 19) + rest) * stride, made

    def _search(self) -> tuple[int, dict[int, model.Table]] | None:
        j = self.source.j0
        if len(self.source.kinds) >= 256:
            found = search(
                lambda j: self.cost(j, 8)[0], self.source.room, j, self.source.finest, self.source.room >> 11, self.n, 5
            )
            j = found[1]
        made: dict[int, dict[int, model.Table]] = {}

        def cost(j: int) -> int:
            value, made[j] = self.cost(j, 1)
            return value

        best, last = search(cost, self.source.room, j, self.source.finest, self.source.room >> 13, self.n, 8)
        for _ in range(200):
            if best is not None:
                return best, made[best]
            last += 512
            if cost(last) <= self.source.room:
                best = last
        return None

    def _write(self, j: int, made: dict[int, model.Table]) -> bytes | None:
        symbols = np.zeros(self.n, np.int64)
        frequency, start = np.zeros(self.n, np.int64), np.zeros(self.n, np.int64)
        sent = np.zeros(self.n, bool)
        escapes: list[tuple[int, float]] = []
        full, raws = np.zeros(self.n, np.int64), {}
        heads, energy, product = [], 0.0, 0.0
        for kind in self.source.present:
            at, relative, table = np.flatnonzero(self.source.of == kind), self.source.relative(kind, j), made[kind]
            raws[kind] = raw = model.raw_bits(relative)
            q, high, v, w = self.quantised(kind, j, at)
            escaped = np.abs(high) > table.largest
            symbol = np.where(escaped, -32, high)
            folded = bool(self.spec.dither and not raw)
            if folded:
                symbol = np.where((w < 0) & ~escaped, -symbol, symbol)
            f = np.stack(model.all_frequencies(table, relative, self.spec.dither) or [])
            c = np.cumsum(f, axis=1) - f
            row = cells_of(w) if folded else np.zeros(at.size, np.int64)
            frequency[at], start[at] = f[row, symbol + 32], c[row, symbol + 32]
            symbols[at], full[at], sent[at] = symbol, np.where(escaped, 0, q), not table.empty
            escapes += zip(at[escaped].tolist(), np.clip(v[escaped], -(2.0**100), 2.0**100).tolist(), strict=True)
            head = [table.shift + 64 | table.escape << 7, table.largest | table.shape << 5]
            if not self.spec.dither:
                places, e, p = ((0, 0, 0), 0, 0) if raw else centroids(np.abs(v[~escaped]), np.abs(q[~escaped]))
                head += [place & 255 for place in places]
                energy, product = energy + float(e), product + float(p)
            heads.append(bytes(head))
        rho = np.float32(energy / product) if product > 0 else np.float32(1)
        parts = _substreams.streams(self.source, frequency, start, sent, self.lanes)
        raw_bits = [b""] * len(self.source.kinds)
        for b, kind in enumerate(self.source.kinds):
            if kind >= 0 and raws[kind]:
                low = full[b * BLOCK : (b + 1) * BLOCK] + (1 << raws[kind] >> 1) & (1 << raws[kind]) - 1
                bits = low[:, None] >> np.arange(raws[kind]) & 1
                raw_bits[b] = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
        has_rho = not self.spec.dither and not self.spec.centroid
        return _substreams.assembled(
            self.source, MODE_CODED, j, rho if has_rho else None, b"".join(heads), raw_bits, escapes, parts
        )


def centroids(a: F32, q: I64) -> tuple[tuple[int, int, int], int, int]:
    """Where the decoder places values (offsets of magnitudes 1 and 2 in 1/256 step, what each further magnitude adds in 1/4096), then sums of v^2 and of v * decoded in 2^-20 step^2."""
    w = np.rint(a * np.float32(256)).astype(np.int64)
    n, total = [int((q == k).sum()) for k in (0, 1, 2)], [int(w[q == k].sum()) for k in (0, 1, 2)]
    beyond = q > 2
    w3, q3, x3 = int(w[beyond].sum()), int(q[beyond].sum()), int((w * q)[beyond].sum())
    over = q3 - 2 * int(beyond.sum())
    one = _mean(total[1] - 256 * n[1], n[1])
    two = _mean(total[2] - 512 * n[2], n[2])
    slope = _mean(16 * (w3 - 256 * q3 - two * int(beyond.sum())), over)
    product = (
        16 * (256 + one) * total[1] + 16 * (512 + two) * total[2] + (4096 + slope) * x3 + (16 * two - 2 * slope) * w3
    )
    return (one, two, slope), 16 * int((w * w).sum()), product


def _mean(total: int, count: int) -> int:
    """To nearest, in [-127, 127]."""
    return min(max((2 * total + count) // (2 * count), -127), 127) if count else 0


def search(
    cost: Callable[[int], int], room: int, j: int, finest: int, slack: int, n: int, most: int
) -> tuple[int | None, int]:
    """(finest step met whose cost is within ``room``, or None; the step to go on from): a bracketed secant method that stops within ``slack``."""
    over: int | None = None
    best: int | None = None
    slope, before, j = -n / 16384.0, None, max(j, finest)
    for _ in range(most):
        c = cost(j)
        if c <= room:
            best = j if best is None or j < best else best
            if room - c <= slack or j == finest:
                return best, j
        else:
            over = j if over is None or j > over else over
        if before is not None and before[0] != j and (c - before[1]) * (j - before[0]) < 0:
            slope = (c - before[1]) / (j - before[0])
        before = j, c
        move = math.floor((room - slack // 2 - c) / slope + 0.5)
        after = j + min(max(move, -4096), 4096)
        if over is not None and best is not None and not over < after < best:
            after = (over + best) // 2
            if after == over:
                return best, best
        elif over is not None and after <= over:
            after = over + 1
        elif best is not None and after >= best:
            after = best - 1
        j = max(after, finest)
    return best, j
