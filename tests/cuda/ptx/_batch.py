"""Everything that the blocks of one batch hold while they run: registers, shared and local memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import final

import numpy as np

from ._counts import Counts
from ._errors import UnsupportedError
from ._kernel import Kernel
from ._lanes import Lanes, Shape
from ._memory import LOCAL_BASE, SHARED_BASE, Memory
from ._scratch import Local, Shared
from ._types import UNSIGNED, storage_of

_SPECIAL = re.compile(
    r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]|"
    r"%(?:laneid|warpid|nwarpid|smid|nsmid|gridid|lanemask_\w\w|clock\w*|globaltimer\w*|dynamic_smem_size|total_smem_size)"
)
_WIDE = ("clock64", "globaltimer", "gridid")


def is_special(name: str) -> bool:
    return _SPECIAL.fullmatch(name) is not None


def special_names(text: str) -> list[str]:
    """The special registers, such as %tid.x, that an operand mentions."""
    return _SPECIAL.findall(text)


def special_bits(name: str) -> int:
    return 64 if name[1:] in _WIDE else 32


@final
class Launch:
    """What all batches of one launch share."""

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: np.ndarray,
        dynamic_shared: int,
    ) -> None:
        self.kernel, self.memory, self.grid, self.block = kernel, memory, grid, block
        self.parameters = parameters
        self.parameter_base = memory.add(parameters)
        self.dynamic_shared = dynamic_shared
        # as nvcc does: what is sized at launch follows the rest, aligned for every type
        self.dynamic_offset = -(-kernel.shared_bytes // 16) * 16 if dynamic_shared else kernel.shared_bytes
        self.shared_bytes = self.dynamic_offset + dynamic_shared
        self.symbols = self._symbols()
        self.counts = Counts(kernel)

    def _symbols(self) -> dict[str, int]:
        """What a variable's name stands for: an offset in shared or local memory, an address elsewhere."""
        kernel = self.kernel
        found = {name: self.memory.address_of(variable) for name, variable in kernel.variables.items()}
        found.update(kernel.shared)
        found.update(kernel.local)
        found.update(dict.fromkeys(kernel.dynamic_shared, self.dynamic_offset))
        found.update({p.name: self.parameter_base + p.offset for p in kernel.parameters})
        return found


@final
class Batch:
    """Some blocks of a launch that run in lockstep as far as their branches agree."""

    def __init__(self, launch: Launch, names: Sequence[str], unit: int, first_block: int, blocks: int) -> None:
        self.launch = launch
        self.counts = launch.counts
        self.memory = launch.memory
        threads = int(np.prod(launch.block))
        self.shape = shape = Shape(first_block, blocks, threads)
        self.shared = Shared(shape, launch.shared_bytes, unit)
        self.local = Local(shape, launch.kernel.local_bytes)
        self.everyone = Lanes(shape, None)
        # predicates that were never set read as false, other registers as zero
        blank: dict[np.dtype, np.ndarray] = {}
        self.registers: list[np.ndarray] = []
        for name in names:
            if not is_special(name):
                dtype = storage_of(launch.kernel.registers.get(name, "pred"))
                self.registers.append(blank.setdefault(dtype, np.zeros(shape.count, dtype)))
            else:
                self.registers.append(self._special(name))

    def _special(self, name: str) -> np.ndarray:
        shape, launch = self.shape, self.launch
        word, _, axis = name[1:].partition(".")
        lane = shape.lane.astype(np.uint64)
        block = shape.first_block + shape.block
        one = np.uint64(1)
        threads, grid = launch.block, launch.grid
        values: dict[str, object] = {
            "laneid": shape.lane,
            "warpid": shape.thread // 32,
            "nwarpid": shape.warps_per_block,
            "nsmid": 132,
            "dynamic_smem_size": launch.dynamic_shared,
            "total_smem_size": launch.shared_bytes,
            "lanemask_eq": one << lane,
            "lanemask_lt": (one << lane) - one,
            "lanemask_le": (one << lane << one) - one,
            "lanemask_gt": np.uint64(0xFFFFFFFF) ^ ((one << lane << one) - one),
            "lanemask_ge": np.uint64(0xFFFFFFFF) ^ ((one << lane) - one),
        }
        if axis:
            at = "xyz".index(axis)
            sizes, number = (threads, shape.thread) if word in ("tid", "ntid") else (grid, block)
            below = int(np.prod(sizes[:at]))
            value: object = sizes[at] if word.startswith("n") else number // below % sizes[at]
        else:
            value = values.get(word, 0)  # clocks stand still, and there is one multiprocessor
        dtype = UNSIGNED[special_bits(name)]
        return np.broadcast_to(np.asarray(value).astype(dtype), shape.count)

    def spaces_of(self, addresses: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Which of generic addresses point into which space."""
        shared = (addresses & SHARED_BASE) != 0
        local = (addresses & LOCAL_BASE) != 0
        found = (("shared", shared), ("local", local), ("global", ~shared & ~local))
        return [(space, mask) for space, mask in found if mask.any()]


def symbol_of(launch: Launch, name: str) -> int:
    """What `name` stands for.

    Raises:
        UnsupportedError: nothing of that name is known.
    """
    if name not in launch.symbols:
        raise UnsupportedError(f"the name {name!r}")
    return launch.symbols[name]
