"""Operands: how an instruction reads and writes registers, constants and addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import final

import numpy as np

from ._batch import Batch, Launch, is_special, special_bits, special_names, symbol_of
from ._errors import UnsupportedError
from ._lanes import Lanes
from ._types import PREDICATE, UNSIGNED, dtype_of, storage_of

Reader = Callable[[Batch, Lanes], np.ndarray]
Writer = Callable[[Batch, Lanes, np.ndarray], None]

# Stands for the carry flag of add.cc and the like among the registers.
CARRY = "@carry"

_ADDRESS = re.compile(r"\[\s*([%\w$@~]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")


def _constant(values: np.ndarray) -> Reader:
    def read(batch: Batch, lanes: Lanes) -> np.ndarray:
        return values

    return read


@final
class Operands:
    """Turns the operands of one kernel's instructions into functions.

    Readers give an array with one value per lane, or with one value for all of them; neither is to be written to.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._types = {**launch.kernel.registers, CARRY: "pred"}
        special = {name for one in launch.kernel.instructions for text in one.operands for name in special_names(text)}
        self._numbers = {name: number for number, name in enumerate([*self._types, *sorted(special)])}

    @property
    def names(self) -> list[str]:
        """The registers, in the order of their numbers."""
        return list(self._numbers)

    def is_register(self, text: str) -> bool:
        return text in self._types or is_special(text)

    def register_bits(self, name: str) -> int:
        return special_bits(name) if is_special(name) else storage_of(self._types[name]).itemsize * 8

    def read(self, text: str, kind: str) -> Reader:
        """Reads a register or a constant as that PTX type; the low bits of a wider register.

        Raises:
            UnsupportedError: it is neither.
        """
        if kind == "pred" and text.startswith("!"):
            inner = self.read(text[1:], kind)
            return lambda batch, lanes: ~inner(batch, lanes)
        if self.is_register(text):
            return self._register(text, dtype_of(kind))
        return _constant(self._value(text, dtype_of(kind)))

    def _register(self, text: str, dtype: np.dtype) -> Reader:
        number = self._numbers[text]
        if dtype == PREDICATE:
            return lambda batch, lanes: lanes.of(batch.registers[number])
        bits, wanted = self.register_bits(text), dtype.itemsize * 8
        narrow = UNSIGNED[wanted] if wanted < bits else None
        if wanted > bits:
            raise UnsupportedError(f"{text} of {bits} bits read as {wanted} bits")

        def read(batch: Batch, lanes: Lanes) -> np.ndarray:
            values = batch.registers[number]
            if lanes.index is not None:
                values = values[lanes.index]
            if narrow is not None:
                values = values.astype(narrow)
            return values.view(dtype)

        return read

    def _value(self, text: str, dtype: np.dtype) -> np.ndarray:
        if text[:2] in ("0f", "0F", "0d", "0D"):
            bits = np.array([int(text[2:], 16)], UNSIGNED[32 if text[1] in "fF" else 64])
            return bits.view(dtype) if bits.itemsize == dtype.itemsize else bits.view(f"f{bits.itemsize}").astype(dtype)
        if _NUMBER.fullmatch(text):
            value = int(text.rstrip("U"), 0)
        else:
            name, _, offset = text.partition("+")
            value = symbol_of(self._launch, name) + int(offset or "0", 0)
        if dtype == PREDICATE:
            return np.array([bool(value)])
        mask = (1 << 8 * dtype.itemsize) - 1
        return np.array([value & mask], UNSIGNED[8 * dtype.itemsize]).view(dtype)

    def write(self, text: str) -> Writer:
        """Writes a register; a narrower value is extended as its sign demands. ``_`` takes anything.

        Raises:
            UnsupportedError: it is no register.
        """
        if text == "_":
            return lambda batch, lanes, values: None
        if text not in self._types:
            raise UnsupportedError(f"the destination {text!r}")
        number, storage = self._numbers[text], storage_of(self._types[text])

        def write(batch: Batch, lanes: Lanes, values: np.ndarray) -> None:
            if values.dtype != storage:
                values = _extended(values, storage)
            if lanes.index is not None:
                # a copy, since a move may have given the same array to several registers
                merged = batch.registers[number].copy()
                merged[lanes.index] = values
                batch.registers[number] = merged
            elif len(values) == lanes.count:
                batch.registers[number] = values
            else:
                batch.registers[number] = np.broadcast_to(values, lanes.count)

        return write

    def address(self, text: str) -> Reader:
        """An address in brackets, as int64.

        Raises:
            UnsupportedError: it has another form.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise UnsupportedError(f"the address {text}")
        base, offset = found[1], int(found[2] or "0", 0)
        if not self.is_register(base):
            value = int(base, 0) if _NUMBER.fullmatch(base) else symbol_of(self._launch, base)
            return _constant(np.array([value + offset], np.int64))
        bits = self.register_bits(base)
        inner = self.read(base, f"u{bits}")

        def read(batch: Batch, lanes: Lanes) -> np.ndarray:
            values = inner(batch, lanes)
            values = values.view(np.int64) if bits == 64 else values.astype(np.int64)
            return values + offset if offset else values

        return read

    def parameter(self, text: str) -> int | None:
        """The offset among the parameters' bytes of an address like ``[name+4]``; None if it is no parameter."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            return None
        for parameter in self._launch.kernel.parameters:
            if parameter.name == found[1]:
                return parameter.offset + int(found[2] or "0", 0)
        return None


def _extended(values: np.ndarray, storage: np.dtype) -> np.ndarray:
    if storage == PREDICATE:
        return values != 0
    if values.dtype == PREDICATE or values.dtype.kind == "c":
        return values.astype(storage)
    if values.dtype.itemsize == storage.itemsize:
        return np.ascontiguousarray(values).view(storage)
    if values.dtype.itemsize > storage.itemsize:
        raise UnsupportedError(f"{values.dtype.itemsize} bytes written to a register of {storage.itemsize}")
    if values.dtype.kind == "i":
        return values.astype(f"i{storage.itemsize}").view(storage)
    return np.ascontiguousarray(values).view(UNSIGNED[8 * values.dtype.itemsize]).astype(storage)
