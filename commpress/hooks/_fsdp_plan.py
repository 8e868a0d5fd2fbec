"""The allocator under FSDP2: statistics of the rows that ranks send each other, summed over all ranks, in; a codec for every module's row out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from commpress.allocation import Plan
from commpress.collectives import Notes
from commpress.hooks._planner import Planner
from commpress.hooks._statistics import LayerStatistics
from commpress.hooks._sums import Column, captured


@final
class ShardStatistics:
    """Gathers the tables of one step's reduce-scatters and exchanges them.

    Args:
        sizes: coordinates of each parameter's padded shard, by name. rows: ranks of the shard group. replicas: number of these groups. unbiased: whether the codec is.
    """

    def __init__(self, sizes: dict[str, int], rows: int, replicas: int, *, unbiased: bool) -> None:
        self._index = {name: i for i, name in enumerate(sizes)}
        self._dims = np.array([float(n) for n in sizes.values()]) * rows
        self._rows, self._replicas, self._unbiased = rows, replicas, unbiased
        self._table = self._blank()

    @property
    def nbytes(self) -> int:
        """Of one note."""
        return self._table.nbytes

    def _blank(self) -> np.ndarray:
        return np.zeros((len(self._index), len(Column)))

    def add(self, names: Sequence[str], table: np.ndarray) -> None:
        """One module's table, a line for each of `names`."""
        for name, line in zip(names, table, strict=True):
            if name in self._index:  # one without coordinates is not
                self._table[self._index[name]] += line

    def exchange(
        self, step: int, planner: Planner, moments: dict[str, float] | None, legs: Sequence[Notes]
    ) -> Plan | None:
        """Sums over the ranks, in the same order everywhere, and tells the planner. Collective.

        Args:
            moments: sums of the optimizer's second moments, if they are wanted. legs: between the shards; between the replicas, if there are any.

        Returns:
            The new plan, if it changed.

        Raises:
            ChannelError: a rank does not answer.
        """
        total, self._table = self._table, self._blank()
        if moments is not None:
            total[:, Column.MOMENT] = [moments[name] for name in self._index]
        for notes in legs:
            tables = [np.frombuffer(note).reshape(total.shape) for note in notes.post(total.tobytes()).collect()]
            total = np.zeros_like(total)
            for table in tables:
                total = total + table
        return planner.observe(self._statistics(step, total, planner.weighs_noise))

    def _statistics(self, step: int, total: np.ndarray, distortion: bool) -> LayerStatistics:
        """As :func:`commpress.hooks._statistics.statistics_of`, with one phase: MEAN has been summed over the rows, each of which one rank knows; groups of replicas add up."""
        n, m = self._rows, self._replicas
        g1 = captured(total, 1)
        local, mean, energy = total[:, Column.LOCAL], total[:, Column.MEAN], total[:, Column.ENERGY1]
        with np.errstate(all="ignore"):
            if self._unbiased:
                mean = mean - np.where(g1 > 0, 1 / g1 - 1, 0.0) * energy / n**2
            mean = np.clip(mean, 0.0, local / n)
            variances = np.maximum(local - n * mean, 0.0) / ((n - 1) * m * self._dims)
            encoded = energy / ((n - 1) * m * self._dims)
        if not distortion:
            g1, variances = np.full(len(g1), np.nan), np.full(len(g1), np.nan)
        return LayerStatistics(step, total, g1, np.full(len(g1), np.nan), encoded, variances, n)
