"""Sparsifiers (docs/wire-format.md, section 4.6)."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _casts, _gaps, _random, _rates

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
INFINITY = 0x7F800000
NONFINITE = 0xFFFF
EXACT = 1 << 31
FLT_MAX = np.finfo(np.float32).max
_SPEC = re.compile(r"(topk|threshold|randk):(\d*\.?\d+)((?:,(?:block|scale|values)=\w+)*)")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec: ``fraction`` in millionths, ``bits`` of a value, ``block`` coordinates of a segment."""

    random: bool
    fraction: int
    bits: int
    scaled: bool
    block: int


def parse(text: str) -> Spec | None:
    """None if the text is no sparsifier's."""
    match = _SPEC.fullmatch(text)
    if match is None:
        return None
    options = dict(part.split("=") for part in match[3].split(",")[1:])
    values = options.get("values", {"topk": "4", "threshold": "1", "randk": "fp32"}[match[1]])
    number = float(match[2])
    return Spec(
        match[1] == "randk",
        round(1e6 * (math.erfc(number / math.sqrt(2)) if match[1] == "threshold" else number)),
        {"fp32": 32, "bf16": 16}.get(values) or int(values),
        match[1] == "randk" and options.get("scale") != "none",
        int(options.get("block", 65536)),
    )


def dense(spec: Spec) -> str:
    """The codec of quantised `randk` values."""
    return f"{'uniform' if spec.scaled else 'lloyd'}:{spec.bits}"


def header_nbytes(spec: Spec) -> int:
    return 8 if spec.bits <= 8 else 4


def segment_nbytes(spec: Spec, n: int, k: int) -> int:
    """A segment of n coordinates that sends k."""
    if not spec.random:
        return header_nbytes(spec) + _rates.packed_nbytes(k, spec.bits) + _gaps.nbytes(spec.fraction, n, k)
    if spec.bits > 8:
        return k * spec.bits // 8
    return _rates.payload_nbytes(_rates.parse(dense(spec)), k, 0, 4)


def segments(spec: Spec, numel: int, offset: int) -> Iterator[tuple[int, int, int, int]]:
    """(index, coordinates, coordinates sent, bytes)."""
    if offset % spec.block:
        raise ValueError(f"offset {offset} is not a multiple of {spec.block}")
    for index in range(offset, offset + numel, spec.block):
        n = min(spec.block, offset + numel - index)
        k = _rates.sent(spec.fraction, index, n)
        yield index, n, k, segment_nbytes(spec, n, k)


def magnitudes(x: F32) -> U32:
    """The bits of |x|: integers order as floats do, infinities and NaN on top."""
    return x.view(np.uint32) & np.uint32(0x7FFFFFFF)


def fits_exactly(spec: Spec, n: int, k: int, m: int) -> bool:
    """Whether m values go out as binary32 although the codec's are narrower."""
    size = header_nbytes(spec) + 4 * m + _gaps.nbytes(spec.fraction, n, m)
    return spec.bits < 32 and m > 0 and size <= segment_nbytes(spec, n, k)


