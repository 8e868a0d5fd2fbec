"""Global memory: the arrays that a test hands to kernels, each an allocation of its own."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from ._errors import AlignmentError, BoundsError
from ._kernel import Variable

SLOT_BITS = 40
_OFFSET_MASK = (1 << SLOT_BITS) - 1
# Where generic addresses of the other spaces begin, far above every slot.
SHARED_BASE = 1 << 60
LOCAL_BASE = 1 << 61

# A 16-byte access moves as one complex number: numpy has no wider integer, and copies keep every bit.
MOVERS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    16: np.dtype(np.complex128),
}


def check_alignment(addresses: np.ndarray, nbytes: int) -> None:
    """Raises AlignmentError for an address that is not a multiple of `nbytes`, a power of two."""
    wrong = addresses & (nbytes - 1)
    if wrong.any():
        bad = int(addresses[np.flatnonzero(wrong)[0]]) & _OFFSET_MASK
        raise AlignmentError(f"{nbytes} bytes at the offset {bad}")


@final
class Memory:
    """Holds arrays by address: the number of the allocation above bit 40, the offset in bytes below.

    An access past an allocation is an error, however near another one lies.
    """

    def __init__(self) -> None:
        self._bytes: list[np.ndarray] = [np.zeros(0, np.uint8)]  # none has the number 0, so that null is outside
        self._writable = [False]
        self._touched: dict[str, list[np.ndarray]] = {"ld": [np.zeros(0, bool)], "st": [np.zeros(0, bool)]}
        self._variables: dict[int, tuple[Variable, int]] = {}

    def add(self, array: np.ndarray) -> int:
        """Makes an array reachable for kernels, which write to it in place, and returns its address.

        A read-only array (``array.flags.writeable``) is memory that kernels must not write to.

        Raises:
            ValueError: the array is not contiguous.
        """
        if not array.flags.c_contiguous:
            raise ValueError("only a contiguous array can be device memory")
        flat = array.reshape(-1).view(np.uint8)
        self._bytes.append(flat)
        self._writable.append(bool(array.flags.writeable))
        for touched in self._touched.values():
            touched.append(np.zeros(len(flat) // 32 + 1, bool))
        return (len(self._bytes) - 1) << SLOT_BITS

    def address_of(self, variable: Variable) -> int:
        """The address of a ``.global`` or ``.const`` variable, which is made on the first call.

        The kernels of one text share their variables, and what they leave in them is kept from launch to launch.
        """
        if id(variable) not in self._variables:
            array = np.zeros(variable.nbytes, np.uint8) if variable.data is None else variable.data.copy()
            array.flags.writeable = variable.space != "const"
            self._variables[id(variable)] = variable, self.add(array)
        return self._variables[id(variable)][1]

    def forget_touched(self) -> None:
        for touched in self._touched.values():
            for one in touched:
                one[:] = False

    def touched_bytes(self, kind: str) -> int:
        """32 times the distinct sectors loaded (``ld``) or stored (``st``) since `forget_touched`."""
        return 32 * sum(int(np.count_nonzero(one)) for one in self._touched[kind])

    def load(self, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        """``nbytes`` (1 to 16) from each address (int64): uint8, shape (addresses, nbytes)."""
        out = np.empty(len(addresses), MOVERS[nbytes])
        for chosen, slot, offset in self._slots(addresses, nbytes):
            self._touched["ld"][slot][offset >> 5] = True
            out[chosen] = self._view(slot, nbytes)[offset // nbytes]
        return out.view(np.uint8).reshape(len(addresses), nbytes)

    def store(self, addresses: np.ndarray, data: np.ndarray) -> np.ndarray:
        """Writes the rows of `data` (uint8); the last of several to one address wins.

        Returns what is there afterwards, so that the caller sees where lanes overwrote one another.
        """
        nbytes = data.shape[1]
        values = np.ascontiguousarray(data).view(MOVERS[nbytes]).reshape(-1)
        out = np.empty_like(values)
        for chosen, slot, offset in self._slots(addresses, nbytes):
            if not self._writable[slot]:
                raise BoundsError(f"a write to the read-only allocation {slot}")
            self._touched["st"][slot][offset >> 5] = True
            view = self._view(slot, nbytes)
            view[offset // nbytes] = values[chosen]
            out[chosen] = view[offset // nbytes]
        return out.view(np.uint8).reshape(-1, nbytes)

    def _view(self, slot: int, nbytes: int) -> np.ndarray:
        array = self._bytes[slot]
        return array[: len(array) // nbytes * nbytes].view(MOVERS[nbytes])

    def _slots(self, addresses: np.ndarray, nbytes: int) -> list[tuple[slice | np.ndarray, int, np.ndarray]]:
        """The accesses of each allocation: which they are, its number, and their offsets, all checked."""
        check_alignment(addresses, nbytes)
        slots = addresses >> SLOT_BITS
        first = int(slots[0])
        if (slots == first).all():
            groups: list[tuple[slice | np.ndarray, int]] = [(slice(None), first)]
        else:
            groups = [(np.flatnonzero(slots == slot), int(slot)) for slot in np.unique(slots)]
        found = []
        for chosen, slot in groups:
            offsets = addresses[chosen] & _OFFSET_MASK
            if not 0 < slot < len(self._bytes):
                raise BoundsError(f"{nbytes} bytes at {int(addresses[chosen][0]):#x}, where there is no allocation")
            end = int(offsets.max()) + nbytes
            if end > len(self._bytes[slot]):
                raise BoundsError(f"byte {end} of {len(self._bytes[slot])} in the allocation {slot}")
            found.append((chosen, slot, offsets))
        return found
