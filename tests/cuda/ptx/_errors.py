"""What can go wrong: in the text of a kernel, or in what it does when executed."""

from __future__ import annotations

from typing import final


class PtxError(Exception):
    """Everything that this package raises about a kernel; names the kernel, the instruction and its number."""


@final
class ParseError(PtxError):
    """The text is not PTX as far as this package reads it."""


@final
class UnsupportedError(PtxError):
    """An instruction, or a form of one, that the executor does not know."""


class KernelFault(PtxError):
    """A kernel did something that is wrong or undefined on a GPU."""


@final
class BoundsError(KernelFault):
    """An access outside every allocation, outside shared or local memory, or a write to memory that is read-only."""


@final
class AlignmentError(KernelFault):
    """An address that is not a multiple of the size of its access."""


@final
class UninitializedError(KernelFault):
    """Shared memory was read before it was written."""


@final
class RaceError(KernelFault):
    """Two threads used the same place, one of them writing, without a barrier between them."""


@final
class MaskError(KernelFault):
    """A collective of a warp whose mask does not fit the threads that execute it."""


@final
class BarrierError(KernelFault):
    """Threads of a block that meet in different barriers, or a barrier after a thread has exited."""


@final
class DeadlockError(KernelFault):
    """No thread can go on, or the kernel does not end."""


@final
class TrapError(KernelFault):
    """The kernel stopped itself: `trap`, or a failed assertion."""
