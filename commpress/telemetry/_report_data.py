"""Figures by step, as arrays: what a run's records become."""

from __future__ import annotations

import collections
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

_KEPT = 512  # layer snapshots kept of each sort; of longer runs every second, fourth, ... is kept


def number(value: Any) -> float | None:
    """`value` as a finite float, or None if it is anything else (a truth value and a number in quotes are)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        x = float(value)
    except OverflowError:
        return None
    return x if math.isfinite(x) else None


def matrix(value: Any) -> np.ndarray | None:
    """A square list of lists as float64, NaN for what is no number; None if it is none of at least two rows."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    if any(not isinstance(row, list) or len(row) != len(value) for row in value):
        return None
    found = [[number(x) for x in row] for row in value]
    return np.array([[math.nan if x is None else x for x in row] for row in found])


def mean_to_others(cosines: np.ndarray) -> np.ndarray:
    """Each rank's mean cosine to the others, NaN where none is known."""
    others = np.where(np.eye(len(cosines), dtype=bool), np.nan, cosines)
    known = np.isfinite(others)
    counts = known.sum(1)
    sums = np.where(known, others, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@final
class Snapshots:
    """A square array at some steps, thinned out evenly when there are too many."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, np.ndarray]] = []
        self._stride = 1
        self._seen = 0

    def add(self, step: float, values: np.ndarray) -> None:
        """Appends; this and later steps, if any, are of an earlier attempt and go. So do all if the size is another."""
        self.kept = [(at, one) for at, one in self.kept if at < step and one.shape == values.shape]
        if self._seen % self._stride == 0 or not self.kept:
            self.kept.append((step, values))
        self._seen += 1
        if len(self.kept) > _KEPT:
            self.kept = self.kept[::2]
            self._stride *= 2


@final
class Columns:
    """Figures by step: ``steps`` (float64) and named columns of float64, NaN where a record had no such figure."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._steps = array("d")
        self._values = {name: array("d") for name in names}

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> np.ndarray:
        return np.array(self._steps)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self._values[name])

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values where the column has any: two float64 arrays of one length."""
        values = self[name]
        there = np.isfinite(values)
        return self.steps[there], values[there]

    def mean(self, name: str) -> float | None:
        """Over the records that have the figure."""
        _, values = self.points(name)
        return float(values.mean()) if values.size else None

    @property
    def last(self) -> float | None:
        """The last step."""
        return self._steps[-1] if self._steps else None

    def cut(self, step: float) -> None:
        """Forgets this and later steps."""
        while self._steps and self._steps[-1] >= step:
            for column in (self._steps, *self._values.values()):
                column.pop()

    def add(self, step: float, figures: Mapping[str, float | None]) -> None:
        """Appends; records of this and later steps, if any, are of an earlier attempt and go."""
        self.cut(step)
        self._steps.append(step)
        for name, column in self._values.items():
            value = figures.get(name)
            column.append(math.nan if value is None else value)


@final
class Layers:
    """One figure by layer at some steps: snapshots of float32, thinned out evenly when there are too many."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[float, np.ndarray]] = []
        self.latest = np.zeros(0, dtype=np.float32)
        self._stride = 1
        self._seen = 0

    def cut(self, step: float) -> None:
        """Forgets this and later steps."""
        while self.snapshots and self.snapshots[-1][0] >= step:
            self.snapshots.pop()

    def add(self, step: float, values: Sequence[float | None]) -> None:
        """Appends, as :meth:`Columns.add` does. None becomes NaN."""
        self.cut(step)
        self.latest = np.array([math.nan if v is None else v for v in values], dtype=np.float32)
        if self._seen % self._stride == 0:
            self.snapshots.append((step, self.latest))
        self._seen += 1
        if len(self.snapshots) > 2 * _KEPT:
            self.snapshots = self.snapshots[::2]
            self._stride *= 2

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps (float64, n) and values (float32, layers x n)."""
        steps = np.array([step for step, _ in self.snapshots])
        width = max((len(row) for _, row in self.snapshots), default=0)
        values = np.full((width, len(self.snapshots)), np.nan, dtype=np.float32)
        for i, (_, row) in enumerate(self.snapshots):
            values[: len(row), i] = row
        return steps, values


@final
class Scales:
    """Of the worker-agreement monitor: the layers' common scales over the steps, and what was far from them.

    Attributes:
        rms: by layer. far: in order, at most so many of the last: ``step``, ``rank``, ``layer``, ``ratio``.
        looks: how many there were. looks_of: by rank, in how many of them some layer of its was far.
    """

    def __init__(self, most: int) -> None:
        self.rms = Layers()
        self.far: list[dict[str, Any]] = []
        self._most = most
        self._ranks: list[tuple[float, list[int]]] = []

    @property
    def looks(self) -> int:
        return len(self._ranks)

    @property
    def looks_of(self) -> dict[int, int]:
        return dict(collections.Counter(rank for _, ranks in self._ranks for rank in ranks))

    def add(self, step: float, layers: Mapping[str, float | None], names: Sequence[str], listed: Any) -> None:
        """One record's; this and later steps, if any, are of an earlier attempt and go."""
        self.rms.add(step, [layers.get(name) for name in names])
        self.far = [one for one in self.far if one["step"] < step]
        self._ranks = [one for one in self._ranks if one[0] < step]
        known = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        found: list[dict[str, Any]] = [
            {"step": step, "rank": int(rank), "layer": str(one.get("layer", "")), "ratio": number(one.get("ratio"))}
            for one in known
            if (rank := number(one.get("rank"))) is not None
        ]
        self.far = (self.far + found)[-self._most :]
        ranks: set[int] = {int(one["rank"]) for one in found}
        self._ranks.append((step, sorted(ranks)))
