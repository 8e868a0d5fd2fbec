"""PTX types as numpy dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._errors import UnsupportedError

UNSIGNED: dict[int, np.dtype[Any]] = {
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
SIGNED: dict[int, np.dtype[Any]] = {
    8: np.dtype(np.int8),
    16: np.dtype(np.int16),
    32: np.dtype(np.int32),
    64: np.dtype(np.int64),
}
FLOAT: dict[int, np.dtype[Any]] = {16: np.dtype(np.float16), 32: np.dtype(np.float32), 64: np.dtype(np.float64)}
PREDICATE = np.dtype(bool)

_KINDS: dict[str, dict[int, np.dtype[Any]]] = {"u": UNSIGNED, "b": UNSIGNED, "s": SIGNED, "f": FLOAT}
# Stored in registers as bits; the arithmetic on them is in _floats.py.
_PACKED = {"bf16": UNSIGNED[16], "bf16x2": UNSIGNED[32], "f16x2": UNSIGNED[32]}

_TYPES: dict[str, np.dtype[Any]] = {
    f"{kind}{bits}": dtype for kind, table in _KINDS.items() for bits, dtype in table.items()
}
_TYPES.update(_PACKED, pred=PREDICATE)


def is_type(modifier: str) -> bool:
    return modifier in _TYPES


def dtype_of(name: str) -> np.dtype:
    """The dtype of a PTX type such as ``u32`` or ``pred``.

    Raises:
        UnsupportedError: there is none.
    """
    try:
        return _TYPES[name]
    except KeyError:
        raise UnsupportedError(f"the type .{name}") from None


def bits_of(name: str) -> int:
    """Width of a PTX type in bits; a predicate has 1."""
    return 1 if name == "pred" else dtype_of(name).itemsize * 8


def storage_of(name: str) -> np.dtype:
    """What a register of that type is kept in: bool, or an unsigned integer of its width."""
    return PREDICATE if name == "pred" else UNSIGNED[bits_of(name)]
