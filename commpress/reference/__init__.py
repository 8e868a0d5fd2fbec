"""The slow, readable twin of every kernel: the executable form of docs/wire-format.md, in numpy.

binary32 arithmetic with one rounding per operation in the order that the document gives, so its bytes are *the* bytes:
every kernel is tested against it. It loops over blocks; it is meant to be read, and to check others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commpress.reference import _twins
from commpress.reference._homomorphic import add as add_codes
from commpress.reference._homomorphic import decode as decode_sums
from commpress.reference._homomorphic import encode as encode_codes
from commpress.reference._homomorphic import parse as parse_homomorphic
from commpress.reference._homomorphic import scales as own_scales
from commpress.reference._random import KeyLike, philox
from commpress.reference._twins import decode_with_side

__all__ = [
    "KeyLike",
    "add_codes",
    "decode",
    "decode_sums",
    "decode_with_side",
    "encode",
    "encode_codes",
    "own_scales",
    "parse_homomorphic",
    "payload_nbytes",
    "philox",
]


def payload_nbytes(spec: object, numel: int, offset: int = 0, itemsize: int = 4) -> int:
    """Bytes of the payload of ``numel`` coordinates from index ``offset``, a multiple of 4096.

    ``itemsize`` is that of the dtype, which matters for `none` alone.
    """
    if str(spec) == "none":
        return numel * itemsize
    return _twins.twin_of(str(spec)).nbytes(numel, _twins.checked(offset))


def encode(x: npt.ArrayLike, spec: object, key: KeyLike, offset: int = 0, gain: float = 1.0) -> npt.NDArray[np.uint8]:
    """The payload of ``gain * x``.

    Args:
        x: values of any shape, taken as binary32 (but by `none`, which sends them as they are).
        spec: a codec or its text.
        key: the encode's key.
        offset: index of the first coordinate in its tensor, a multiple of 4096.
        gain: positive and finite.
    """
    if str(spec) != "none":
        return _twins.encode(x, spec, key, offset, gain)
    raw = np.asarray(x).reshape(-1)
    return np.frombuffer((raw if gain == 1 else (raw * raw.dtype.type(gain)).astype(raw.dtype)).tobytes(), np.uint8)


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
    if str(spec) != "none":
        return _twins.decode(payload, spec, key, numel, offset, gain)
    data = np.ascontiguousarray(np.asarray(payload, np.uint8))
    _twins.check_size(data, numel * np.dtype(dtype).itemsize)
    values = data.view(dtype)
    return values.copy() if gain == 1 else values * values.dtype.type(gain)
