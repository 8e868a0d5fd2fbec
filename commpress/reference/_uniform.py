"""Stochastic uniform rounding (docs/wire-format.md, section 4.2)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _packing, _random, _rates

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
NONFINITE = 0xFFFF
LIST = 0x8000
BF16_MAX = float(np.float32(3.3895313892515355e38))
FLT_MAX = np.finfo(np.float32).max


def least_bfloat16(q: np.float32) -> float:
    """The least bfloat16 that is >= q (infinity if there is none)."""
    pattern = (int(q.view(np.uint32)) + 0xFFFF) >> 16
    return float(np.uint32(pattern << 16).view(np.float32))


def bits_of_bfloat16(t: float) -> int:
    """The 16-bit pattern of a bfloat16 value."""
    return int(np.float32(t).view(np.uint32)) >> 16


def step_and_inverse(a: np.float32, k: int, bits: int, gain: np.float32) -> tuple[float, np.float32]:
    """(t, inv) of a group whose largest absolute value, times 2^k, is ``a``. Both are 0 if t underflows."""
    levels = np.float32(2 ** (bits - 1) - 1 if bits > 1 else 1)
    top = levels if bits > 1 else np.float32(0.5)
    t = least_bfloat16(np.ldexp((a * gain) / levels, -k))
    if t == 0:
        return 0.0, np.float32(0)
    t = min(t, BF16_MAX)
    while not np.isfinite(levels * np.float32(t)):
        t = float(np.uint32(int(np.float32(t).view(np.uint32)) - 0x10000).view(np.float32))
    inv = gain / np.ldexp(np.float32(t), k)
    if bits == 1:
        inv = inv * np.float32(0.5)
    if a * inv > top:
        inv = top / a
    while a * inv > top:
        inv = np.nextafter(inv, np.float32(0))
    return t, inv


def encode_group(x: F32, bits: int, words: npt.NDArray[np.uint32], gain: np.float32) -> bytes:
    """One group: a bfloat16 scale and the packed codes of at most 512 values, which are rounded by ``words``."""
    empty = bytes(_rates.packed_nbytes(x.size, bits))
    listed = x * gain
    (where,) = np.nonzero(listed)
    if np.count_nonzero(x[::64]) <= 4 and 1 <= where.size <= len(empty) // 6 and np.isfinite(listed[where]).all():
        entries = b"".join(struct.pack("<Hf", i, listed[i]) for i in where)
        return struct.pack("<H", LIST + where.size) + entries + bytes(len(empty) - len(entries))
    if not np.isfinite(x).all():
        return struct.pack("<H", NONFINITE) + empty
    a = np.abs(x).max()
    if a == 0:
        return struct.pack("<H", 0) + empty
    k = 0
    if not 2.0**-60 <= a <= 2.0**100:
        k = 1 - int(np.frexp(a)[1])
        x, a = np.ldexp(x, k), np.ldexp(a, k)
    t, inv = step_and_inverse(a, k, bits, gain)
    if t == 0:
        return struct.pack("<H", 0) + empty
    fraction = 32 - bits
    scaled = x * (inv * np.float32(2.0**fraction))
    half = 2**31 if bits > 1 else 2**30
    total = np.rint(scaled).astype(np.int64) + (words & np.uint32(2**fraction - 1)).astype(np.int64) + half
    codes = ((total & 0xFFFFFFFF) >> fraction).astype(np.uint8)
    return struct.pack("<H", bits_of_bfloat16(t)) + _packing.pack(codes, bits).tobytes()


def decode_list(data: U8, count: int, n: int) -> F32:
    """The values of a group that lists those that are not zero. Raises WireError for an impossible list."""
    if 6 * count > data.size - 2:
        raise WireError(
            f"group scale 0x{LIST + count:04x} is a list of {count} values, too long for {data.size - 2} bytes"
        )
    out = np.zeros(n, np.float32)
    last = -1
    for position, value in struct.iter_unpack("<Hf", data[2 : 2 + 6 * count].tobytes()):
        if not last < position < n or value == 0 or not np.isfinite(value):
            raise WireError(f"impossible entry ({position}, {value}) in a group's list")
        out[position] = value
        last = position
    return out


def decode_group(data: U8, n: int, bits: int, gain: np.float32) -> F32:
    """The values of one group; NaN throughout if it was non-finite. Raises WireError for an impossible scale."""
    (pattern,) = struct.unpack("<H", data[:2].tobytes())
    if pattern == 0:
        return np.zeros(n, np.float32)
    if pattern == NONFINITE:
        return np.full(n, np.nan, np.float32)
    if pattern > LIST:
        return decode_list(data, pattern - LIST, n) * gain
    if pattern > 0x7F7F:
        raise WireError(f"group scale 0x{pattern:04x} is not a positive finite bfloat16")
    t = np.uint32(pattern << 16).view(np.float32) * gain
    codes = _packing.unpack(data[2:], n, bits).astype(np.float32)
    return (2 * codes - 1 if bits == 1 else codes - np.float32(2 ** (bits - 1))) * t


def encode(x: F32, spec: _rates.Spec, key: _random.KeyLike, index: int, gain: np.float32) -> bytes:
    """A block of at most 4096 coordinates, or the rest of a `hadamard+lloyd` payload."""
    coded = _rates.code_runs(spec, index, x.size)
    if spec.subsampled:
        poisoned = not np.isfinite(x).all()
        where, width = _random.selection(key, index, x.size, coded[-1][0] + coded[-1][1])
        x = np.clip(x[where] * width.astype(np.float32), -FLT_MAX, FLT_MAX)
        if poisoned:
            x = np.full_like(x, np.nan)  # it need not be among those selected
    out = []
    place = index % _rates.GROUP  # not 0 for a rest alone, which lies in one group
    for at, m, bits in coded:
        words = _random.rounding_words(key, index - place + at)[place : place + m]
        out.append(encode_group(x[at : at + m], bits, words, gain))
    return b"".join(out)


def decode(data: U8, spec: _rates.Spec, key: _random.KeyLike, index: int, n: int, gain: np.float32) -> F32:
    """The inverse of :func:`encode` for a block of ``n`` coordinates."""
    values, at = [], 0
    for _, m, bits in _rates.code_runs(spec, index, n):
        end = at + 2 + _rates.packed_nbytes(m, bits)
        values.append(decode_group(data[at:end], m, bits, gain))
        at = end
    joined = np.concatenate(values)
    if not spec.subsampled:
        return joined
    if any(np.isnan(v).all() for v in values):
        return np.full(n, np.nan, np.float32)
    out = np.zeros(n, np.float32)
    out[_random.selection(key, index, n, joined.size)[0]] = joined
    return out
