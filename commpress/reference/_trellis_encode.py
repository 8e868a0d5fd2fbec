"""Encoding of a segment of `trellis`: the stream of what the rate control found (docs/wire-format.md, section 4.10)."""

from __future__ import annotations

import numpy as np

from commpress.reference import _entropy_model as model
from commpress.reference import _substreams
from commpress.reference import _trellis_model as trellis
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_format import BLOCK, MODE_TRELLIS
from commpress.reference._trellis_rate import RateControl

MOST = np.nextafter(np.float32(2.0**100), np.float32(0))  # of an escape, so that its lowest bit may be set
LEAST_RATE = 200_000  # below, ecsq is better


def payload(source: Classes) -> bytes | None:
    """None where the segment is to be one of `ecsq`."""
    if source.nbytes < trellis.LEAST_NBYTES or source.spec.rate < LEAST_RATE:
        return None
    room = source.nbytes - 18 - (0 if source.spec.centroid else 4) - (source.count + 7) // 8
    room -= source.entries_nbytes + len(source.coded_kinds) + 3 * trellis.LANES * len(source.substreams) + 8
    if room < source.nbytes // 2:
        return None
    search = RateControl(source, room)
    found = search.run()
    for _ in range(40 if found else 0):
        data = written(source, search)
        if data is not None:
            return data
        if not search.shrink(source.nbytes >> 10):
            return None
    return None


def written(source: Classes, search: RateControl) -> bytes | None:
    """The payload; None where it is too long."""
    j = search.j
    heads: list[bytes] = []
    energy = product = 0.0
    count = len(source.kinds) * BLOCK
    frequency, start, sent = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, bool)
    escapes: list[tuple[int, float]] = []
    low = [b""] * len(source.kinds)
    v_all = search.v
    for kind in source.present:
        c = search.classes[kind]
        mine = np.flatnonzero(np.array(source.kinds) == kind)
        if search.in_trellis(kind):
            f = trellis.frequencies(c.table)
            assert f is not None
            at = (mine[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
            v, cell = v_all.reshape(-1)[at], search.cells[mine].astype(np.int64).reshape(-1)
            w = np.rint(np.minimum(np.abs(v), np.float32(64)) * np.float32(256)).astype(np.int64)
            k, q = cell & 31, cell >> 5
            escaped = (k > c.table.largest) | (w > trellis.FARTHEST)
            symbol = np.where(escaped, 0, np.where(v < 0, 32 - k, 32 + k))
            below = np.cumsum(f, axis=1) - f
            frequency[at], start[at], sent[at] = f[q, symbol], below[q, symbol], not c.table.empty
            kept = np.clip(v[escaped], -MOST, MOST).view(np.uint32)
            exact = ((kept & ~np.uint32(1)) | (k[escaped] & 1).astype(np.uint32)).view(np.float32)
            escapes += zip(at[escaped].tolist(), exact.tolist(), strict=True)
            heads.append(c.table.to_bytes())
            energy += float(16 * (c.squares - int((w[escaped & (w <= trellis.FARTHEST)] ** 2).sum())))
            product += float(int((trellis.levels(c.table) * c.wide)[:, : c.table.largest + 1].sum()))
            continue
        uniform = c.uniform
        assert uniform is not None
        at = np.flatnonzero(np.isin(source.block_of, mine))
        full, high, v, raw = search.quantised(kind, at)
        escaped = np.abs(high) > uniform.largest
        symbol = np.where(escaped, 0, high + 32)
        made = model.all_frequencies(uniform, source.relative(kind, j) - trellis.COARSER, False)
        assert made is not None
        below = np.cumsum(made[0]) - made[0]
        frequency[at], start[at], sent[at] = made[0][symbol], below[symbol], not uniform.empty
        escapes += zip(at[escaped].tolist(), np.clip(v[escaped], -(2.0**100), 2.0**100).tolist(), strict=True)
        heads.append(bytes([uniform.shift + 64 | uniform.escape << 7, uniform.largest | uniform.shape << 5, 0, 0, 0]))
        rest = np.where(escaped, 0, full) + (1 << raw >> 1) & (1 << raw) - 1
        for b in mine.tolist():
            bits = rest[source.block_of[at] == b][:, None] >> np.arange(raw) & 1
            low[b] = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    parts = _substreams.streams(source, frequency, start, sent, trellis.LANES)
    rho = np.float32(energy / product) if product > 0 else np.float32(1)
    return _substreams.assembled(
        source, MODE_TRELLIS, j, None if source.spec.centroid else rho, b"".join(heads), low, escapes, parts
    )
