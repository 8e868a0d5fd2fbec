"""The prediction, and whether it passes."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any, final

from tools.roofline import _gpu
from tools.roofline._sass import Code, Instruction, RooflineError
from tools.roofline._work import Work, of_counts, of_region

# Outside of this, the estimate from lines of the PTX is not to be trusted.
_AGREEMENT = (0.8, 1.25)
_KNOWN = {
    "threads",
    "dynamic_shared",
    "elements",
    "bytes_per_element",
    "region",
    "counts",
    "kernel",
    "min",
    "max",
    "for_now",
    "why",
}


@final
@dataclasses.dataclass(frozen=True)
class Figures:
    """One kernel. Times are in picoseconds per element for the whole GPU.

    Attributes:
        spills: instructions that access local memory, for spilled registers or arrays indexed at run time.
        spills_per_element: how many of those a thread executes; few, if what spills is seldom needed.
        warps: resident on one multiprocessor.
        instructions_per_element: thread instructions.
        instructions_per_byte: the same per byte of DRAM traffic.
        loads_128, loads_narrow: of global memory, instructions in the code with 128 bits per thread, and with fewer.
        stores_128, stores_narrow: likewise.
        time: the greatest of the others.
        bound: which one that is.
        dram_share: of the speed that DRAM allows, how much is reached; 1 where DRAM is the bound.
        agreement: see `Work`; 1 for static regions.
    """

    registers: int
    stack: int
    shared: int
    spills: int
    spills_per_element: float
    warps: int
    instructions_per_element: float
    instructions_per_byte: float
    bytes_per_element: float
    loads_128: int
    loads_narrow: int
    stores_128: int
    stores_narrow: int
    time_dram: float
    time_issue: float
    time_alu: float
    time_fma: float
    time_lsu: float
    time_special: float
    time: float
    bound: str
    dram_share: float
    agreement: float


def work_of(code: Code, gate: dict[str, Any], folder: pathlib.Path) -> Work:
    """As the gate of a kernel demands; files are looked for in `folder`.

    Raises:
        RooflineError: the gate is not understood, or what it names is not there.
    """
    if unknown := set(gate) - _KNOWN:
        raise RooflineError(f"{code.name}: the gate has {sorted(unknown)}; known are {sorted(_KNOWN)}")
    if "counts" in gate:
        return of_counts(code, folder / gate["counts"])
    if "elements" not in gate:
        raise RooflineError(f"{code.name}: neither 'counts' nor 'elements' in the gate")
    return of_region(code, gate.get("region", "loop"), gate["elements"])


def predict(code: Code, work: Work, gate: dict[str, Any]) -> Figures:
    """The figures of one kernel.

    Raises:
        RooflineError: nothing tells how many bytes an element takes.
    """
    nbytes = gate.get("bytes_per_element", work.bytes_per_element)
    if nbytes is None:
        raise RooflineError(f"{code.name}: no 'bytes_per_element' in the gate")
    cycles = _cycles(code, work)
    rate = _gpu.MULTIPROCESSORS * _gpu.CLOCK
    times = {name: 1e12 * value / rate for name, value in cycles.items()}
    times["dram"] = 1e12 * nbytes / _gpu.DRAM
    bound = max(times, key=lambda name: times[name])
    widths = _widths(code)
    shared = code.shared + gate.get("dynamic_shared", 0)
    instructions = sum(work.weights)
    return Figures(
        registers=code.registers,
        stack=code.stack,
        shared=shared,
        spills=sum(_is_spill(one) for one in code.instructions),
        spills_per_element=sum(w for one, w in zip(code.instructions, work.weights, strict=True) if _is_spill(one)),
        warps=_gpu.occupancy(code.registers, shared, gate.get("threads", 256)),
        instructions_per_element=instructions,
        instructions_per_byte=instructions / nbytes,
        bytes_per_element=nbytes,
        loads_128=widths["LDG", True],
        loads_narrow=widths["LDG", False],
        stores_128=widths["STG", True],
        stores_narrow=widths["STG", False],
        time_dram=times["dram"],
        time_issue=times["issue"],
        time_alu=times["alu"],
        time_fma=times["fma"],
        time_lsu=times["lsu"],
        time_special=times["special"],
        time=times[bound],
        bound=bound,
        dram_share=times["dram"] / times[bound],
        agreement=1.0 if work.agreement is None else work.agreement,
    )


def _is_spill(one: Instruction) -> bool:
    return one.opcode in ("LDL", "STL")


def _widths(code: Code) -> collections.Counter[tuple[str, bool]]:
    ordinary = (one for number, one in enumerate(code.instructions) if number not in code.slow)
    return collections.Counter((one.opcode, one.nbytes == 16) for one in ordinary)


def _cycles(code: Code, work: Work) -> dict[str, float]:
    """Clocks of one multiprocessor per element, for the issue and for each pipe alone."""
    cycles = dict.fromkeys(("issue", *_gpu.PIPES), 0.0)
    for one, issued, weight in zip(code.instructions, work.weights, work.performed, strict=True):
        cycles["issue"] += issued / _gpu.ISSUE
        pipe = _gpu.pipe_of(one.opcode, one.modifiers)
        if pipe is None:
            continue
        # wide accesses take the unit once for each 128 bytes of the warp
        passes = max(1.0, one.nbytes / 4) if one.opcode in ("LDG", "STG", "LDS", "STS", "LDL", "STL") else 1.0
        cycles[pipe] += weight * passes / _gpu.PIPES[pipe]
    # one wavefront serves 32 threads in one clock, and so does a pass that a bank conflict adds
    cycles["lsu"] += work.conflicts
    # multiplications of integers are done in one half of the pipe that the float ones have two of
    cycles["fma"] += cycles.pop("multiply")
    return cycles


def failures(figures: Figures, gate: dict[str, Any]) -> list[str]:
    """What of the gate is not held.

    Raises:
        RooflineError: a limit on something that is no number of `Figures`.
    """
    weaker = gate.get("for_now", {})
    if weaker and not gate.get("why"):
        raise RooflineError("limits for now without a reason in 'why'")
    if unknown := set(weaker) - {name for _, name, _ in _limits(gate)}:
        raise RooflineError(f"limits for now on {sorted(unknown)}, on which there are none")
    found = []
    for side, name, limit in _limits(gate):
        limit, value = weaker.get(name, limit), _value(figures, name)
        if _exceeds(side, value, limit):
            found.append(f"{name} is {value:.4g}, {'more' if side == 'max' else 'less'} than {limit:g}")
    if not _AGREEMENT[0] <= figures.agreement <= _AGREEMENT[1]:
        found.append(
            f"agreement is {figures.agreement:.3g}: the lines of the PTX do not tell how often this code runs "
            "(code that the assembler made several of?); use a static region"
        )
    return found


def unneeded(figures: Figures, gate: dict[str, Any]) -> list[str]:
    """Which of the weaker limits can go."""
    limits = [one for one in _limits(gate) if one[1] in gate.get("for_now", {})]
    return [name for side, name, limit in limits if not _exceeds(side, _value(figures, name), limit)]


def _limits(gate: dict[str, Any]) -> list[tuple[str, str, float]]:
    sides = {"max": {"spills": 0, **gate.get("max", {})}, "min": gate.get("min", {})}
    return [(side, name, limit) for side, named in sides.items() for name, limit in named.items()]


def _value(figures: Figures, name: str) -> float:
    value = getattr(figures, name, None)
    if not isinstance(value, int | float):
        raise RooflineError(f"a limit on {name!r}, which is none of the figures")
    return value


def _exceeds(side: str, value: float, limit: float) -> bool:
    """Whether a value is on the wrong side of its limit."""
    return value > limit if side == "max" else value < limit
