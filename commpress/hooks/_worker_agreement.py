"""How well the ranks' gradients agree: the cosine of every two of them, and every layer's scale, from a few hundred bytes of each."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist

from commpress.collectives import ChannelError, FakeGroup, Notes, Pending, wire_nbytes
from commpress.errors import CommpressError, PeerError
from commpress.estimation import CosineEstimator, Unlike, standing_out
from commpress.feedback import Layout
from commpress.hooks._layer_scales import LayerScales, ScaleWatch
from commpress.hooks._projection import Projection
from commpress.hooks._reduction import due, make_one
from commpress.telemetry import FORMAT, Sink, StepRecord, json_values

_log = logging.getLogger("commpress.hooks")

PROJECTIONS, BITS = 1024, 2
_NORM_NBYTES = 4
NBYTES = PROJECTIONS * BITS // 8 + _NORM_NBYTES  # of a rank's sketch


@final
@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of one step, equal on all ranks.

    Attributes:
        step: the step.
        cosines: float64 (ranks, ranks), 1 on the diagonal; maximum-likelihood estimates, NaN where a gradient is zero or not finite.
        norms: float64 (ranks,), of each rank's own gradient; float32's precision.
        standard_error: of one cosine near 0; nearer to 1 it is less.
        unlike: ranks that stand out, see :func:`commpress.estimation.standing_out`.
        scales: of the layers, and who is far from them; None where some gradient was not finite, and of a look that no further step followed.
    """

    step: int
    cosines: np.ndarray
    norms: np.ndarray
    standard_error: float
    unlike: tuple[Unlike, ...]
    scales: LayerScales | None = None

    def record(self, rank: int) -> dict[str, Any]:
        """For telemetry."""
        return json_values(
            {
                "format": FORMAT,
                "kind": "agreement",
                "step": self.step,
                "rank": rank,
                "world_size": len(self.norms),
                "time": time.time(),
                "projections": PROJECTIONS,
                "bits": BITS,
                "bytes_each": NBYTES,
                "standard_error": self.standard_error,
                "cosines": np.round(self.cosines, 4).tolist(),
                "norms": self.norms.tolist(),
                "standing_out": [dataclasses.asdict(one) for one in self.unlike],
                "scales": None if self.scales is None else self.scales.record(),
            }
        )


