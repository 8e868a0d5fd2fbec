"""Adds up what one model sent, on its records' way to their file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from commpress.telemetry import JsonlSink, Sink


@final
class Tally(Sink):
    """A sink that keeps sums, and passes records on to a file if there is one.

    Args:
        path: of the file that rank 0 writes, or None.
        rank, world_size: in the model's process group.
    """

    def __init__(self, path: Path | None, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.steps = 0
        self._numel = 0
        self._payload_bytes = 0
        self._wire_bytes = 0
        self._sent_numel = 0.0
        self._file = JsonlSink(path, rank=rank) if path is not None else None

    def emit(self, record: Mapping[str, Any]) -> bool:
        if record.get("kind") == "step":
            self.steps += 1
            self._numel = record["numel"]
            self._payload_bytes += record["payload_bytes"]
            self._wire_bytes += record["wire_bytes"]
            if record["achieved_rate"]:
                self._sent_numel += 8 * record["payload_bytes"] / record["achieved_rate"]
        return self._file is None or self._file.emit(record)

    @property
    def dropped(self) -> int:
        return 0 if self._file is None else self._file.dropped

    def close(self, timeout: float = 5.0) -> None:
        if self._file is not None:
            self._file.close(timeout)

    def summary(self, codec: Any) -> str:
        """What was sent, in words."""
        if not self.steps:
            return f"{codec}, no step"
        if self.world_size == 1:
            return f"{self.steps} steps on one rank, nothing to send"
        n = self.world_size
        whole = 2 * (n - 1) / n * 4 * self._numel  # a ring all-reduce of fp32
        each = self._wire_bytes / self.steps
        rate = 8 * self._payload_bytes / self._sent_numel if self._sent_numel else 0.0
        return (
            f"{codec} on {n} ranks, {self.steps} steps of {self._numel:,} coordinates: {rate:.3f} bits a coordinate, "
            f"{each / 1e6:.3g} MB a step and rank, {self._wire_bytes / 1e6:.3g} MB in all; fp32 {whole / 1e6:.3g} MB a step ({whole / each:.1f} times)"
        )
