"""Encoding of a segment of `trellis`: search, rate control, stream (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from commpress.codecs._trellis_tables import LENGTHS
from commpress.reference import _entropy_model as model
from commpress.reference import _rans, _tcq
from commpress.reference import _trellis_model as trellis
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_format import BLOCK, F32, I64, MILLION, MODE_TRELLIS

U8 = npt.NDArray[np.uint8]

SAMPLED_SPANS, SAMPLED_TURNS, TABLE_TURNS, FULL_TURNS = 8, 10, 3, 8
MOST = np.nextafter(np.float32(2.0**100), np.float32(0))  # of an escape, so that its lowest bit may be set
LEAST_RATE = 200_000  # below, ecsq is better
UNSEEN, ESCAPE = 4 << 16, 44 << 16  # bits of an index beyond the largest one, in 2^-16
# Squared steps that a bit is worth, in 1/4096, at 0, 1/2, 1, ... 3 bits and beyond.
WORTH = (2400, 2250, 2000, 1786, 1593, 1520, 1462)


def payload(source: Classes) -> bytes | None:
    """None where the segment is to be one of `ecsq`."""
    if source.nbytes < trellis.LEAST_NBYTES or source.spec.rate < LEAST_RATE:
        return None
    return _Encoder(source).payload()


def worth(rate: int) -> int:
    """Squared steps that a bit is worth, in 1/4096."""
    half = MILLION // 2
    place = min(rate // half, 5)
    f = min(rate - place * half, half)
    return (WORTH[place] * (half - f) + WORTH[place + 1] * f) // half


def search(a: F32, levels: F32, prices: F32) -> U8:
    """Cells 32 q + |k| of magnitudes (spans, rows, 32), under tables (spans, rows, 2, 32); every chain (span, lane) begins in state 0."""
    spans, rows, lanes = a.shape
    a = np.minimum(a, np.float32(60))
    costs, halves = np.empty((2, 2, *a.shape), np.float32), np.empty((2, 2, *a.shape), np.int64)
    span, row = np.arange(spans)[:, None, None], np.arange(rows)[None, :, None]
    for q in range(2):
        for p in range(2):
            near = np.rint((a + np.float32(q - 2 * p)) * np.float32(0.25)).astype(np.int64)
            less = np.maximum(near - 1, 0)
            errors = [a - levels[span, row, q, 2 * h + p] for h in (near, less)]
            first, second = (e * e + prices[span, row, q, 2 * h + p] for e, h in zip(errors, (near, less), strict=True))
            costs[q, p], halves[q, p] = np.minimum(first, second), np.where(second < first, less, near)
    origins: list[list[tuple[int, int]]] = [[] for _ in range(trellis.STATES)]
    for state in range(trellis.STATES):
        for parity in range(2):
            origins[_tcq.next_state(trellis.STATES, state, parity)].append((state, parity))
    froms = np.array([[s for s, _ in pair] for pair in origins])
    parities = np.array([[p for _, p in pair] for pair in origins])
    cost = np.full((trellis.STATES, spans, lanes), 1e30, np.float32)
    cost[0] = 0
    second_won = np.empty((rows, trellis.STATES, spans, lanes), bool)
    for at in range(rows):
        one = cost[froms[:, 0]] + costs[froms[:, 0] & 1, parities[:, 0], :, at]
        two = cost[froms[:, 1]] + costs[froms[:, 1] & 1, parities[:, 1], :, at]
        second_won[at] = two < one
        cost = np.where(two < one, two, one)
    state, cells = cost.argmin(0), np.empty(a.shape, np.uint8)
    chain, lane = np.arange(spans)[:, None], np.arange(lanes)[None]
    for at in reversed(range(rows)):
        second = second_won[at, state, chain, lane].astype(np.int64)
        state, p = froms[state, second], parities[state, second]
        q = state & 1
        cells[:, at] = 32 * q + 2 * halves[q, p, chain, at, lane] + p
    return cells


class _Class:
    """What is known of a class: of one in the trellis its table and the lengths that the search reckons with."""

    def __init__(self) -> None:
        self.known, self.table, self.squares = False, trellis.Table(), 0
        self.uniform: model.Table | None = None
        self.lengths, self.met, self.wide = (np.zeros((2, trellis.INDICES), np.int64) for _ in range(3))
        self.beyond = np.zeros(2, np.int64)


class _Encoder:
    def __init__(self, source: Classes) -> None:
        self.source = source
        self.header = 18 + (0 if source.spec.centroid else 4) + (source.count + 7) // 8
        self.room = source.nbytes - self.header - len(source.coded_kinds) - 3 * trellis.LANES - 8
        self.price = worth(source.spec.rate) * 2.0**-28
        self.classes = {kind: _Class() for kind in source.present}
        padded = np.zeros(-(-source.n // BLOCK) * BLOCK, np.float32)
        padded[: source.n] = source.y
        self.y = padded.reshape(-1, BLOCK)

    def in_trellis(self, kind: int, j: int) -> bool:
        return self.source.relative(kind, j) <= trellis.MOST_LEVEL

    def payload(self) -> bytes | None:
        source, n = self.source, self.source.n
        if self.room < source.nbytes // 2:
            return None
        j = max(source.j0 - 1536, source.finest)
        stride = max(-(-len(source.kinds) // trellis.SPAN) // SAMPLED_SPANS, 1)
        for turn in range(SAMPLED_TURNS):
            if turn < TABLE_TURNS:
                for c in self.classes.values():
                    c.known = False
            move = (self.turn(j, stride) - self.room) * 16384 // n
            j = max(j + min(max(move, -1024), 1024), source.finest)
        best, slack = None, self.room >> 8
        boost, before, filled = 1, 0, 0  # faster and faster in one direction: the tables improve on the way
        for turn in range(30):
            cost = self.turn(j, 1)
            over = cost - self.room + slack // 2
            if cost <= self.room and source.relative(0, j) >= -(1 << 17) and (best is None or cost > filled):
                best, filled = self.keep(j), cost
            done = turn >= FULL_TURNS or j == source.finest or self.room - slack <= cost <= self.room
            if best is not None and done:
                break
            boost = 2 if turn == 0 else min(2 * boost, 8) if (over > 0) == (before > 0) else 1
            before = over
            after = max(j + min(max(over * 16384 * boost // n, -1024), 1024), source.finest)
            j = after if turn < FULL_TURNS else j + (16 << min(turn - FULL_TURNS, 6))
        for _ in range(40 if best is not None else 0):
            assert best is not None
            data = self.write(best)
            if data is not None:
                return data
            self.turn(best + 16, 1)
            best = self.keep(best + 16)
        return None

    def keep(self, j: int) -> int:
        self.kept = {kind: (c.table, c.wide, c.squares, c.uniform) for kind, c in self.classes.items()}
        self.kept_cells = self.cells.copy()
        return j

    def quantised(self, kind: int, j: int, at: I64) -> tuple[I64, I64, F32, int]:
        """Of a uniform class: values with all bits, symbols' values, v, raw bits."""
        raw = model.raw_bits(self.source.relative(kind, j) - trellis.COARSER)
        v = self.source.y[at] * np.float32(1.0 / model.step_of(j + trellis.COARSER))
        q = np.minimum(np.abs(v) + np.float32(0.5), np.float32(2.0**22)).astype(np.int64)
        q = np.where(v < 0, -q, q)
        return q, (q + (1 << raw >> 1)) >> raw, v, raw

    def turn(self, j: int, stride: int) -> int:
        """Searches every ``stride``-th span; bytes of the whole."""
        source = self.source
        kinds = np.array(source.kinds)
        bits = others = raw_bytes = 0
        blocks = [b for b, kind in enumerate(source.kinds) if kind >= 0 and self.in_trellis(kind, j)]
        uniform = [b for b, kind in enumerate(source.kinds) if kind >= 0 and not self.in_trellis(kind, j)]
        sampled, lists = (
            uniform[::stride],
            [blocks[at : at + trellis.SPAN] for at in range(0, len(blocks), trellis.SPAN)],
        )
        tables = np.zeros((2, source.count, 2, trellis.INDICES), np.float32)
        for kind, c in self.classes.items():
            if not self.in_trellis(kind, j):
                continue
            if not c.known:
                row = min(max((source.relative(kind, j) + 512) >> 10, -4), 6) + 4
                c.lengths, c.table, c.known = np.array(LENGTHS[row], np.int64) << 8, trellis.Table(), True
            tables[0, kind] = trellis.levels(c.table).astype(np.float32) / np.float32(4096)
            tables[1, kind] = (c.lengths * self.price).astype(np.float32)
        self.v = self.y * np.float32(1.0 / model.step_of(j))
        self.cells = np.zeros((len(source.kinds), BLOCK), np.uint8)
        searched = lists[::stride]
        for size in {len(span) for span in searched}:
            chosen = np.array([span for span in searched if len(span) == size])
            which = np.repeat(kinds[chosen], 16, axis=1)
            a = np.abs(self.v[chosen]).reshape(len(chosen), -1, trellis.LANES)
            self.cells[chosen] = search(a, tables[0][which], tables[1][which]).reshape(len(chosen), size, BLOCK)
        seen = np.array([b for span in searched for b in span], np.int64)
        w = np.rint(np.minimum(np.abs(self.v), np.float32(64)) * np.float32(256)).astype(np.int64)
        for kind, c in self.classes.items():
            if self.in_trellis(kind, j):
                mine = seen[kinds[seen] == kind]
                if not mine.size:
                    continue
                self.count(c, self.cells[mine].astype(np.int64).reshape(-1), w[mine].reshape(-1))
                c.table, cost = trellis.fit(c.met, c.wide, c.beyond)
                bits += cost
                self.learn(c)
            else:
                relative = source.relative(kind, j) - trellis.COARSER
                mine = np.array([b for b in sampled if source.kinds[b] == kind], np.int64)
                at = np.flatnonzero(np.isin(source.block_of, mine))
                _, high, _, raw = self.quantised(kind, j, at)
                symbols = np.where(np.abs(high) <= model.LARGEST, high, -32)
                c.uniform, cost = model.fit(np.bincount(symbols + 32, minlength=64)[None], relative, False)
                others += cost + 5 * 8 * 65536
                raw_bytes += int(((source.sizes[mine] * raw + 7) // 8).sum())
        total = -(-bits // (1 << 19)) * len(blocks) // seen.size if seen.size else 0
        return total + ((-(-others // (1 << 19)) + raw_bytes) * len(uniform) // len(sampled) if sampled else 0)

    @staticmethod
    def count(c: _Class, cells: I64, w: I64) -> None:
        """Notes what a class met."""
        far = w > trellis.FARTHEST
        c.beyond = np.bincount(cells[far] >> 5, minlength=2)
        c.met = np.bincount(cells[~far], minlength=64).reshape(2, 32)
        c.wide = np.bincount(cells[~far], w[~far], minlength=64).astype(np.int64).reshape(2, 32)
        c.squares = int((w[~far] ** 2).sum())

    @staticmethod
    def learn(c: _Class) -> None:
        """Half the way to the lengths of the table."""
        f = trellis.frequencies(c.table)
        assert f is not None
        for q in range(2):
            fresh = 0
            for k in range(trellis.INDICES):
                inside = k <= c.table.largest
                fresh = int(model.lengths()[f[q, 32 + k]]) if inside else min(fresh + UNSEEN, ESCAPE)
                c.lengths[q, k] = (int(c.lengths[q, k]) + fresh) >> 1

    def write(self, j: int) -> bytes | None:
        source, heads, energy, product = self.source, [], 0.0, 0.0
        count = len(source.kinds) * BLOCK
        frequency, start, sent = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, bool)
        escapes: list[tuple[int, float]] = []
        low = [b""] * len(source.kinds)
        lanes = np.arange(count) % trellis.LANES
        v_all = self.y * np.float32(1.0 / model.step_of(j))
        for kind in source.present:
            table, wide, squares, uniform = self.kept[kind]
            mine = np.flatnonzero(np.array(source.kinds) == kind)
            if self.in_trellis(kind, j):
                f = trellis.frequencies(table)
                assert f is not None
                at = (mine[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
                v, cell = v_all.reshape(-1)[at], self.kept_cells[mine].astype(np.int64).reshape(-1)
                w = np.rint(np.minimum(np.abs(v), np.float32(64)) * np.float32(256)).astype(np.int64)
                k, q = cell & 31, cell >> 5
                escaped = (k > table.largest) | (w > trellis.FARTHEST)
                symbol = np.where(escaped, 0, np.where(v < 0, 32 - k, 32 + k))
                below = np.cumsum(f, axis=1) - f
                frequency[at], start[at], sent[at] = f[q, symbol], below[q, symbol], not table.empty
                kept = np.clip(v[escaped], -MOST, MOST).view(np.uint32)
                exact = ((kept & ~np.uint32(1)) | (k[escaped] & 1).astype(np.uint32)).view(np.float32)
                escapes += zip(at[escaped].tolist(), exact.tolist(), strict=True)
                heads.append(table.to_bytes())
                energy += float(16 * (squares - int((w[escaped & (w <= trellis.FARTHEST)] ** 2).sum())))
                product += float(int((trellis.levels(table) * wide)[:, : table.largest + 1].sum()))
                continue
            assert uniform is not None
            at = np.flatnonzero(np.isin(source.block_of, mine))
            full, high, v, raw = self.quantised(kind, j, at)
            escaped = np.abs(high) > uniform.largest
            symbol = np.where(escaped, 0, high + 32)
            made = model.all_frequencies(uniform, source.relative(kind, j) - trellis.COARSER, False)
            assert made is not None
            below = np.cumsum(made[0]) - made[0]
            frequency[at], start[at], sent[at] = made[0][symbol], below[symbol], not uniform.empty
            escapes += zip(at[escaped].tolist(), np.clip(v[escaped], -(2.0**100), 2.0**100).tolist(), strict=True)
            heads.append(
                bytes([uniform.shift + 64 | uniform.escape << 7, uniform.largest | uniform.shape << 5, 0, 0, 0])
            )
            rest = np.where(escaped, 0, full) + (1 << raw >> 1) & (1 << raw) - 1
            for b in mine.tolist():
                bits = rest[source.block_of[at] == b][:, None] >> np.arange(raw) & 1
                low[b] = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
        stream = _rans.rans_encode(frequency[sent], start[sent], lanes[sent], trellis.LANES)
        header = bytes([MODE_TRELLIS]) + (j + 2048 * source.shift).to_bytes(3, "little", signed=True)
        header += source.relative(0, j).to_bytes(3, "little", signed=True) + bytes([source.count])
        header += struct.pack("<HII", len(source.coded_kinds), len(escapes), source.nbytes - len(stream))
        if not source.spec.centroid:
            header += struct.pack("<f", np.float32(energy / product) if product > 0 else 1.0)
        header += sum(1 << kind for kind in source.present).to_bytes((source.count + 7) // 8, "little")
        header += b"".join(heads) + source.coded_kinds + b"".join(low)
        header += b"".join(struct.pack("<f", value) for _, value in sorted(escapes))
        if len(header) + len(stream) > source.nbytes:
            return None
        return header.ljust(source.nbytes - len(stream), b"\0") + stream
