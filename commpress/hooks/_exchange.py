"""The reduction by a codec: the reducer, the residuals, plans and telemetry of one model on one rank."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.codecs import Key, LayeredCodec
from commpress.codecs import codec as make_codec
from commpress.collectives import Asked, Communicator, FakeGroup, NodeMap, Notes, Reducer, group_timeout, wire_nbytes
from commpress.errors import CommpressError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks._auto import AutoPlan
from commpress.hooks._auto_lane import AutoLane, AutoSettings
from commpress.hooks._history import HistoryMeter
from commpress.hooks._information import information_record
from commpress.hooks._planner import Planner, PlanSettings, layers_of, plan_codecs
from commpress.hooks._prediction import PAYS_BELOW, Predictor, prediction_record
from commpress.hooks._reduction import Reduction, agree, due, make_pair, nodes_of
from commpress.hooks._replicas import name_difference, replica_hash
from commpress.hooks._shaping import Shaper
from commpress.hooks._statistics import NBYTES_PER_LAYER, LayerStatistics, Statistics
from commpress.hooks._step import NOTE_NBYTES, BucketObserver, Step
from commpress.hooks._sums import LayerSums
from commpress.telemetry import Sink, StepRecord, json_values

_log = logging.getLogger("commpress.hooks")
_SENT_EXACTLY = {torch.float32: make_codec("none"), torch.bfloat16: make_codec("cast:bf16")}


@final
class Exchange(Reduction):
    """Made collectively: agrees with the other ranks on `identity` and makes two process groups.

    Args:
        codec: of both phases.
        parameters: name to tensor, all that DDP reduces.
        group: DDP's process group.
        identity: what must be equal on all ranks, see :func:`_handshake.compare`.
        feedback: with error feedback.
        timeout: seconds for any wait for a peer; None means that of `group`.
        telemetry: see :class:`HookState`.
        telemetry_every, check_every: steps between two measurements of distortion and information, comparisons of replicas.
        plan: a bit budget to be shared out between the layers, or None.
        shaping: exponent of noise shaping; 0 for none.
        caller: who reduces what, for messages.
        information: whether sampled steps measure it: it takes steps that all buckets take part in.
        hierarchical: what a caller asks for, as `commpress.collectives.asked_of` gives it.
        auto: what to choose between for each bucket, or None.

    Raises:
        MismatchError: the ranks differ.
        TopologyError: the nodes do not allow what is asked for.
        PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        codec: Any,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup | FakeGroup,
        identity: dict[str, Any],
        *,
        feedback: bool,
        timeout: float | None,
        telemetry: str | os.PathLike[str] | Sink | None,
        telemetry_every: int,
        check_every: int,
        plan: PlanSettings | None = None,
        shaping: float = 0.0,
        caller: str = "ddp hook",
        information: bool = True,
        hierarchical: Asked = None,
        auto: AutoSettings | None = None,
    ) -> None:
        timeout = timeout or group_timeout(group)
        dims = layers_of(parameters)
        self._planner = None if plan is None else Planner(dims, plan, feedback=feedback)
        if self._planner is not None:
            identity = identity | self._planner.identity()
        if auto is not None:
            identity = identity | auto.identity()
        (comm1, comm2), wanted = agree(
            group, identity, telemetry_every if telemetry is not None and information else 0, timeout
        )
        nodes = nodes_of((comm1, comm2), hierarchical, timeout)
        super().__init__(parameters, group, telemetry)
        senders = self.world_size if nodes is None else len(nodes.nodes)
        self._near = 0 if nodes is None else nodes.per_node - 1
        self._channels: list[Communicator] = []
        self._codec = codec
        self._auto = None if auto is None else AutoLane(auto, group, timeout, self.sink, budget=plan is not None)
        self._timeout = timeout
        self._control: Communicator | None = None
        self._notes: Notes | None = None
        # One rank that wants telemetry makes all of them gather statistics, on the same steps.
        self._information_every = min((every for every in wanted if every), default=0)
        if senders == 1 or codec.lossless:
            self._information_every = 0
        statistics = bool(self._information_every or (self._planner is not None and senders > 1))
        if (feedback and not codec.lossless) or check_every or statistics:
            comm3, self._control = make_pair(group, timeout)
            self._channels = [comm3, self._control]
            self._notes = Notes(comm3, NOTE_NBYTES, timeout)
        self._statistics: Statistics | None = None
        if statistics and self._control is not None:
            notes = Notes(self._control, NBYTES_PER_LAYER * len(dims), timeout)
            sent = codec if self._planner is None else LayeredCodec([])  # as every plan's
            self._statistics = Statistics(
                dims, notes, unbiased=codec.unbiased, passed_on=sent.passes_on(senders), senders=senders
            )
        self._predictor = Predictor(dims) if plan is not None and plan.predict and senders > 1 else None
        self._shaper = Shaper(dims, shaping, codec.bits) if shaping and senders > 1 else None
        # Where there is a record that could tell it.
        measured = self.sink is not None and telemetry_every > 0 and senders > 1 and not codec.lossless
        self._history = HistoryMeter(dims, PAYS_BELOW) if measured else None
        self._looked = False
        self._held: tuple[dict[str, Any], tuple[float, float, float]] | None = None
        self._codecs: list[Any] = []
        text = f"{caller}, feedback {'on' if feedback else 'off'}"
        if self._auto is not None:
            text += f", auto {self._auto.chooser.digest}"
        self._reducer = Reducer(comm1, comm2, timeout=timeout, plan=text, nodes=nodes)
        self._work: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}
        self._telemetry_every = telemetry_every
        self._check_every = check_every
        if feedback:
            self.feedback = ErrorFeedback(
                codec,
                rank=self.rank,
                world_size=self.world_size,
                shard=self._reducer.shard,
                part=self._reducer.part,
                senders=senders,
            )

    @property
    def nodes(self) -> NodeMap | None:
        """The nodes of an exchange in two levels, or None for a flat one."""
        return self._reducer.nodes

    def open_step(self, number: int, layouts: Sequence[Layout], members: Sequence[int] | None = None) -> Step:
        self.settle()
        self._codecs = plan_codecs(self._planner, self._codec, layouts)
        if self._auto is not None:
            self._auto.open_step(number, layouts)
            self._codecs = [self._auto.codec(index, codec) for index, codec in enumerate(self._codecs)]
        if self.feedback is not None:
            self.feedback.arrange(layouts, self._codecs)
        record = None
        if self.sink is not None:
            record = StepRecord(
                step=number,
                rank=self.rank,
                world_size=self.world_size,
                codec=str(self._codec) if self._auto is None else "auto",
                requested_rate=self._codec.bits if self._auto is None or self._planner is not None else None,
            )
        if self.monitor is not None:
            self.monitor.opened(number, record)
        return Step(number, len(layouts if members is None else members), record, self._end_step, members)

    def submit(
        self, step: Step, index: int, layout: Layout, buffer: torch.Tensor, seed: int
    ) -> torch.futures.Future[Any]:
        feedback = self.feedback.bucket(index) if self.feedback is not None and self.feedback.active else None
        flat, target = buffer, None
        if buffer.dtype != torch.float32 and (buffer.dtype != torch.float64 or feedback is not None):
            flat, target = self._work_buffer(index, buffer), buffer
            flat.copy_(buffer)
        codec = self._codecs[index]
        gather = self._statistics is not None and self._gathers(step.number)
        dtype = None if self._auto is None else self._auto.dtype(index)
        sample = step.record is not None and due(self._telemetry_every, step.number)
        observer = BucketObserver(
            step,
            index,
            layout,
            flat,
            target,
            senders=self._reducer.senders,
            part=self._reducer.part(layout.numel, codec),
            own=self._reducer.shard(layout.numel, codec),
            near=self._near,
            codec=codec if dtype is None else _SENT_EXACTLY.get(dtype, codec),
            feedback=feedback,
            notes=self._notes if self._auto is None or dtype is None else self._auto.notes,
            sums=LayerSums(layout, distortion=sample or self._measures(step.number)) if sample or gather else None,
            statistics=self._statistics if gather else None,
            prediction=None if self._predictor is None else self._predictor.bucket(layout),
            # What is measured in the next step needs its previous mean, and so does what this step's statistics switch on.
            keep=self._predictor is not None and (gather or self._gathers(step.number + 1)),
            shaping=None if self._shaper is None else self._shaper.bucket(layout),
            look=self._shaper is not None and self._shaper.due(step.number),
            history=None if self._history is None else self._history.bucket(layout),
            check=replica_hash(layout, self.parameters) if due(self._check_every, step.number) else None,
            diverged=lambda: self._diverged(layout, index, step.number),
            failed=self.fail,
            exactly=dtype,
            passed_on=dtype is not None and codec.passes_on(self.world_size),
        )
        if self._auto is not None and dtype is not None:
            return self._auto.exact.submit(flat, self._auto.ways[index], observer=observer)
        key = Key(seed=seed, step=step.number & 0xFFFFFFFF, sender=0, tensor=index)
        return self._reducer.submit(flat, codec, codec, key, op="mean", observer=observer, plan=step.plan)

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
                self.feedback.commit(step.members)
        with self._lock:
            self.counts["steps"] += 1
            self.counts["buckets"] += step.buckets
            self.counts["compressed_numel"] += step.compressed_numel
            self.counts["nonfinite_steps"] += not step.finite
            self.counts["held"] += step.held
        if self._history is not None:
            self._history.end(step.number, whole=step.finite and step.members is None)
        gathers = self._statistics is not None and self._gathers(step.number)
        if step.record is not None and self.sink is not None:
            if gathers and self._statistics is not None:
                near = self._near
                far = self.world_size - 1 - near
                each = self._statistics.nbytes // (near + far)
                counts = [
                    (each * peers, wire_nbytes(each * peers, peers, each * peers, peers)) for peers in (far, near)
                ]
                step.record.add_overhead(*counts[0], far, *counts[1])
            record = step.record.as_dict(feedback=outcome, dropped=self.sink.dropped)
            if self._history is not None and due(self._telemetry_every, step.number):
                record |= self._history.record()
            if gathers and due(self._information_every, step.number):
                self._held = record, step.sent.rates()  # until the others' statistics are here
            else:
                self.sink.emit(record)
        if gathers:
            assert self._statistics is not None
            moments = None if self._planner is None else self._planner.moments(self.parameters)
            if moments is not None:
                self._statistics.set_moments(moments)
            self._statistics.post(step.number, distortion=self._measures(step.number))

        if self._shaper is not None and self._shaper.due(step.number):
            self._looked = True

    def _gathers(self, step: int) -> bool:
        return due(self._information_every, step) or (self._planner is not None and self._planner.due(step))

    def _measures(self, step: int) -> bool:
        """Whether the distortion is among what is gathered, on every rank: a plan needs the energies alone, unless it weighs by the noise between ranks."""
        wanted = self._planner is not None and self._planner.weighs_noise and self._planner.due(step)
        return due(self._information_every, step) or wanted

    def settle(self) -> None:
        """Takes in the statistics of the step before: the record that waited for them goes out, and the plan may change. Raises PeerError."""
        held, self._held = self._held, None
        try:
            found = None if self._statistics is None else self._statistics.collect()
        except CommpressError as error:
            self._emit_held(held, None)
            self.fail(error)
            raise
        self._emit_held(held, found)
        if found is not None and self._predictor is not None and found.finite:
            self._predictor.observe(found, self._exact_layers())
            if not self._predictor.active and not self._gathers(found.step + 1):
                self._predictor.forget()
        plan = None
        if found is not None and self._planner is not None:
            plan = self._planner.observe(found)
            if plan is not None:
                self._log_plan(plan, found.step + 1, "statistics")
        if self._shaper is not None and (self._looked or plan is not None):
            self._shaper.refresh(self._exact_layers())
            self._looked = False

    def _exact_layers(self) -> set[str]:
        """Those that the plan in use sends as they are."""
        plan = None if self._planner is None else self._planner.plan
        return set() if plan is None else {n for n, e in zip(plan.names, plan.exact, strict=True) if e}

    def _emit_held(
        self, held: tuple[dict[str, Any], tuple[float, float, float]] | None, found: LayerStatistics | None
    ) -> None:
        if held is None or self.sink is None:
            return
        record, rates = held
        if found is not None and found.finite and self._statistics is not None:
            names, dims = self._statistics.names, self._statistics.dims
            if self._planner is not None:
                bits = self._planner.payload_bits()
            else:
                bits = np.array([8 * self._codec.payload_nbytes(int(n)) / n for n in dims])
            predicted = self._predictor is not None and self._predictor.active
            memory = "error feedback" if self.feedback is not None else "prediction" if predicted else None
            if memory is None and self._shaper is not None and self._shaper.active:
                memory = "noise shaping"
            extra = self._statistics.nbytes
            told = information_record(found, names, dims, bits, rates, memory=memory, extra_bytes=extra)
            if self._predictor is not None:
                told["prediction"] = prediction_record(self._predictor, found.table)
            if self._shaper is not None:
                told["shaping"] = {"exponent": self._shaper.exponent, "layers": self._shaper.ratios}
            record["information"] = json_values(told)
        self.sink.emit(record)

    def give_up(self, error: Exception) -> None:
        self.fail(error)
        if self._auto is not None:
            self._auto.exact.abort(error)
        with contextlib.suppress(CommpressError):  # the reducer failed before, and they know
            self._reducer.submit(
                torch.zeros(0),
                self._codec,
                self._codec,
                Key(),
                plan=f"failed: {type(error).__name__}: {error}",
            )

    @property
    def auto(self) -> AutoPlan | None:
        return None if self._auto is None else self._auto.plan

    @property
    def predictor(self) -> Predictor | None:
        """Predictive coding, if it is allowed."""
        return self._predictor

    @property
    def shaper(self) -> Shaper | None:
        """Noise shaping, if it is wanted."""
        return self._shaper

    @property
    def plan(self) -> Plan | None:
        return None if self._planner is None else self._planner.plan

    def saved(self) -> dict[str, Any]:
        self.settle()  # the plan of the next step
        allocator = None if self._planner is None else self._planner.state_dict()
        if allocator is not None and self._predictor is not None:
            allocator = {**allocator, "prediction": self._predictor.state_dict()}
        return {
            "residuals": None if self.feedback is None else self.feedback.state_dict(),
            "allocator": allocator,
            "shaping": None if self._shaper is None else self._shaper.state_dict(),
            "auto": None if self._auto is None else self._auto.state_dict(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        allocator = saved.get("allocator")
        if allocator is not None and self._planner is not None:
            self._planner.load_state_dict({name: value for name, value in allocator.items() if name != "prediction"})
            if self._predictor is not None and "prediction" in allocator:
                self._predictor.load_state_dict(allocator["prediction"])
        shaping = saved.get("shaping")
        if shaping is not None and self._shaper is not None:
            self._shaper.load_state_dict(shaping)
        auto = saved.get("auto")
        if auto is not None and self._auto is not None:
            self._auto.load_state_dict(auto)
        self._load_residuals(saved.get("residuals"), None if self._planner is None else self._planner.codec)

    def close(self) -> None:
        with contextlib.suppress(CommpressError):  # a peer may be gone already: the record goes out without
            self.settle()
        if self._auto is not None:
            self._auto.close()
        self._reducer.close()
        for channel in self._channels:
            channel.close()
        self._close_rest()
