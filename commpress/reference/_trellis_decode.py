"""Decoding of a segment of `trellis` (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import math
import struct

import numpy as np

from commpress.errors import WireError
from commpress.reference import _entropy_model as model
from commpress.reference import _random, _rans, _substreams, _tcq
from commpress.reference import _trellis_model as trellis
from commpress.reference._ecsq_format import (
    BLOCK,
    CLASS_WIDTH,
    F32,
    MOST_CLASSES,
    Spec,
    bounded,
    unrotated,
)
from commpress.reference._rans import NAN

LEAST_NBYTES = trellis.LEAST_NBYTES


class _Class:
    """One class: either ``table`` is there, or ``uniform`` and its raw bits."""

    def __init__(self, data: bytes, level: int) -> None:
        self.table: trellis.Table | None = None
        self.raw = 0
        if level <= trellis.MOST_LEVEL:
            self.table = trellis.from_bytes(data)
            found = None if self.table is None else trellis.frequencies(self.table)
            self.nbytes = 0 if self.table is None else len(self.table.to_bytes())
            self.empty = self.table is not None and self.table.empty
        else:
            if len(data) < 5:
                raise WireError("a segment's classes do not fit")
            relative, self.nbytes = level - trellis.COARSER, 5
            uniform = model.Table(data[1] >> 5, (data[0] & 127) - 64, data[1] & 31, data[0] >> 7)
            made = model.all_frequencies(uniform, relative, False)
            found = None if made is None else made[0][None]
            self.raw, self.empty = model.raw_bits(relative), uniform.empty
        if found is None:
            raise WireError("a class has an impossible table")
        self.sums = [[0, *np.cumsum(row).tolist()] for row in found]


def decode(data: bytes, spec: Spec, key: _random.KeyLike, index: int, n: int, gain: float) -> F32:
    """The values of a segment whose mode is that of the trellis. Raises WireError."""
    j, relative0 = (int.from_bytes(data[at : at + 3], "little", signed=True) for at in (1, 4))
    count = data[7]
    (escape_count,) = struct.unpack("<I", data[10:14])
    at, rho = 18, 1.0
    if not spec.centroid:
        (rho,) = struct.unpack("<f", data[18:22])
        at = 22
    top = relative0 + (count - 1) * CLASS_WIDTH * 128
    if abs(j) > 2048 * 400 or not 1 <= count <= MOST_CLASSES or not 0 < rho < math.inf:
        raise WireError("a segment's header is out of range")
    if max(abs(relative0), abs(top)) > 1 << 17 or model.raw_bits(top) > 17:
        raise WireError("a segment's classes are out of range")
    mask_nbytes = (count + 7) // 8
    mask = int.from_bytes(data[at : at + mask_nbytes], "little")
    at += mask_nbytes
    if mask >> count:
        raise WireError("a segment has a class that there is not")
    classes = {}
    for kind in range(count):
        if mask >> kind & 1:
            classes[kind] = _Class(data[at:], relative0 + kind * CLASS_WIDTH * 128)
            at += classes[kind].nbytes
    parts, at = _substreams.entries(data, at, spec, n, trellis.LANES)
    kinds, at = _substreams.kinds_of(data, at, parts, count)
    if any(k >= 0 and k not in classes for k in kinds):
        raise WireError("a block has a class that there is not")
    raw_at, begins = at, {part.first: part for part in parts}
    for b, kind in enumerate(kinds):
        if b in begins and begins[b].raw_at not in (None, at):
            raise WireError("a substream's raw bits are elsewhere")
        at += (min(BLOCK, n - b * BLOCK) * classes[kind].raw + 7) // 8 if kind >= 0 else 0
    if at + 4 * escape_count > int.from_bytes(data[14:18], "little"):
        raise WireError("a segment's parts overlap")
    escapes = np.frombuffer(data[at : at + 4 * escape_count], np.float32)
    if not (np.abs(escapes) <= 2.0**100).all():
        raise WireError("an escaped value is out of range")
    parities = (escapes.view(np.uint32) & 1).tolist()
    scale, coarse = (model.step_of(j + c) * (1.0 if spec.rotate else gain) for c in (0, trellis.COARSER))
    z = np.zeros(n, np.float32)
    for b, kind in enumerate(kinds):
        if b in begins:
            coder, (met, end) = _rans.RansDecoder(begins[b].stream, trellis.LANES), begins[b].escapes
            trellises, chains = 0, [0] * trellis.LANES
        first, size = b * BLOCK, min(BLOCK, n - b * BLOCK)
        if kind < 0:
            z[first : first + size] = np.nan if kind == NAN else 0
            continue
        c = classes[kind]
        out, values = z[first : first + size], np.zeros(BLOCK)
        found: list[int] = []
        if c.table is not None:
            if trellises % trellis.SPAN == 0:
                chains = [0] * trellis.LANES
            trellises += 1
            level = trellis.levels(c.table)
            for i in range(BLOCK):
                q = chains[i % trellis.LANES] & 1
                symbol = 32 if c.empty else coder.symbol(i % trellis.LANES, c.sums[q])
                parity = symbol & 1
                if symbol == 0:
                    place = met + len(found)
                    parity = parities[place] if place < end else 0
                    found.append(i)
                else:
                    k = symbol - 32
                    values[i] = math.copysign(1, k) * float(level[q, abs(k)]) * rho / 4096
                chains[i % trellis.LANES] = _tcq.next_state(spec.states, chains[i % trellis.LANES], parity)
            factor = 1.0 if spec.rotate else scale
            out[:] = bounded(values[:size] * factor)
        else:
            low = np.zeros(size, np.int64)
            length = (size * c.raw + 7) // 8
            bits = np.unpackbits(np.frombuffer(data[raw_at : raw_at + length], np.uint8), bitorder="little")
            low = (bits[: size * c.raw].reshape(size, c.raw).astype(np.int64) << np.arange(c.raw)).sum(1)
            raw_at += length
            symbols = [32 if c.empty else coder.symbol(i % trellis.LANES, c.sums[0]) for i in range(size)]
            found = [i for i, symbol in enumerate(symbols) if symbol == 0]
            q_all = ((np.array(symbols) - 32) << c.raw) + low - (1 << c.raw >> 1)
            factor = model.step_of(trellis.COARSER) if spec.rotate else coarse
            out[:] = bounded(q_all.astype(np.float32).astype(np.float64) * factor)
        for i in found:
            v = float(escapes[met]) if met < end else 0.0
            met += 1
            if i < size:
                out[i] = bounded(np.float64(v * factor))
    if spec.rotate:
        z = bounded(unrotated(z, key, index).astype(np.float64) * (scale * gain)).astype(np.float32)
    return z
