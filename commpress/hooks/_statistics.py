"""What the ranks tell each other about the layers of a sampled step, and what follows from it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import final

import numpy as np

from commpress.collectives import ChannelError, Notes, Pending
from commpress.errors import PeerError
from commpress.feedback import Layout
from commpress.hooks._sums import Column, captured

NBYTES_PER_LAYER = 8 * len(Column)


@final
@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Of one step, the same bits on every rank. Arrays have one float64 for each layer, in the order of the parameters.

    Attributes:
        step: the step.
        table: sums of all ranks, shape (layers, columns).
        captured1, captured2: G of phase 1 and 2; NaN where nothing was measured, and in a step whose distortion was not.
        encoded: mean square of a coordinate of what was encoded in phase 1 (prediction and feedback make it another than the gradient's).
        variances: s, variance of a coordinate between the ranks' gradients; at least 0; NaN with one rank, or without the distortion.
        world_size: senders: ranks, or nodes whose ranks add up before phase 1; then the vectors that all figures are about are the means of the nodes.
        passed_on: whether phase 2 brings contributions, as with two ranks, and not the mean.
    """

    step: int
    table: np.ndarray
    captured1: np.ndarray
    captured2: np.ndarray
    encoded: np.ndarray
    variances: np.ndarray
    world_size: int
    passed_on: bool = False

    @property
    def finite(self) -> bool:
        """False after a step with a NaN or an infinity: then the figures say nothing."""
        return bool(np.isfinite(self.table).all())

    @property
    def encoded_energies(self) -> np.ndarray:
        """What the error of the mean is proportional to: squares of what all ranks encoded, contributions divided by n, as they are in the mean; sums over each layer."""
        first, second = _shares(self.world_size, self.passed_on)
        sums: np.ndarray = self.table[:, Column.ENERGY1] * first + self.table[:, Column.ENERGY2] * second
        return sums


def _shares(n: int, passed_on: bool) -> tuple[float, float]:
    """What squares of what was encoded in each phase are in the mean."""
    return 1 / n**2, 1 / n**2 if passed_on else 1.0


