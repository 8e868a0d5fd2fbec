"""One step of an FSDP2 model on its way: what its exchanges see, and what they sent."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch

from commpress.collectives import Observer, Report
from commpress.errors import TensorError
from commpress.feedback import BucketFeedback
from commpress.hooks._fsdp_feedback import RowsFeedback
from commpress.hooks._sums import Column, LayerSums
from commpress.telemetry import StepRecord

LEGS = ("reduce_scatter", "all_gather", "all_reduce")


@final
@dataclasses.dataclass
class Traffic:
    """What this rank sent: calls, payload and header bytes, bytes on the wire with framing (`commpress.collectives.wire_nbytes`), messages."""

    calls: int = 0
    payload_bytes: int = 0
    header_bytes: int = 0
    wire_bytes: int = 0
    messages: int = 0

    def add(self, report: Report) -> None:
        """Adds one exchange."""
        self.calls += 1
        self.payload_bytes += report.bytes_payload1 + report.bytes_payload2
        self.header_bytes += report.bytes_header
        self.wire_bytes += report.wire_bytes
        self.messages += report.messages

    def since(self, before: Traffic) -> dict[str, int]:
        """What was added after `before`."""
        earlier = dataclasses.asdict(before)
        return {name: value - earlier[name] for name, value in dataclasses.asdict(self).items()}


@final
class Step:
    """One synchronised backward pass.

    Args:
        number: the step. graph: what autograd calls the backward pass. record: telemetry, or None.
    """

    def __init__(self, number: int, graph: int, record: StepRecord | None) -> None:
        self.number = number
        self.graph = graph
        self.record = record
        self.finite = True
        self.reduced: set[int] = set()  # modules whose all-reduce was in this step


class _Watching(Observer):
    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self.report: Report | None = None

    def complete(self, report: Report) -> None:
        self.report = report

    def failed(self, error: Exception) -> None:
        self._failed(error)


@final
class PlainObserver(_Watching):
    """Keeps the report."""


@final
class RowsObserver(_Watching):
    """Of a reduce-scatter: adds the residuals, records the new ones, measures.

    Args:
        flat: all rows. codec: theirs. feedback: their residuals, or None. sums: filled with what is sampled of them, or None.
        failed: called with the error if they could not be reduced.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        codec: Any,
        feedback: RowsFeedback | None,
        sums: LayerSums | None,
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(failed)
        self._flat = flat
        self._codec = codec
        self._feedback = feedback
        self._sums = sums

    @property
    def follows_reduction(self) -> bool:
        return self._feedback is not None or self._sums is not None

    def prepare(self, flat: torch.Tensor) -> None:
        if self._sums is not None:
            self._sums.add_squares(Column.LOCAL, flat)
        if self._feedback is not None:
            self._feedback.add_input(flat)

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Any, gain: float) -> None:
        values = self._flat[start:stop]
        left_out: torch.Tensor | None = None
        if self._feedback is not None:
            left_out = self._feedback.record(self._flat, self._codec, payload, key, start, stop, gain)
        if self._sums is None:
            return
        if not self._sums.distortion:
            left_out = None
        elif self._feedback is None:
            left_out = torch.empty_like(values)
            self._codec.decode(payload, key, out=left_out, offset=start, gain=1.0 / gain)
            torch.sub(values, left_out, out=left_out)
        self._sums.add_encoded(1, start, stop, values, left_out)


@final
class ReplicaObserver(_Watching):
    """Of the all-reduce between replicas: as in DDP, with residuals of both phases.

    Args:
        flat: the shard's gradient. feedback: its residuals, or None. failed: as for :class:`RowsObserver`.
    """

    def __init__(
        self, flat: torch.Tensor, feedback: BucketFeedback | None, failed: Callable[[Exception], None]
    ) -> None:
        super().__init__(failed)
        self._flat = flat
        self._feedback = feedback

    @property
    def follows_reduction(self) -> bool:
        return self._feedback is not None

    def prepare(self, flat: torch.Tensor) -> None:
        if self._feedback is not None:
            self._feedback.add_input(flat)

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Any, gain: float) -> None:
        if self._feedback is None:
            return
        if phase == 1:
            self._feedback.record_sent(self._flat, payload, key, start, stop)
        else:
            self._feedback.record_mean(self._flat, payload, key, start, stop, gain=gain)

    def reduced(self, start: int, stop: int) -> None:
        if self._feedback is not None:
            self._feedback.add_mean(self._flat, start, stop)


def by_layer(table: np.ndarray, rows: int) -> np.ndarray:
    """Sums over the rows of a table whose lines are the layers of row after row; shape (layers, columns)."""
    folded: np.ndarray = table.reshape(rows, -1, table.shape[1]).sum(axis=0)
    return folded


def nmse_of(table: np.ndarray) -> list[float]:
    """For each layer squared error over energy of what was encoded; 0 for an exact zero, else not finite if something was not."""
    pairs = zip(table[:, Column.ERROR], table[:, Column.ENERGY1], strict=True)
    return [float(e / n) if n else (0.0 if e == 0 else float("inf")) for e, n in pairs]


def mixed_seed(seed: int, leg: str, place: int) -> int:
    """A seed of its own for one of several groups of ranks."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {leg} {place}".encode(), digest_size=8).digest(), "little")


def check_tensors(module: str, *tensors: torch.Tensor) -> None:
    """Raises TensorError unless these can be reduced or gathered."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.is_floating_point() or not tensor.is_contiguous():
            raise TensorError(
                f"module {module}: expected a contiguous floating-point CPU tensor, got {tensor.dtype} on {tensor.device}"
            )
