"""Machine code as nvdisasm and cuobjdump print it."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import final

_SECTION = re.compile(r"^//-+ \.text\.(\S+)\s+-+")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_LINE = re.compile(r'^\s*//## File "\.nv_debug_ptx_txt", line (\d+)')
_CODE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)((?:\.[\w:]+)*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]+)\)")
_TABLE = re.compile(r'"BRANCH_TARGETS ([^"]*)"')
_RESOURCES = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class RooflineError(Exception):
    """A tool is missing, or its output or the gates are not understood."""


@final
@dataclasses.dataclass(frozen=True)
class Instruction:
    """`line` is that of the PTX which it was made from; 0 without ``-lineinfo``."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: str
    predicated: bool
    line: int

    @property
    def nbytes(self) -> int:
        """Bytes per thread of an access."""
        for name, size in (("128", 16), ("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)):
            if name in self.modifiers:
                return size
        return 4

    @property
    def table(self) -> list[str]:
        """The labels that a jump through a table may go to."""
        found = _TABLE.search(self.operands)
        return [label.strip() for label in found[1].split(",")] if found else []

    @property
    def target(self) -> str | None:
        found = _TARGET.search(self.operands)
        return found[1] if found else None


@final
@dataclasses.dataclass
class Code:
    """One kernel. `slow` holds the numbers of instructions that ordinary data do not reach; see `_reachable`."""

    name: str
    instructions: list[Instruction]
    labels: dict[str, int]
    registers: int = 0
    stack: int = 0
    shared: int = 0
    slow: frozenset[int] = frozenset()


def find_tool(name: str) -> str:
    """A tool of the CUDA toolkit: from the PATH, beside nvcc, in CUDA_HOME, or in this Python's nvidia packages.

    Raises:
        RooflineError: it is nowhere.
    """
    folders = [os.path.join(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    if nvcc := shutil.which("nvcc"):
        folders.append(os.path.dirname(os.path.realpath(nvcc)))
    for path in sys.path:
        folders += [*glob.glob(f"{path}/nvidia/cu*/bin"), *glob.glob(f"{path}/nvidia/cuda_*/bin")]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise RooflineError(f"no {name}: pip install nvidia-cuda-{name}, or set CUDA_HOME")
    return found


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RooflineError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def disassemble(cubin: pathlib.Path) -> dict[str, Code]:
    """All kernels of a cubin, by name.

    Raises:
        RooflineError: a tool is missing, or it does not read the file.
    """
    text = _output([find_tool("nvdisasm"), "-c", "-gp", str(cubin)])
    resources = _output([find_tool("cuobjdump"), "--dump-resource-usage", str(cubin)])
    codes = parse(text)
    for name, *numbers in _RESOURCES.findall(resources):
        if name in codes:
            code = codes[name]
            code.registers, code.stack, code.shared, _ = map(int, numbers)
    for code in codes.values():
        if code.registers == 0:
            raise RooflineError(f"cuobjdump tells no registers of {code.name}")
    return codes


def parse(text: str) -> dict[str, Code]:
    """What nvdisasm printed."""
    codes: dict[str, Code] = {}
    code: Code | None = None
    source = 0
    for line in text.splitlines():
        if found := _SECTION.match(line):
            code = codes.setdefault(found[1], Code(found[1], [], {}))
            source = 0
        elif line.startswith("//---"):
            code = None
        elif code is None:
            continue
        elif found := _LINE.match(line):
            source = int(found[1])
        elif found := _CODE.match(line):
            modifiers = tuple(found[4].split(".")[1:])
            code.instructions.append(Instruction(found[3], modifiers, found[5], found[2] is not None, source))
        elif found := _LABEL.match(line):
            code.labels[found[1]] = len(code.instructions)
    for code in codes.values():
        reachable = _reachable(code)
        code.slow = frozenset(set(range(len(code.instructions))) - reachable)
    return codes


def _reachable(code: Code) -> set[int]:
    """Instructions on the ordinary paths.

    Left out are the ways for warps that have diverged at a collective (``BRA.DIV``), the subroutines for operands that
    the short form of a division or a root does not cover, the instructions that lead to those, and padding.
    """
    slow_calls = {number for number, one in enumerate(code.instructions) if _is_slow_call(one)}
    leading = {number for call in slow_calls for number in _before_call(code, call)}
    found: set[int] = set()
    todo = [0]
    while todo:
        number = todo.pop()
        if number in found or number >= len(code.instructions):
            continue
        one = code.instructions[number]
        if one.opcode == "NOP":
            todo.append(number + 1)
            continue
        found.add(number)
        if one.opcode in ("BRX", "JMX", "JMP"):
            if not one.table:
                return set(range(len(code.instructions))) - leading
            todo += [code.labels[label] for label in one.table]
            continue
        target = code.labels.get(one.target or "")
        if target is not None and number not in slow_calls and "DIV" not in one.modifiers:
            todo.append(target)
        ends = one.opcode in ("EXIT", "RET") or (one.opcode == "BRA" and "DIV" not in one.modifiers)
        if one.predicated or not ends or _has_condition(one):
            todo.append(number + 1)
    return found - leading


def _has_condition(one: Instruction) -> bool:
    """Of a branch that names its predicate among the operands."""
    return one.opcode == "BRA" and re.match(r"!?U?P\d", one.operands) is not None


def _is_slow_call(one: Instruction) -> bool:
    return one.opcode == "CALL" and "__internal" in one.operands


def _before_call(code: Code, call: int) -> list[int]:
    """The call and what prepares it, back to the last branch or label."""
    starts = set(code.labels.values())
    first = call
    while first > 0 and first not in starts and code.instructions[first - 1].opcode not in ("BRA", "CALL", "EXIT"):
        first -= 1
    return list(range(first, call + 1))
