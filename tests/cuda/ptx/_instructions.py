"""Everything that touches registers alone: which function an instruction computes, from which operands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import _conversions, _floats, _integers
from ._batch import Batch
from ._errors import UnsupportedError
from ._kernel import Instruction
from ._lanes import Lanes
from ._memory import LOCAL_BASE, SHARED_BASE
from ._operands import CARRY, Operands, Reader, Writer
from ._parse import split_operands
from ._types import UNSIGNED, bits_of, dtype_of, is_type

Step = Callable[[Batch, Lanes], None]

# What a kernel computes does not depend on these: memory here is coherent, and all hints are only that.
_NOTHING = {
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "griddepcontrol",
    "setmaxnreg",
    "nop",
}
_FLOATS = ("f32", "f64", "f16", "f16x2", "bf16", "bf16x2")

_COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINATIONS: dict[str, Callable[..., np.ndarray]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
_CARRYING = ("add", "sub", "addc", "subc", "mad", "madc")


def register_step(one: Instruction, operands: Operands) -> Step:
    """What one instruction does to registers.

    Raises:
        UnsupportedError: the instruction, or this form of it, is not known.
    """
    opcode = one.opcode
    if opcode in _NOTHING:
        return lambda batch, lanes: None
    if opcode == "trap":
        raise UnsupportedError("trap is no register instruction")
    if opcode == "mov":
        return _move(one, operands)
    if opcode in ("cvta", "isspacep"):
        return _space(one, operands)
    if opcode in ("setp", "set"):
        return _compare(one, operands)
    if opcode in ("selp", "slct"):
        return _select(one, operands)
    if opcode == "testp":
        return _test(one, operands)
    if opcode == "cvt":
        if "pack" in one.modifiers:
            return _apply(_conversions.pack(one), one, operands, ["b32", "s32", "s32", "b32"])
        target, source = _conversions.types_of(one)
        return _apply(_conversions.function(one), one, operands, [target, source, source])
    if opcode in _CARRYING and ("cc" in one.modifiers or opcode.endswith("c")):
        return _carry(one, operands)
    return _compute(one, operands)


def _compute(one: Instruction, operands: Operands) -> Step:
    kind = one.modifiers[-1] if one.modifiers else ""
    if kind == "pred":
        return _logic_of_predicates(one, operands)
    function = _floats.function(one) if kind in _FLOATS else _integers.function(one) if is_type(kind) else None
    if function is None:
        raise UnsupportedError(f"the instruction {one.name}")
    kinds = [kind] * len(one.operands)
    if kind not in _FLOATS:
        for place in _integers.COUNTS.get(one.opcode, ()):
            kinds[1 + place] = "u32"
        if one.opcode in ("mul", "mad") and one.modifiers[0] == "wide":
            kinds[3:] = [kind[0] + str(2 * bits_of(kind))] * len(kinds[3:])
    return _apply(function, one, operands, kinds)


def _apply(function: Callable[..., np.ndarray], one: Instruction, operands: Operands, kinds: list[str]) -> Step:
    """Reads the operands after the first as those types and writes the result to the first."""
    if not one.operands:
        raise UnsupportedError(f"the instruction {one.name}")
    write = operands.write(one.operands[0])
    readers = [operands.read(text, kind) for text, kind in zip(one.operands[1:], kinds[1:], strict=False)]
    # spelled out for the usual numbers of operands: this is the innermost loop of everything
    if len(readers) == 1:
        (first,) = readers
        return lambda batch, lanes: write(batch, lanes, function(first(batch, lanes)))
    if len(readers) == 2:
        first, second = readers
        return lambda batch, lanes: write(batch, lanes, function(first(batch, lanes), second(batch, lanes)))
    return lambda batch, lanes: write(batch, lanes, function(*[reader(batch, lanes) for reader in readers]))


def _parts(text: str) -> list[str] | None:
    return split_operands(text[1:-1]) if text.startswith("{") else None


def _move(one: Instruction, operands: Operands) -> Step:
    target, source = one.operands
    kind = one.modifiers[-1]
    if into := _parts(target):
        return _unpack(operands.read(source, kind), [operands.write(part) for part in into])
    if parts := _parts(source):
        width = bits_of(kind) // len(parts)
        readers = [operands.read(part, f"b{width}") for part in parts]
        return _pack(readers, operands.write(target), UNSIGNED[bits_of(kind)])
    read, write = operands.read(source, kind), operands.write(target)
    return lambda batch, lanes: write(batch, lanes, read(batch, lanes))


def _unpack(read: Reader, writers: list[Writer]) -> Step:
    def step(batch: Batch, lanes: Lanes) -> None:
        values = np.ascontiguousarray(read(batch, lanes))
        parts = values.view(UNSIGNED[8 * values.itemsize // len(writers)]).reshape(-1, len(writers))
        for place, write in enumerate(writers):
            write(batch, lanes, np.ascontiguousarray(parts[:, place]))

    return step


def _pack(readers: list[Reader], write: Writer, dtype: np.dtype) -> Step:
    width = 8 * dtype.itemsize // len(readers)

    def step(batch: Batch, lanes: Lanes) -> None:
        total = readers[0](batch, lanes).astype(dtype)
        for place, read in enumerate(readers[1:], 1):
            total = total | read(batch, lanes).astype(dtype) << dtype.type(place * width)
        write(batch, lanes, total)

    return step


def _space(one: Instruction, operands: Operands) -> Step:
    """cvta: to or from generic addresses; only those of shared and local memory differ."""
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(one.modifiers[1 if one.modifiers[0] == "to" else 0], 0)
    if one.opcode == "isspacep":
        source = operands.read(one.operands[1], "u64")
        into = operands.write(one.operands[0])
        other = np.uint64(base or SHARED_BASE | LOCAL_BASE)
        return lambda batch, lanes: into(batch, lanes, ((source(batch, lanes) & other) != 0) == bool(base))
    kind = one.modifiers[-1]
    read, write = operands.read(one.operands[1], kind), operands.write(one.operands[0])
    if not base:
        return lambda batch, lanes: write(batch, lanes, read(batch, lanes))
    if bits_of(kind) != 64:
        raise UnsupportedError(f"{one.name}: only 64-bit addresses are generic")
    mask = np.uint64(base)
    if one.modifiers[0] == "to":
        return lambda batch, lanes: write(batch, lanes, read(batch, lanes) & ~mask)
    return lambda batch, lanes: write(batch, lanes, read(batch, lanes) | mask)


def _comparison(name: str, floating: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if name in ("num", "nan"):
        wanted = name == "nan"
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == wanted
    if name in _COMPARISONS:
        compare = _COMPARISONS[name]
        if name == "ne" and floating:  # the ordered one, false for NaN
            return lambda a, b: compare(a, b) & ~(np.isnan(a) | np.isnan(b))
        return compare
    if name.endswith("u") and name[:2] in _COMPARISONS:
        ordered = _COMPARISONS[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    raise UnsupportedError(f"the comparison .{name}")


def _compare(one: Instruction, operands: Operands) -> Step:
    kind = one.modifiers[-1]
    floating = dtype_of(kind).kind == "f" and kind not in ("f16x2", "bf16x2", "bf16")
    if kind in ("bf16", "bf16x2", "f16x2"):
        raise UnsupportedError(one.name)
    compare = _comparison(one.modifiers[0], floating)
    flushed = "ftz" in one.modifiers
    combine = next((_COMBINATIONS[m] for m in one.modifiers[1:-1] if m in _COMBINATIONS), None)
    first, second = (operands.read(text, kind) for text in one.operands[1:3])
    third = operands.read(one.operands[3], "pred") if combine is not None else None
    targets = [operands.write(name) for name in one.operands[0].split("|")]
    one_value: np.ndarray | None = None
    if one.opcode == "set":
        result = next(m for m in one.modifiers if is_type(m))
        one_value = np.ones(1, np.float32) if result == "f32" else np.full(1, -1, np.int32)

    def step(batch: Batch, lanes: Lanes) -> None:
        a, b = first(batch, lanes), second(batch, lanes)
        if flushed:
            a, b = _floats.flush(a), _floats.flush(b)
        found = compare(a, b)
        opposite = ~found
        if combine is not None and third is not None:
            other = third(batch, lanes)
            found, opposite = combine(found, other), combine(opposite, other)
        if one_value is not None:
            targets[0](batch, lanes, np.where(found, one_value, one_value.dtype.type(0)))
            return
        targets[0](batch, lanes, found)
        if len(targets) > 1:
            targets[1](batch, lanes, opposite)

    return step


def _select(one: Instruction, operands: Operands) -> Step:
    write = operands.write(one.operands[0])
    if one.opcode == "selp":
        kind = one.modifiers[-1]
        condition = operands.read(one.operands[3], "pred")
    else:
        kind = one.modifiers[-2]
        number = operands.read(one.operands[3], one.modifiers[-1])
        condition = lambda batch, lanes: number(batch, lanes) >= 0  # noqa: E731
    first, second = (operands.read(text, kind) for text in one.operands[1:3])

    def step(batch: Batch, lanes: Lanes) -> None:
        write(batch, lanes, np.where(condition(batch, lanes), first(batch, lanes), second(batch, lanes)))

    return step


def _test(one: Instruction, operands: Operands) -> Step:
    tests: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    return _apply(tests[one.modifiers[0]], one, operands, ["pred", one.modifiers[-1]])


def _logic_of_predicates(one: Instruction, operands: Operands) -> Step:
    functions: dict[str, Callable[..., np.ndarray]] = {**_COMBINATIONS, "not": np.logical_not}
    if one.opcode not in functions:
        raise UnsupportedError(f"the instruction {one.name}")
    return _apply(functions[one.opcode], one, operands, ["pred"] * len(one.operands))


def _carry(one: Instruction, operands: Operands) -> Step:
    """Sums of more than one word.

    The hardware subtracts by adding the complement, so a subtraction leaves the carry of that sum, which is set where
    there is *no* borrow, and takes in the same. The manual speaks of a borrow; the two differ only where ``subc`` follows
    ``add.cc`` or ``addc`` follows ``sub.cc``, as in nvcc's division of 128-bit integers, which needs the hardware's way.
    """
    kind = "u" + str(bits_of(one.modifiers[-1]))
    bits = bits_of(kind)
    base = one.opcode.removesuffix("c")
    carries_in, carries_out = one.opcode.endswith("c"), "cc" in one.modifiers
    readers = [operands.read(text, kind) for text in one.operands[1:]]
    signed = [operands.read(text, one.modifiers[-1]) for text in one.operands[1:]]
    write = operands.write(one.operands[0])
    read_carry, write_carry = operands.read(CARRY, "pred"), operands.write(CARRY)
    if base == "mad" and not {"lo", "hi"} & set(one.modifiers):
        raise UnsupportedError(one.name)

    def terms(batch: Batch, lanes: Lanes) -> list[np.ndarray]:
        if base != "mad":
            return [reader(batch, lanes) for reader in readers]
        if "lo" in one.modifiers:
            product = readers[0](batch, lanes) * readers[1](batch, lanes)
        else:
            product = _integers.multiply_high(signed[0](batch, lanes), signed[1](batch, lanes)).view(UNSIGNED[bits])
        return [product, readers[2](batch, lanes)]

    def step(batch: Batch, lanes: Lanes) -> None:
        a, b = terms(batch, lanes)
        dtype = UNSIGNED[bits]
        if base == "sub":
            b = ~b
        carry = read_carry(batch, lanes).astype(dtype) if carries_in else np.full(1, base == "sub", dtype)
        result = a + b + carry
        write(batch, lanes, result)
        if carries_out:
            write_carry(batch, lanes, (result < a) | ((result == a) & (carry != 0)))

    return step


def condition_of(guard: tuple[str, bool], operands: Operands) -> Reader:
    """Whether a guarded instruction is executed, per lane: bool."""
    name, negated = guard
    read = operands.read(name, "pred")
    if negated:
        return lambda batch, lanes: ~read(batch, lanes)
    return read


def as_lanes(values: np.ndarray, lanes: Lanes) -> np.ndarray:
    """One value for each lane, where a constant is only one for all."""
    return values if len(values) == lanes.count else np.broadcast_to(values, lanes.count)