@final
class WorkerAgreement:
    """The monitor of one model on one rank. Made collectively: it has a channel of its own.

    Args:
        names: of all parameters, in the same order on all ranks.
        group: DDP's process group. timeout: seconds for any wait for a peer. every: steps between two looks.
        seed: of the projections. sink: where records go, or None. near: how many other ranks share the node in an exchange of two levels, else 0.

    Raises:
        PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        names: Sequence[str],
        group: dist.ProcessGroup | FakeGroup,
        timeout: float,
        *,
        every: int,
        seed: int,
        sink: Sink | None,
        near: int = 0,
    ) -> None:
        self._index = {name: i for i, name in enumerate(names)}
        self._comm = make_one(group, timeout)
        self._notes = Notes(self._comm, NBYTES, timeout)
        self._every, self._seed, self._sink = every, seed, sink
        self._estimator = CosineEstimator(BITS)
        self._near, self._far = near, self._comm.size - 1 - near
        self._projection: Projection | None = None
        self._scales = ScaleWatch(names, self._comm, timeout)
        self._pending: tuple[int, Pending, Projection] | None = None
        self.last: Agreement | None = None

    def opened(self, step: int, record: StepRecord | None) -> None:
        """A step begins: takes in what the step before has told, and adds to the record what a look costs. Raises PeerError."""
        found = self.collect()
        if record is None:
            return
        if due(self._every, step):
            self._count(record, NBYTES, 1)
        if found is not None and found.scales is not None:
            self._count(record, found.scales.bytes_each, found.scales.messages_each)

    def _count(self, record: StepRecord, nbytes: int, messages: int) -> None:
        """What goes to each other rank, and comes from it."""
        far, near = ((peers * nbytes, peers * messages) for peers in (self._far, self._near))
        record.add_overhead(far[0], wire_nbytes(*far, *far), far[1], near[0], wire_nbytes(*near, *near))

    def look(self, step: int, seen: Sequence[tuple[Layout, torch.Tensor]], *, last: bool) -> None:
        """At DDP's buckets, as this rank's backward pass left them, if it is the step's turn; after the last one tells the others, and does not wait. Raises PeerError."""
        if not due(self._every, step):
            return
        projection = self._projection or Projection(self._seed, step)
        for layout, buffer in seen:
            for name, start, stop in layout.segments():
                projection.add(self._index[name], buffer[start:stop])
        self._projection = None if last else projection
        if last:
            self.collect()
            self._post(step, projection)

    def _post(self, step: int, projection: Projection) -> None:
        cells = self._estimator.cells(np.nan_to_num(projection.projections(PROJECTIONS)))
        shifts = np.arange(BITS - 1, -1, -1)
        packed = np.packbits((cells[:, None] >> shifts & 1).astype(np.uint8).ravel())
        with np.errstate(over="ignore"):
            norm = np.float32(projection.norm)
        self._pending = step, self._notes.post(norm.tobytes() + packed.tobytes()), projection

    def collect(self, *, alone: bool = False) -> Agreement | None:
        """What the last look led to, once; None if there is nothing. Waits for ranks that are behind; tells telemetry, and the log who stands out.

        Args:
            alone: other ranks may not be there any more: takes what they have sent, and asks nothing further.

        Raises:
            PeerError: a rank does not answer.
        """
        if self._pending is None:
            return None
        step, pending, projection = self._pending
        self._pending = None
        try:
            notes = pending.collect()
        except ChannelError as error:
            raise PeerError(f"a rank did not send its projections of step {step}: {error}") from error
        found = self._compare(step, notes)
        if not alone and np.isfinite(found.norms).all():
            found = dataclasses.replace(found, scales=self._scales.compare(*projection.rms(len(self._index))))
        self.last = found
        self._warn(found)
        if self._sink is not None:
            self._sink.emit(self.last.record(self._comm.rank))
        return self.last

    def _warn(self, found: Agreement) -> None:
        """Of a rank that stands out, rank 0's log tells and its own."""
        said = [(one.rank, sentence(one)) for one in found.unlike]
        if found.scales is not None:
            said += [(rank, found.scales.sentence(rank)) for rank in self._scales.news(found.scales)]
        for rank, words in said:
            if self._comm.rank in (0, rank):
                _log.warning("step %d: %s", found.step, words)

    def _compare(self, step: int, notes: Sequence[bytes]) -> Agreement:
        n = len(notes)
        norms = np.array([np.frombuffer(note[:_NORM_NBYTES], np.float32)[0] for note in notes], dtype=np.float64)
        weights = 1 << np.arange(BITS - 1, -1, -1)
        cells = [
            (np.unpackbits(np.frombuffer(note[_NORM_NBYTES:], np.uint8)).reshape(PROJECTIONS, BITS) @ weights)
            for note in notes
        ]
        pairs = [(i, j) for i in range(n) for j in range(i)]
        cosines = np.eye(n)
        if pairs:
            a, b = (np.stack([cells[pair[side]] for pair in pairs]).astype(np.uint8) for side in (0, 1))
            found = self._estimator.maximum_likelihood(self._estimator.counts(a, b))
            for (i, j), value in zip(pairs, found, strict=True):
                cosines[i, j] = cosines[j, i] = value
        unknown = ~(np.isfinite(norms) & (norms > 0))
        cosines[unknown, :] = np.nan
        cosines[:, unknown] = np.nan
        error = math.sqrt(self._estimator.variance(0.0, PROJECTIONS))
        return Agreement(step, cosines, norms, error, tuple(standing_out(cosines, norms, error)))

    def close(self, *, failed: bool) -> None:
        """Takes in what is under way, unless the reduction `failed`, and lets go of the channel."""
        if not failed:
            with contextlib.suppress(CommpressError):  # a peer may be gone already
                self.collect(alone=True)
        self._comm.close()


def sentence(one: Unlike) -> str:
    """What the log says of a rank that stands out."""
    if one.why == "not finite":
        return f"the gradient of rank {one.rank} is not finite"
    if one.why == "norm":
        return f"the gradient of rank {one.rank} is {one.norm:.3g} times as long as the others'"
    return f"the gradient of rank {one.rank} stands out: its mean cosine to the others is {one.cosine:.3f}, theirs among themselves {one.others:.3f}"
