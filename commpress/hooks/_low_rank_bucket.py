"""One bucket that travels as low-rank factors: what goes in, and what is told about it when it is through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch

from commpress.collectives import (
    FactorPlan,
    Notes,
    Passage,
    PassageObserver,
    Pending,
    Report,
    shard_bounds,
    wire_nbytes,
)
from commpress.feedback import BucketFeedback, Layout
from commpress.hooks._step import NOTE_NBYTES, Step


@final
class LowRankBucket(PassageObserver):
    """Adds the residuals, has the new ones written, and ends the bucket.

    Args:
        step: the step it belongs to.
        index: of the bucket.
        layout, plan: of its flat buffer.
        buffer: DDP's.
        out: where the result comes first, fp32: `buffer` itself, or a buffer that is copied to it.
        rank, world_size: this process's place.
        feedback: the bucket's residuals, or None.
        sample: measure the distortion.
        notes, check: hash of this rank's parameters in the bucket and the way to the other ranks, on steps that compare replicas; else None.
        diverged: called when the ranks' hashes differ; raises.
        failed: called with the error if the bucket could not be reduced.

    Attributes:
        work: what is reduced, and then what was left out: the buffer of the new residuals. Without feedback `out`.
        passage: to be set.
    """

    def __init__(
        self,
        step: Step,
        index: int,
        layout: Layout,
        plan: FactorPlan,
        buffer: torch.Tensor,
        out: torch.Tensor,
        *,
        rank: int,
        world_size: int,
        feedback: BucketFeedback | None,
        sample: bool,
        notes: Notes | None,
        check: bytes | None,
        diverged: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.work = out if feedback is None else feedback.left_out(0, layout.numel, 1)
        self.passage: Passage | None = None
        self._step = step
        self._index = index
        self._layout = layout
        self._plan = plan
        self._buffer = buffer
        self._out = out
        self._rank = rank
        self._world_size = world_size
        self._feedback = feedback
        self._sample = sample
        self._notes = notes if check is not None else None
        self._check = check
        self._diverged = diverged
        self._failed = failed
        self._pending: Pending | None = None

    def prepare(self) -> Sequence[bool]:
        if self._notes is not None and self._check is not None:
            self._pending = self._notes.post(self._check.ljust(NOTE_NBYTES, b"\0"))
        if self.work is not self._buffer:
            self.work.copy_(self._buffer)
        used = [
            bool(self.work[s.start : s.start + 8].any()) or bool(self.work[s.start : s.stop].any())
            for s in self._plan.shapes
        ]
        if self._feedback is not None:
            self._feedback.add_input(self.work)
        if self._sample and self.passage is not None:
            self.passage.measure()
        return used

    def complete(self, report: Report) -> None:
        passage = self.passage
        assert passage is not None
        finite = not report.nonfinite
        if self._pending is not None and len(set(self._pending.collect())) > 1:
            self._diverged()
        if self._out is not self._buffer:
            self._buffer.copy_(self._out)
            # Only here can a finite mean leave the dtype's range; the same on every rank.
            if finite and self._buffer.dtype == torch.float16 and not bool(torch.isfinite(self._buffer).all()):
                finite = False
        if self._step.record is not None:
            self._add_to_record(report, passage, finite)
        with self._step._lock:
            self._step.finite = self._step.finite and finite
            self._step.held += len(passage.held)
            if self._world_size > 1:
                self._step.compressed_numel += self._plan.compressed_numel
        self._step.bucket_done()

    def failed(self, error: Exception) -> None:
        self._failed(error)

    def _sent_numel(self) -> int:
        """Coordinates of the bucket that this rank's final round stood for: each number of a factor for as many as there are of one for the other."""
        if self._world_size == 1 or not self._layout.numel:
            return 0
        here, others, sent = self._plan.final(), self._world_size - 1, 0
        for flat, codec in ((here.left, here.left_codec), (here.right, here.right_codec)):
            start, stop = shard_bounds(flat.numel(), self._world_size, self._rank, codec)
            sent += flat.numel() - (stop - start) + (stop - start) * others
        return round(self._layout.numel * sent / (here.left.numel() + here.right.numel()))

    def _add_to_record(self, report: Report, passage: Passage, finite: bool) -> None:
        assert self._step.record is not None
        note, notes = 0, 0
        if self._notes is not None:
            note, notes = self._notes.bytes_each, self._notes.messages_each
        sent = self._sent_numel()
        numel = self._layout.numel
        counts = {
            "payload_bytes": report.bytes_payload1 + report.bytes_payload2,
            "header_bytes": report.bytes_header + note,
            "wire_bytes": sum(one.wire_bytes for one in passage.reports)
            + wire_nbytes(note, notes, note, notes, mss=report.mss),
            "messages": report.messages + notes,
            "compressed_numel": sent * self._plan.compressed_numel // numel if numel else 0,
        }
        prefix = "seconds_"
        times = {
            name.removeprefix(prefix): float(getattr(report, name))
            for name in report.__dataclass_fields__
            if name.startswith(prefix)
        }
        by_start = {shape.start: i for i, shape in enumerate(self._plan.shapes)}
        segments = [(name, start, stop - start) for name, start, stop in self._layout.segments()]
        weights, nmse = [], []
        for _, start, size in segments:
            i = by_start.get(start) if size else None
            weights.append(size if i is None else self._plan.sent_numbers(i))
            nmse.append(0.0 if i is None or not passage.nmse else passage.nmse[i])
        with self._step._lock:
            self._step.record.add_bucket(
                self._index,
                [(name, size) for name, _, size in segments],
                sent_numel=sent,
                counts=counts,
                times=times,
                finite=finite,
                nmse=nmse if self._sample and self._world_size > 1 else None,
                weights=weights,
            )
