"""How often the instructions of a kernel are executed, per element."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics
from typing import Any, final

from tools.roofline._sass import Code, Instruction, RooflineError

_GLOBAL = ("LDG", "STG", "RED", "ATOMG", "ATOM")
# Instructions that PTX and SASS have one to one, so that the counts of the one hold for the other.
_ANCHORS = {
    "LDG": ("ld.global", "ld.generic"),
    "STG": ("st.global", "st.generic"),
    "LDS": ("ld.shared", "ld.generic"),
    "STS": ("st.shared", "st.generic"),
    "SHFL": ("shfl",),
    "RED": ("red.global", "atom.global"),
    "ATOMG": ("atom.global", "red.global"),
    "ATOMS": ("atom.shared", "red.shared"),
}
_PTX_GLOBAL = ("ld.global", "st.global", "red.global", "atom.global")


@final
@dataclasses.dataclass
class Work:
    """Executions per element.

    Attributes:
        weights: of each instruction of the code, by how many threads it is issued per element.
        performed: of each, by how many threads it is executed, where that is less: an access whose predicate is false
            is issued, and goes no further.
        origin: in words, how they were found.
        conflicts: passes over shared memory per element beyond those of accesses without conflicts.
        bytes_per_element: what DRAM moves at least, where the executor saw it.
        agreement: global accesses as the weights have them over those that were executed; 1 is perfect.
    """

    weights: list[float]
    performed: list[float]
    origin: str
    conflicts: float = 0.0
    bytes_per_element: float | None = None
    agreement: float | None = None


def of_region(code: Code, region: str, elements: float) -> Work:
    """Every instruction of a region once for `elements` elements.

    Raises:
        RooflineError: there is no such region.
    """
    if region == "all":
        chosen = set(range(len(code.instructions)))
        origin = f"every instruction once for {elements:g} elements"
    elif region == "loop":
        chosen = _largest_loop(code)
        origin = f"the loop of {len(chosen - code.slow)} instructions once for {elements:g} elements"
    else:
        raise RooflineError(f"{code.name}: the region {region!r} is neither 'loop' nor 'all'")
    chosen -= code.slow
    weights = [1 / elements if number in chosen else 0.0 for number in range(len(code.instructions))]
    return Work(weights, weights, f"static: {origin}, without {len(code.slow)} of slow paths and padding")


def _largest_loop(code: Code) -> set[int]:
    best: set[int] = set()
    for number, one in enumerate(code.instructions):
        start = code.labels.get(one.target or "", number + 1)
        if one.opcode == "BRA" and start <= number and number not in code.slow:
            body = set(range(start, number + 1))
            if len(body) > len(best) and any(code.instructions[i].opcode == "LDG" for i in body):
                best = body
    if not best:
        raise RooflineError(f"{code.name}: no loop that loads from global memory; the region 'all' needs none")
    return best


def of_counts(code: Code, path: pathlib.Path) -> Work:
    """Each instruction as often as the PTX of its block was executed.

    Within a block without branches all are executed equally often: as often as its accesses to memory and shuffles,
    which machine code has one to one; in a block without those, as the PTX of its lines in the median. Predicated
    accesses count only where there are no others: they may stand for a branch of the PTX.

    Raises:
        RooflineError: the file is not one of this kernel, or the cubin was not made from the PTX that was executed.
    """
    try:
        counts = json.loads(path.read_text())
        lines = {int(line): (str(name), int(warps)) for line, (name, warps) in counts["lines"].items()}
        elements = counts["elements"]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise RooflineError(f"cannot read the counts {path}: {error}") from error
    if counts["kernel"] != code.name:
        raise RooflineError(f"{path} counts the kernel {counts['kernel']}, not {code.name}")
    if not any(one.line for one in code.instructions):
        raise RooflineError(f"{code.name}: without -lineinfo for the cubin, counts cannot be used")
    weights = [0.0] * len(code.instructions)
    performed = list(weights)
    unanchored = 0
    known = 0.0
    blocks = _blocks(code)
    executed = _Lines(code, blocks, lines)
    for block in blocks:
        known, exact = executed.executions([code.instructions[number] for number in block], known)
        unanchored += 0 if exact else len(block)
        for number in block:
            weights[number] = 32 * known / elements
            performed[number] = min(
                weights[number], 32 * executed.performed(code.instructions[number], known) / elements
            )
    origin = (
        f"executed: every block of SASS as often as the PTX it was made from, on {elements} elements; "
        f"{len(code.slow)} instructions of slow paths and padding left out, "
        f"{unanchored} in blocks without an access to memory that would make it exact"
    )
    touched = counts["touched_bytes"]
    return Work(
        weights,
        performed,
        origin,
        conflicts=(counts["shared_wavefronts"] - counts["shared_ideal"]) / elements,
        bytes_per_element=(touched["ld"] + touched["st"]) / elements,
        agreement=_agreement(code.instructions, performed, counts),
    )


def _blocks(code: Code) -> list[list[int]]:
    """The numbers of the instructions of each block that has no branch but at its end, without slow paths."""
    # labels that only slow paths lead to part nothing
    ways = [one for number, one in enumerate(code.instructions) if number not in code.slow and not _is_diverged(one)]
    starts = {code.labels.get(one.target or "", -1) for one in ways}
    starts |= {code.labels.get(label, -1) for one in ways for label in one.table}
    blocks: list[list[int]] = [[]]
    for number, one in enumerate(code.instructions):
        if number in starts and blocks[-1]:
            blocks.append([])
        if number not in code.slow:
            blocks[-1].append(number)
        if one.opcode in ("BRA", "BRX", "EXIT", "RET") and not _is_diverged(one) and blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _is_diverged(one: Instruction) -> bool:
    return one.opcode == "BRA" and "DIV" in one.modifiers


@final
class _Lines:
    """How often the lines of the PTX were executed, shared among what the assembler made of each."""

    def __init__(self, code: Code, blocks: list[list[int]], executed: dict[int, tuple[str, int]]) -> None:
        self._executed = executed
        of_block = [{code.instructions[number].line for number in block} for block in blocks]
        self._blocks = collections.Counter(line for lines in of_block for line in lines)
        ordinary = (code.instructions[number] for block in blocks for number in block)
        self._accesses = collections.Counter(one.line for one in ordinary if one.opcode in _ANCHORS)

    def performed(self, one: Instruction, issued: float) -> float:
        """How many warps execute an access that is predicated; for others as often as they are issued."""
        if not (one.predicated and one.line and one.opcode in _ANCHORS):
            return issued
        return self._executed.get(one.line, ("", 0))[1] / self._accesses[one.line]

    def executions(self, block: list[Instruction], before: float) -> tuple[float, bool]:
        """How many warps execute a block, and whether accesses tell. `before`: of the block before, if nothing tells.

        The assembler unrolls loops and doubles what follows a branch: several accesses may then be one line of the PTX,
        and which of them ran is not known. Each gets an equal part, so that their sum is right.
        """
        anchored: list[float] = []
        predicated: list[float] = []
        others: dict[int, list[float]] = collections.defaultdict(list)
        for one in block:
            if not one.line:
                continue
            name, warps = self._executed.get(one.line, ("", 0))
            wanted = _ANCHORS.get(one.opcode)
            if wanted is None:
                others[self._blocks[one.line]].append(warps / self._blocks[one.line])
            elif name in wanted or not name:
                (predicated if one.predicated else anchored).append(warps / self._accesses[one.line])
            else:
                raise RooflineError(f"line {one.line} of the PTX is {name}, {one.opcode} in the cubin: not of this PTX")
        if anchored:
            return statistics.fmean(anchored), True
        if others:  # what is in one block alone tells best: the rest may have been moved or made again
            return statistics.median(others[min(others)]), False
        return (statistics.fmean(predicated), False) if predicated else (before, False)


def _agreement(instructions: list[Instruction], weights: list[float], counts: dict[str, Any]) -> float | None:
    """Accesses to global memory are the same in PTX and in SASS: what the weights say of them can be checked."""
    executed = 32 * sum(counts["warp_instructions"].get(name, 0) for name in _PTX_GLOBAL) / counts["elements"]
    weighted = sum(w for one, w in zip(instructions, weights, strict=True) if one.opcode in _GLOBAL)
    return weighted / executed if executed else None
