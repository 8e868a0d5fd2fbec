"""`ecsq`, `ecdq` and `trellis`: entropy-coded quantisers at a hard budget (docs/wire-format.md, sections 4.8 and 4.10)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.reference import _ecsq_decode, _random, _trellis_decode, _trellis_encode
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_encode import Encoder
from commpress.reference._ecsq_format import (
    F32,
    FLT_MAX,
    MODE_NAN,
    MODE_RAW,
    MODE_TRELLIS,
    MODE_ZERO,
    Spec,
    parse,
    payload_nbytes,
    segment_nbytes,
    segments,
)
from commpress.reference._rans import NAN, ZERO

__all__ = ["Spec", "decode", "encode", "parse", "payload_nbytes"]


def encode(x: F32, spec: Spec, key: _random.KeyLike, offset: int, gain: np.float32) -> bytes:
    """The payload of ``gain * x``."""
    parts = [(x[i - offset : i - offset + n], i) for i, n in segments(x.size, offset)]
    return b"".join(_segment(part, spec, key, i, gain) for part, i in parts)


def decode(data: npt.NDArray[np.uint8], spec: Spec, key: _random.KeyLike, offset: int, numel: int, gain: float) -> F32:
    """The values of a payload. Raises WireError for a header that no encoder writes."""
    out, at = [np.empty(0, np.float32)], 0
    for i, n in segments(numel, offset):
        nbytes = segment_nbytes(spec.rate, n)
        out.append(_decoded(data[at : at + nbytes].tobytes(), spec, key, i, n, gain))
        at += nbytes
    return np.concatenate(out)


def _segment(x: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32) -> bytes:
    source = Classes(x, spec, key, index, gain)
    if source.nbytes >= 1 + 4 * source.n:
        y = x * gain
        y = np.where(np.isfinite(x), np.clip(y, -FLT_MAX, FLT_MAX), x).astype(np.float32)
        return (bytes([MODE_RAW]) + y.tobytes()).ljust(source.nbytes, b"\0")
    if not source.prepare():
        mode = MODE_ZERO if all(k == ZERO for k in source.kinds) else MODE_NAN
        return bytes([mode]).ljust(source.nbytes, b"\0")
    payload = _trellis_encode.payload(source) if spec.states else None
    payload = payload or Encoder(source).payload()
    mode = MODE_NAN if NAN in source.kinds else MODE_ZERO
    return payload or bytes([mode]).ljust(source.nbytes, b"\0")


def _decoded(data: bytes, spec: Spec, key: _random.KeyLike, index: int, n: int, gain: float) -> F32:
    if spec.states and data[0] == MODE_TRELLIS and len(data) >= _trellis_decode.LEAST_NBYTES:
        return _trellis_decode.decode(data, spec, key, index, n, gain)
    return _ecsq_decode.decode(data, spec, key, index, n, gain)
