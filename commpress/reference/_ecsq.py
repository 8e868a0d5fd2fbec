"""`ecsq` and `ecdq`: entropy-coded quantisers at a hard budget (docs/wire-format.md, section 4.8)."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from commpress.codecs import _entropy_tables as tables
from commpress.errors import WireError
from commpress.reference import _entropy_model as model
from commpress.reference import _lloyd, _random, _rans, _sums
from commpress.reference._rans import NAN, ZERO

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SEGMENT, BLOCK, ROTATION, MILLION = 1 << 23, 512, 4096, 1_000_000
EXTRA = 48  # bytes of a segment beyond its rate
CLASS_WIDTH, MOST_CLASSES, FLOOR = 6, 56, -48  # in 1/16 octave; -; level in steps under which classes are one
FINEST = 36800  # a class is at most so many 1/2048 octaves above the step, so that it has at most 16 raw bits
MODE_ZERO, MODE_CODED, MODE_RAW, MODE_NAN = 0, 1, 2, 255
FLT_MAX = float(np.finfo(np.float32).max)
DITHER = 5  # purpose
_SPEC = re.compile(r"(hadamard\+)?(ecsq|ecdq):(\d+(?:\.\d{1,6})?)(,scale=(?:centroid|unbiased))?")


@dataclasses.dataclass(frozen=True)
class Spec:
    """``rate`` in millionths of a bit per coordinate."""

    rate: int
    rotate: bool
    dither: bool
    centroid: bool


def parse(text: str) -> Spec | None:
    """The spec of a codec's text, None for another family."""
    match = _SPEC.fullmatch(text)
    if match is None:
        return None
    whole, _, decimals = match[3].partition(".")
    rate = int(whole) * MILLION + int(decimals.ljust(6, "0") or 0)
    if not 50_000 <= rate <= 8 * MILLION:
        raise ValueError(f"rate outside 0.05..8 bits: {text!r}")
    return Spec(rate, match[1] is not None, match[2] == "ecdq", match[4] == ",scale=centroid")


