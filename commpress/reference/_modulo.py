"""The modulo code for side information (docs/wire-format.md, section 4.12)."""

from __future__ import annotations

import dataclasses
import re
import struct

import numpy as np
import numpy.typing as npt

from commpress.codecs._modulo import modulo_constants
from commpress.errors import WireError
from commpress.reference import _dithered, _random, _sums
from commpress.reference._rates import BLOCK

F32 = npt.NDArray[np.float32]
NONFINITE, INFINITY = 0xFFFFFFFF, 0x7F800000
FLT_MAX = np.finfo(np.float32).max


@dataclasses.dataclass(frozen=True)
class Spec:
    """The three constants are binary32."""

    bits: int
    step: np.float32
    center: np.float32
    shrink: np.float32


def parse(spec: str) -> Spec | None:
    """None for another family."""
    match = re.fullmatch(r"modulo:(\d),rho=([\d.]+)", spec)
    if not match:
        return None
    bits, step, center, shrink = modulo_constants(int(match[1]), round(float(match[2]) * 1e6))
    return Spec(bits, np.float32(step), np.float32(center), np.float32(shrink))


def _root_mean_square(x: F32) -> tuple[F32, np.float32, int]:
    """(2^e x, its root mean square, e), finite x that is not all zeros."""
    e, energy = 0, _sums.natural(x * x)
    if not 2.0**-60 <= energy <= 2.0**100:
        e = 1 - int(np.frexp(np.abs(x).max())[1])
        x = np.ldexp(x, e)
        energy = _sums.natural(x * x)
    return x, np.sqrt(energy / np.float32(x.size)), e


def _wrapped(x: F32, bits: int) -> F32:
    return x - np.rint(x * np.float32(2.0**-bits)) * np.float32(2**bits)


def encode(x: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32) -> bytes:
    """The payload of ``gain * x``."""
    out = []
    for at in range(0, x.size, BLOCK):
        block = x[at : at + BLOCK]
        codes, scale = np.zeros(block.size, np.int64), 0
        if not np.isfinite(block).all():
            scale = NONFINITE
        elif block.any():
            y, rms, e = _root_mean_square(block)
            step = rms * spec.step
            scale = min(int((np.ldexp(step, -e) * gain).view(np.uint32)), INFINITY - 1)
            if scale:
                z = _wrapped(y * (np.float32(1) / step), spec.bits)
                fixed = np.rint(z * np.float32(_dithered.ONE)).astype(np.int64)
                dither = _dithered.dithers(_dithered.words(key, _random.DITHER, index + at, block.size))
                codes = (fixed + dither) >> _dithered.DIGITS & (2**spec.bits - 1)
        out.append(struct.pack("<I", scale) + _dithered.pack(codes, spec.bits))
    return b"".join(out)


def decode(
    data: npt.NDArray[np.uint8], side: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32
) -> F32:
    """``gain`` times the values, found with ``side``. Raises WireError."""
    out, begin = np.empty(side.size, np.float32), 0
    for at in range(0, side.size, BLOCK):
        known = side[at : at + BLOCK]
        (scale,) = struct.unpack("<I", data[begin : begin + 4].tobytes())
        end = begin + 4 + _dithered.nbytes(known.size, spec.bits)
        codes = _dithered.unpack(data[begin + 4 : end], known.size, spec.bits)
        begin = end
        if scale != NONFINITE and scale >= INFINITY:
            raise WireError(f"block scale 0x{scale:08x} is not a non-negative finite float")
        here = out[at : at + BLOCK]
        if scale == 0:
            here[:] = 0
        elif scale == NONFINITE or not np.isfinite(known).all():
            here[:] = np.nan
        else:
            center = np.float32(0)
            if known.any():
                known, rms, _ = _root_mean_square(known)
                center = spec.center / rms
            dither = _dithered.dithers(_dithered.words(key, _random.DITHER, index + at, known.size))
            fine = (2 * dither - (_dithered.ONE - 1)).astype(np.float32) * np.float32(0.5 / _dithered.ONE)
            sent, guess = codes.astype(np.float32) - fine, known * center
            values = guess + _wrapped(sent - guess, spec.bits) * spec.shrink
            here[:] = np.clip(values * (np.uint32(scale).view(np.float32) * gain), -FLT_MAX, FLT_MAX)
    return out
