"""One training step on its way: what its buckets see while they are reduced, and how it ends."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from commpress.collectives import Notes, Observer, Pending, wire_nbytes
from commpress.feedback import BucketFeedback, Layout
from commpress.hooks._history import BucketHistory
from commpress.hooks._prediction import BucketPrediction
from commpress.hooks._shaping import BucketShaping
from commpress.hooks._statistics import Statistics
from commpress.hooks._sums import Column, LayerSums
from commpress.telemetry import StepRecord

NOTE_NBYTES = 128
_HASH_NBYTES = 8
_ZERO_BITS = 8 * (NOTE_NBYTES - _HASH_NBYTES)


@final
@dataclasses.dataclass
class SentBits:
    """What this rank sent in a step: payload bytes and coordinates of each phase, bytes on the wire."""

    payload1: int = 0
    payload2: int = 0
    numel1: int = 0
    numel2: int = 0
    wire: int = 0

    def add(self, report: Any, numel1: int, numel2: int, wire: int) -> None:
        """Adds a bucket."""
        self.payload1 += report.bytes_payload1
        self.payload2 += report.bytes_payload2
        self.numel1 += numel1
        self.numel2 += numel2
        self.wire += wire

    def rates(self) -> tuple[float, float, float]:
        """Bits per coordinate: payloads of phase 1, of phase 2, everything."""
        pairs = (self.payload1, self.numel1), (self.payload2, self.numel2), (self.wire, self.numel1 + self.numel2)
        one, two, wire = (8 * nbytes / numel if numel else 0.0 for nbytes, numel in pairs)
        return one, two, wire


@final
class Step:
    """Waits for all buckets of a step; the last one ends it.

    Args:
        number: the step.
        buckets: how many it has.
        record: telemetry of the step, or None.
        ended: called once, on the thread that completes the last bucket, with this step.
        members: the buckets' indices, if they are not all that there are.

    Attributes:
        plan: text that must be equal on all ranks, instead of the reduction's own; or None.
    """

    def __init__(
        self,
        number: int,
        buckets: int,
        record: StepRecord | None,
        ended: Callable[[Step], None],
        members: Sequence[int] | None = None,
    ) -> None:
        self.number = number
        self.buckets = buckets
        self.members = members
        self.plan: str | None = None
        self.record = record
        self.finite = True
        self.held = 0
        self.compressed_numel = 0
        self.sent = SentBits()
        self._open = buckets
        self._ended = ended
        self._lock = threading.Lock()

    def bucket_done(self) -> None:
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._ended(self)


@final
class BucketObserver(Observer):
    """Adds the residuals, records the new ones, measures, and ends the bucket.

    Args:
        step: the step it belongs to.
        index: of the bucket.
        layout: of the flat work buffer.
        flat: that work buffer, fp32 or fp64.
        target: where the result is copied if it is not `flat` itself (a narrower dtype), or None.
        senders: how many contributions the exchange adds up: ranks, or nodes.
        part, own: what this rank exchanges in compressed form, and the shard of it that it owns, both ``(start, stop)``.
        near: how many other ranks share the node, in an exchange of two levels.
        codec: of both phases.
        feedback: the bucket's residuals, or None.
        notes: what the ranks tell each other, needed with feedback or with `check`.
        sums: filled with what is sampled of this bucket, or None.
        statistics: where the sums go when the bucket is complete, or None.
        prediction: of the bucket's layers, or None. keep: remember the mean of all layers.
        shaping: of the bucket's layers, or None. look: let it see the mean.
        history: measures what more aggregates would foretell, or None.
        check: hash of this rank's parameters in the bucket, 8 bytes, on steps that compare replicas; else None.
        diverged: called when the ranks' hashes differ; raises.
        failed: called with the error if the bucket could not be reduced.
        exactly: dtype in which torch's own all-reduce sends the bucket, or None. passed_on: whether phase 2 of the statistics is about contributions.
    """

    def __init__(
        self,
        step: Step,
        index: int,
        layout: Layout,
        flat: torch.Tensor,
        target: torch.Tensor | None,
        *,
        senders: int,
        part: tuple[int, int],
        own: tuple[int, int],
        near: int,
        codec: Any,
        feedback: BucketFeedback | None,
        notes: Notes | None,
        sums: LayerSums | None,
        statistics: Statistics | None,
        prediction: BucketPrediction | None,
        keep: bool,
        shaping: BucketShaping | None,
        look: bool,
        history: BucketHistory | None,
        check: bytes | None,
        diverged: Callable[[], None],
        failed: Callable[[Exception], None],
        exactly: torch.dtype | None = None,
        passed_on: bool = False,
    ) -> None:
        self._exactly = exactly
        self._passed_on = passed_on
        self._step = step
        self._index = index
        self._layout = layout
        self._flat = flat
        self._target = target
        self._senders = senders
        self._part = part
        self._own = own
        self._near = near
        self._codec = codec
        self._feedback = feedback
        self._sums = sums
        self._statistics = statistics
        self._prediction = prediction
        self._keep = keep
        self._shaping = shaping
        self._look = look
        self._history = history
        self._check = check
        self._diverged = diverged
        self._failed = failed
        self._notes = notes if feedback is not None or check is not None else None
        self._pending: Pending | None = None
        self._hold: list[tuple[int, int]] = []

    def _note(self) -> bytes:
        """What this rank tells the others: the hash, and a bit for each layer whose gradient is zero
        here.

        With more layers than bits, a bit stands for several neighbours, all of which must be zero.
        """
        zero = bytearray(NOTE_NBYTES - _HASH_NBYTES)
        if self._feedback is not None:
            for bit, group in enumerate(self._groups()):
                if all(_all_zero(self._flat[start:stop]) for start, stop in group):
                    zero[bit // 8] |= 1 << bit % 8
        return (self._check or bytes(_HASH_NBYTES)) + bytes(zero)

    def _read(self, notes: Sequence[bytes]) -> None:
        if self._check is not None and len({note[:_HASH_NBYTES] for note in notes}) > 1:
            self._diverged()
        if self._feedback is not None:
            common = int.from_bytes(bytes([255]) * (NOTE_NBYTES - _HASH_NBYTES), "little")
            for note in notes:
                common &= int.from_bytes(note[_HASH_NBYTES:NOTE_NBYTES], "little")
            if common:
                groups = self._groups()
                self._hold = [piece for bit, group in enumerate(groups) if common >> bit & 1 for piece in group]

    @property
    def follows_reduction(self) -> bool:
        return self._feedback is not None or self._sums is not None

    def prepare(self, flat: torch.Tensor) -> None:
        if self._notes is not None:
            self._pending = self._notes.post(self._note())
        if self._history is not None:
            self._history.gradient(flat, self._step.number)
        if self._sums is not None:
            self._sums.add_squares(Column.LOCAL, flat)
            if self._prediction is not None:
                self._prediction.measure(flat, self._sums)
        if self._exactly is not None:
            self._send_exactly(flat)
            return
        if self._prediction is not None:
            self._prediction.subtract(flat)
        if self._shaping is not None:
            self._shaping.shape(flat)
        if self._feedback is not None:
            self._feedback.add_input(flat)

    def _send_exactly(self, flat: torch.Tensor) -> None:
        if self._feedback is not None:
            self._feedback.send_exactly(flat)
        start, stop = self._own
        self._add_exact(1, 0, start)
        self._add_exact(1, stop, flat.numel())
        if self._passed_on:
            self._add_exact(2, start, stop)

    def _add_exact(self, phase: int, start: int, stop: int) -> None:
        """To the sums: what a cast left out, nothing for fp32."""
        if self._sums is not None and start < stop:
            values = self._flat[start:stop]
            sent = values.to(self._exactly).to(values.dtype)
            self._sums.add_encoded(phase, start, stop, values, values - sent if self._sums.distortion else None)

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Any, gain: float) -> None:
        values = self._flat[start:stop]
        left_out: torch.Tensor | None = None
        if self._feedback is not None:
            if phase == 1:
                self._feedback.record_sent(self._flat, payload, key, start, stop)
            else:
                self._feedback.record_mean(self._flat, payload, key, start, stop, gain=gain)
            left_out = self._feedback.left_out(start, stop, phase)
        if self._sums is None:
            return
        if not self._sums.distortion:
            left_out = None
        elif self._feedback is None:
            left_out = torch.zeros_like(values)
            if not self._codec.lossless:
                self._codec.decode(payload, key, out=left_out, offset=start, gain=1.0 / gain)
                torch.sub(values, left_out, out=left_out)
        if self._shaping is not None:
            values = self._shaping.plain(start, values)
            left_out = None if left_out is None else self._shaping.plain(start, left_out)
        self._sums.add_encoded(phase, start, stop, values, left_out)

    def sent_exactly(self, start: int, stop: int) -> None:
        if self._sums is not None:
            values = self._flat[start:stop]
            left_out = torch.zeros_like(values) if self._sums.distortion else None
            self._sums.add_encoded(2, start, stop, values, left_out)

    def reduced(self, start: int, stop: int) -> None:
        if self._feedback is not None:
            self._feedback.add_mean(self._flat, start, stop)

    def complete(self, report: Any) -> None:
        finite = not report.nonfinite
        if self._pending is not None:
            # No wait: a peer posts its note before it sends the payloads that have arrived by now.
            self._read(self._pending.collect())
        if self._exactly is None:
            if self._shaping is not None:
                self._shaping.unshape(self._flat)
            if self._prediction is not None:
                self._prediction.add_back(self._flat, final=finite and not self._hold)
        elif not self._passed_on:
            self._add_exact(2, *self._own)
        if self._feedback is not None:
            for start, stop in self._hold:
                self._feedback.hold(start, stop)
                self._flat[start:stop].zero_()
        if self._sums is not None and self._statistics is not None:
            self._sums.add_squares(Column.MEAN, self._flat)
            self._statistics.add(self._layout, self._sums.table)
        if self._prediction is not None and finite:
            self._prediction.keep(self._flat, every_layer=self._keep)
        if self._shaping is not None and self._look and finite:
            self._shaping.look(self._flat)
        if self._history is not None:
            self._history.mean(self._flat, self._step.number)
        if self._target is not None:
            self._target.copy_(self._flat)
            # Only here can a finite mean leave the dtype's range; the same on every rank.
            if finite and self._target.dtype == torch.float16 and not bool(torch.isfinite(self._target).all()):
                finite = False
        if self._step.record is not None:
            self._add_to_record(self._step.record, report, finite)
        with self._step._lock:
            self._step.finite = self._step.finite and finite
            self._step.held += len(self._hold)
            if not self._codec.lossless and self._senders > 1:
                self._step.compressed_numel += self._layout.numel
        self._step.bucket_done()

    def failed(self, error: Exception) -> None:
        self._failed(error)

    def _groups(self) -> list[list[tuple[int, int]]]:
        """The layers' ranges, for each bit of the note. Layers without coordinates count nowhere."""
        ranges = [(start, stop) for _, start, stop in self._layout.segments() if start < stop]
        per_bit = -(-len(ranges) // _ZERO_BITS)
        return [ranges[i : i + per_bit] for i in range(0, len(ranges), per_bit)] if ranges else []

    def _add_to_record(self, record: StepRecord, report: Any, finite: bool) -> None:
        own, numel = self._own[1] - self._own[0], self._part[1] - self._part[0]
        others = self._senders - 1
        sent = (numel - own + own * others) if others else 0
        note, notes, near, near_notes = 0, 0, 0, 0
        if self._notes is not None:
            near, near_notes = self._notes.nbytes * self._near, self._near
            note, notes = self._notes.bytes_each - near, self._notes.messages_each - near_notes
        counts = {
            "payload_bytes": report.bytes_payload1 + report.bytes_payload2,
            "header_bytes": report.bytes_header + note,
            "wire_bytes": report.wire_bytes + wire_nbytes(note, notes, note, notes, mss=report.mss),
            "messages": report.messages + notes,
            "node_bytes": report.bytes_node + near,
            "node_wire_bytes": report.wire_bytes_node + wire_nbytes(near, near_notes, near, near_notes, mss=report.mss),
            "compressed_numel": 0 if self._codec.lossless else sent,
        }
        prefix = "seconds_"
        times = {
            name.removeprefix(prefix): float(getattr(report, name))
            for name in report.__dataclass_fields__
            if name.startswith(prefix)
        }
        layers = list(zip(self._layout.parameters, self._layout.sizes, strict=True))
        nmse = self._sums.nmse() if self._sums is not None and self._sums.distortion and others else None
        with self._step._lock:
            self._step.sent.add(report, numel - own, own * others, int(counts["wire_bytes"]))
            record.add_bucket(
                self._index, layers, sent_numel=sent, counts=counts, times=times, finite=finite, nmse=nmse
            )


def _all_zero(x: torch.Tensor) -> bool:
    # A used layer's gradient nearly always shows in its first coordinates: a look at all of them is rare.
    return not bool(x[:8].any()) and not bool(x.any())
