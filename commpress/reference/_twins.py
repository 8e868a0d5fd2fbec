"""Which twin defines a codec, and how it takes a payload apart: one class for each way."""

from __future__ import annotations

import abc
from typing import final

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import (
    _bitshift,
    _casts,
    _dithered,
    _ecsq,
    _formats,
    _homomorphic,
    _lloyd,
    _modulo,
    _rates,
    _sparse,
    _uniform,
)
from commpress.reference._random import KeyLike

Values = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Twin(abc.ABC):
    """A codec of binary32 values. ``index``: of the first coordinate in its tensor, a multiple of 4096; ``gain``: a factor."""

    @abc.abstractmethod
    def nbytes(self, numel: int, index: int) -> int:
        """Of a payload."""

    @abc.abstractmethod
    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        """The payload of ``gain * x``, x of shape (numel,)."""

    @abc.abstractmethod
    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        """``gain`` times the values; ``data`` has the right size. Raises WireError."""


@final
class _Cast(Twin):
    def __init__(self, family: str) -> None:
        self._family = family

    def nbytes(self, numel: int, index: int) -> int:
        return 2 * numel

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        return _casts.to_bits16(x * gain, self._family).tobytes()

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        return _casts.from_bits16(data.view(np.uint16), self._family) * gain


@final
class _Blocks(Twin):
    """uniform, lloyd, hadamard+lloyd."""

    def __init__(self, parsed: _rates.Spec) -> None:
        self._parsed = parsed

    def nbytes(self, numel: int, index: int) -> int:
        return _rates.payload_nbytes(self._parsed, numel, index, 4)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        out = []
        for kind, i, n, _ in _rates.pieces(self._parsed, x.size, index):
            block = x[i - index : i - index + n]
            if kind == "uniform":
                out.append(_uniform.encode(block, self._parsed, key, i, gain))
            else:
                out.append(_lloyd.encode(block, self._parsed, key, i, gain, rotate=kind == "hadamard"))
        return b"".join(out)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        out, at = [np.empty(0, np.float32)], 0
        for kind, i, n, nbytes in _rates.pieces(self._parsed, numel, index):
            block = data[at : at + nbytes]
            if kind == "uniform":
                out.append(_uniform.decode(block, self._parsed, key, i, n, gain))
            else:
                out.append(_lloyd.decode(block, self._parsed, key, i, n, gain, rotate=kind == "hadamard"))
            at += nbytes
        return np.concatenate(out)


@final
class _Sparse(Twin):
    def __init__(self, spec: _sparse.Spec) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return sum(nbytes for *_, nbytes in _sparse.segments(self._spec, numel, index))

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        out = []
        for i, n, k, _ in _sparse.segments(self._spec, x.size, index):
            segment = x[i - index : i - index + n]
            if self._spec.random:
                out.append(_sparse.encode_randk(segment, self._spec, key, i, k, gain, encode))
            else:
                out.append(_sparse.encode_topk(segment, self._spec, k, gain))
        return b"".join(out)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        out, at = [np.empty(0, np.float32)], 0
        for i, n, k, nbytes in _sparse.segments(self._spec, numel, index):
            segment = data[at : at + nbytes].tobytes()
            if self._spec.random:
                out.append(_sparse.decode_randk(segment, self._spec, key, i, n, k, gain, decode))
            else:
                out.append(_sparse.decode_topk(segment, self._spec, n, k, gain))
            at += nbytes
        return np.concatenate(out)


@final
class _Format(Twin):
    def __init__(self, spec: _formats.Format) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return _formats.payload_nbytes(self._spec, numel)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        return b"".join(
            _formats.encode(x[at : at + _rates.BLOCK], self._spec, key, index + at, gain)
            for at in range(0, x.size, _rates.BLOCK)
        )

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        out, at = [np.empty(0, np.float32)], 0
        for begin in range(0, numel, _rates.BLOCK):
            n = min(_rates.BLOCK, numel - begin)
            nbytes = self.nbytes(n, index + begin)
            out.append(_formats.decode(data[at : at + nbytes], self._spec, n, gain))
            at += nbytes
        return np.concatenate(out)


@final
class _Trellis(Twin):
    def __init__(self, spec: _bitshift.Spec) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return _bitshift.payload_nbytes(self._spec, numel, index)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        return _bitshift.encode(x, self._spec, key, index, gain)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        return _bitshift.decode(data, self._spec, key, numel, index, gain)


@final
class _Entropy(Twin):
    def __init__(self, spec: _ecsq.Spec) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return _ecsq.payload_nbytes(self._spec, numel, index)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        return _ecsq.encode(x, self._spec, key, index, gain)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        return _ecsq.decode(data, self._spec, key, index, numel, float(gain))


