"""What is counted, logged and recorded of an FSDP2 model's communication on one rank."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch.distributed as dist

from commpress.allocation import Plan
from commpress.collectives import Report
from commpress.hooks._fsdp_step import LEGS, Step, Traffic
from commpress.hooks._reduction import plan_record
from commpress.telemetry import FORMAT, JsonlSink, Sink, StepRecord, json_values

if TYPE_CHECKING:
    from commpress.hooks._fsdp_torch import Unit

_log = logging.getLogger("commpress.hooks")
COUNTS = (
    "steps",
    "reduce_scatters",
    "all_gathers",
    "all_reduces",
    "compressed_numel",
    "nonfinite_steps",
    "plans",
    "by_module",
    "exact_all_gathers",
    "abandoned_steps",
)


@final
class Ledger:
    """Args:
    codec: of gradients. rows: ranks that a module is sharded over. ranks: all of them. telemetry: a path, a sink or None.
    """

    def __init__(self, codec: Any, rows: int, ranks: int, telemetry: str | os.PathLike[str] | Sink | None) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.traffic = {leg: Traffic() for leg in LEGS}
        self._told = {leg: Traffic() for leg in LEGS}
        self._codec, self._rows, self._ranks = codec, rows, ranks
        self._said: set[tuple[str, str]] = set()
        self._owns_sink = telemetry is not None and not isinstance(telemetry, Sink)
        self.sink: Sink | None = None
        if isinstance(telemetry, Sink):
            self.sink = telemetry
        elif telemetry is not None:
            self.sink = JsonlSink(telemetry, rank=dist.get_rank())

    def open(self, number: int) -> StepRecord | None:
        """The record of a new step, if there is telemetry."""
        if self.sink is None:
            return None
        return StepRecord(
            step=number,
            rank=dist.get_rank(),
            world_size=self._ranks,
            codec=str(self._codec),
            requested_rate=self._codec.bits,
        )

    def add_rows(
        self,
        record: StepRecord | None,
        unit: Unit,
        layers: tuple[tuple[str, ...], tuple[int, ...]],
        report: Report,
        *,
        lossless: bool,
        nmse: Sequence[float] | None,
    ) -> None:
        """One reduce-scatter."""
        sent = (self._rows - 1) * sum(layers[1])
        compressed = 0 if lossless else sent
        self.counts["reduce_scatters"] += 1
        self.counts["compressed_numel"] += compressed
        self.traffic["reduce_scatter"].add(report)
        if record is None:
            return
        prefix = "seconds_"
        fields = [name for name in report.__dataclass_fields__ if name.startswith(prefix)]
        record.add_bucket(
            unit.index,
            [(name, size * self._rows) for name, size in zip(*layers, strict=True)],
            sent_numel=sent,
            counts={
                "payload_bytes": report.bytes_payload1,
                "header_bytes": report.bytes_header,
                "wire_bytes": report.wire_bytes,
                "messages": report.messages,
                "compressed_numel": compressed,
            },
            times={name.removeprefix(prefix): float(getattr(report, name)) for name in fields},
            finite=not report.nonfinite,
            nmse=nmse,
        )

    def add(self, leg: str, report: Report, compressed_numel: int = 0) -> None:
        """One exchange of another leg."""
        self.counts[f"{leg}s"] += 1
        self.counts["compressed_numel"] += compressed_numel
        self.traffic[leg].add(report)

    def end(self, step: Step, feedback: str) -> None:
        """A step is over. `feedback`: what became of the residuals."""
        self.counts["steps"] += 1
        self.counts["nonfinite_steps"] += not step.finite
        if step.record is None or self.sink is None:
            return
        record = step.record.as_dict(feedback=feedback, dropped=self.sink.dropped)
        for leg in ("all_gather", "all_reduce"):
            record[leg] = self.traffic[leg].since(self._told[leg])
            self._told[leg] = dataclasses.replace(self.traffic[leg])
        self.sink.emit(record)

    def plan(self, plan: Plan, step: int) -> None:
        """A new plan from `step` on."""
        self.counts["plans"] += 1
        _log.info("step %d: new plan %s, %d of %d bytes", step, plan.digest(), plan.planned_bytes, plan.budget_bytes)
        if self.sink is not None:
            head = {"format": FORMAT, "time": time.time()}
            self.sink.emit(json_values(head | plan_record(plan, step, dist.get_rank(), "statistics")))

    def say(self, count: str, unit: Unit, text: str) -> None:
        """Counts something that is not as it was asked for; logs it once for each module."""
        self.counts[count] += 1
        if (count, unit.name) not in self._said:
            self._said.add((count, unit.name))
            _log.warning("module %s %s", unit.name, text)

    def close(self) -> None:
        """Ends telemetry that came as a path."""
        if self._owns_sink and self.sink is not None:
            self.sink.close()
