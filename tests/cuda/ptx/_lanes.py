"""Sets of the threads that execute an instruction together."""

from __future__ import annotations

import functools
from typing import final

import numpy as np


@final
class Shape:
    """Which thread of which block every lane of a batch is. A lane's number is its row in every register.

    Threads of a block lie one after the other, and the blocks too.
    """

    def __init__(self, first_block: int, blocks: int, threads: int) -> None:
        self.first_block, self.blocks, self.threads = first_block, blocks, threads
        self.count = blocks * threads
        self.warps_per_block = -(-threads // 32)
        self.warps = blocks * self.warps_per_block
        self.thread = np.tile(np.arange(threads), blocks)  # within its block
        self.block = np.repeat(np.arange(blocks), threads)  # within the batch
        self.warp = self.block * self.warps_per_block + self.thread // 32  # within the batch
        self.lane = self.thread & 31
        self.seat = self.warp * 32 + self.lane  # a thread's number if every warp were full
        # where shuffles by constants take from, which is the same for all of one kind
        self.shuffles: dict[tuple[str, int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        self.present = self.bits(np.arange(self.count))

    def bits(self, index: np.ndarray) -> np.ndarray:
        """Per warp of the batch, the mask of those lanes, as int64."""
        # each seat appears once, so that a sum is an or
        weights = np.exp2(self.lane[index])
        return np.bincount(self.warp[index], weights, minlength=self.warps).astype(np.int64)


@final
class Lanes:
    """Some lanes of a batch, in order; `index` is None when it is all of them."""

    def __init__(self, shape: Shape, index: np.ndarray | None) -> None:
        self.shape = shape
        self.index = index
        self.count = shape.count if index is None else len(index)

    def of(self, values: np.ndarray) -> np.ndarray:
        """The rows of `values` that belong to these lanes; not to be written to."""
        return values if self.index is None else values[self.index]

    def where(self, condition: np.ndarray) -> Lanes | None:
        """Those of these lanes for which `condition` is true; None when it is none."""
        kept = np.flatnonzero(condition)
        if len(kept) == len(condition):
            return self
        if len(kept) == 0:
            return None
        return Lanes(self.shape, kept if self.index is None else self.index[kept])

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        return np.arange(self.count) if self.index is None else self.index

    @functools.cached_property
    def warp(self) -> np.ndarray:
        return self.of(self.shape.warp)

    @functools.cached_property
    def lane(self) -> np.ndarray:
        return self.of(self.shape.lane)

    @functools.cached_property
    def seat(self) -> np.ndarray:
        return self.of(self.shape.seat)

    @functools.cached_property
    def block(self) -> np.ndarray:
        return self.of(self.shape.block)

    @functools.cached_property
    def bits(self) -> np.ndarray:
        """Per warp of the batch, the mask of these lanes."""
        return self.shape.bits(self.numbers)

    @functools.cached_property
    def warps(self) -> int:
        """In how many warps they are."""
        if self.index is None:
            return self.shape.warps
        return 1 + int(np.count_nonzero(np.diff(self.warp)))  # warps are in order
