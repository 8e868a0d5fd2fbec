"""Integer and bitwise arithmetic, on arrays of the instruction's type."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ._errors import UnsupportedError
from ._kernel import Instruction
from ._types import SIGNED, UNSIGNED

Function = Callable[..., np.ndarray]


def _bits(values: np.ndarray) -> int:
    return values.dtype.itemsize * 8


def _unsigned(values: np.ndarray) -> np.ndarray:
    return values.view(UNSIGNED[_bits(values)])


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the product."""
    bits = _bits(a)
    if bits < 64:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[2 * bits]
        return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    upper = x1 * y1 + (middle >> half) + (x0 * y1 + (middle & low) >> half)
    if a.dtype.kind == "i":
        zero = np.uint64(0)
        upper = upper - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return upper.view(a.dtype)


def multiply_wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[2 * _bits(a)]
    return a.astype(wide) * b.astype(wide)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero; a division by zero gives all ones, as the hardware's routine does."""
    none = b == 0
    safe = np.where(none, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // safe
    else:
        magnitude = np.abs(a).view(UNSIGNED[_bits(a)]) // np.abs(safe).view(UNSIGNED[_bits(a)])
        quotient = np.where((a < 0) != (safe < 0), -magnitude.view(a.dtype), magnitude.view(a.dtype))
    return np.where(none, ~np.zeros_like(quotient), quotient)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """With the sign of the dividend; of a division by zero, the dividend."""
    return np.where(b == 0, a, a - divide(a, b) * b)


def shift_left(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Shifts by a 32-bit count; by the width or more gives zero."""
    bits = _bits(a)
    if len(count) == 1 and count[0] < bits:
        return a << count.astype(a.dtype)
    shifted = a << np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Shifts by a 32-bit count; by the width or more leaves zeros, or the sign of a signed value."""
    bits = _bits(a)
    if len(count) == 1 and count[0] < bits:
        return a >> count.astype(a.dtype)
    shifted = a >> np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


def funnel(low: np.ndarray, high: np.ndarray, count: np.ndarray, *, left: bool, wrap: bool) -> np.ndarray:
    count = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    if left:
        return (both << count >> np.uint64(32)).astype(np.uint32)
    return (both >> count).astype(np.uint32)


def bit_length(values: np.ndarray) -> np.ndarray:
    """How many bits an unsigned value needs: 0 for 0; uint32."""
    filled = values.copy()
    step = 1
    while step < _bits(values):
        filled |= filled >> values.dtype.type(step)
        step *= 2
    return np.bitwise_count(filled).astype(np.uint32)


def find_bit(a: np.ndarray, *, shift_amount: bool) -> np.ndarray:
    """The most significant bit that differs from the sign; all ones where there is none."""
    values = _unsigned(np.where(a < 0, ~a, a)) if a.dtype.kind == "i" else a
    position = bit_length(values) - np.uint32(1)
    if shift_amount:
        return np.where(values == 0, position, np.uint32(_bits(a) - 1) - position)
    return position


def count_leading_zeros(a: np.ndarray) -> np.ndarray:
    return np.uint32(_bits(a)) - bit_length(a)


def reverse_bits(a: np.ndarray) -> np.ndarray:
    bits = _bits(a)
    octets = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, bits // 8), axis=1, bitorder="little")
    return np.packbits(octets[:, ::-1], axis=1, bitorder="little").view(a.dtype).reshape(-1)


def extract_field(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Bits from `position` on, `length` of them, each count mod 256; signed ones are extended."""
    bits = _bits(a)
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = _mask(length, a)
    field = shift_right(_unsigned(a), position) & mask
    if a.dtype.kind == "u":
        return field
    top = np.minimum(position + length - np.uint32(1), np.uint32(bits - 1)).astype(a.dtype)
    negative = (length != 0) & ((a >> top) & a.dtype.type(1) != 0)
    return np.where(negative, field | ~mask, field).view(a.dtype)


def insert_field(a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`b` with the low `length` bits of `a` at `position`."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = shift_left(_mask(length, b), position)
    return (b & ~mask) | (shift_left(a, position) & mask)


def _mask(length: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The low `length` bits, unsigned."""
    one = np.ones(1, UNSIGNED[_bits(like)])
    return shift_left(one, length) - one


def bit_mask(position: np.ndarray, length: np.ndarray, *, wrap: bool) -> np.ndarray:
    if wrap:
        position, length = position & np.uint32(31), length & np.uint32(31)
    return shift_left(_mask(length, position), position)


def look_up_logic(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3: bit 4a + 2b + c of the table, for each bit of the operands."""
    return _logic(int(table[0]) & 255)(a, b, c)


@functools.lru_cache(maxsize=256)
def _logic(table: int) -> Function:
    # the common forms first: they are one or two operations instead of a sum of minterms
    known: dict[int, Function] = {
        0x80: lambda a, b, c: a & b & c,
        0xFE: lambda a, b, c: a | b | c,
        0x96: lambda a, b, c: a ^ b ^ c,
        0xF8: lambda a, b, c: a | b & c,
        0xEA: lambda a, b, c: a & b | c,
        0xE0: lambda a, b, c: a & (b | c),
        0xC8: lambda a, b, c: (a | c) & b,
        0xCA: lambda a, b, c: a & b | ~a & c,
        0xE2: lambda a, b, c: b & a | ~b & c,
        0xD8: lambda a, b, c: c & b | ~c & a,
        0x78: lambda a, b, c: a ^ b & c,
        0x6A: lambda a, b, c: a & b ^ c,
    }
    if table in known:
        return known[table]

    def sum_of_minterms(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        total = np.zeros_like(a & b & c)
        for minterm in range(8):
            if table >> minterm & 1:
                total = total | (a if minterm & 4 else ~a) & (b if minterm & 2 else ~b) & (c if minterm & 1 else ~c)
        return total

    return sum_of_minterms


def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt in its default mode: four bytes out of eight, each perhaps spread to its sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    total: np.ndarray = np.zeros(1, np.uint32)
    for place in range(4):
        choice = selector >> np.uint32(4 * place) & np.uint32(15)
        octet = (both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint32) & np.uint32(255)
        if (choice & np.uint32(8)).any():
            sign = np.where(octet & np.uint32(128), np.uint32(255), np.uint32(0))
            octet = np.where(choice & np.uint32(8), sign, octet)
        total = total | octet << np.uint32(8 * place)
    return total


def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, other: str) -> np.ndarray:
    """dp4a: four products of bytes added to `c`."""
    first = np.ascontiguousarray(a).view(np.int8 if kind == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)
    second = np.ascontiguousarray(b).view(np.int8 if other == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)
    return (c.astype(np.int64) + (first * second).sum(1)).astype(np.uint32)


# Operands of the instruction's type, the result of the same.
_PLAIN: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "neg": lambda a: -a,
    "not": lambda a: ~a,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "div": divide,
    "rem": remainder,
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
    "clz": count_leading_zeros,
    "brev": reverse_bits,
    "prmt": permute,
    "sad": lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)),
}

# Which operands are counts of bits, and so 32 bits wide whatever the type says.
COUNTS = {"shl": (1,), "shr": (1,), "bfe": (1, 2), "bfi": (2, 3)}


def function(one: Instruction) -> Function | None:
    """What an instruction on integers computes; None if it is none of this module.

    Raises:
        UnsupportedError: a form of a known instruction is not known.
    """
    opcode, modifiers = one.opcode, one.modifiers
    if opcode == "shf":
        left, wrap = modifiers[0] == "l", modifiers[1] == "wrap"
        shift = functools.partial(funnel, left=left, wrap=wrap)
        # the left shift gives the upper word of both, the right shift the lower one
        return shift
    if opcode == "shl":
        return shift_left
    if opcode == "shr":
        return shift_right
    if opcode == "bfe":
        return extract_field
    if opcode == "bfi":
        return insert_field
    if opcode == "bmsk":
        return functools.partial(bit_mask, wrap="wrap" in modifiers)
    if opcode == "bfind":
        return functools.partial(find_bit, shift_amount="shiftamt" in modifiers)
    if opcode == "dp4a":
        return functools.partial(dot, kind=modifiers[0], other=modifiers[1])
    if opcode == "lop3":
        if len(modifiers) > 1:
            raise UnsupportedError("lop3 with a predicate")
        return look_up_logic
    if opcode in ("mul", "mad"):
        return _product(opcode, modifiers)
    if opcode == "prmt" and len(modifiers) > 1:
        raise UnsupportedError(f"prmt in the mode {modifiers[1]}")
    if opcode in ("add", "sub") and "sat" in modifiers:
        return functools.partial(_saturated, sign=1 if opcode == "add" else -1)
    return _PLAIN.get(opcode)


def _product(opcode: str, modifiers: tuple[str, ...]) -> Function:
    if "sat" in modifiers or "cc" in modifiers:
        raise UnsupportedError(f"{opcode}.{'.'.join(modifiers)}")
    products: dict[str, Function] = {"hi": multiply_high, "wide": multiply_wide, "lo": lambda a, b: a * b}
    multiply = products[modifiers[0]]
    if opcode == "mul":
        return multiply
    return lambda a, b, c: multiply(a, b) + c


def _saturated(a: np.ndarray, b: np.ndarray, *, sign: int) -> np.ndarray:
    """Signed 32-bit sums that stop at the ends of the range."""
    limits = np.iinfo(np.int32)
    return np.clip(a.astype(np.int64) + sign * b.astype(np.int64), limits.min, limits.max).astype(np.int32)
