"""Classes of a segment's blocks, for the encoders of `ecsq`, `ecdq` and `trellis`."""

from __future__ import annotations

import numpy as np

from commpress.codecs import _entropy_tables as tables
from commpress.reference import _entropy_model as model
from commpress.reference import _random, _rans, _sums
from commpress.reference._ecsq_format import (
    BLOCK,
    CLASS_WIDTH,
    ENTRY,
    F32,
    FINEST,
    FLOOR,
    I64,
    MOST_CLASSES,
    Spec,
    dither_of,
    lanes_of,
    level_of,
    rotated,
    segment_nbytes,
    substreams,
)
from commpress.reference._rans import NAN, ZERO


class Classes:
    """One segment, scaled and rotated, and the classes of its blocks: what does not depend on the step."""

    def __init__(self, x: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32) -> None:
        self.spec, self.n, self.index, self.key = spec, x.size, index, key
        self.nbytes, self.lanes = segment_nbytes(spec.rate, x.size), lanes_of(segment_nbytes(spec.rate, x.size))
        self.substreams = substreams(spec, x.size)
        self.entries_nbytes = ENTRY * (len(self.substreams) - 1)
        self.x, self.gain = x, gain

    def prepare(self) -> bool:
        """Scales, rotates, classifies. False if no block has a value that is finite and not zero."""
        x, n = self.x, self.n
        finite = np.abs(x[np.isfinite(x)])
        e = int(np.frexp(finite.max())[1]) - 1 if finite.any() else 0
        eg = int(np.frexp(self.gain)[1]) - 1
        self.shift = 0
        if abs(e) > 60 or abs(eg) > 60:
            x, self.gain, self.shift = np.ldexp(x, -e), np.ldexp(self.gain, -eg), e + eg
        if self.spec.rotate:
            x = rotated(x, self.key, self.index)
        starts = range(0, n, BLOCK)
        blocks = [x[at : at + BLOCK] for at in starts]
        self.sizes = np.array([b.size for b in blocks])
        self.kinds: list[int] = []
        levels: list[int] = []
        for b in blocks:
            if not np.isfinite(b).all():
                self.kinds.append(NAN)
            elif not b.any():
                self.kinds.append(ZERO)
            else:
                mean = _sums.natural(np.abs(b)) / np.float32(b.size) * self.gain
                levels.append(level_of(mean))
                self.kinds.append(0)
        if not levels:
            return False
        self.y = x * self.gain
        self.w = dither_of(self.key, self.index, n) if self.spec.dither else np.zeros(n, np.int64)
        self._classify(np.array(levels))
        return True

    def _classify(self, levels: I64) -> None:
        normal = np.array([k == 0 for k in self.kinds])
        phase = max(range(CLASS_WIDTH), key=lambda p: (_concentration((levels + p) // CLASS_WIDTH), -p))
        self.j0 = self._first_step(levels, self.sizes[normal])
        classes = (levels + phase) // CLASS_WIDTH
        classes = np.maximum(classes, ((self.j0 >> 7) + FLOOR + phase) // CLASS_WIDTH)
        classes = np.minimum(classes, classes.min() + MOST_CLASSES - 1)
        for flat in (False, True):
            if flat:
                classes = np.full_like(classes, classes.max())
            self.lowest, self.count = int(classes.min()), int(classes.max() - classes.min()) + 1
            self.centre = (CLASS_WIDTH * self.lowest - phase + CLASS_WIDTH // 2) * 128
            kinds = np.array(self.kinds)
            kinds[normal] = classes - self.lowest
            self.finest = self.centre + (self.count - 1) * CLASS_WIDTH * 128 - FINEST
            coded = [_rans.encode_classes(kinds[first:last].tolist()) for first, last in self.substreams]
            self.coded_kinds, self.coded_kinds_nbytes = b"".join(coded), [len(part) for part in coded]
            self.present = sorted(set((classes - self.lowest).tolist()))
            mask = (self.count + 7) // 8
            self.header = 18 + (0 if self.spec.dither or self.spec.centroid else 4) + mask
            self.header += (2 if self.spec.dither else 5) * len(self.present) + self.entries_nbytes
            coders = len(self.substreams) * self.lanes
            self.room = self.nbytes - self.header - len(self.coded_kinds) - 3 * coders - 8
            if len(self.coded_kinds) <= self.nbytes // 2 and self.room >= self.nbytes // 4:
                break
        self.kinds = kinds.tolist()
        # Mean level of each class in 1/2048 octave, and its blocks.
        mine = {k: 128 * levels[classes - self.lowest == k] + 64 for k in self.present}
        self.levels = {k: int(of.sum()) // of.size for k, of in mine.items()}
        self.members = {k: of.size for k, of in mine.items()}
        self.of = np.repeat(kinds, self.sizes)  # class of every coordinate
        self.block_of = np.arange(self.n) // BLOCK

    def _first_step(self, levels: I64, sizes: I64) -> int:
        """Coarsest of the steps 2^(t/16), as j, at which normal blocks of these levels would have enough bits."""
        budget = self.nbytes * 8 * 4096
        at, counts = np.unique(levels, return_inverse=True)
        weight = np.bincount(counts, weights=sizes).astype(np.int64)

        def bits(t: int) -> int:
            total = 0
            for level, w in zip(at.tolist(), weight.tolist(), strict=True):
                relative = level * 128 + 64 - t * 128
                total += w * (model.interpolated(tables.RATE, relative, 1) + 2 * max(0, relative - 64 * 128))
            return total

        low, high = int(levels.min()) - 256, int(levels.max()) + 64
        while high - low > 1:
            t = (low + high) // 2
            low, high = (low, t) if bits(t) <= budget else (t, high)
        return high * 128

    def relative(self, kind: int, j: int) -> int:
        """Level of a class in steps, in 1/2048 octave."""
        return self.centre + kind * CLASS_WIDTH * 128 - j


def _concentration(classes: I64) -> int:
    return int((np.unique(classes, return_counts=True)[1].astype(np.int64) ** 2).sum())
