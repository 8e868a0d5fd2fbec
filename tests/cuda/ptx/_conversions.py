"""cvt: conversions between numbers of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ._errors import UnsupportedError
from ._floats import flush, from_bfloat16, to_bfloat16
from ._integers import bit_length
from ._kernel import Instruction
from ._types import SIGNED, UNSIGNED, dtype_of, is_type

Function = Callable[..., np.ndarray]

_TO_INTEGER: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
_HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def types_of(one: Instruction) -> tuple[str, str]:
    """The types of the result and of the operand."""
    kinds = [modifier for modifier in one.modifiers if is_type(modifier)]
    if len(kinds) != 2:
        raise UnsupportedError(one.name)
    return kinds[0], kinds[1]


def function(one: Instruction) -> Function:
    """What a cvt computes, on arrays of its operand's type.

    Raises:
        UnsupportedError: the conversion is not known.
    """
    target, source = types_of(one)
    modifiers = set(one.modifiers) - {target, source}
    if unknown := modifiers - {*_TO_INTEGER, "rn", "rz", "sat", "ftz", "relu"}:
        raise UnsupportedError(f"{one.name}: .{sorted(unknown)[0]}")
    if "relu" in modifiers:
        raise UnsupportedError(one.name)
    if target in _HALVES or source in _HALVES:
        return _half(one, target, source)
    to, origin = dtype_of(target), dtype_of(source)
    whole = next((_TO_INTEGER[name] for name in _TO_INTEGER if name in modifiers), None)
    flushed, saturated = "ftz" in modifiers, "sat" in modifiers
    if origin.kind == "f" and to.kind == "f":
        return _between_floats(to, whole, flushed, saturated, toward_zero="rz" in modifiers)
    if origin.kind == "f":
        if whole is None:
            raise UnsupportedError(f"{one.name}: without a rounding to an integer")
        return _float_to_integer(to, whole, flushed)
    if to.kind == "f":
        if "rz" in modifiers:
            return lambda values: _truncated(values, 24 if to.itemsize == 4 else 53).astype(to)
        return lambda values: values.astype(to)
    return _saturating(to) if saturated else lambda values: values.astype(to)


def _between_floats(
    to: np.dtype, whole: Callable[[np.ndarray], np.ndarray] | None, flushed: bool, saturated: bool, *, toward_zero: bool
) -> Function:
    if toward_zero:
        raise UnsupportedError("a conversion between floats rounded towards zero")

    def convert(values: np.ndarray) -> np.ndarray:
        values = flush(values) if flushed and values.dtype == np.float32 else values
        values = (values if whole is None else whole(values)).astype(to)
        values = flush(values) if flushed and values.dtype == np.float32 else values
        return np.where(np.isnan(values), 0, np.clip(values, 0, 1)).astype(to) if saturated else values

    return convert


def _float_to_integer(to: np.dtype, whole: Callable[[np.ndarray], np.ndarray], flushed: bool) -> Function:
    """Out of range to the nearest end, as the hardware does.

    NaN gives zero; in 64 bits, the sign bit alone.
    """
    limits = np.iinfo(to)
    # the first float above the range: the greatest integer of 32 or 64 bits itself may be no float
    above = 2.0 ** (limits.bits - (1 if to.kind == "i" else 0))
    of_nan = 0 if limits.bits < 64 else (limits.min if to.kind == "i" else 1 << 63)

    def convert(values: np.ndarray) -> np.ndarray:
        if flushed:
            values = flush(values)
        rounded = whole(values.astype(np.float64))
        inside = (rounded > -above if to.kind == "i" else rounded >= 0) & (rounded < above)
        result = np.where(inside, rounded, 0).astype(to)
        result = np.where(rounded >= above, to.type(limits.max), result)
        result = np.where(~inside & (rounded < 0), to.type(limits.min), result)
        return np.where(np.isnan(rounded), to.type(of_nan), result)

    return convert


def _truncated(values: np.ndarray, digits: int) -> np.ndarray:
    """Integers without their bits below the `digits` highest: what a float of that precision holds."""
    bits = values.dtype.itemsize * 8
    negative = values < 0 if values.dtype.kind == "i" else np.zeros(len(values), bool)
    magnitude = np.where(negative, -values, values).view(UNSIGNED[bits])
    drop = np.maximum(bit_length(magnitude).astype(np.int64) - digits, 0).astype(magnitude.dtype)
    kept = magnitude >> drop << drop
    return np.where(negative, -kept.astype(np.float64), kept.astype(np.float64))


def _saturating(to: np.dtype) -> Function:
    limits = np.iinfo(to)

    def convert(values: np.ndarray) -> np.ndarray:
        origin = np.iinfo(values.dtype)
        low, high = max(limits.min, origin.min), min(limits.max, origin.max)
        return np.clip(values, values.dtype.type(low), values.dtype.type(high)).astype(to)

    return convert


def _half(one: Instruction, target: str, source: str) -> Function:
    brain = "bf16" in target or "bf16" in source
    toward_zero = "rz" in one.modifiers
    if "sat" in one.modifiers or "ftz" in one.modifiers or any(name in one.modifiers for name in _TO_INTEGER):
        raise UnsupportedError(one.name)

    def narrow(values: np.ndarray) -> np.ndarray:
        if brain:
            return to_bfloat16(values, toward_zero=toward_zero)
        return values.astype(np.float16).view(np.uint16)

    if target.endswith("x2") and source == "f32" and not (toward_zero and not brain):
        # the first operand goes to the upper half
        return lambda high, low: narrow(high).astype(np.uint32) << np.uint32(16) | narrow(low).astype(np.uint32)
    if target in ("f16", "bf16") and source == "f32" and not (toward_zero and not brain):
        return narrow
    if target in ("f32", "f64") and source == "f16":
        return lambda values: values.view(np.float16).astype(dtype_of(target))
    if target in ("f32", "f64") and source == "bf16":
        return lambda values: from_bfloat16(values).astype(dtype_of(target))
    if target == "f16" and source[0] in "us":
        return lambda values: values.astype(np.float64).astype(np.float16).view(np.uint16)
    raise UnsupportedError(one.name)


def pack(one: Instruction) -> Function:
    """cvt.pack.sat: two saturated integers beside one another, above a shifted third operand where there is one.

    Raises:
        UnsupportedError: another form.
    """
    kinds = [modifier for modifier in one.modifiers if is_type(modifier)]
    if one.modifiers[:2] != ("pack", "sat") or len(kinds) < 2 or kinds[1] != "s32":
        raise UnsupportedError(one.name)
    bits = int(kinds[0][1:])
    if bits not in (8, 16):
        raise UnsupportedError(one.name)
    saturate = _saturating((SIGNED if kinds[0][0] == "s" else UNSIGNED)[bits])

    def compute(a: np.ndarray, b: np.ndarray, *c: np.ndarray) -> np.ndarray:
        high, low = (saturate(v).view(UNSIGNED[bits]).astype(np.uint32) for v in (a, b))
        both = high << np.uint32(bits) | low
        return both | c[0].view(np.uint32) << np.uint32(16) if c else both

    return compute
