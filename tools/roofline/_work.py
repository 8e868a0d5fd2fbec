"""How often the instructions of a kernel are executed, per element."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, final

from tools.roofline._sass import Code, Instruction, RooflineError

_GLOBAL = ("LDG", "STG", "RED", "ATOMG", "ATOM")
_PTX_GLOBAL = ("ld.global", "st.global", "red.global", "atom.global")


@final
@dataclasses.dataclass
class Work:
    """Executions per element.

    Attributes:
        weights: of each instruction of the code, by how many threads it is executed per element.
        origin: in words, how they were found.
        conflicts: passes over shared memory per element beyond those of accesses without conflicts.
        bytes_per_element: what DRAM moves at least, where the executor saw it.
        agreement: global accesses as the weights have them over those that were executed; 1 is perfect.
    """

    weights: list[float]
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
    return Work(weights, f"static: {origin}, without {len(code.slow)} of slow paths and padding")


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
    """Each instruction as often as the PTX of its line was executed.

    Raises:
        RooflineError: the file is not one of this kernel, or there are no lines.
    """
    try:
        counts = json.loads(path.read_text())
        lines: dict[str, dict[str, int]] = counts["lines"]
        elements = counts["elements"]
    except (OSError, ValueError, KeyError) as error:
        raise RooflineError(f"cannot read the counts {path}: {error}") from error
    if counts["kernel"] != code.name:
        raise RooflineError(f"{path} counts the kernel {counts['kernel']}, not {code.name}")
    if not lines or not any(one.location for one in code.instructions):
        raise RooflineError(f"{code.name}: without -lineinfo in both the PTX and the cubin, counts cannot be used")
    weights, unknown = [], 0
    last = 0.0
    for number, one in enumerate(code.instructions):
        if number in code.slow:
            weights.append(0.0)
            continue
        line = lines.get(one.location)
        if line is None:
            unknown += 1  # goes with its neighbour: the compiler has made it from there
        else:
            last = 32 * line["warps"] / line["instructions"] / elements
        weights.append(last)
    origin = (
        f"executed: SASS by how often the PTX of its source line ran on {elements} elements; "
        f"{len(code.slow)} instructions of slow paths and padding left out, {unknown} of lines without PTX"
    )
    touched = counts["touched_bytes"]
    return Work(
        weights,
        origin,
        conflicts=(counts["shared_wavefronts"] - counts["shared_ideal"]) / elements,
        bytes_per_element=(touched["ld"] + touched["st"]) / elements,
        agreement=_agreement(code.instructions, weights, counts),
    )


def _agreement(instructions: list[Instruction], weights: list[float], counts: dict[str, Any]) -> float | None:
    """Accesses to global memory are the same in PTX and in SASS: what the weights say of them can be checked."""
    executed = 32 * sum(counts["warp_instructions"].get(name, 0) for name in _PTX_GLOBAL) / counts["elements"]
    weighted = sum(w for one, w in zip(instructions, weights, strict=True) if one.opcode in _GLOBAL)
    return weighted / executed if executed else None