def statistics_of(
    step: int,
    tables: Sequence[np.ndarray],
    dims: np.ndarray,
    *,
    unbiased: bool,
    passed_on: bool = False,
    senders: int | None = None,
    distortion: bool = True,
) -> LayerStatistics:
    """Args: tables: of each rank, in rank order. dims: coordinates of each layer. unbiased: whether the decodes were. passed_on: see :class:`LayerStatistics`.
        senders: how many contributions were encoded, if not one of each rank: the sums of nodes with equally many ranks.
        distortion: whether it is in all tables.

    The mean that the ranks know carries the noise of both quantisations. The error of an unbiased decode has ``1/G - 1`` times the energy of what was encoded, and nothing
    to do with the rest, so its expectation comes off:

        |mean|^2 = |known mean|^2 - (1/G2 - 1) encoded2 - (1/G1 - 1) encoded1 / n^2
        s = (sum |g_i|^2 - n |mean|^2) / ((n - 1) d)

    Where contributions are passed on, phase 2 has the factor ``1 / n^2`` too. A least-squares decode lacks ``1 - G`` of its input's energy instead; there only phase 2 is corrected,
    or both where they are alike.
    """
    n = len(tables)
    first, second = _shares(n, passed_on)
    total = np.zeros_like(tables[0])
    for table in tables:  # in rank order: the same roundings everywhere
        total = total + table
    g1, g2 = captured(total, 1), captured(total, 2)
    local, mean = total[:, Column.LOCAL], tables[0][:, Column.MEAN]
    with np.errstate(all="ignore"):
        if n > 1:
            energy1, energy2 = total[:, Column.ENERGY1] * first, total[:, Column.ENERGY2] * second
            if unbiased:
                mean = mean - np.where(g1 > 0, 1 / g1 - 1, 0.0) * energy1 - np.where(g2 > 0, 1 / g2 - 1, 0.0) * energy2
            else:
                mean = mean + np.where(g2 > 0, 1 - g2, 0.0) * energy2
                if passed_on:
                    mean = mean + np.where(g1 > 0, 1 - g1, 0.0) * energy1
            mean = np.clip(mean, 0.0, local / n)
            variances = np.maximum(local - n * mean, 0.0) / ((n - 1) * dims)
            encoded = total[:, Column.ENERGY1] / ((n - 1) * dims)
            if not distortion:
                g1, g2, variances = (np.full(len(dims), np.nan) for _ in range(3))
        else:
            variances, encoded = np.full(len(dims), np.nan), local / dims
        if senders is None or senders == n:
            return LayerStatistics(step, total, g1, g2, encoded, variances, n, passed_on)
        total, variances = _of_nodes(total, variances * dims, senders, n // senders, passed_on), variances * senders / n
        encoded = total[:, Column.ENERGY1] / ((senders - 1) * dims)
        return LayerStatistics(step, total, g1, g2, encoded, variances, senders, passed_on)


def _of_nodes(total: np.ndarray, spread: np.ndarray, nodes: int, each: int, passed_on: bool) -> np.ndarray:
    """The table as it were if each node had one rank, with the mean of its `each` ranks for a gradient.

    Sums of squares of the ranks' gradients were measured, those of the nodes' means follow: with ``|theta|^2 + spread`` for a rank's it is ``|theta|^2 + spread / each`` for a mean,
    as different ranks' samples are independent. What was encoded are the nodes' sums.
    """
    table = total.copy()
    local = total[:, Column.LOCAL] / each - nodes * spread * (1 - 1 / each)
    table[:, Column.LOCAL] = np.maximum(local, 0.0)
    for column in (Column.MEAN, Column.CROSS, Column.PREVIOUS):
        table[:, column] /= each
    last = Column.DECODED2 if passed_on else Column.DECODED1
    table[:, Column.DOT1 : last + 1] /= each**2
    return table


@final
class Statistics:
    """Gathers the tables of a step's buckets, sends them at the end of the step and collects those of the others before the next one.

    Args:
        dims: coordinates of each layer by name; their order is that of the tables.
        notes: a channel for notes of ``NBYTES_PER_LAYER * len(dims)`` bytes that nothing else uses meanwhile.
        unbiased: whether the codec is. passed_on, senders: see :func:`statistics_of`.
    """

    def __init__(
        self,
        dims: dict[str, int],
        notes: Notes,
        *,
        unbiased: bool,
        passed_on: bool = False,
        senders: int | None = None,
    ) -> None:
        self._senders = senders
        self.names = list(dims)
        self.dims = np.array([float(n) for n in dims.values()])
        self.nbytes = notes.bytes_each
        self._index = {name: i for i, name in enumerate(dims)}
        self._notes = notes
        self._unbiased, self._passed_on = unbiased, passed_on
        self._lock = threading.Lock()
        self._table = self._blank()
        self._pending: tuple[int, bool, Pending] | None = None

    def _blank(self) -> np.ndarray:
        return np.zeros((len(self.names), len(Column)))

    def add(self, layout: Layout, table: np.ndarray) -> None:
        """Takes a bucket's table."""
        rows = [self._index[name] for name in layout.parameters]
        with self._lock:
            self._table[rows] += table

    def set_moments(self, moments: dict[str, float]) -> None:
        """Sums of Adam's second moments by layer, for the table of the step that is posted next."""
        with self._lock:
            self._table[:, Column.MOMENT] = [moments[name] for name in self.names]

    def post(self, step: int, *, distortion: bool) -> None:
        """All buckets of the step are in: tells the others. Does not wait. `distortion`: whether every rank has measured it. Raises ChannelError."""
        with self._lock:
            table, self._table = self._table, self._blank()
        self._pending = step, distortion, self._notes.post(table.tobytes())

    def collect(self) -> LayerStatistics | None:
        """The last posted step's statistics, once; None if there are none. Waits for the ranks that are behind.

        Raises:
            PeerError: one of them does not answer.
        """
        if self._pending is None:
            return None
        step, distortion, pending = self._pending
        self._pending = None
        try:
            notes = pending.collect()
        except ChannelError as error:
            raise PeerError(f"a rank did not send the statistics of step {step}: {error}") from error
        tables = [np.frombuffer(note).reshape(len(self.names), len(Column)) for note in notes]
        return statistics_of(
            step,
            tables,
            self.dims,
            unbiased=self._unbiased,
            passed_on=self._passed_on,
            senders=self._senders,
            distortion=distortion,
        )