def levels(low: int, high: int, count: int) -> F32:
    """The ``count`` levels between two bfloat16 patterns."""
    span = (high - low) << 16
    return np.array([(low << 16) + span * c // max(1, count - 1) for c in range(count)], np.uint32).view(np.float32)


def level_range(u: U32, count: int) -> tuple[int, int]:
    """(low, high) for magnitudes, as bfloat16 patterns."""
    if u.size == 0:
        return 0, 0
    bits = [int(v) for v in u]
    mean = sum(bits) // len(bits)
    if count == 1:
        return mean >> 16, mean >> 16
    if count > 2:
        half_step = (max(bits) - min(bits)) // (2 * count - 1)
        return min(bits) + min(half_step, 1 << 23) >> 16, max(bits) >> 16
    below, above = [b for b in bits if b <= mean], [b for b in bits if b > mean]
    low = sum(below) // len(below)
    return low >> 16, (sum(above) // len(above) if above else low) >> 16


def pack(codes: npt.NDArray[np.int64], bits: int) -> bytes:
    """One bit string."""
    as_bits = (codes[:, None] >> np.arange(bits)) & 1
    return np.packbits(as_bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def encode_topk(x: F32, spec: Spec, k: int, gain: np.float32) -> bytes:
    """One segment."""
    n = x.size
    u = magnitudes(x)
    largest = np.argsort(-u.astype(np.int64), kind="stable")[:k]
    positions = np.sort(largest[u[largest] > 0])
    finite = bool((u[positions] < INFINITY).all())
    values = np.where(np.isfinite(x[positions]), np.clip(x[positions] * gain, -FLT_MAX, FLT_MAX), x[positions])
    positions, values = positions[values != 0], values[values != 0]
    m = values.size
    exact = fits_exactly(spec, n, k, m)
    low = high = 0
    if exact or spec.bits == 32:
        coded = values.tobytes()
    elif spec.bits == 16:
        half = _casts.to_bits16(values, "cast:bf16")
        coded = np.where((half & 0x7FFF == 0x7F80) & np.isfinite(values), half - 1, half).astype(np.uint16).tobytes()
    elif not finite:
        low = high = NONFINITE
        coded = bytes(_rates.packed_nbytes(m, spec.bits))
    else:
        count = 2 ** (spec.bits - 1)
        a = np.abs(values)
        low, high = level_range(magnitudes(a), count)
        half_levels = levels(low, high, count) * np.float32(0.5)
        codes = np.searchsorted(half_levels[:-1] + half_levels[1:], a, side="right")
        coded = pack(codes + (np.signbit(values) * count), spec.bits)
    header = struct.pack("<I", m | (EXACT if exact else 0))
    if spec.bits <= 8:
        header += struct.pack("<HH", low, high)
    out = header + coded + _gaps.encode(positions, n, spec.fraction)
    return out.ljust(segment_nbytes(spec, n, k), b"\0")


def decode_topk(data: bytes, spec: Spec, n: int, k: int, gain: np.float32) -> F32:
    """One segment. Raises WireError for a header that no encoder writes."""
    (word,) = struct.unpack_from("<I", data)
    low, high = struct.unpack_from("<HH", data, 4) if spec.bits <= 8 else (0, 0)
    m, exact = word & ~EXACT, bool(word & EXACT)
    nonfinite = (low, high) == (NONFINITE, NONFINITE)
    if m > k or exact != fits_exactly(spec, n, k, m) or not (nonfinite or low <= high <= 0x7F7F):
        raise WireError(f"a segment's header says {m} of {k} coordinates, exact={exact}, levels {low:04x}..{high:04x}")
    at = header_nbytes(spec)
    bits = 32 if exact else spec.bits
    size = _rates.packed_nbytes(m, bits)
    coded = np.frombuffer(data[at : at + size], np.uint8)
    if bits == 32:
        values = coded.view(np.float32)
    elif bits == 16:
        values = _casts.from_bits16(coded.view(np.uint16), "cast:bf16")
    else:
        codes = np.unpackbits(coded, bitorder="little")[: m * bits].reshape(m, bits).astype(np.int64) @ (
            1 << np.arange(bits)
        )
        count = 2 ** (bits - 1)
        table = np.full(count, np.nan, np.float32) if nonfinite else levels(low, high, count)
        values = np.concatenate([table, -table])[codes]
    at += size
    positions = _gaps.decode(data[at : at + _gaps.nbytes(spec.fraction, n, m)], n, m, spec.fraction)
    out = np.zeros(n, np.float32)
    out[positions] = values[: positions.size] * gain
    return out


def encode_randk(
    x: F32, spec: Spec, key: _random.KeyLike, index: int, k: int, gain: np.float32, encode: Callable[..., Any]
) -> bytes:
    """One segment."""
    chosen, width = _random.selection(key, index, x.size, k)
    if not np.isfinite(x).all():
        values = np.full(k, 0xFFFFFFFF, np.uint32).view(np.float32)
    else:
        factor = gain * width.astype(np.float32) if spec.scaled else gain
        values = np.clip(x[chosen] * factor, -FLT_MAX, FLT_MAX).astype(np.float32)
    if spec.bits <= 8:
        return bytes(encode(values, dense(spec), key, index).tobytes())
    if spec.bits == 32:
        return values.tobytes()
    u = magnitudes(values).astype(np.int64)
    if spec.scaled:
        groups = [_random.rounding_words(key, index + at) for at in range(0, k, 512)]
        noise = np.concatenate(groups)[:k].astype(np.int64) & 0xFFFF
    else:
        noise = 0x7FFF + (u >> 16 & 1)
    rounded = np.minimum(u + noise >> 16, 0x7F7F) | np.signbit(values).astype(np.int64) << 15
    return np.where(u < INFINITY, rounded, NONFINITE).astype("<u2").tobytes()


def decode_randk(
    data: bytes,
    spec: Spec,
    key: _random.KeyLike,
    index: int,
    n: int,
    k: int,
    gain: np.float32,
    decode: Callable[..., Any],
) -> F32:
    """One segment; NaN throughout if a value is NaN."""
    coded = np.frombuffer(data, np.uint8)
    if spec.bits <= 8:
        values = decode(coded, dense(spec), key, k, index, gain)
    elif spec.bits == 32:
        values = coded.view(np.float32) * gain
    else:
        values = _casts.from_bits16(coded.view(np.uint16), "cast:bf16") * gain
    if np.isnan(values).any():
        return np.full(n, np.nan, np.float32)
    out = np.zeros(n, np.float32)
    out[_random.selection(key, index, n, k)[0]] = values
    return out