def segments(numel: int, offset: int) -> list[tuple[int, int]]:
    """(index, numel) of the parts of a payload, each coded alone: cut at multiples of 2^23 of the tensor."""
    out, end = [], offset + numel
    while offset < end:
        stop = min(end, (offset // SEGMENT + 1) * SEGMENT)
        out.append((offset, stop - offset))
        offset = stop
    return out


def segment_nbytes(rate: int, n: int) -> int:
    """Bytes of ``n`` coordinates, n > 0."""
    return -(-n * rate // (8 * MILLION)) + EXTRA


def payload_nbytes(spec: Spec, numel: int, offset: int) -> int:
    """Size of a payload."""
    return sum(segment_nbytes(spec.rate, n) for _, n in segments(numel, offset))


def encode(x: F32, spec: Spec, key: _random.KeyLike, offset: int, gain: np.float32) -> bytes:
    """The payload of ``gain * x``."""
    parts = [(x[i - offset : i - offset + n], i) for i, n in segments(x.size, offset)]
    return b"".join(_Encoder(part, spec, key, i, gain).payload() for part, i in parts)


def decode(data: npt.NDArray[np.uint8], spec: Spec, key: _random.KeyLike, offset: int, numel: int, gain: float) -> F32:
    """The values of a payload. Raises WireError for a header that no encoder writes."""
    out, at = [np.empty(0, np.float32)], 0
    for i, n in segments(numel, offset):
        nbytes = segment_nbytes(spec.rate, n)
        out.append(_decode(data[at : at + nbytes].tobytes(), spec, key, i, n, gain))
        at += nbytes
    return np.concatenate(out)


def lanes_of(nbytes: int) -> int:
    """How many interleaved coders a segment of this size has."""
    return 32 if nbytes >= 1 << 15 else 4 if nbytes >= 1 << 10 else 1


def _rotations(n: int) -> list[tuple[int, int]]:
    """(start, size): whole blocks of 4096, then powers of two down to 128; a rest is not rotated."""
    out = [(at, ROTATION) for at in range(0, n - ROTATION + 1, ROTATION)]
    at, size = n // ROTATION * ROTATION, ROTATION // 2
    while size >= 128:
        if n - at >= size:
            out.append((at, size))
            at += size
        size //= 2
    return out


def _rotated(x: F32, key: _random.KeyLike, index: int) -> F32:
    x = x.copy()
    for at, size in _rotations(x.size):
        signs = _random.rotation_signs(key, _random.ROTATION_1, index + at, size)
        x[at : at + size] = _lloyd.hadamard(x[at : at + size] * signs, _lloyd.ENCODE_STRIDES) * _norm(size)
    return x


def _unrotated(z: F32, key: _random.KeyLike, index: int) -> F32:
    for at, size in _rotations(z.size):
        signs = _random.rotation_signs(key, _random.ROTATION_1, index + at, size)
        z[at : at + size] = _lloyd.hadamard(z[at : at + size], _lloyd.DECODE_STRIDES) * signs * _norm(size)
    return z


def _norm(size: int) -> np.float32:
    return np.float32(1) / np.sqrt(np.float32(size))


def _dither(key: _random.KeyLike, index: int, n: int) -> I64:
    """The dither of each coordinate in 2^-24 step, in [-2^23, 2^23)."""
    rows = [_random.group_words(key, DITHER, index + at) for at in range(0, n, BLOCK)]
    return (np.concatenate(rows)[:n] >> np.uint32(8)).astype(np.int64) - (1 << 23)


def level_of(mean: np.float32) -> int:
    """floor(16 log2(mean)) of a positive float."""
    bits = int(mean.view(np.uint32))
    return 16 * ((bits >> 23) - 127) + int(np.searchsorted(tables.LEVEL, bits & 0x7FFFFF, side="right")) - 1


def _cells(w: I64) -> I64:
    return np.minimum(np.abs(w) >> 20, model.CELLS - 1)


class _Encoder:
    """One segment."""

    def __init__(self, x: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32) -> None:
        self.spec, self.n, self.index, self.key = spec, x.size, index, key
        self.nbytes, self.lanes = segment_nbytes(spec.rate, x.size), lanes_of(segment_nbytes(spec.rate, x.size))
        self.x, self.gain = x, gain

    def payload(self) -> bytes:
        """The payload."""
        if self.nbytes >= 1 + 4 * self.n:
            y = self.x * self.gain
            y = np.where(np.isfinite(self.x), np.clip(y, -FLT_MAX, FLT_MAX), self.x).astype(np.float32)
            return self._padded(MODE_RAW, y.tobytes())
        if not self._prepare():
            return self._padded(MODE_ZERO if all(k == ZERO for k in self.kinds) else MODE_NAN, b"")
        found = self._search()
        if found is None:
            return self._padded(MODE_NAN if NAN in self.kinds else MODE_ZERO, b"")
        j, made = found
        while (payload := self._write(j, made)) is None:  # coding took more than the sum of its logarithms
            j += 16
            made = self.cost(j, 1)[1]
        return payload

    def _padded(self, mode: int, rest: bytes) -> bytes:
        return (bytes([mode]) + rest).ljust(self.nbytes, b"\0")

    # -- what does not depend on the step

    def _prepare(self) -> bool:
        """Scales, rotates, classifies. False if no block has a value that is finite and not zero."""
        x, n = self.x, self.n
        finite = np.abs(x[np.isfinite(x)])
        e = int(np.frexp(finite.max())[1]) - 1 if finite.any() else 0
        eg = int(np.frexp(self.gain)[1]) - 1
        self.shift = 0
        if abs(e) > 60 or abs(eg) > 60:
            x, self.gain, self.shift = np.ldexp(x, -e), np.ldexp(self.gain, -eg), e + eg
        if self.spec.rotate:
            x = _rotated(x, self.key, self.index)
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
        self.w = _dither(self.key, self.index, n) if self.spec.dither else np.zeros(n, np.int64)
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
            self.coded_kinds = _rans.encode_classes(kinds.tolist())
            self.present = sorted(set((classes - self.lowest).tolist()))
            mask = (self.count + 7) // 8
            self.header = 18 + (0 if self.spec.dither or self.spec.centroid else 4) + mask
            self.header += (2 if self.spec.dither else 5) * len(self.present)
            self.room = self.nbytes - self.header - len(self.coded_kinds) - 3 * self.lanes - 8
            if len(self.coded_kinds) <= self.nbytes // 2 and self.room >= self.nbytes // 4:
                break
        self.kinds = kinds.tolist()
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

    # -- what does

    def relative(self, kind: int, j: int) -> int:
        """Level of a class in steps, in 1/2048 octave."""
        return self.centre + kind * CLASS_WIDTH * 128 - j

    def quantised(self, kind: int, j: int, at: I64) -> tuple[I64, I64, F32, I64]:
        """Values with all bits, symbols' values, v = x / step, for the coordinates ``at`` of one class; cells."""
        relative = self.relative(kind, j)
        raw = model.raw_bits(relative)
        inverse = np.float32(1.0 / model.step_of(j))
        v = self.y[at] * inverse
        if self.spec.dither:
            m = np.clip(v + self.w[at].astype(np.float32) * np.float32(2**-24), -(2.0**22), 2.0**22)
            q = np.rint(m).astype(np.int64)
        else:
            offset = np.float32(model.dead_zone(relative) / 65536)
            q = np.minimum(np.abs(v) + offset, np.float32(2.0**22)).astype(np.int64)
            q = np.where(v < 0, -q, q)
        high = (q + (1 << raw >> 1)) >> raw
        return q, high, v, self.w[at]

    def counts(self, kind: int, j: int, at: I64) -> I64:
        """Symbols met, for every table of the class."""
        _, high, _, w = self.quantised(kind, j, at)
        symbol = np.where(np.abs(high) <= model.LARGEST, high, -32)
        if not self.spec.dither or model.raw_bits(self.relative(kind, j)):
            return np.bincount(symbol + 32, minlength=64)[None]
        symbol = np.where((w < 0) & (symbol != -32), -symbol, symbol)
        return np.bincount(_cells(w) * 64 + symbol + 32, minlength=64 * model.CELLS).reshape(-1, 64)

    def cost(self, j: int, stride: int) -> tuple[int, dict[int, model.Table]]:
        """Bytes for every ``stride``-th block, times ``stride``; tables."""
        bits, rest, made = 0, 0, {}
        chosen = self.block_of % stride == 0
        for kind in self.present:
            at = np.flatnonzero((self.of == kind) & chosen)
            raw = model.raw_bits(self.relative(kind, j))
            made[kind], cost = model.fit(self.counts(kind, j, at), self.relative(kind, j), self.spec.dither)
            bits += cost
            mine = (np.array(self.kinds) == kind) & (np.arange(len(self.kinds)) % stride == 0)
            rest += int(((self.sizes[mine] * raw + 7) // 8).sum())
        return ((bits + (1 << 19) - 1 >> 19) + rest) * stride, made

    def _search(self) -> tuple[int, dict[int, model.Table]] | None:
        j = self.j0
        if len(self.kinds) >= 256:
            found = search(lambda j: self.cost(j, 8)[0], self.room, j, self.finest, self.room >> 11, self.n, 5)
            j = found[1]
        made: dict[int, dict[int, model.Table]] = {}

        def cost(j: int) -> int:
            value, made[j] = self.cost(j, 1)
            return value

        best, last = search(cost, self.room, j, self.finest, self.room >> 13, self.n, 8)
        for _ in range(200):
            if best is not None:
                return best, made[best]
            last += 512
            if cost(last) <= self.room:
                best = last
        return None

    def _write(self, j: int, made: dict[int, model.Table]) -> bytes | None:
        symbols = np.zeros(self.n, np.int64)
        frequency, start = np.zeros(self.n, np.int64), np.zeros(self.n, np.int64)
        sent = np.zeros(self.n, bool)
        escapes: list[tuple[int, float]] = []
        full, raws = np.zeros(self.n, np.int64), {}
        heads, energy, product = [], 0.0, 0.0
        for kind in self.present:
            at, relative, table = np.flatnonzero(self.of == kind), self.relative(kind, j), made[kind]
            raws[kind] = raw = model.raw_bits(relative)
            q, high, v, w = self.quantised(kind, j, at)
            escaped = np.abs(high) > table.largest
            symbol = np.where(escaped, -32, high)
            folded = bool(self.spec.dither and not raw)
            if folded:
                symbol = np.where((w < 0) & ~escaped, -symbol, symbol)
            f = np.stack(model.all_frequencies(table, relative, self.spec.dither) or [])
            c = np.cumsum(f, axis=1) - f
            row = _cells(w) if folded else np.zeros(at.size, np.int64)
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
        lane = np.arange(self.n) % BLOCK % self.lanes
        stream = _rans.rans_encode(frequency[sent], start[sent], lane[sent], self.lanes)
        raw_bytes = b""
        for b, kind in enumerate(self.kinds):
            if kind >= 0 and raws[kind]:
                low = full[b * BLOCK : (b + 1) * BLOCK] + (1 << raws[kind] >> 1) & (1 << raws[kind]) - 1
                bits = low[:, None] >> np.arange(raws[kind]) & 1
                raw_bytes += np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
        body = b"".join(heads) + self.coded_kinds + raw_bytes
        body += b"".join(struct.pack("<f", value) for _, value in sorted(escapes))
        mask = sum(1 << kind for kind in self.present).to_bytes((self.count + 7) // 8, "little")
        header = bytes([MODE_CODED]) + (j + 2048 * self.shift).to_bytes(3, "little", signed=True)
        header += (self.centre - j).to_bytes(3, "little", signed=True) + bytes([self.count])
        header += struct.pack("<HI", len(self.coded_kinds), len(escapes)) + struct.pack("<I", self.nbytes - len(stream))
        if not self.spec.dither and not self.spec.centroid:
            header += struct.pack("<f", rho)
        header += mask + body
        if len(header) + len(stream) > self.nbytes:
            return None
        return header.ljust(self.nbytes - len(stream), b"\0") + stream


def _concentration(classes: I64) -> int:
    return int((np.unique(classes, return_counts=True)[1].astype(np.int64) ** 2).sum())


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


def _decode(data: bytes, spec: Spec, key: _random.KeyLike, index: int, n: int, gain: float) -> F32:
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
    class_nbytes, escape_count, stream_at = struct.unpack("<HII", data[8:18])
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
    if mask >> count or at + per_class * len(present) + class_nbytes > nbytes:
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
    blocks = -(-n // BLOCK)
    kinds = _rans.decode_classes(data[at : at + class_nbytes], blocks, count)
    at += class_nbytes
    if kinds is None or any(k >= 0 and k not in made for k in kinds):
        raise WireError("a block has a class that there is not")
    raws = {kind: model.raw_bits(relative0 + kind * CLASS_WIDTH * 128) for kind in present}
    raw_at = at
    for b, kind in enumerate(kinds):
        at += (min(BLOCK, n - b * BLOCK) * raws[kind] + 7) // 8 if kind >= 0 else 0
    lanes = lanes_of(nbytes)
    if at + 4 * escape_count > stream_at or stream_at + 4 * lanes > nbytes:
        raise WireError("a segment's parts overlap")
    escapes = np.frombuffer(data[at : at + 4 * escape_count], np.float32)
    if not (np.abs(escapes) <= 2.0**100).all():
        raise WireError("an escaped value is out of range")
    scale = model.step_of(j) * (1.0 if spec.rotate else gain)
    z = np.zeros(n, np.float32)
    w = _dither(key, index, n) if spec.dither else None
    coder, met = _rans.RansDecoder(data[stream_at:], lanes), 0
    for b, kind in enumerate(kinds):
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
            cells = _cells(u) if folded and u is not None else np.zeros(size, np.int64)
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
            value = value if spec.rotate else _bounded(value * scale)
        if u is not None or raw:
            value = value if spec.rotate else _bounded(value.astype(np.float64) * scale)
        out[:] = value
        for i in np.flatnonzero(escaped).tolist():
            v = float(escapes[met]) if met < escape_count else 0.0
            out[i] = v if spec.rotate else _bounded(np.float64(v * scale))
            met += 1
    if spec.rotate:
        z = _bounded(_unrotated(z, key, index).astype(np.float64) * (scale * gain)).astype(np.float32)
    return z


def _bounded(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(x, -FLT_MAX, FLT_MAX)
