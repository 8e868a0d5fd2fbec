"""Decoding of a segment of `ecsq` and `ecdq`."""

from __future__ import annotations

import math
import struct

import numpy as np

from commpress.errors import WireError
from commpress.reference import _entropy_model as model
from commpress.reference import _random, _rans, _substreams
from commpress.reference._ecsq_format import (
    BLOCK,
    CLASS_WIDTH,
    F32,
    MODE_CODED,
    MODE_NAN,
    MODE_RAW,
    MODE_ZERO,
    MOST_CLASSES,
    Spec,
    bounded,
    cells_of,
    dither_of,
    lanes_of,
    unrotated,
)
from commpress.reference._rans import NAN


def decode(data: bytes, spec: Spec, key: _random.KeyLike, index: int, n: int, gain: float) -> F32:
    mode, nbytes = data[0], len(data)
    if mode == MODE_ZERO:
        return np.zeros(n, np.float32)
    if mode == MODE_NAN:
        return np.full(n, np.nan, np.float32)
    if mode == MODE_RAW and nbytes >= 1 + 4 * n:
        return np.frombuffer(data[1 : 1 + 4 * n], np.float32) * np.float32(gain)
    if mode != MODE_CODED:
        raise WireError(f"mode {mode} of a segment is unknown")
    j, relative0 = (int.from_bytes(data[at : at + 3], "little", signed=True) for at in (1, 4))
    count = data[7]
    (escape_count,) = struct.unpack("<I", data[10:14])
    at, rho = 18, 1.0
    if not spec.dither and not spec.centroid:
        (rho,) = struct.unpack("<f", data[18:22])
        at = 22
    top = relative0 + (count - 1) * CLASS_WIDTH * 128
    if (
        abs(j) > 2048 * 400
        or not 1 <= count <= MOST_CLASSES
        or not 0 < rho < math.inf
        or max(abs(relative0), abs(top)) > 1 << 17
    ):
        raise WireError("a segment's header is out of range")
    if model.raw_bits(top) > 17:
        raise WireError("a segment's classes are out of range")
    mask_nbytes, per_class = (count + 7) // 8, 2 if spec.dither else 5
    mask = int.from_bytes(data[at : at + mask_nbytes], "little")
    at += mask_nbytes
    present = [k for k in range(count) if mask >> k & 1]
    if mask >> count or at + per_class * len(present) > nbytes:
        raise WireError("a segment's classes do not fit")
    made, offsets, sums = {}, {}, {}
    for kind in present:
        a, b = data[at], data[at + 1]
        table = model.Table(b >> 5, (a & 127) - 64, b & 31, a >> 7)
        found = model.all_frequencies(table, relative0 + kind * CLASS_WIDTH * 128, spec.dither)
        if found is None:
            raise WireError("a class has an impossible table")
        made[kind] = table
        sums[kind] = [[0, *np.cumsum(f).tolist()] for f in found]
        signed = [v - 256 if v > 127 else v for v in data[at + 2 : at + per_class]]
        offsets[kind] = tuple(signed) if signed else (0, 0, 0)
        at += per_class
    lanes = lanes_of(nbytes)
    parts, at = _substreams.entries(data, at, spec, n, lanes)
    kinds, at = _substreams.kinds_of(data, at, parts, count)
    if any(k >= 0 and k not in made for k in kinds):
        raise WireError("a block has a class that there is not")
    raws = {kind: model.raw_bits(relative0 + kind * CLASS_WIDTH * 128) for kind in present}
    raw_at, begins = at, {part.first: part for part in parts}
    for b, kind in enumerate(kinds):
        if b in begins and begins[b].raw_at not in (None, at):
            raise WireError("a substream's raw bits are elsewhere")
        at += (min(BLOCK, n - b * BLOCK) * raws[kind] + 7) // 8 if kind >= 0 else 0
    if at + 4 * escape_count > int.from_bytes(data[14:18], "little"):
        raise WireError("a segment's parts overlap")
    escapes = np.frombuffer(data[at : at + 4 * escape_count], np.float32)
    if not (np.abs(escapes) <= 2.0**100).all():
        raise WireError("an escaped value is out of range")
    scale = model.step_of(j) * (1.0 if spec.rotate else gain)
    z = np.zeros(n, np.float32)
    w = dither_of(key, index, n) if spec.dither else None
    for b, kind in enumerate(kinds):
        if b in begins:
            coder, (met, end) = _rans.RansDecoder(begins[b].stream, lanes), begins[b].escapes
        first, size = b * BLOCK, min(BLOCK, n - b * BLOCK)
        if kind < 0:
            z[first : first + size] = np.nan if kind == NAN else 0
            continue
        raw, table, out = raws[kind], made[kind], z[first : first + size]
        u = None if w is None else w[first : first + size]
        low = np.zeros(size, np.int64)
        if raw:
            length = (size * raw + 7) // 8
            bits = np.unpackbits(np.frombuffer(data[raw_at : raw_at + length], np.uint8), bitorder="little")
            low = (bits[: size * raw].reshape(size, raw).astype(np.int64) << np.arange(raw)).sum(1)
            raw_at += length
        folded = spec.dither and not raw
        symbols = np.zeros(size, np.int64)
        if not table.empty:
            cells = cells_of(u) if folded and u is not None else np.zeros(size, np.int64)
            tables_here = sums[kind]
            symbols = np.array([coder.symbol(i % lanes, tables_here[cells[i]]) for i in range(size)]) - 32
        escaped = symbols == -32
        if folded and u is not None:
            symbols = np.where((u < 0) & ~escaped, -symbols, symbols)
        q = (symbols << raw) + low - (1 << raw >> 1)
        if u is not None:
            value = q.astype(np.float32) - u.astype(np.float32) * np.float32(2**-24)
        elif raw:
            value = q.astype(np.float32)
        else:
            one, two, slope = offsets[kind]
            a = np.abs(q)
            level = np.where(a < 2, a * (4096 + 16 * one), 4096 * a + 16 * two + (a - 2) * slope)
            value = (np.sign(q) * level).astype(np.float64) * rho / 4096
            value = value if spec.rotate else bounded(value * scale)
        if u is not None or raw:
            value = value if spec.rotate else bounded(value.astype(np.float64) * scale)
        out[:] = value
        for i in np.flatnonzero(escaped).tolist():
            v = float(escapes[met]) if met < end else 0.0
            out[i] = v if spec.rotate else bounded(np.float64(v * scale))
            met += 1
    if spec.rotate:
        z = bounded(unrotated(z, key, index).astype(np.float64) * (scale * gain)).astype(np.float32)
    return z
