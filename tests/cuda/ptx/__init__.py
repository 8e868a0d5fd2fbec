"""Executes the PTX that nvcc produced, with numpy: the kernels that a GPU would run, checked and counted, without one.

    kernels = load(compile_ptx(pathlib.Path("kernels.cu")))
    memory = Memory()
    x, y = memory.add(source), memory.add(target)
    counts = Machine(kernels["scale"], memory, 4, 64, [x, y, source.size, np.float32(2)]).run()

Every access is checked: that it lies inside an allocation, that it is aligned, that shared memory was written before
it is read, and that threads do not race for it. So are the masks of collectives, barriers, and that the kernel ends.
Results are those of the hardware to the bit, except for instructions that the PTX manual leaves open
(`Counts.inexact`). Not seen: races in global memory, other than within one instruction; the weak ordering of memory.
"""

from ._compile import compile_ptx, find_nvcc
from ._counts import Counts, Traffic, class_of
from ._errors import (
    AlignmentError,
    BarrierError,
    BoundsError,
    DeadlockError,
    KernelFault,
    MaskError,
    ParseError,
    PtxError,
    RaceError,
    TrapError,
    UninitializedError,
    UnsupportedError,
)
from ._kernel import Instruction, Kernel, Parameter
from ._machine import Machine
from ._memory import Memory
from ._parse import load

__all__ = [
    "AlignmentError",
    "BarrierError",
    "BoundsError",
    "Counts",
    "DeadlockError",
    "Instruction",
    "Kernel",
    "KernelFault",
    "Machine",
    "MaskError",
    "Memory",
    "Parameter",
    "ParseError",
    "PtxError",
    "RaceError",
    "Traffic",
    "TrapError",
    "UninitializedError",
    "UnsupportedError",
    "class_of",
    "compile_ptx",
    "find_nvcc",
    "load",
]
