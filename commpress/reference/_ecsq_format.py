"""Layout, sizes and classes of the segments of `ecsq`, `ecdq` and `trellis` (docs/wire-format.md, section 4.8)."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import numpy.typing as npt

from commpress.codecs import _entropy_tables as tables
from commpress.reference import _entropy_model as model
from commpress.reference import _lloyd, _random

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SEGMENT, BLOCK, ROTATION, MILLION = 1 << 23, 512, 4096, 1_000_000
EXTRA = 48  # bytes of a segment beyond its rate
SUBSTREAM_BLOCKS = 32  # a substream's are a multiple
ENTRY = 14  # bytes for each substream but the first
CLASS_WIDTH, MOST_CLASSES, FLOOR = 6, 56, -48  # in 1/16 octave; -; level in steps under which classes are one
FINEST = 36800  # a class is at most so many 1/2048 octaves above the step, so that it has at most 16 raw bits
MODE_ZERO, MODE_CODED, MODE_RAW, MODE_TRELLIS, MODE_NAN = 0, 1, 2, 3, 255
FLT_MAX = float(np.finfo(np.float32).max)
DITHER = 5  # purpose
_SPEC = re.compile(
    r"(hadamard\+)?(ecsq|ecdq|trellis):(\d+(?:\.\d{1,6})?)(,states=\d+)?(,substream=\d+)?(,scale=(?:centroid|unbiased))?"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """``rate`` in millionths of a bit per coordinate."""

    rate: int
    rotate: bool
    dither: bool
    centroid: bool
    states: int = 0  # of a trellis, or 0
    substream: int = 0  # bytes of a segment for each, about, or 0


def parse(text: str) -> Spec | None:
    """The spec of a codec's text, None for another family."""
    match = _SPEC.fullmatch(text)
    if match is None:
        return None
    whole, _, decimals = match[3].partition(".")
    rate = int(whole) * MILLION + int(decimals.ljust(6, "0") or 0)
    if not 50_000 <= rate <= 8 * MILLION:
        raise ValueError(f"rate outside 0.05..8 bits: {text!r}")
    states = int((match[4] or ",states=8").partition("=")[2]) if match[2] == "trellis" else 0
    substream = int((match[5] or ",substream=0").partition("=")[2]) << 10
    return Spec(rate, match[1] is not None, match[2] == "ecdq", match[6] == ",scale=centroid", states, substream)


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


def lanes_of(nbytes: int) -> int:
    """How many interleaved coders a segment of this size has."""
    return 32 if nbytes >= 1 << 15 else 4 if nbytes >= 1 << 10 else 1


def substreams(spec: Spec, n: int) -> list[tuple[int, int]]:
    """(first, last and one) of the blocks of each substream of a segment."""
    blocks = -(-n // BLOCK)
    wanted = max(segment_nbytes(spec.rate, n) // spec.substream, 1) if spec.substream else 1
    each = blocks if wanted == 1 else -(-blocks // (wanted * SUBSTREAM_BLOCKS)) * SUBSTREAM_BLOCKS
    return [(first, min(first + each, blocks)) for first in range(0, blocks, each)]


def rotations(n: int) -> list[tuple[int, int]]:
    """(start, size): whole blocks of 4096, then powers of two down to 128; a rest is not rotated."""
    out = [(at, ROTATION) for at in range(0, n - ROTATION + 1, ROTATION)]
    at, size = n // ROTATION * ROTATION, ROTATION // 2
    while size >= 128:
        if n - at >= size:
            out.append((at, size))
            at += size
        size //= 2
    return out


def rotated(x: F32, key: _random.KeyLike, index: int) -> F32:
    x = x.copy()
    for at, size in rotations(x.size):
        signs = _random.rotation_signs(key, _random.ROTATION_1, index + at, size)
        x[at : at + size] = _lloyd.hadamard(x[at : at + size] * signs, _lloyd.ENCODE_STRIDES) * norm_of(size)
    return x


def unrotated(z: F32, key: _random.KeyLike, index: int) -> F32:
    for at, size in rotations(z.size):
        signs = _random.rotation_signs(key, _random.ROTATION_1, index + at, size)
        z[at : at + size] = _lloyd.hadamard(z[at : at + size], _lloyd.DECODE_STRIDES) * signs * norm_of(size)
    return z


def norm_of(size: int) -> np.float32:
    return np.float32(1) / np.sqrt(np.float32(size))


def dither_of(key: _random.KeyLike, index: int, n: int) -> I64:
    """The dither of each coordinate in 2^-24 step, in [-2^23, 2^23)."""
    rows = [_random.group_words(key, DITHER, index + at) for at in range(0, n, BLOCK)]
    return (np.concatenate(rows)[:n] >> np.uint32(8)).astype(np.int64) - (1 << 23)


def level_of(mean: np.float32) -> int:
    """floor(16 log2(mean)) of a positive float."""
    bits = int(mean.view(np.uint32))
    return 16 * ((bits >> 23) - 127) + int(np.searchsorted(tables.LEVEL, bits & 0x7FFFFF, side="right")) - 1


def cells_of(w: I64) -> I64:
    return np.minimum(np.abs(w) >> 20, model.CELLS - 1)


def bounded(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(x, -FLT_MAX, FLT_MAX)
