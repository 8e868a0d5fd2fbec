"""Launches kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from ._access import narrowest
from ._batch import Batch, Launch
from ._counts import Counts
from ._kernel import Kernel, Parameter
from ._memory import Memory
from ._program import Program
from ._scheduler import Scheduler

Argument = int | float | bytes | np.generic | np.ndarray
Size = int | tuple[int, ...]


@final
class Machine:
    """One launch of a kernel: every block is executed, some of them at a time.

    Args:
        grid, block: as in ``kernel<<<grid, block>>>``, of one to three dimensions.
        arguments: one for each parameter: addresses from `Memory.add` and other numbers, or for a struct its bytes,
            or a scalar of a numpy structured dtype with the fields laid out as in C (``align=True``).
        dynamic_shared: bytes of shared memory beyond what the kernel declares.
        lanes: about how many threads are executed at a time; more are faster up to what the caches hold.
        patience: backward branches that a batch may take before it counts as one that never ends.

    Raises:
        ValueError: the arguments do not fit the kernel's parameters, or the sizes do not fit the kernel.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        grid: Size,
        block: Size,
        arguments: Sequence[Argument],
        dynamic_shared: int = 0,
        *,
        lanes: int = 8192,
        patience: int = 5_000_000,
    ) -> None:
        threads = int(np.prod(block))
        if not 0 < threads <= 1024:
            raise ValueError(f"{threads} threads in a block")
        if kernel.threads not in (None, threads):
            raise ValueError(f"{kernel.name} is compiled for {kernel.threads} threads, not {threads}")
        parameters = _packed(kernel, arguments)
        self._launch = Launch(kernel, memory, _three(grid), _three(block), parameters, dynamic_shared)
        self._program = Program(self._launch)
        self._unit = narrowest(kernel.instructions)
        self._blocks, self._at_once = int(np.prod(grid)), max(1, lanes // threads)
        self._patience = patience

    def run(self) -> Counts:
        """Executes the launch and returns what it counted.

        Raises:
            KernelFault: the kernel did something that is wrong or undefined on a GPU. Memory is left as it was then.
            UnsupportedError: an instruction was reached that is not known here.
        """
        launch, counts = self._launch, self._launch.counts
        launch.memory.forget_touched()
        for first in range(0, self._blocks, self._at_once):
            blocks = min(self._at_once, self._blocks - first)
            batch = Batch(launch, self._program.operands.names, self._unit, first, blocks)
            Scheduler(self._program, batch, self._patience).run()
        counts.blocks += self._blocks
        counts.touched_bytes = {kind: launch.memory.touched_bytes(kind) for kind in ("ld", "st")}
        return counts


def _three(size: Size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*sizes, 1, 1)[:3]
    return int(x), int(y), int(z)


def _packed(kernel: Kernel, arguments: Sequence[Argument]) -> np.ndarray:
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, {len(arguments)} were given")
    data = bytearray(kernel.parameter_bytes)
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        data[parameter.offset : parameter.offset + parameter.nbytes] = _bytes_of(parameter, argument)
    packed = np.frombuffer(bytes(data), np.uint8)
    assert not packed.flags.writeable
    return packed


def _bytes_of(parameter: Parameter, argument: Argument) -> bytes:
    size = parameter.nbytes
    if isinstance(argument, float) and not isinstance(argument, np.generic):
        raw = np.array(argument, f"f{size}").tobytes()
    elif isinstance(argument, int):
        raw = (argument & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if int.from_bytes(raw, "little", signed=argument < 0) != argument:
            raise ValueError(f"{argument} does not fit the {size} bytes of {parameter.name}")
    else:
        raw = bytes(argument) if isinstance(argument, bytes) else argument.tobytes()
    if len(raw) != size:
        raise ValueError(f"{parameter.name} has {size} bytes, {len(raw)} were given")
    return raw
