"""What a launch did, counted."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any, final

import numpy as np

from ._kernel import Instruction, Kernel

_SPACES = ("global", "shared", "local", "param", "const")
_ACCESSES = ("ld", "st", "atom", "red")


def class_of(instruction: Instruction) -> str:
    """The opcode, for accesses with the space, for multiplications with the form: ``ld.global``, ``mul.wide``."""
    modifiers = [modifier.partition("::")[0] for modifier in instruction.modifiers]
    if instruction.opcode in _ACCESSES:
        return f"{instruction.opcode}.{next((m for m in modifiers if m in _SPACES), 'generic')}"
    if instruction.opcode in ("mul", "mad"):
        return ".".join([instruction.opcode, *(m for m in modifiers if m in ("lo", "hi", "wide")), modifiers[-1]])
    if instruction.opcode in ("add", "sub", "fma", "min", "max", "abs", "neg", "setp", "cvt", "div", "rcp", "sqrt"):
        return f"{instruction.opcode}.{modifiers[-1]}"
    return instruction.opcode


@final
@dataclasses.dataclass
class Traffic:
    """Accesses of one kind to global memory: warp instructions, bytes asked for, and 32-byte sectors moved for them."""

    requests: int = 0
    nbytes: int = 0
    sectors: int = 0


@final
class Counts:
    """Counters of one launch.

    Attributes:
        warps: per instruction of the kernel, how many times a warp executed it (predicated off or not).
        threads: per instruction, how many threads did, their predicate being true.
        blocks: thread blocks that were run.
        traffic: global memory by kind: ``ld``, ``st``, ``atom``.
        touched_bytes: 32 times the distinct sectors that the launch loaded and stored: what DRAM moves at least.
        shared_wavefronts: passes over the banks of shared memory; `shared_ideal` is how many there would be
            without conflicts, and `conflicts` the difference by line of the PTX.
        inexact: executions, in warps, of instructions whose result the PTX manual leaves open (``.approx``, ``.full``).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.warps = np.zeros(len(kernel.instructions), np.int64)
        self.threads = np.zeros(len(kernel.instructions), np.int64)
        self.blocks = 0
        self.traffic: dict[str, Traffic] = collections.defaultdict(Traffic)
        self.touched_bytes = {"ld": 0, "st": 0}
        self.shared_wavefronts = 0
        self.shared_ideal = 0
        self.conflicts: collections.Counter[int] = collections.Counter()

    @property
    def warp_instructions(self) -> dict[str, int]:
        """Warp instructions by class; see `class_of`."""
        found: collections.Counter[str] = collections.Counter()
        for instruction, warps in zip(self.kernel.instructions, self.warps.tolist(), strict=True):
            if warps:
                found[class_of(instruction)] += warps
        return dict(found)

    @property
    def issued(self) -> int:
        """Warp instructions of all classes."""
        return int(self.warps.sum())

    @property
    def thread_instructions(self) -> int:
        return int(self.threads.sum())

    @property
    def inexact(self) -> dict[str, int]:
        found: collections.Counter[str] = collections.Counter()
        for instruction, warps in zip(self.kernel.instructions, self.warps.tolist(), strict=True):
            if warps and {"approx", "full"} & set(instruction.modifiers):
                found[instruction.name] += warps
        return dict(found)

    @property
    def sector_efficiency(self) -> float:
        """Bytes asked of global memory by loads and stores over the bytes of the sectors moved for them; at most 1,
        unless lanes share sectors."""
        used = [self.traffic[kind] for kind in ("ld", "st") if kind in self.traffic]
        sectors = sum(one.sectors for one in used)
        return sum(one.nbytes for one in used) / (32 * sectors) if sectors else 1.0

    @property
    def conflict_ratio(self) -> float:
        """Shared-memory wavefronts over ideal ones; 1 without bank conflicts."""
        return self.shared_wavefronts / self.shared_ideal if self.shared_ideal else 1.0

    @property
    def coverage(self) -> float:
        """Share of the kernel's instructions that were executed at least once."""
        return float(np.count_nonzero(self.warps)) / max(1, len(self.warps))

    def never_executed(self) -> list[str]:
        return [i.text for i, warps in zip(self.kernel.instructions, self.warps.tolist(), strict=True) if not warps]

    @property
    def lines(self) -> dict[int, tuple[str, int]]:
        """By line of the PTX, its class (see `class_of`) and how many warps executed it, wherever it was expanded.

        Without those that never were executed.
        """
        found: dict[int, tuple[str, int]] = {}
        for instruction, warps in zip(self.kernel.instructions, self.warps.tolist(), strict=True):
            if instruction.line and warps:
                before = found.get(instruction.line, ("", 0))[1]
                found[instruction.line] = class_of(instruction), before + warps
        return found

    @property
    def conflicts_by_source(self) -> dict[str, int]:
        """Passes over shared memory that bank conflicts add, by location in the source, most first."""
        found: collections.Counter[str] = collections.Counter()
        seen: set[int] = set()
        for instruction in self.kernel.instructions:
            if instruction.line in self.conflicts and instruction.line not in seen:
                found[instruction.location] += self.conflicts[instruction.line]
                seen.add(instruction.line)
        return dict(found.most_common())

    def summary(self, elements: int) -> dict[str, Any]:
        """Everything as plain numbers, as tools.roofline reads it; `elements` is how many the launch worked on."""
        return {
            "kernel": self.kernel.name,
            "elements": elements,
            "blocks": self.blocks,
            "static_instructions": len(self.kernel.instructions),
            "executed_instructions": int(np.count_nonzero(self.warps)),
            "warp_instructions": self.warp_instructions,
            "thread_instructions": self.thread_instructions,
            "traffic": {kind: dataclasses.asdict(one) for kind, one in self.traffic.items()},
            "touched_bytes": self.touched_bytes,
            "shared_wavefronts": self.shared_wavefronts,
            "shared_ideal": self.shared_ideal,
            "inexact": self.inexact,
            "conflicts_by_source": self.conflicts_by_source,
            "lines": self.lines,
        }

    def save(self, path: str | pathlib.Path, elements: int) -> None:
        pathlib.Path(path).write_text(json.dumps(self.summary(elements), indent=1) + "\n")
