"""The reduction by low-rank factors: matrices travel as two thin factors, everything else exactly (docs/lowrank.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.codecs import Key, LowRankCodec
from commpress.collectives import (
    Communicator,
    FactorPlan,
    FactorReducer,
    FakeGroup,
    MatrixShape,
    Notes,
    Passage,
    Reducer,
    group_timeout,
    matrix_shape,
    worth,
)
from commpress.errors import CommpressError, SpecError, StateError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks._dimensions import DimensionPlanner, DimensionSettings
from commpress.hooks._low_rank_bucket import LowRankBucket
from commpress.hooks._planner import layers_of
from commpress.hooks._reduction import Reduction, agree, due, make_pair
from commpress.hooks._replicas import name_difference, replica_hash
from commpress.hooks._step import NOTE_NBYTES, Step
from commpress.lowrank import Tracker
from commpress.telemetry import Sink, StepRecord


@final
class LowRankReduction(Reduction):
    """Made collectively: agrees with the other ranks on `identity` and makes four process groups, or six with `check_every`.

    A parameter of two or more dimensions is a matrix, (shape[0], the rest), or with another dimension than the first in front where that is how it lies in memory.
    Its tracker and its residual belong to the parameter, not to the bucket. Both change only at the end of a step that is finite on all ranks.

    Args:
        codec, parameters, group, identity, feedback, timeout, telemetry, telemetry_every, check_every: see :class:`HookState`.
        budget: what the dimensions are chosen for; None: all matrices have the codec's.
        caller: who reduces what, for messages.

    Raises:
        SpecError: the budget is too small for these parameters.
        MismatchError: the ranks differ.
        PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        codec: LowRankCodec,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup | FakeGroup,
        identity: dict[str, Any],
        *,
        feedback: bool,
        timeout: float | None,
        telemetry: str | os.PathLike[str] | Sink | None,
        telemetry_every: int,
        check_every: int,
        budget: DimensionSettings | None = None,
        caller: str = "ddp hook",
    ) -> None:
        timeout = timeout or group_timeout(group)
        self._codec = codec
        self._shapes = _shapes(parameters, codec)
        matrices = [f"{name} {s.rows}x{s.columns}" for name, s in self._shapes.items()]
        (comm1, comm2), _ = agree(group, {**identity, "matrices": matrices, "budget": repr(budget)}, 0, timeout)
        super().__init__(parameters, group, telemetry)
        self._planner: DimensionPlanner | None = None
        if budget is not None:
            try:
                self._planner = DimensionPlanner(budget, codec, layers_of(parameters), self._shapes)
            except SpecError:
                comm1.close()
                comm2.close()
                raise
        chosen = {} if self._planner is None else self._planner.chosen
        self._trackers = {
            name: Tracker(s.rows, s.columns, chosen.get(name, codec.dimension), reset=float(codec.reset))
            for name, s in self._shapes.items()
        }
        comm3, comm4 = make_pair(group, timeout)
        plan = f"{caller}, feedback {'on' if feedback else 'off'}"
        self._reducer = FactorReducer(
            Reducer(comm1, comm2, timeout=timeout, plan=f"{plan}, left factors"),
            Reducer(comm3, comm4, timeout=timeout, plan=f"{plan}, right factors"),
        )
        self._timeout = timeout
        self._telemetry_every = telemetry_every
        self._check_every = check_every
        self._notes: Notes | None = None
        self._channels: tuple[Communicator, ...] = ()
        if check_every:
            self._channels = make_pair(group, timeout)
            self._notes = Notes(self._channels[0], NOTE_NBYTES, timeout)
        self._plans: dict[Layout, FactorPlan] = {}
        self._work: dict[tuple[int, int], torch.Tensor] = {}
        self._under_way: list[tuple[Passage, list[str]]] = []
        if feedback:
            # What a rank's factors leave out is known to it alone: no shard has an owner.
            self.feedback = ErrorFeedback(
                codec, rank=self.rank, world_size=self.world_size, shard=lambda numel, codec: (0, 0)
            )

    @property
    def trackers(self) -> dict[str, Tracker]:
        """By the parameter's name, of those that travel as factors."""
        return self._trackers

    @property
    def plan(self) -> Plan | None:
        return None if self._planner is None else self._planner.plan

    def open_step(self, number: int, layouts: Sequence[Layout], members: Sequence[int] | None = None) -> Step:
        if self.feedback is not None:
            self.feedback.arrange(layouts)
        if any(layout not in self._plans for layout in layouts):
            self._plans = {layout: self._plan_of(layout) for layout in layouts}
        self._under_way = []
        record = None
        if self.sink is not None:
            codec = str(self._codec)
            record = StepRecord(
                step=number, rank=self.rank, world_size=self.world_size, codec=codec, requested_rate=None
            )
        if self.monitor is not None:
            self.monitor.opened(number, record)
        return Step(number, len(layouts if members is None else members), record, self._end_step, members)

    def _plan_of(self, layout: Layout) -> FactorPlan:
        shapes, dimensions = [], []
        for name, start, _ in layout.segments():
            shape = self._shapes.get(name)
            if shape is not None:
                shapes.append(MatrixShape(start, shape.rows, shape.columns))
                dimensions.append(self._trackers[name].dimension)
        return FactorPlan(layout.numel, shapes, self._codec, dimensions)

    def submit(
        self, step: Step, index: int, layout: Layout, buffer: torch.Tensor, seed: int
    ) -> torch.futures.Future[Any]:
        plan = self._plans[layout]
        out = buffer if buffer.dtype == torch.float32 else self._work_buffer(index, layout.numel)
        feedback = None
        if self.feedback is not None and self.world_size > 1 and plan.shapes:
            feedback = self.feedback.bucket(index)
        names = [name for name in layout.parameters if name in self._shapes]
        observer = LowRankBucket(
            step,
            index,
            layout,
            plan,
            buffer,
            out,
            rank=self.rank,
            world_size=self.world_size,
            feedback=feedback,
            sample=step.record is not None and due(self._telemetry_every, step.number),
            notes=self._notes,
            check=replica_hash(layout, self.parameters) if due(self._check_every, step.number) else None,
            diverged=lambda: self._diverged(layout, index, step.number),
            failed=self.fail,
        )
        passage = Passage(
            plan,
            [self._trackers[name] for name in names],
            observer.work,
            out,
            Key(seed=seed, step=step.number & 0xFFFFFFFF, sender=0, tensor=index),
            op="mean",
            world_size=self.world_size,
            left_out=feedback is not None,
            observer=observer,
        )
        observer.passage = passage
        self._under_way.append((passage, names))
        return self._reducer.submit(passage)

    def _work_buffer(self, index: int, numel: int) -> torch.Tensor:
        if (index, numel) not in self._work:
            self._work[index, numel] = torch.empty(numel)
        return self._work[index, numel]

    def _diverged(self, layout: Layout, index: int, step: int) -> None:
        name_difference(self._channels[1], self._timeout, layout, index, step, self.parameters)

    def _end_step(self, step: Step) -> None:
        """On the thread of the last bucket, before DDP sees it: all ranks know now whether the step is good."""
        outcome = "off"
        if self.feedback is not None:
            outcome = "updated" if step.finite else "kept"
            if step.finite and self.world_size > 1:
                self.feedback.commit(step.members)
        fidelities: list[dict[str, Any]] = []
        resets = 0
        for passage, names in self._under_way if self.world_size > 1 else ():
            resets += sum(self._trackers[names[i]].basis is not None for i in passage.restarted)
            if step.finite:
                found = passage.update_trackers()
                for i, (name, fidelity) in enumerate(zip(names, found, strict=True)):
                    fidelities.append(
                        {
                            "name": name,
                            "dimension": self._trackers[name].dimension,
                            "fidelity": fidelity,
                            "restarted": i in passage.restarted,
                        }
                    )
        self._under_way = []
        with self._lock:
            self.counts["steps"] += 1
            self.counts["buckets"] += step.buckets
            self.counts["compressed_numel"] += step.compressed_numel
            self.counts["nonfinite_steps"] += not step.finite
            self.counts["held"] += step.held
            self.counts["resets"] += resets
        if step.record is not None and self.sink is not None:
            record = step.record.as_dict(feedback=outcome, dropped=self.sink.dropped)
            record["low_rank"] = fidelities
            self.sink.emit(record)
        if self._planner is None or not step.finite or self.world_size == 1:
            return
        if self._planner.observe(step.number, list(self._trackers.values())):
            self._plans = {}  # the next step lays out buffers for the new dimensions
            self._log_plan(self._planner.plan, step.number + 1, "spectra")

    def give_up(self, error: Exception) -> None:
        self.fail(error)
        with contextlib.suppress(CommpressError):  # the reducer failed before, and they know
            self._reducer.say(f"failed: {type(error).__name__}: {error}", Key())

    def saved(self) -> dict[str, Any]:
        return {
            "residuals": None if self.feedback is None else self.feedback.state_dict(),
            "bases": {name: tracker.state_dict() for name, tracker in self._trackers.items()},
            "allocator": None if self._planner is None else self._planner.state_dict(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        bases = saved.get("bases")
        if bases is not None:
            if set(bases) != set(self._trackers):
                odd = sorted(set(bases) ^ set(self._trackers))[0]
                raise StateError(f"the saved bases and the model differ in the matrix {odd!r}")
            allocator = saved.get("allocator")
            if self._planner is not None and allocator is not None:
                self._planner.load_state_dict(allocator)
                self._planner.resize(list(self._trackers.values()))
                self._plans = {}
            for name, tracker in self._trackers.items():
                tracker.load_state_dict(bases[name])
        self._load_residuals(saved.get("residuals"), None)

    def close(self) -> None:
        self._reducer.close()
        for channel in self._channels:
            channel.close()
        self._close_rest()


def _shapes(parameters: dict[str, torch.Tensor], codec: LowRankCodec) -> dict[str, MatrixShape]:
    """Of the parameters whose factors are fewer numbers than they have."""
    found = {}
    for name, p in parameters.items():
        if p.dim() > 1 and p.numel():
            shape = matrix_shape(0, p.shape, p.stride(), p.numel() * (2 if p.is_complex() else 1))
            if worth(shape, codec):
                found[name] = shape
    return found
