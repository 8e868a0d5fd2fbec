"""What a bound HookState works with: the reducer, the residuals, telemetry and counters of one model on one rank."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.codecs import Key
from commpress.collectives import Communicator, Reducer, group_timeout, make_channels, shard_bounds
from commpress.errors import CommpressError, PeerError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks import _handshake
from commpress.hooks._notes import Notes
from commpress.hooks._replicas import name_difference, replica_hash
from commpress.hooks._step import NOTE_NBYTES, BucketObserver, Step
from commpress.telemetry import JsonlSink, Sink, StepRecord

_log = logging.getLogger("commpress.hooks")

COUNTS = ("steps", "buckets", "compressed_numel", "nonfinite_steps", "held", "repacked_steps")


@final
class Exchange:
    """Made collectively: agrees with the other ranks on `identity` and makes two process groups.

    Args:
        codec: of both phases.
        parameters: name to tensor, all that DDP reduces.
        group: DDP's process group.
        identity: what must be equal on all ranks, see :func:`_handshake.compare`.
        feedback: with error feedback.
        timeout: seconds for any wait for a peer; None means that of `group`.
        telemetry: see :class:`HookState`.
        telemetry_every, check_every: steps between two measurements of distortion, comparisons of replicas.

    Raises:
        MismatchError: the ranks differ.
        PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        codec: Any,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup,
        identity: dict[str, Any],
        *,
        feedback: bool,
        timeout: float | None,
        telemetry: str | os.PathLike[str] | Sink | None,
        telemetry_every: int,
        check_every: int,
    ) -> None:
        timeout = timeout or group_timeout(group)
        comm1, comm2 = _channels(group, timeout)
        try:
            _handshake.compare(_handshake.gather(comm1, identity, timeout, "registration"))
        except Exception:
            comm1.close()
            comm2.close()
            raise
        self._channels: list[Communicator] = []
        self.rank, self.world_size = group.rank(), group.size()
        self.parameters = parameters
        self.counts = dict.fromkeys(COUNTS, 0)
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._codec = codec
        self._timeout = timeout
        self._control: Communicator | None = None
        self._notes: Notes | None = None
        if (feedback and not codec.lossless) or check_every:
            comm3, self._control = _channels(group, timeout)
            self._channels = [comm3, self._control]
            self._notes = Notes(comm3, NOTE_NBYTES, timeout)
        self._reducer = Reducer(comm1, comm2, timeout=timeout, plan=f"ddp hook, feedback {'on' if feedback else 'off'}")
        self._work: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}
        self._telemetry_every = telemetry_every
        self._check_every = check_every
        self._owns_sink = telemetry is not None and not isinstance(telemetry, Sink)
        self.sink: Sink | None = None
        if isinstance(telemetry, Sink):
            self.sink = telemetry
        elif telemetry is not None:
            self.sink = JsonlSink(telemetry, rank=self.rank)
        self.feedback: ErrorFeedback | None = None
        if feedback:
            self.feedback = ErrorFeedback(codec, rank=self.rank, world_size=self.world_size, shard=self._own)

    def _own(self, numel: int) -> tuple[int, int]:
        return shard_bounds(numel, self.world_size, self.rank)

    def open_step(self, number: int, layouts: Sequence[Layout]) -> Step:
        """Begins a step whose buckets have these layouts; :meth:`submit` follows for each."""
        if self.feedback is not None:
            self.feedback.arrange(layouts)
        record = None
        if self.sink is not None:
            record = StepRecord(
                step=number,
                rank=self.rank,
                world_size=self.world_size,
                codec=str(self._codec),
                requested_rate=self._codec.bits,
            )
        return Step(number, len(layouts), record, self._end_step)

    def submit(
        self, step: Step, index: int, layout: Layout, buffer: torch.Tensor, seed: int
    ) -> torch.futures.Future[Any]:
        """Starts the reduction of a bucket, in place; returns at once."""
        feedback = self.feedback.bucket(index) if self.feedback is not None and self.feedback.active else None
        flat, target = buffer, None
        if buffer.dtype != torch.float32 and (buffer.dtype != torch.float64 or feedback is not None):
            flat, target = self._work_buffer(index, buffer), buffer
            flat.copy_(buffer)
        observer = BucketObserver(
            step,
            index,
            layout,
            flat,
            target,
            rank=self.rank,
            world_size=self.world_size,
            own=self._own(layout.numel),
            codec=self._codec,
            feedback=feedback,
            notes=self._notes,
            sample=step.record is not None and _due(self._telemetry_every, step.number),
            check=replica_hash(layout, self.parameters) if _due(self._check_every, step.number) else None,
            diverged=lambda: self._diverged(layout, index, step.number),
            failed=self.fail,
        )
        key = Key(seed=seed, step=step.number & 0xFFFFFFFF, sender=0, tensor=index)
        return self._reducer.submit(flat, self._codec, self._codec, key, op="mean", observer=observer)

    def _diverged(self, layout: Layout, index: int, step: int) -> None:
        assert self._control is not None
        name_difference(self._control, self._timeout, layout, index, step, self.parameters)

    def _work_buffer(self, index: int, buffer: torch.Tensor) -> torch.Tensor:
        place = (index, buffer.numel(), buffer.dtype)
        if place not in self._work:
            self._work[place] = torch.empty(buffer.numel(), dtype=torch.float32)
        return self._work[place]

    def _end_step(self, step: Step) -> None:
        """On the thread of the last bucket, before DDP sees it: all ranks know now whether the step is good."""
        outcome = "off"
        if self.feedback is not None:
            outcome = "updated" if step.finite else "kept"
            if step.finite:
                self.feedback.commit()
        with self._lock:
            self.counts["steps"] += 1
            self.counts["buckets"] += step.buckets
            self.counts["compressed_numel"] += step.compressed_numel
            self.counts["nonfinite_steps"] += not step.finite
            self.counts["held"] += step.held
        if step.record is not None and self.sink is not None:
            self.sink.emit(step.record.as_dict(feedback=outcome, dropped=self.sink.dropped))

    def fail(self, error: Exception) -> None:
        """Remembers the first failure of an exchange."""
        with self._lock:
            first = self.error is None
            if first:
                self.error = error
        if first:
            _log.error("rank %d: %s: %s", self.rank, type(error).__name__, error)

    def give_up(self, error: Exception) -> None:
        """The hook itself failed on this rank: tells the others, so that they do not wait for the timeout.

        They are about to exchange a bucket. What they meet instead is a header that differs from theirs and says why.
        """
        self.fail(error)
        with contextlib.suppress(CommpressError):  # the reducer failed before, and they know
            self._reducer.submit(
                torch.zeros(0),
                self._codec,
                self._codec,
                Key(),
                plan=f"failed: {type(error).__name__}: {error}",
            )

    def close(self) -> None:
        """Ends threads, process groups and the telemetry that came as a path."""
        self._reducer.close()
        for channel in self._channels:
            channel.close()
        if self._owns_sink and self.sink is not None:
            self.sink.close()


def _channels(group: dist.ProcessGroup, timeout: float) -> tuple[Communicator, Communicator]:
    try:
        return make_channels(group, timeout)
    except RuntimeError as error:
        if isinstance(error, CommpressError):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PeerError(
            f"rank {group.rank()} could not reach all {group.size()} ranks of the group within {timeout:g} s during "
            f"registration, which every rank must call: {why}"
        ) from error


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
