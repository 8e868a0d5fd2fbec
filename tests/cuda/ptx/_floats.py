"""Floating-point arithmetic with one rounding for each operation, to nearest even."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ._errors import UnsupportedError
from ._kernel import Instruction

Function = Callable[..., np.ndarray]

_ROUNDINGS = ("rn", "rz", "rm", "rp")
_SMALLEST_NORMAL = np.float32(2.0**-126)


def round_to_odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, the last bit set where the sum was inexact: rounding it once more does no harm."""
    total = a + b
    virtual = total - a
    error = (a - (total - virtual)) + (b - virtual)
    bits = np.atleast_1d(total).view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    # away from zero where the error has the sum's sign, else towards it: next to an even number lie odd ones
    step = np.where((error > 0) == (total > 0), np.int64(1), np.int64(-1))
    return np.where(inexact, bits + step, bits).view(np.float64)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32 with one rounding: the product is exact in float64."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return round_to_odd_sum(product, c.astype(np.float64)).astype(np.float32)


def to_bfloat16(values: np.ndarray, *, toward_zero: bool = False) -> np.ndarray:
    """float32 to the bits of bfloat16; every NaN becomes 0x7FFF."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if toward_zero:
        rounded = bits >> np.uint32(16)
    else:
        wide = bits.astype(np.uint64)
        rounded = (wide + np.uint64(0x7FFF) + (wide >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def flush(values: np.ndarray) -> np.ndarray:
    """float32 with subnormal numbers replaced by zeros of their sign."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)


def _maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # of two zeros the positive one is the larger, which numpy leaves open
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def _minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def _negated(a: np.ndarray) -> np.ndarray:
    return -a


_EXACT: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": _negated,
    "abs": np.abs,
    "min": _minimum,
    "max": _maximum,
    "sqrt": np.sqrt,
    "rcp": lambda a: a.dtype.type(1) / a,
    "copysign": lambda a, b: np.copysign(b, a),
}
# Results that the PTX manual only bounds; these are the nearest numbers.
_APPROXIMATE: dict[str, Function] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}


def function(one: Instruction) -> Function | None:
    """What an instruction on .f32, .f64, .f16, .bf16 or pairs of those computes; None if it is none of this module.

    Raises:
        UnsupportedError: another rounding than to nearest, or a form that is not known.
    """
    kind = one.modifiers[-1]
    rounding = [modifier for modifier in one.modifiers if modifier in _ROUNDINGS]
    if rounding not in ([], ["rn"]):
        raise UnsupportedError(f"rounding other than to nearest: {one.name}")
    if kind in ("f16", "f16x2", "bf16", "bf16x2"):
        return _half(one)
    if one.opcode in ("fma", "mad"):
        if kind != "f32":
            raise UnsupportedError(f"{one.name}: only in float32")
        base: Function | None = fma32
    else:
        base = _EXACT.get(one.opcode) or _APPROXIMATE.get(one.opcode)
    if base is None:
        return None
    dtype = np.dtype(np.float32 if kind == "f32" else np.float64)
    if one.opcode in ("min", "max") and {"NaN", "xorsign"} & set(one.modifiers):
        raise UnsupportedError(one.name)
    # a negation or an absolute value only touches the sign bit, of NaN too
    flushed, saturated = "ftz" in one.modifiers and one.opcode not in ("neg", "abs"), "sat" in one.modifiers
    if one.opcode in _APPROXIMATE:
        exact = base
        base = lambda *values: exact(*(v.astype(np.float64) for v in values)).astype(dtype)  # noqa: E731
    if not (flushed or saturated):
        return base
    plain = base

    def modified(*values: np.ndarray) -> np.ndarray:
        result = plain(*(flush(v) if flushed else v for v in values))
        if flushed:
            result = flush(result)
        return np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(dtype) if saturated else result

    return modified


def _half(one: Instruction) -> Function | None:
    """Arithmetic of 16-bit numbers, alone or in pairs: exact in float64 up to an odd rounding, then rounded once.

    Operands and results are bits: uint16 (or float16), or uint32 for pairs.
    """
    kind = one.modifiers[-1]
    exact: dict[str, Function] = {
        "add": round_to_odd_sum,
        "sub": lambda a, b: round_to_odd_sum(a, -b),
        "mul": lambda a, b: a * b,
        "fma": lambda a, b, c: round_to_odd_sum(a * b, c),
        "neg": _negated,
        "abs": np.abs,
        "min": _minimum,
        "max": _maximum,
    }
    known = set(one.modifiers) - {"rn", kind}
    if one.opcode not in exact or known:
        return None
    operation = exact[one.opcode]
    brain = kind.startswith("bf")

    def compute(*values: np.ndarray) -> np.ndarray:
        storage = np.ascontiguousarray(values[0]).dtype
        halves = [np.ascontiguousarray(v).view(np.uint16) for v in values]
        size = max(len(half) for half in halves)
        halves = [np.resize(half, size) for half in halves]
        wide = [(from_bfloat16(h) if brain else h.view(np.float16)).astype(np.float64) for h in halves]
        result = operation(*wide)
        rounded = to_bfloat16(_odd_float32(result)) if brain else result.astype(np.float16).view(np.uint16)
        return np.ascontiguousarray(rounded).view(storage)

    return compute


def _odd_float32(values: np.ndarray) -> np.ndarray:
    """float64 to float32 rounded to odd, so that it can be rounded again."""
    near = values.astype(np.float32)
    error = values - near.astype(np.float64)
    bits = near.view(np.int32)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(near)
    step = np.where(np.abs(values) > np.abs(near), np.int32(1), np.int32(-1))
    return np.where(inexact, bits + step, bits).astype(np.int32).view(np.float32)
