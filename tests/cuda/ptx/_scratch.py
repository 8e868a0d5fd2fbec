"""Shared memory, with a record of who used what since the last barrier, and local memory."""

from __future__ import annotations

from typing import final

import numpy as np

from ._errors import BoundsError, RaceError, UninitializedError
from ._lanes import Lanes, Shape
from ._memory import MOVERS, check_alignment

_NEVER = -1
_SEVERAL = -2
_POISON = 0xCD


@final
class Shared:
    """The shared memory of every block of a batch.

    Each unit (the narrowest access of the kernel) remembers when, and by which thread, it was last written, read and
    updated atomically. Time is the number of barriers so far, those of warps included. Threads of one block need a
    barrier of the block between a write and another use, threads of one warp at least a barrier of the warp.
    """

    def __init__(self, shape: Shape, nbytes: int, unit: int) -> None:
        self._shape, self.nbytes, self._unit = shape, nbytes, unit
        self._bytes = np.full((shape.blocks, -(-nbytes // 16) * 16), _POISON, np.uint8)
        self._units_per_block = self._bytes.shape[1] // unit
        units = shape.blocks * self._units_per_block
        self._written = np.zeros(units, bool)
        self._write_time = np.full(units, _NEVER, np.int32)
        self._writer = np.full(units, _NEVER, np.int32)
        self._read_time = np.full(units, _NEVER, np.int32)
        self._reader = np.full(units, _NEVER, np.int32)  # a seat, or several of one warp
        self._read_warp = np.full(units, _NEVER, np.int32)  # or several
        self._atomic_time = np.full(units, _NEVER, np.int32)
        self._atomic_warp = np.full(units, _NEVER, np.int32)
        self._now = 0
        self._block_barrier = np.zeros(shape.blocks, np.int32)
        self._warp_barrier = np.zeros(shape.warps, np.int32)

    def block_barrier(self, blocks: np.ndarray) -> None:
        self._now += 1
        self._block_barrier[blocks] = self._now
        self._warp_barrier.reshape(-1, self._shape.warps_per_block)[blocks] = self._now

    def warp_barrier(self, warps: np.ndarray) -> None:
        self._now += 1
        self._warp_barrier[warps] = self._now

    def load(self, lanes: Lanes, addresses: np.ndarray, nbytes: int, *, checked: bool = True) -> np.ndarray:
        """uint8 of shape (lanes, nbytes); `checked` is False for volatile accesses, which may race."""
        place = self._place(lanes, addresses, nbytes)
        if not self._written[place].all():
            raise UninitializedError("shared memory read before it is written")
        if checked:
            self._check_writes(lanes, place, "read")
            self._check_atomics(lanes, place, "read")
            self._note_reads(lanes, place)
        return self._gather(lanes, addresses, nbytes)

    def store(self, lanes: Lanes, addresses: np.ndarray, data: np.ndarray, *, checked: bool = True) -> None:
        place = self._place(lanes, addresses, data.shape[1])
        if checked:
            self._check_writes(lanes, place, "write")
            self._check_atomics(lanes, place, "write")
            self._check_reads(lanes, place)
        self._scatter(lanes, addresses, data)
        if (self._gather(lanes, addresses, data.shape[1]) != data).any():
            raise RaceError("threads write different values to one place of shared memory in one instruction")
        self._written[place] = True
        if checked:
            self._write_time[place] = self._now
            self._writer[place] = lanes.seat[:, None]

    def begin_atomic(self, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> None:
        """Checks and notes an atomic update; the update itself is done with `fetch` and `replace`."""
        place = self._place(lanes, addresses, nbytes)
        if not self._written[place].all():
            raise UninitializedError("shared memory updated before it is written")
        self._check_writes(lanes, place, "update")
        self._check_reads(lanes, place)
        warp = lanes.warp[:, None].astype(np.int32)
        recent = self._atomic_time[place] >= self._block_barrier[lanes.block][:, None]
        other = recent & (self._atomic_warp[place] != warp)
        self._atomic_time[place] = self._now
        self._atomic_warp[place] = np.where(other, _SEVERAL, warp)
        # where several lanes of this instruction update one place, the last one's note has replaced the others'
        self._atomic_warp[place[self._atomic_warp[place] != warp]] = _SEVERAL

    def fetch(self, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        return self._gather(lanes, addresses, nbytes)

    def replace(self, lanes: Lanes, addresses: np.ndarray, data: np.ndarray) -> None:
        self._scatter(lanes, addresses, data)

    def _gather(self, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        words = self._bytes.view(MOVERS[nbytes])
        return words[lanes.block, addresses // nbytes].view(np.uint8).reshape(-1, nbytes)

    def _scatter(self, lanes: Lanes, addresses: np.ndarray, data: np.ndarray) -> None:
        nbytes = data.shape[1]
        words = self._bytes.view(MOVERS[nbytes])
        words[lanes.block, addresses // nbytes] = np.ascontiguousarray(data).view(words.dtype).reshape(-1)

    def _place(self, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        """The units of each access, among those of the whole batch: shape (lanes, units)."""
        check_alignment(addresses, nbytes)
        low, high = int(addresses.min()), int(addresses.max())
        if low < 0 or high + nbytes > self.nbytes:
            raise BoundsError(f"bytes {low} to {high + nbytes} of {self.nbytes} of shared memory")
        first = lanes.block * self._units_per_block + addresses // self._unit
        return first[:, None] + np.arange(nbytes // self._unit)

    def _since(self, lanes: Lanes, same_warp: np.ndarray) -> np.ndarray:
        """Since when another thread's use is a race."""
        warp, block = self._warp_barrier[lanes.warp][:, None], self._block_barrier[lanes.block][:, None]
        return np.where(same_warp, warp, block)

    def _check_writes(self, lanes: Lanes, place: np.ndarray, what: str) -> None:
        writer = self._writer[place]
        since = self._since(lanes, writer >> 5 == lanes.warp[:, None])
        if ((writer != lanes.seat[:, None]) & (self._write_time[place] >= since)).any():
            raise RaceError(f"{what} of shared memory that another thread wrote since the last barrier")

    def _check_atomics(self, lanes: Lanes, place: np.ndarray, what: str) -> None:
        times = self._atomic_time[place]
        if times.max() == _NEVER:
            return
        since = self._since(lanes, self._atomic_warp[place] == lanes.warp[:, None])
        if (times >= since).any():
            raise RaceError(f"{what} of shared memory that was updated atomically since the last barrier")

    def _check_reads(self, lanes: Lanes, place: np.ndarray) -> None:
        same_warp = self._read_warp[place] == lanes.warp[:, None]
        recent = self._read_time[place] >= self._since(lanes, same_warp)
        if (recent & ~(same_warp & (self._reader[place] == lanes.seat[:, None]))).any():
            raise RaceError("write of shared memory that another thread read since the last barrier")

    def _note_reads(self, lanes: Lanes, place: np.ndarray) -> None:
        warp, seat = lanes.warp[:, None].astype(np.int32), lanes.seat[:, None].astype(np.int32)
        recent = self._read_time[place] >= self._block_barrier[lanes.block][:, None]
        other_warp = recent & (self._read_warp[place] != warp)
        same = recent & ~other_warp & (self._read_time[place] >= self._warp_barrier[lanes.warp][:, None])
        other_thread = same & (self._reader[place] != seat)
        self._read_time[place] = self._now
        self._read_warp[place] = np.where(other_warp, _SEVERAL, warp)
        self._reader[place] = np.where(other_thread, _SEVERAL, seat)
        # where several lanes of this instruction read one place, the last one's note has replaced the others'
        self._read_warp[place[self._read_warp[place] != warp]] = _SEVERAL
        self._reader[place[self._reader[place] != seat]] = _SEVERAL


@final
class Local:
    """Local memory: one row per thread of the batch."""

    def __init__(self, shape: Shape, nbytes: int) -> None:
        self.nbytes = nbytes
        self._bytes = np.full((shape.count, nbytes), _POISON, np.uint8)

    def load(self, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        self._check(addresses, nbytes)
        words = self._bytes.view(MOVERS[nbytes])
        return words[lanes.numbers, addresses // nbytes].view(np.uint8).reshape(-1, nbytes)

    def store(self, lanes: Lanes, addresses: np.ndarray, data: np.ndarray) -> None:
        nbytes = data.shape[1]
        self._check(addresses, nbytes)
        words = self._bytes.view(MOVERS[nbytes])
        words[lanes.numbers, addresses // nbytes] = np.ascontiguousarray(data).view(words.dtype).reshape(-1)

    def _check(self, addresses: np.ndarray, nbytes: int) -> None:
        check_alignment(addresses, nbytes)
        low, high = int(addresses.min()), int(addresses.max())
        if low < 0 or high + nbytes > self.nbytes:
            raise BoundsError(f"bytes {low} to {high + nbytes} of {self.nbytes} of local memory")
