"""Sums over each layer of a bucket: what is sampled of a step, for telemetry, for the allocator and for the information achieved."""

from __future__ import annotations

import bisect
import enum
import threading
from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from commpress import ops
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

    Args:
        layout: of the bucket.
        distortion: whether what the decodes give is wanted too, which takes several times as long.

    In phase 1 the coordinates of the other ranks' shards are counted, in phase 2 those of the own one. The two threads of the phases meet different coordinates
    but may meet the same layer.
    """

    def __init__(self, layout: Layout, *, distortion: bool) -> None:
        self.distortion = distortion
        self._segments = list(layout.segments())
        self._starts = [start for _, start, _ in self._segments]
        self._stops = torch.tensor([stop for _, _, stop in self._segments], dtype=torch.int64)
        self.table = np.zeros((len(self._segments), len(Column)))
        self._lock = threading.Lock()

    def add_squares(self, column: Column, flat: torch.Tensor) -> None:
        """`flat` is the whole bucket."""
        squares = _products(flat, flat, self._stops)[:, 0]
        with self._lock:
            self.table[:, column] += squares

    def add_previous(self, segment: int, values: torch.Tensor, previous: torch.Tensor) -> None:
        """`values` of the layer with this number, and its previous mean, of the same size."""
        found = _products(values, previous, torch.tensor([values.numel()]))
        with self._lock:
            self.table[segment, Column.CROSS : Column.PREVIOUS + 1] += found[0, 1:]

    def add_encoded(
        self, phase: int, start: int, stop: int, values: torch.Tensor, left_out: torch.Tensor | None
    ) -> None:
        """`values` were encoded for ``[start, stop)``, and `left_out` is `values` less what their decode gives; None where no distortion is wanted."""
        if start >= stop:
            return
        first, last = bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop)
        stops = (self._stops[first:last] - start).clamp_(max=stop - start)
        energy, cross, error = _products(values, values if left_out is None else left_out, stops).T
        column = Column.DOT1 if phase == 1 else Column.DOT2
        if left_out is None:
            with self._lock:
                self.table[first:last, column + 1] += energy
            return
        with self._lock:
            rows = self.table[first:last]
            rows[:, Column.ERROR] += error
            rows[:, column : column + 3] += np.stack([energy - cross, energy, energy - 2 * cross + error], axis=1)

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


def _products(x: torch.Tensor, y: torch.Tensor, stops: torch.Tensor) -> np.ndarray:
    """Sums of x*x, x*y and y*y over each segment, shape (segments, 3)."""
    sums = torch.zeros(stops.numel(), 3, dtype=torch.float64)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    ops.segment_products(x, y.to(x.dtype), stops, sums)
    return sums.numpy()
