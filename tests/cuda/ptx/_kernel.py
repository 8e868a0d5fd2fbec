"""A kernel as read from PTX."""

from __future__ import annotations

import dataclasses
from typing import final

import numpy as np


@final
@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!%p1 ld.global.u32 %r1, [%rd1]`` has the opcode ``ld`` and the modifiers ``global``, ``u32``.

    `location` is where it comes from, ``file:line``, or ``file:line<file:line`` with the place that a function was
    expanded in; empty without ``-lineinfo``. `line` is its line in the text of the PTX, from 1 on.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None  # the predicate, and whether it is negated
    text: str
    location: str = ""
    line: int = 0

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))


@final
@dataclasses.dataclass(frozen=True)
class Variable:
    """An array in memory. `data` holds its initial bytes, where it has any."""

    name: str
    space: str
    alignment: int
    nbytes: int
    data: np.ndarray | None = None


@final
@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel and where it lies among the bytes of all of them."""

    name: str
    nbytes: int
    offset: int


@final
@dataclasses.dataclass
class Kernel:
    """An entry, with every call of a function of the same text expanded in place.

    `shared` and `local` give each variable's offset in bytes; `targets` the labels that each jump table lists.
    """

    name: str
    parameters: list[Parameter]
    registers: dict[str, str]
    instructions: list[Instruction]
    labels: dict[str, int]
    targets: dict[str, list[str]]
    shared: dict[str, int]
    shared_bytes: int
    local: dict[str, int]
    local_bytes: int
    variables: dict[str, Variable]
    dynamic_shared: frozenset[str]
    threads: int | None = None  # per block, where the text demands it

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.nbytes for p in self.parameters), default=0)
