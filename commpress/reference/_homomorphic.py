"""Codes whose sums are codes (docs/wire-format.md, section 4.11)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _dithered, _random

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
NONFINITE, LARGEST = 0xFFFF, 0x7F80
FLT_MAX = np.finfo(np.float32).max


@dataclasses.dataclass(frozen=True)
class Spec:
    """bits: of a worker's codes; block: coordinates of a scale; subtract: the decoder subtracts the dithers."""

    bits: int
    block: int
    subtract: bool


def parse(spec: str) -> Spec | None:
    """None for another family."""
    match = re.fullmatch(r"homomorphic:(\d)(?:,block=(\d+))?(,rounding=stochastic)?", spec)
    return Spec(int(match[1]), int(match[2] or 512), match[3] is None) if match else None


@dataclasses.dataclass(frozen=True)
class _Workers:
    """The key of all workers: ``key`` with sender 0."""

    seed: int
    step: int
    phase_bits: int
    tensor: int

    def words(self) -> tuple[int, int, int]:
        return self.step, self.phase_bits, self.tensor


def _split(key: _random.KeyLike) -> tuple[_Workers, int]:
    """The common key, and the worker's number."""
    step, sender_phase, tensor = key.words()
    return _Workers(key.seed, step, sender_phase & 0xFF, tensor), sender_phase >> 8


def scales(x: F32, spec: Spec) -> U16:
    """Of each block: the least bfloat16 that is not below its largest magnitude."""
    out = np.empty(-(-x.size // spec.block), np.uint16)
    for i in range(out.size):
        block = x[i * spec.block : (i + 1) * spec.block]
        if np.isfinite(block).all():
            out[i] = (int(np.abs(block).max().view(np.uint32)) + 0xFFFF) >> 16
        else:
            out[i] = NONFINITE
    return out


def _range(scale: int) -> tuple[np.float32, int]:
    """(2^e M, e)."""
    if scale >= 0x7180:
        return np.uint32((scale << 16) - (64 << 23)).view(np.float32), -64
    e = 80 if scale < 0x2180 else 0
    return np.ldexp(np.uint32(scale << 16).view(np.float32), e), e


def encode(x: F32, agreed: U16, spec: Spec, key: _random.KeyLike, index: int) -> bytes:
    """The codes of worker ``key.sender``."""
    common, worker = _split(key)
    first = _dithered.words(common, _random.DITHER, index, x.size)
    stride = _dithered.words(common, _random.DITHER_STRIDE, index, x.size)
    dither = _dithered.dithers(first + worker * stride)
    half = (2**spec.bits - 1) << (_dithered.DIGITS - 1)
    codes = np.zeros(x.size, np.int64)
    for i, scale in enumerate(agreed.tolist()):
        here = slice(i * spec.block, (i + 1) * spec.block)
        if scale == 0 or scale == NONFINITE:
            continue
        m, e = _range(scale)
        factor = np.float32(half) / m
        while m * factor > np.float32(half):
            factor = np.nextafter(factor, np.float32(0))
        fixed = np.rint(np.ldexp(x[here], e) * factor).astype(np.int64)
        codes[here] = (fixed + half + dither[here]) >> _dithered.DIGITS
    return _dithered.pack(codes, spec.bits)


def add(codes: Sequence[npt.NDArray[np.uint8]], spec: Spec, numel: int) -> bytes:
    """The sums of the workers' codes."""
    width = spec.bits + (len(codes) - 1).bit_length()
    total = sum((_dithered.unpack(one, numel, spec.bits) for one in codes), np.zeros(numel, np.int64))
    return _dithered.pack(total, width)


def decode(
    sums: npt.NDArray[np.uint8],
    agreed: U16,
    spec: Spec,
    key: _random.KeyLike,
    workers: int,
    numel: int,
    index: int,
    gain: np.float32,
) -> F32:
    """``gain`` times the sum of the values of ``workers`` workers, the first of which is ``key.sender``."""
    if ((agreed > LARGEST) & (agreed != NONFINITE)).any():
        raise WireError("a scale is neither a bfloat16 magnitude nor the mark of a block that is not finite")
    code = _dithered.unpack(sums, numel, spec.bits + (workers - 1).bit_length())
    level = (2 * code - workers * (2**spec.bits - 1)).astype(np.float32)
    if spec.subtract:
        common, worker = _split(key)
        first = _dithered.words(common, _random.DITHER, index, numel)
        stride = _dithered.words(common, _random.DITHER_STRIDE, index, numel)
        dither = sum(
            (_dithered.dithers(first + i * stride) for i in range(worker, worker + workers)), np.zeros(numel, np.int64)
        )
        fine = (2 * dither - workers * (_dithered.ONE - 1)).astype(np.float32)
        level = level - fine * np.float32(1 / _dithered.ONE)
    out = np.empty(numel, np.float32)
    for i, scale in enumerate(agreed.tolist()):
        here = slice(i * spec.block, (i + 1) * spec.block)
        if scale == 0 or scale == NONFINITE:
            out[here] = np.nan if scale else 0
            continue
        m, e = _range(scale)
        values = level[here] * (m / np.float32(2**spec.bits - 1) * gain)
        out[here] = np.clip(np.ldexp(values, -e), -FLT_MAX, FLT_MAX) if e else values
    return out
