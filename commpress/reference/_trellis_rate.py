"""Rate control of `trellis`: the step, the indices and the tables that fill the budget (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import numpy as np

from commpress.codecs._trellis_tables import LENGTHS, RATES
from commpress.reference import _entropy_model as model
from commpress.reference import _trellis_model as trellis
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_format import BLOCK, F32, I64, MILLION
from commpress.reference._trellis_search import search, weights

SAMPLED_BLOCKS, SAMPLED_TURNS, LOW_TURNS, CHUNKS, TURNS, FINER_TURNS = 128, 3, 8, 16, 30, 4
FAR = 256  # a move after which lengths begin anew, in 1/2048 octave
NEAR = 8  # a move after which the step is good enough
LOW_RATE = 750_000  # below, tables and rate move each other far: more turns, and slower ones
UNSEEN, ESCAPE = 4 << 16, 44 << 16  # bits of an index beyond the largest one, in 2^-16
PRICE, MOST_CHANGE = 1024, 307
# Squared steps that a bit is worth, in 1/4096, at 0, 1/2, 1, ... 3 bits and beyond.
WORTH = (2400, 2250, 2000, 1786, 1593, 1520, 1462)


def worth(rate: int) -> int:
    """Squared steps that a bit is worth, in 1/4096."""
    half = MILLION // 2
    place = min(rate // half, 5)
    f = min(rate - place * half, half)
    return (WORTH[place] * (half - f) + WORTH[place + 1] * f) // half


def effect(rate: int) -> int:
    """By how much a price has to rise, as a part of it, for one bit less in a coordinate."""
    return 2 if rate < LOW_RATE else 3 if rate < 1_200_000 else 6 if rate < 2_500_000 else 10


def between(level: int) -> tuple[int, int]:
    """The row before a level, and the way on from there in 1/1024."""
    start = min(max(level + 4096, 0), 10 * 1024)
    row = min(start >> 10, 9)
    return row, start - 1024 * row


def rate_at(level: int) -> int:
    """Of a normal source, in 1/4096 bit."""
    row, f = between(level)
    return ((RATES[row] * (1024 - f) + RATES[row + 1] * f) >> 10) + 2 * max(level - 6144, 0)


def normal_lengths(level: int) -> I64:
    """Code lengths of a normal source, in 2^-16 bit."""
    row, f = between(max(level, -1024))
    before, after = (np.array(LENGTHS[r], np.int64) for r in (row, row + 1))
    return (before * (1024 - f) + after * f) >> 2


class _Class:
    """What is known of a class: of one in the trellis its table and the lengths that the search reckons with."""

    def __init__(self) -> None:
        self.known, self.table = False, trellis.Table()
        self.uniform: model.Table | None = None
        self.lengths, self.first = np.zeros((2, 2, trellis.INDICES), np.int64)
        self.seen = self.cost = 0
        self.weights = np.zeros((4, 33), np.int64)
        self.forget()

    def forget(self) -> None:
        """Drops what was counted."""
        self.counted = self.squares = 0
        self.met, self.wide = np.zeros((2, 2, trellis.INDICES), np.int64)
        self.beyond = np.zeros(2, np.int64)

    def begin(self, level: int) -> None:
        """As if it were normal."""
        self.lengths, self.table, self.seen, self.known = normal_lengths(level), trellis.Table(), 0, True
        self.first = self.lengths

    def count(self, cells: I64, w: I64, sign: int) -> None:
        """Adds blocks, or takes them away."""
        far = w > trellis.FARTHEST
        near, size = cells[~far], w[~far]
        self.beyond += sign * np.bincount(cells[far] >> 5, minlength=2)
        self.met += sign * np.bincount(near, minlength=64).reshape(2, 32)
        self.wide += sign * np.bincount(near, size, minlength=64).astype(np.int64).reshape(2, 32)
        self.squares += sign * int((size**2).sum())
        self.counted += sign * (cells.size // BLOCK)

    def fit(self, learning: int) -> None:
        """Lengths go a part of the way to those of the table, 1/2^learning."""
        self.table, self.cost = trellis.fit(self.met, self.wide, self.beyond)
        self.seen = self.counted
        if learning == 0:
            return
        f = trellis.frequencies(self.table)
        assert f is not None
        fresh = np.zeros((2, trellis.INDICES), np.int64)
        for q in range(2):
            for k in range(trellis.INDICES):
                inside = k <= self.table.largest
                fresh[q, k] = model.lengths()[f[q, 32 + k]] if inside else min(int(fresh[q, k - 1]) + UNSEEN, ESCAPE)
        self.lengths = self.lengths + ((fresh - self.lengths) >> learning)


class RateControl:
    """About one search of all coordinates: the step is found with a sample of the blocks, and on the way through the segment the price of a bit is moved so that the sum comes out right."""

    def __init__(self, source: Classes, room: int) -> None:
        self.source, self.room, self.rate = source, room, source.spec.rate
        self.classes = {kind: _Class() for kind in source.present}
        self.kinds = np.array(source.kinds)
        padded = np.zeros(-(-source.n // BLOCK) * BLOCK, np.float32)
        padded[: source.n] = source.y
        self.y = padded.reshape(-1, BLOCK)
        self.cells = np.zeros(self.y.shape, np.uint8)
        self.j, self.others, self.price = 0, 0, PRICE

    def in_trellis(self, kind: int) -> bool:
        return self.source.relative(kind, self.j) <= trellis.MOST_LEVEL

    @property
    def v(self) -> F32:
        """All values in steps, the last block filled up."""
        return self.y * np.float32(1.0 / model.step_of(self.j))

    def run(self) -> bool:
        """Finds the step and all indices. False if no step fits, or much room is left."""
        self.sample()
        goal, finest = self.room - (self.room >> 9), self.source.finest
        for turn in range(TURNS):
            fits = self.through() and self.source.relative(0, self.j) >= -(1 << 17)
            cost = self.nbytes()
            empty = cost - self.room < -(self.room >> 8) and turn < FINER_TURNS and self.j > finest
            if fits and not empty:
                return cost - self.room >= -(self.room >> 6) or self.j <= finest  # else ecsq does better
            if 0 < cost - self.room <= self.room >> 8 and self.shrink(0):
                return True
            after, move = self.step_for(goal, cost, self.j), 16 << min(turn, 6)
            self.j = max(min(after, self.j - move), finest) if fits else max(after, self.j + move)
        return False

    def predicted(self, j: int) -> int:
        """What normal blocks of these levels would take, in 1/4096 bit for each coordinate of a block."""
        levels, members = self.source.levels, self.source.members
        return sum(members[k] * (1 + rate_at(levels[k] - j)) for k in self.source.present)

    def step_for(self, target: int, cost: int, reference: int) -> int:
        """The finest step with which so many bytes would do, if others at the step ``reference`` took ``cost``."""
        limit = target * self.predicted(reference) // max(cost, 1)
        low, high = max(reference - 1024, self.source.finest) - 1, reference + 1024
        while high - low > 1:
            middle = (low + high) >> 1
            low, high = (low, middle) if self.predicted(middle) <= limit else (middle, high)
        return high

    def quantised(self, kind: int, at: I64) -> tuple[I64, I64, F32, int]:
        """Of a uniform class: values with all bits, symbols' values, v, raw bits."""
        raw = model.raw_bits(self.source.relative(kind, self.j) - trellis.COARSER)
        v = self.source.y[at] * np.float32(1.0 / model.step_of(self.j + trellis.COARSER))
        q = np.minimum(np.abs(v) + np.float32(0.5), np.float32(2.0**22)).astype(np.int64)
        q = np.where(v < 0, -q, q)
        return q, (q + (1 << raw >> 1)) >> raw, v, raw

    def set_step(self, stride: int) -> None:
        """Chooses the blocks; of each class every ``stride``-th one. Counts those that are not in the trellis."""
        chosen: list[int] = []
        self.others = 0
        for kind, c in self.classes.items():
            c.forget()
            mine = np.flatnonzero(self.kinds == kind)[::stride]
            if self.in_trellis(kind):
                if not c.known:
                    c.begin(self.source.levels[kind] - self.j)
                chosen += mine.tolist()
                continue
            c.known = False
            _, high, _, raw = self.quantised(kind, np.flatnonzero(np.isin(self.source.block_of, mine)))
            symbols = np.where(np.abs(high) <= model.LARGEST, high, -32)
            relative = self.source.relative(kind, self.j) - trellis.COARSER
            c.uniform, cost = model.fit(np.bincount(symbols + 32, minlength=64)[None], relative, False)
            nbytes = -(-cost // (1 << 19)) + int(((self.source.sizes[mine] * raw + 7) // 8).sum())
            self.others += 5 + nbytes * self.source.members[kind] // mine.size
        self.blocks = np.array(sorted(chosen), np.int64)
        # Where chains begin: at every substream, if these are all its blocks.
        each = self.source.substreams[0][1] if stride == 1 else len(self.kinds)
        self.spans: list[int] = []
        for place, block in enumerate(self.blocks.tolist()):
            new = not self.spans or block // each != self.blocks[place - 1] // each
            if new or place - self.spans[-1] == trellis.SPAN:
                self.spans.append(place)
        self.spans.append(self.blocks.size)

    def nbytes(self) -> int:
        """Of the whole segment, as far as is known."""
        cost = 0
        for kind, c in self.classes.items():
            if c.known and c.seen:
                own = 8 * 65536 * len(c.table.to_bytes())
                cost += own + (c.cost - own) * self.source.members[kind] // c.seen
        return -(-cost // (1 << 19)) + self.others

    def prepare(self) -> None:
        """The weights of all classes."""
        for c in self.classes.values():
            if c.known:
                c.weights = weights(c.table, c.lengths, worth(self.rate) * self.price // PRICE)

    def search(self, first: int, last: int) -> None:
        """Spans from one to another."""
        tables = np.zeros((self.source.count, 4, 33), np.int64)
        for kind, c in self.classes.items():
            tables[kind] = c.weights
        spans = [self.blocks[self.spans[s] : self.spans[s + 1]] for s in range(first, last)]
        v = self.v
        for size in {len(span) for span in spans}:
            chosen = np.array([span for span in spans if len(span) == size])
            which = np.repeat(self.kinds[chosen], BLOCK // trellis.LANES, axis=1)
            found = search(self.source.spec.states, v[chosen].reshape(len(chosen), -1, trellis.LANES), tables[which])
            self.cells[chosen] = found.reshape(len(chosen), size, BLOCK)

    def count(self, start: int, stop: int, sign: int) -> None:
        """Adds what was found at some places, or takes it away."""
        places = self.blocks[start:stop]
        w = np.rint(np.minimum(np.abs(self.v[places]), np.float32(64)) * np.float32(256)).astype(np.int64)
        cells = self.cells[places].astype(np.int64)
        for kind in set(self.kinds[places].tolist()):
            mine = self.kinds[places] == kind
            self.classes[kind].count(cells[mine].reshape(-1), w[mine].reshape(-1), sign)

    def fit(self, learning: int) -> None:
        """All classes that were counted."""
        for c in self.classes.values():
            if c.known and c.counted:
                c.fit(learning)

    def sample(self) -> None:
        """The step and the lengths, from a part of the blocks."""
        goal, stride = self.room - (self.room >> 9), max(len(self.kinds) // SAMPLED_BLOCKS, 1)
        self.j = max(self.source.j0 - 1024, self.source.finest)
        for _ in range(2):
            self.j = self.step_for(64 * goal, self.predicted(self.j), self.j)
        low = self.rate < LOW_RATE
        if low:
            self.j = max(self.j - FAR, self.source.finest)
        for turn in range(LOW_TURNS if low else SAMPLED_TURNS):
            self.set_step(stride)
            self.prepare()
            self.search(0, len(self.spans) - 1)
            self.count(0, self.blocks.size, 1)
            self.fit(1)
            before = self.j
            self.j = self.step_for(goal, self.nbytes(), before)
            if not low and turn > 0 and abs(self.j - before) <= NEAR:
                break
            for c in self.classes.values():
                c.known = c.known and abs(self.j - before) <= FAR
        for c in self.classes.values():
            c.first = c.lengths

    def chunks(self) -> list[tuple[int, int]]:
        """(first, last and one) of the spans between two changes of the price."""
        total = len(self.spans) - 1
        each = -(-total // CHUNKS)
        return [(first, min(first + each, total)) for first in range(0, total, each or 1)]

    def through(self) -> bool:
        """All blocks. What is too much so far makes bits dearer in those that are left."""
        self.set_step(1)
        for c in self.classes.values():
            c.lengths = c.first
        goal, total = self.room - (self.room >> 10), self.blocks.size
        change = changes = 0
        for first, last in self.chunks():
            at, stop = self.spans[first], self.spans[last]
            self.price = PRICE + change
            self.prepare()
            self.search(first, last)
            self.count(at, stop, 1)
            self.fit(3 if self.rate < LOW_RATE else 1)
            changes += change * (stop - at)
            if stop == total:
                break
            more = (self.nbytes() - goal) * 8 * PRICE * effect(self.rate) // ((total - stop) * BLOCK)
            change = changes // stop + min(max(more, -PRICE), PRICE)
            change = min(max(change, -MOST_CHANGE), MOST_CHANGE)
        return self.nbytes() <= self.room

    def shrink(self, nbytes: int) -> bool:
        """Makes room for about so many bytes more, with dearer bits from the end on."""
        target = min(self.nbytes(), self.room) - nbytes
        self.price = max(self.price, PRICE) + 40 * effect(self.rate)
        self.prepare()
        for first, last in reversed(self.chunks()):
            at, stop = self.spans[first], self.spans[last]
            self.count(at, stop, -1)
            self.search(first, last)
            self.count(at, stop, 1)
            self.fit(0)
            if self.nbytes() <= target:
                return True
        return False
