"""The instructions of a kernel, ready to be executed: what each does, and where control may leave a straight line."""

from __future__ import annotations

import enum
import itertools
from typing import final

import numpy as np

from ._access import access_step, is_strong
from ._batch import Launch
from ._collectives import active_mask_step, collective_step, is_collective, mask_of
from ._errors import ParseError, UnsupportedError
from ._instructions import Step, condition_of, register_step
from ._kernel import Instruction
from ._operands import Operands, Reader


@final
class Kind(enum.Enum):
    """What executing an instruction may do to the flow of control."""

    STRAIGHT = enum.auto()
    BRANCH = enum.auto()
    TABLE = enum.auto()
    EXIT = enum.auto()
    BARRIER = enum.auto()
    COLLECTIVE = enum.auto()
    NAP = enum.auto()
    TRAP = enum.auto()
    CALL = enum.auto()


_KINDS = {
    "bra": Kind.BRANCH,
    "brx": Kind.TABLE,
    "ret": Kind.EXIT,
    "exit": Kind.EXIT,
    "bar": Kind.BARRIER,
    "barrier": Kind.BARRIER,
    "nanosleep": Kind.NAP,
    "trap": Kind.TRAP,
    "call": Kind.CALL,
}


def kind_of(one: Instruction) -> Kind:
    if is_collective(one):
        return Kind.COLLECTIVE
    return _KINDS.get(one.opcode, Kind.STRAIGHT)


@final
class Program:
    """One kernel's instructions for one launch. Each is translated when it is first executed, so that an instruction
    this package does not know matters only where it is reached."""

    def __init__(self, launch: Launch) -> None:
        self.kernel = launch.kernel
        self.operands = Operands(launch)
        self.instructions = self.kernel.instructions
        count = len(self.instructions)
        self.kinds = [kind_of(one) for one in self.instructions] + [Kind.EXIT]
        # the next instruction, from each on, that is not straight
        self.straight_until = [count] * (count + 1)
        for number in range(count - 1, -1, -1):
            straight = self.kinds[number] is Kind.STRAIGHT
            self.straight_until[number] = self.straight_until[number + 1] if straight else number
        # how many instructions before each may wait for another thread
        strong = [is_strong(one) or one.opcode == "atom" for one in self.instructions]
        self.strong_before = list(itertools.accumulate(strong, initial=0))
        self._steps: list[Step | None] = [None] * count
        self._conditions: list[Reader | None] = [None] * count
        self._masks: dict[int, Reader] = {}

    def condition(self, number: int) -> Reader | None:
        """Of which lanes the instruction's predicate is true; None where it has none."""
        guard = self.instructions[number].guard
        if guard is not None and self._conditions[number] is None:
            self._conditions[number] = condition_of(guard, self.operands)
        return self._conditions[number]

    def mask(self, number: int) -> Reader:
        if number not in self._masks:
            self._masks[number] = mask_of(self.instructions[number], self.operands)
        return self._masks[number]

    def step(self, number: int) -> Step:
        found = self._steps[number]
        if found is None:
            found = self._steps[number] = self._translate(self.instructions[number])
        return found

    def _translate(self, one: Instruction) -> Step:
        if is_collective(one):
            return collective_step(one, self.operands)
        if one.opcode == "activemask":
            return active_mask_step(one, self.operands)
        if one.opcode in ("ld", "ldu", "st", "atom", "red"):
            return access_step(one, self.operands)
        try:
            return register_step(one, self.operands)
        except (IndexError, KeyError, StopIteration) as error:
            raise UnsupportedError(f"the form {one.name} with {len(one.operands)} operands") from error

    def target(self, label: str) -> int:
        if label not in self.kernel.labels:
            raise ParseError(f"there is no label {label}")
        return self.kernel.labels[label]

    def targets(self, number: int) -> np.ndarray:
        """Where a jump table leads, by index."""
        name = self.instructions[number].operands[1]
        return np.array([self.target(label) for label in self.kernel.targets.get(name, [])], np.int64)