@final
class _Homomorphic(Twin):
    def __init__(self, spec: _homomorphic.Spec) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return 2 * -(-numel // self._spec.block) + _dithered.nbytes(numel, self._spec.bits)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        most = np.finfo(np.float32).max
        x = np.where(np.isfinite(x), np.clip(x * gain, -most, most), x)
        scales = _homomorphic.scales(x, self._spec)
        return scales.tobytes() + _homomorphic.encode(x, scales, self._spec, key, index)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        at = 2 * -(-numel // self._spec.block)
        scales = np.frombuffer(data[:at].tobytes(), "<u2")
        return _homomorphic.decode(data[at:], scales, self._spec, key, 1, numel, index, gain)


@final
class _Modulo(Twin):
    def __init__(self, spec: _modulo.Spec) -> None:
        self._spec = spec

    def nbytes(self, numel: int, index: int) -> int:
        return 4 * -(-numel // _rates.BLOCK) + _dithered.nbytes(numel, self._spec.bits)

    def encode(self, x: Values, key: KeyLike, index: int, gain: np.float32) -> bytes:
        return _modulo.encode(x, self._spec, key, index, gain)

    def decode(self, data: Bytes, key: KeyLike, numel: int, index: int, gain: np.float32) -> Values:
        raise WireError("a modulo code is decoded with side information: commpress.reference.decode_with_side")


def twin_of(spec: str) -> Twin:
    """The twin of every codec but `none`."""
    homomorphic = _homomorphic.parse(spec)
    if homomorphic is not None:
        return _Homomorphic(homomorphic)
    modulo = _modulo.parse(spec)
    if modulo is not None:
        return _Modulo(modulo)
    sparse = _sparse.parse(spec)
    if sparse:
        return _Sparse(sparse)
    trellis = _bitshift.parse(spec)
    if trellis is not None:
        return _Trellis(trellis)
    entropy = _ecsq.parse(spec)
    if entropy is not None:
        return _Entropy(entropy)
    if _formats.knows(spec):
        return _Format(_formats.parse(spec))
    parsed = _rates.parse(spec)
    return _Cast(parsed.family) if parsed.family.startswith("cast:") else _Blocks(parsed)


def encode(x: npt.ArrayLike, spec: object, key: KeyLike, offset: int = 0, gain: float = 1.0) -> Bytes:
    """The payload of ``gain * x``, under any codec but `none`."""
    flat = np.ascontiguousarray(np.asarray(x, np.float32).reshape(-1))
    with np.errstate(all="ignore"):
        return np.frombuffer(twin_of(str(spec)).encode(flat, key, checked(offset), np.float32(gain)), np.uint8)


def decode(
    payload: npt.ArrayLike, spec: object, key: KeyLike, numel: int, offset: int = 0, gain: float = 1.0
) -> Values:
    """The values of a payload, times ``gain``, under any codec but `none`. Raises WireError."""
    twin, data = twin_of(str(spec)), np.ascontiguousarray(np.asarray(payload, np.uint8))
    check_size(data, twin.nbytes(numel, checked(offset)))
    with np.errstate(all="ignore"):
        return twin.decode(data, key, numel, offset, np.float32(gain))


def decode_with_side(
    payload: npt.ArrayLike, side: npt.ArrayLike, spec: object, key: KeyLike, offset: int = 0, gain: float = 1.0
) -> Values:
    """The values of a payload of `modulo` with the side information ``side`` of shape (numel,), times ``gain``. Raises WireError."""
    known, data = np.ascontiguousarray(side, np.float32), np.ascontiguousarray(np.asarray(payload, np.uint8))
    code = _modulo.parse(str(spec))
    if code is None:
        raise ValueError(f"{spec} decodes without side information")
    check_size(data, _Modulo(code).nbytes(known.size, checked(offset)))
    with np.errstate(all="ignore"):
        return _modulo.decode(data, known, code, key, offset, np.float32(gain))


def check_size(data: Bytes, nbytes: int) -> None:
    """Raises WireError unless ``data`` is 1-D and has so many bytes."""
    if data.ndim != 1 or data.size != nbytes:
        raise WireError(f"payload of shape {data.shape}, expected {nbytes} bytes")


def checked(offset: int) -> int:
    """``offset``, a multiple of 4096."""
    if offset < 0 or offset % _rates.BLOCK:
        raise ValueError(f"offset {offset} is not a multiple of {_rates.BLOCK}")
    return offset
