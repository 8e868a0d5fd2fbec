"""Sums over each layer of a bucket: what is sampled of a step, for telemetry, for the allocator and for the information achieved."""

from __future__ import annotations

import bisect
import enum
import threading
from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from commpress.feedback import Layout


class Column(enum.IntEnum):
    """Of the table that :class:`LayerSums` fills; every entry is a sum over coordinates of a layer."""

    LOCAL = 0  # squares of this rank's own gradient
    MEAN = 1  # squares of the reduced gradient, the same on all ranks
    ERROR = 2  # squared differences between what was encoded and what its decode gives, both phases
    DOT1 = 3  # phase 1: products of what was encoded and what its decode gives,
    ENERGY1 = 4  # squares of what was encoded,
    DECODED1 = 5  # squares of what its decode gives
    DOT2 = 6  # the same in phase 2
    ENERGY2 = 7
    DECODED2 = 8
    CROSS = 9  # products of this rank's gradient and the previous mean
    PREVIOUS = 10  # squares of the previous mean
    MOMENT = 11  # Adam's second moments, the same on all ranks


@final
class LayerSums:
    """Collects the table of one bucket, shape (layers, columns), float64.

    In phase 1 the coordinates of the other ranks' shards are counted, in phase 2 those of the own one. The two threads of the phases meet different coordinates
    but may meet the same layer.
    """

    def __init__(self, layout: Layout) -> None:
        self._segments = list(layout.segments())
        self._starts = [start for _, start, _ in self._segments]
        self.table = np.zeros((len(self._segments), len(Column)))
        self._lock = threading.Lock()

    def add_squares(self, column: Column, flat: torch.Tensor) -> None:
        """`flat` is the whole bucket."""
        squares = [_square(flat[start:stop]) for _, start, stop in self._segments]
        with self._lock:
            self.table[:, column] += squares

    def add_encoded(self, phase: int, start: int, stop: int, values: torch.Tensor, left_out: torch.Tensor) -> None:
        """`values` were encoded for ``[start, stop)``, and `left_out` is `values` less what their decode gives."""
        first = Column.DOT1 if phase == 1 else Column.DOT2
        i = max(0, bisect.bisect_right(self._starts, start) - 1)
        while i < len(self._segments) and self._segments[i][1] < stop:
            low, high = max(start, self._segments[i][1]), min(stop, self._segments[i][2])
            if low < high:
                piece = slice(low - start, high - start)
                error, energy = _square(left_out[piece]), _square(values[piece])
                cross = float(torch.dot(values[piece].double(), left_out[piece].double()))
                with self._lock:
                    self.table[i, Column.ERROR] += error
                    self.table[i, first : first + 3] += (energy - cross, energy, energy - 2 * cross + error)
            i += 1

    def nmse(self) -> list[float]:
        """For each layer squared error over energy; 0 for an exact zero, else not finite if something was not."""
        energy = self.table[:, Column.ENERGY1] + self.table[:, Column.ENERGY2]
        return [
            float(e / n) if n else (0.0 if e == 0 else float("inf"))
            for e, n in zip(self.table[:, Column.ERROR], energy, strict=True)
        ]


def captured(table: np.ndarray, phase: int) -> np.ndarray:
    """G of each row: ``dot^2 / (energy * decoded)``; where nothing was encoded in that phase, NaN; where it was all zeros, 1."""
    dot, energy, decoded = (table[:, c] for c in _columns(phase))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.minimum(dot * dot / (energy * decoded), 1.0)
    return np.where(energy > 0, np.where(decoded > 0, found, 0.0), np.nan)


def total_captured(table: np.ndarray, phase: int) -> float:
    """G over all rows together."""
    return float(captured(table.sum(axis=0, keepdims=True), phase)[0])


def _columns(phase: int) -> Sequence[Column]:
    return (
        (Column.DOT1, Column.ENERGY1, Column.DECODED1) if phase == 1 else (Column.DOT2, Column.ENERGY2, Column.DECODED2)
    )


def _square(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
