"""The reduction of a model on a device with streams (CUDA): buckets are enqueued in the hook, and a step is known to be good when the next one begins."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.codecs import Codec, Key
from commpress.collectives import DeviceOps, DeviceReducer, Report, Verdict, wire_nbytes
from commpress.collectives import group_timeout as timeout_of
from commpress.errors import CommpressError, SpecError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks import _handshake
from commpress.hooks._device_feedback import DeviceDecoder, DeviceFeedback, LayerFlags
from commpress.hooks._planner import Planner, PlanSettings, layers_of, plan_codecs
from commpress.hooks._reduction import Reduction, make_one
from commpress.hooks._step import Step
from commpress.telemetry import Sink, StepRecord

_log = logging.getLogger("commpress.hooks")


@final
class DeviceExchange(Reduction):
    """Made collectively, as :class:`Exchange`, whose results it gives, to the bit.

    On one stream of its own, while the backward pass goes on: encode the others' shards, all-to-all, decode and add up the own shard, encode it, all-gather, decode. The host waits for nothing of
    the step under way; what the device found of the last one is read when a step begins, so its errors are raised then, or by :meth:`close`.

    Args:
        codec: of both phases. parameters, group, identity, feedback, timeout, telemetry: as for :class:`Exchange`.
        plan: a bit budget with a pinned plan, or None.
        ops: the device that the parameters are on.

    Raises:
        MismatchError, PeerError: as for :class:`Exchange`. SpecError: the device has no kernels for the codec, or the plan is not pinned.
    """

    on_device = True

    def __init__(
        self,
        codec: Codec,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup,
        identity: dict[str, Any],
        *,
        feedback: bool,
        timeout: float | None,
        telemetry: str | os.PathLike[str] | Sink | None,
        plan: PlanSettings | None,
        ops: DeviceOps,
    ) -> None:
        timeout = timeout or timeout_of(group)
        ops.check(codec)
        self._planner: Planner | None = None
        if plan is not None:
            if plan.pinned is None:
                raise SpecError(
                    "on a CUDA device bits= needs a plan= that is kept, made by a run on CPUs or by commpress.allocation: statistics are not gathered there yet; or name a codec with a rate"
                )
            self._planner = Planner(layers_of(parameters), plan, feedback=feedback)
            identity = identity | self._planner.identity()
        control = make_one(group, timeout)
        try:
            _handshake.compare(_handshake.gather(control, identity, timeout, "registration"))
        except Exception:
            control.close()
            raise
        super().__init__(parameters, group, telemetry)
        self._codec, self._ops = codec, ops
        self._reducer = DeviceReducer(ops, control, timeout)
        self._codecs: list[Codec] = []
        self._layouts: list[Layout] = []
        self._open = 0  # buckets of the step that have not come yet
        self._timeout = timeout
        self._held: tuple[Step, list[Layout], list[Codec], list[DeviceFeedback]] | None = None
        self._flags: dict[Layout, LayerFlags] = {}
        if feedback:
            with ops.communicating():
                self._scratch = ops.empty(2, torch.int32)
            self.feedback = ErrorFeedback(
                self._decoder(codec),
                rank=self.rank,
                world_size=self.world_size,
                shard=lambda numel, decoder: self._reducer.shard(numel, decoder.codec),
                device=ops.device,
            )

    def _decoder(self, codec: Codec) -> DeviceDecoder:
        return DeviceDecoder(codec, self._ops, self._scratch)

    # ---- a step

    def open_step(self, number: int, layouts: Sequence[Layout], members: Sequence[int] | None = None) -> Step:
        codecs = plan_codecs(self._planner, self._codec, layouts)
        for layout, codec in zip(layouts, codecs, strict=True):
            if codec.lossless and layout.dtype == "float64" and self.world_size > 1:
                raise SpecError(f"on a CUDA device the work is done in fp32, and {codec} would lose bits of float64")
        chosen = list(range(len(layouts))) if members is None else list(members)
        facts: dict[str, object] = {
            "layouts": [layout.as_list() for layout in layouts],
            "buckets": chosen,
            "codecs": [str(codec) for codec in codecs],
        }
        # Of the last step, whatever happens to this one.
        self._take(self._reducer.open(number, facts, len(chosen), timed=self.sink is not None))
        self._codecs, self._layouts, self._open = codecs, list(layouts), len(chosen)
        if self.feedback is not None:
            with self._ops.communicating():
                self.feedback.arrange(layouts, [self._decoder(codec) for codec in codecs])
        record = None
        if self.sink is not None:
            record = StepRecord(
                step=number,
                rank=self.rank,
                world_size=self.world_size,
                codec=str(self._codec),
                requested_rate=self._codec.bits,
            )
        step = Step(number, len(chosen), record, lambda _: None, members)
        self._held = step, [layouts[i] for i in chosen], [codecs[i] for i in chosen], []
        return step

    def submit(
        self, step: Step, index: int, layout: Layout, buffer: torch.Tensor, seed: int
    ) -> torch.futures.Future[Any]:
        ops, key = self._ops, Key(seed=seed, step=step.number & 0xFFFFFFFF, sender=0, tensor=index)
        future, ready = ops.new_future(), ops.record()
        with ops.communicating():
            ops.wait(ready)  # the gradients are there
            ops.keep(buffer)  # DDP may give it back before this stream is through with it
            self._enqueue(buffer, index, layout, key)
            self._open -= 1
            if not self._open:
                self._reducer.finish()
            ops.complete(future, buffer)
        return future

    def _enqueue(self, buffer: torch.Tensor, index: int, layout: Layout, key: Key) -> None:
        codec = self._codecs[index]
        if self.world_size == 1:
            self._reducer.leave([buffer], codec)
            return
        flat = buffer
        if buffer.dtype != torch.float32:
            flat = self._ops.empty(buffer.numel(), torch.float32)
            flat.copy_(buffer)
        observer = None
        if self.feedback is not None and self.feedback.active:
            if layout not in self._flags:
                self._flags[layout] = LayerFlags(layout, self._ops)
            observer = DeviceFeedback(self._ops, self.feedback.bucket(index), self._flags[layout], flat)
            assert self._held is not None
            self._held[3].append(observer)
        found = self._reducer.reduce(flat, codec, key, observer=observer)
        if observer is not None:
            observer.finish()
        if flat is not buffer:
            buffer.copy_(flat)
            if buffer.dtype == torch.float16:  # only here can a finite mean leave the dtype's range
                found.logical_or_(torch.isfinite(buffer).all().logical_not())

    def deliver(
        self,
        waiting: Sequence[torch.futures.Future[Any]],
        futures: Sequence[torch.futures.Future[Any]],
        unpack: Callable[[], None] | None,
        buffers: Sequence[torch.Tensor],
    ) -> None:
        # What wrote the buffers came before what was submitted, which this stream has waited for.
        with self._ops.communicating():
            for buffer in buffers:
                self._ops.keep(buffer)
            if unpack is not None:
                unpack()
            for future, buffer in zip(waiting, buffers, strict=True):
                self._ops.complete(future, buffer)

    # ---- what became of it

    def _take(self, verdict: Verdict | None) -> None:
        """Counts the last step and sends its record."""
        held, self._held = self._held, None
        if verdict is None or held is None:
            return
        step, layouts, codecs, observers = held
        step.finite = all(verdict.finite)
        for bucket, (layout, codec, report) in enumerate(zip(layouts, codecs, verdict.reports, strict=True)):
            if not codec.lossless and self.world_size > 1:
                step.compressed_numel += layout.numel
            if step.record is not None:
                self._add_to_record(step.record, bucket, layout, codec, report)
        outcome = "off"
        if self.feedback is not None:
            outcome = "updated" if step.finite else "kept"
            with self._ops.communicating():
                step.held = sum(observer.hold(self._timeout) for observer in observers)
            if step.finite:
                self.feedback.commit(step.members)
        with self._lock:
            self.counts["held"] += step.held
            self.counts["steps"] += 1
            self.counts["buckets"] += step.buckets
            self.counts["compressed_numel"] += step.compressed_numel
            self.counts["nonfinite_steps"] += not step.finite
        if step.record is not None and self.sink is not None:
            header = self._reducer.header_bytes_each
            peers = self.world_size - 1
            step.record.add_overhead(header, wire_nbytes(header, peers, header, peers), peers)
            self.sink.emit(step.record.as_dict(feedback=outcome, dropped=self.sink.dropped))

    def _add_to_record(self, record: StepRecord, bucket: int, layout: Layout, codec: Codec, report: Report) -> None:
        start, stop = self._reducer.shard(layout.numel, codec)
        own = stop - start
        others = self.world_size - 1
        sent = layout.numel - own + own * others if others else 0
        record.add_bucket(
            bucket,
            list(zip(layout.parameters, layout.sizes, strict=True)),
            sent_numel=sent,
            counts={
                "payload_bytes": report.bytes_payload1 + report.bytes_payload2,
                "header_bytes": report.bytes_header,
                "wire_bytes": report.wire_bytes,
                "messages": report.messages,
                "compressed_numel": 0 if codec.lossless else sent,
            },
            times={
                name.removeprefix("seconds_"): float(getattr(report, name))
                for name in report.__dataclass_fields__
                if name.startswith("seconds_")
            },
            finite=not report.nonfinite,
        )

    # ---- the rest

    def give_up(self, error: Exception) -> None:
        self.fail(error)
        self._reducer.fail(error)

    @property
    def plan(self) -> Plan | None:
        return None if self._planner is None else self._planner.plan

    def saved(self) -> dict[str, Any]:
        self._take(self._reducer.settle())
        residuals = None
        if self.feedback is not None:
            with self._ops.communicating():  # the copies wait for it
                residuals = self.feedback.state_dict()
        return {"residuals": residuals, "allocator": None if self._planner is None else self._planner.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        if saved.get("allocator") is not None and self._planner is not None:
            state = saved["allocator"]
            self._planner.load_state_dict({name: value for name, value in state.items() if name != "prediction"})
        if self.feedback is not None:
            with self._ops.communicating():
                self._load_residuals(saved.get("residuals"), self._decoder_of)

    def _decoder_of(self, layout: Layout) -> DeviceDecoder:
        return self._decoder(self._codec if self._planner is None else self._planner.codec(layout))

    def close(self) -> None:
        """Raises what the device found of the last step, once all is closed."""
        problem: CommpressError | None = None
        try:
            if self._reducer.error is None:
                self._take(self._reducer.settle())
        except CommpressError as error:
            problem = error
            self.fail(error)
        with contextlib.suppress(CommpressError):
            self._reducer.close()
        self._close_rest()
        if problem is not None:
            raise problem
