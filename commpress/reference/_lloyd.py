"""Lloyd-Max quantisers with and without a randomised Hadamard rotation (docs/wire-format.md, sections 4.3 and 4.4)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from commpress.codecs import _tables
from commpress.errors import WireError
from commpress.reference import _packing, _random, _rates, _sums

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
NONFINITE = 0xFFFFFFFF
FLT_MAX = np.finfo(np.float32).max
ENCODE_STRIDES = (256, 512, 1024, 2048, 16, 32, 64, 128, 1, 2, 4, 8)
LEVELS = {bits: np.array(values, np.float32) for bits, values in _tables.LEVELS.items()}
PRODUCT_LEVELS = {bits: np.array(values, np.float32) for bits, values in _tables.PRODUCT_LEVELS.items()}
THRESHOLDS = {bits: np.array(values, np.float32) for bits, values in _tables.THRESHOLDS.items()}
DECODE_STRIDES = (16, 32, 64, 128, 1, 2, 4, 8, 256, 512, 1024, 2048)


def hadamard(x: F32, strides: tuple[int, ...]) -> F32:
    """The unnormalised Sylvester transform of ``x`` (n,), by butterflies in the given order of strides."""
    for stride in strides:
        if stride < x.size:
            a, b = x.reshape(-1, 2, stride).transpose(1, 0, 2)
            x = np.stack([a + b, a - b], axis=1).reshape(-1)
    return x


def quantise(y: F32, inverse: np.float32, bits: int) -> tuple[U8, F32, F32]:
    """Codes and levels of y / deviation, and the terms v * PRODUCT_LEVEL of P."""
    v = y * (np.float32(_tables.PER_SIGMA[bits]) * inverse)
    code = np.searchsorted(THRESHOLDS[bits], v, side="right").astype(np.uint8)
    return code, LEVELS[bits][code], v * PRODUCT_LEVELS[bits][code]


def _brought_into_range(x: F32) -> tuple[F32, int, np.float32]:
    """(x 2^k, k, E): k is 0 unless the energy E of x is extreme."""
    e = _sums.energy(x)
    if 2.0**-60 <= e <= 2.0**100:
        return x, 0, e
    k = 1 - int(np.frexp(np.abs(x).max())[1])
    x = np.ldexp(x, k)
    return x, k, _sums.energy(x)


def encode(x: F32, spec: _rates.Spec, key: _random.KeyLike, index: int, gain: np.float32, rotate: bool) -> bytes:
    """A block of at most 4096 coordinates (to be rotated: a power of two from 128) that begins at ``index``."""
    coded = _rates.code_runs(spec, index, x.size)
    nbytes = sum(_rates.packed_nbytes(m, bits) for _, m, bits in coded)
    if not np.isfinite(x).all():
        return struct.pack("<I", NONFINITE) + bytes(nbytes)
    if spec.subsampled and not rotate:
        x = x[_random.selection(key, index, x.size, coded[-1][0] + coded[-1][1])[0]]
    if not x.any():
        return struct.pack("<I", 0) + bytes(nbytes)

    x, k, e = _brought_into_range(x)
    n = np.float32(x.size)
    twice = False
    if rotate:
        y = hadamard(x * _random.rotation_signs(key, _random.ROTATION_1, index, x.size), ENCODE_STRIDES)
        twice = bool((x * x).max() * np.float32(32) > e)
        if twice:
            y = hadamard(y * _random.rotation_signs(key, _random.ROTATION_2, index, x.size), ENCODE_STRIDES)
        s = np.sqrt(e * n) if twice else np.sqrt(e)
        c = (n * n if twice else n) if spec.centroid else None
    else:
        y, s, c = x, np.sqrt(e / n), np.float32(1)

    inverse = np.float32(1) / s
    packed, levels, products = [], [], []
    for at, m, bits in coded:
        code, level, product = quantise(y[at : at + m], inverse, bits)
        packed.append(_packing.pack(code, bits).tobytes())
        levels.append(level)
        products.append(product)
    level = np.concatenate(levels)
    if c is None and spec.subsampled:
        # Of all coordinates: over those sent alone it could be zero.
        p = _sums.natural(quantise(y, inverse, 1)[2]) * (np.float32(level.size) / n)
    else:
        p = _sums.natural(np.concatenate(products))
    if p == 0:
        return struct.pack("<I", 0) + bytes(nbytes)
    ratio = e / (s * p) if c is None else (s * p) / (c * _sums.natural(level * level))
    a = np.ldexp(ratio, -k) * gain
    if a == 0:
        return struct.pack("<I", 0) + bytes(nbytes)
    bits_of_a = int(np.float32(min(a, FLT_MAX)).view(np.uint32)) | (int(twice) << 31)
    return struct.pack("<I", bits_of_a) + b"".join(packed)


def scaled(z: F32, a: np.float32) -> F32:
    """a z, with finite values even where that overflows."""
    return np.where(z == 0, z, np.clip(z * a, -FLT_MAX, FLT_MAX))


def decode(
    data: U8, spec: _rates.Spec, key: _random.KeyLike, index: int, n: int, gain: np.float32, rotate: bool
) -> F32:
    """The inverse of :func:`encode` for a block of ``n`` coordinates. Raises WireError for an impossible scale."""
    (pattern,) = struct.unpack("<I", data[:4].tobytes())
    if pattern == 0:
        return np.zeros(n, np.float32)
    if pattern == NONFINITE:
        return np.full(n, np.nan, np.float32)
    twice = bool(pattern >> 31)
    if not 0 < pattern & 0x7FFFFFFF <= 0x7F7FFFFF or (twice and not rotate):
        raise WireError(f"block scale 0x{pattern:08x} is not a positive finite float")
    a = np.uint32(pattern & 0x7FFFFFFF).view(np.float32) * gain

    values, at = [], 4
    for _, m, bits in _rates.code_runs(spec, index, n):
        end = at + _rates.packed_nbytes(m, bits)
        codes = _packing.unpack(data[at:end], m, bits)
        values.append(LEVELS[bits][codes])
        at = end
    z = np.concatenate(values)
    if not rotate:
        if not spec.subsampled:
            return scaled(z, a)
        out = np.zeros(n, np.float32)
        out[_random.selection(key, index, n, z.size)[0]] = scaled(z, a)
        return out
    z = np.concatenate([z, np.zeros(n - z.size, np.float32)])
    if twice:
        z = hadamard(z, DECODE_STRIDES) * _random.rotation_signs(key, _random.ROTATION_2, index, n)
    return scaled(hadamard(z, DECODE_STRIDES) * _random.rotation_signs(key, _random.ROTATION_1, index, n), a)
