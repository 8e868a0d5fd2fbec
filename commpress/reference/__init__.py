"""The slow, readable twin of every kernel: the executable form of docs/wire-format.md, in numpy.

binary32 arithmetic with one rounding per operation in the order that the document gives, so its bytes are *the* bytes:
every kernel is tested against it. It loops over blocks; it is meant to be read, and to check others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _bitshift, _casts, _ecsq, _lloyd, _rates, _sparse, _uniform
from commpress.reference._random import KeyLike, philox

__all__ = ["KeyLike", "decode", "encode", "payload_nbytes", "philox"]


def payload_nbytes(spec: object, numel: int, offset: int = 0, itemsize: int = 4) -> int:
    """Bytes of the payload of ``numel`` coordinates from index ``offset``, a multiple of 4096.

    ``itemsize`` is that of the dtype, which matters for `none` alone.
    """
    sparse = _sparse.parse(str(spec))
    if sparse:
        return sum(nbytes for *_, nbytes in _sparse.segments(sparse, numel, offset))
    trellis = _bitshift.parse(str(spec))
    if trellis is not None:
        return _bitshift.payload_nbytes(trellis, numel, _checked(offset))
    entropy = _ecsq.parse(str(spec))
    if entropy is not None:
        return _ecsq.payload_nbytes(entropy, numel, _checked(offset))
    return _rates.payload_nbytes(_rates.parse(str(spec)), numel, _checked(offset), itemsize)


def encode(x: npt.ArrayLike, spec: object, key: KeyLike, offset: int = 0, gain: float = 1.0) -> npt.NDArray[np.uint8]:
    """The payload of ``gain * x``.

    Args:
        x: values of any shape, taken as binary32 (but by `none`, which sends them as they are).
        spec: a codec or its text.
        key: the encode's key.
        offset: index of the first coordinate in its tensor, a multiple of 4096.
        gain: positive and finite.
    """
    sparse = _sparse.parse(str(spec))
    if sparse:
        return _encode_sparse(np.ascontiguousarray(np.asarray(x, np.float32).reshape(-1)), sparse, key, offset, gain)
    trellis, index, factor = _bitshift.parse(str(spec)), _checked(offset), np.float32(gain)
    if trellis is not None:
        with np.errstate(all="ignore"):
            flat = np.ascontiguousarray(np.asarray(x, np.float32).reshape(-1))
            return np.frombuffer(_bitshift.encode(flat, trellis, key, index, factor), np.uint8)
    entropy = _ecsq.parse(str(spec))
    if entropy is not None:
        with np.errstate(all="ignore"):
            flat = np.ascontiguousarray(np.asarray(x, np.float32).reshape(-1))
            return np.frombuffer(_ecsq.encode(flat, entropy, key, index, factor), np.uint8)
    parsed = _rates.parse(str(spec))
    if parsed.family == "none":
        raw = np.asarray(x).reshape(-1)
        return np.frombuffer((raw if gain == 1 else (raw * raw.dtype.type(gain)).astype(raw.dtype)).tobytes(), np.uint8)
    with np.errstate(all="ignore"):
        flat = np.ascontiguousarray(np.asarray(x, np.float32).reshape(-1))
        if parsed.family.startswith("cast:"):
            return np.frombuffer(_casts.to_bits16(flat * factor, parsed.family).tobytes(), np.uint8)
        out = []
        for kind, i, n, _ in _rates.pieces(parsed, flat.size, index):
            block = flat[i - index : i - index + n]
            if kind == "uniform":
                out.append(_uniform.encode(block, parsed, key, i, factor))
            else:
                out.append(_lloyd.encode(block, parsed, key, i, factor, rotate=kind == "hadamard"))
        return np.frombuffer(b"".join(out), np.uint8)


def decode(
    payload: npt.ArrayLike,
    spec: object,
    key: KeyLike,
    numel: int,
    offset: int = 0,
    gain: float = 1.0,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[np.float32]:
    """The ``numel`` values of a payload, times ``gain``; ``dtype`` is that of `none`'s values.

    Raises:
        WireError: the payload's size is wrong or a scale is impossible.
    """
    sparse = _sparse.parse(str(spec))
    if sparse:
        return _decode_sparse(np.ascontiguousarray(np.asarray(payload, np.uint8)), sparse, key, numel, offset, gain)
    trellis, index, factor = _bitshift.parse(str(spec)), _checked(offset), np.float32(gain)
    data = np.ascontiguousarray(np.asarray(payload, np.uint8))
    want = payload_nbytes(spec, numel, index, np.dtype(dtype).itemsize)
    if data.ndim != 1 or data.size != want:
        raise WireError(f"payload of shape {data.shape}, expected {want} bytes")
    if trellis is not None:
        with np.errstate(all="ignore"):
            return _bitshift.decode(data, trellis, key, numel, index, factor)
    entropy = _ecsq.parse(str(spec))
    if entropy is not None:
        with np.errstate(all="ignore"):
            return _ecsq.decode(data, entropy, key, index, numel, float(factor))
    parsed = _rates.parse(str(spec))
    with np.errstate(all="ignore"):
        if parsed.family == "none":
            values = data.view(dtype)
            return values.copy() if gain == 1 else values * values.dtype.type(gain)
        if parsed.family.startswith("cast:"):
            return _casts.from_bits16(data.view(np.uint16), parsed.family) * factor
        out, at = [np.empty(0, np.float32)], 0
        for kind, i, n, nbytes in _rates.pieces(parsed, numel, index):
            block = data[at : at + nbytes]
            if kind == "uniform":
                out.append(_uniform.decode(block, parsed, key, i, n, factor))
            else:
                out.append(_lloyd.decode(block, parsed, key, i, n, factor, rotate=kind == "hadamard"))
            at += nbytes
        return np.concatenate(out)


def _encode_sparse(
    x: npt.NDArray[np.float32], spec: _sparse.Spec, key: KeyLike, offset: int, gain: float
) -> npt.NDArray[np.uint8]:
    out, factor = [], np.float32(gain)
    with np.errstate(all="ignore"):
        for i, n, k, _ in _sparse.segments(spec, x.size, offset):
            segment = x[i - offset : i - offset + n]
            if spec.random:
                out.append(_sparse.encode_randk(segment, spec, key, i, k, factor, encode))
            else:
                out.append(_sparse.encode_topk(segment, spec, k, factor))
    return np.frombuffer(b"".join(out), np.uint8)


def _decode_sparse(
    data: npt.NDArray[np.uint8], spec: _sparse.Spec, key: KeyLike, numel: int, offset: int, gain: float
) -> npt.NDArray[np.float32]:
    want = sum(nbytes for *_, nbytes in _sparse.segments(spec, numel, offset))
    if data.ndim != 1 or data.size != want:
        raise WireError(f"payload of shape {data.shape}, expected {want} bytes")
    out, at, factor = [np.empty(0, np.float32)], 0, np.float32(gain)
    with np.errstate(all="ignore"):
        for i, n, k, nbytes in _sparse.segments(spec, numel, offset):
            segment = data[at : at + nbytes].tobytes()
            if spec.random:
                out.append(_sparse.decode_randk(segment, spec, key, i, n, k, factor, decode))
            else:
                out.append(_sparse.decode_topk(segment, spec, n, k, factor))
            at += nbytes
    return np.concatenate(out)


def _checked(offset: int) -> int:
    if offset < 0 or offset % _rates.BLOCK:
        raise ValueError(f"offset {offset} is not a multiple of {_rates.BLOCK}")
    return offset
