"""What the communication claims to have sent."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from commpress.collectives import wire_nbytes
from commpress.telemetry import JsonlSink, Sink


def framed_bytes(sent: float, messages: float, mss: float) -> float:
    """What the interface should count for that much sent, if as much is received, with `mss` bytes of data per frame."""
    return wire_nbytes(round(sent), round(messages), round(sent), round(messages), mss=mss)


@final
class ClaimedBytes(Sink):
    """A telemetry sink that adds up the bytes of this rank's records and passes them on to a file if one is named."""

    def __init__(self, path: str | Path | None = None) -> None:
        if path is not None:
            Path(path).unlink(missing_ok=True)  # of an earlier run: a sink appends
        self._file = None if path is None else JsonlSink(path)
        self._lock = threading.Lock()
        self._sums: dict[str, int] = {"payload_bytes": 0, "header_bytes": 0, "messages": 0}
        self._records = 0

    def per_step(self, name: str) -> float:
        """Mean over the steps so far of ``payload_bytes``, ``header_bytes`` or ``messages``."""
        with self._lock:
            return self._sums[name] / self._records if self._records else 0.0

    def total(self, name: str) -> int:
        """The sum over all records so far."""
        with self._lock:
            return self._sums[name]

    def emit(self, record: Mapping[str, Any]) -> bool:
        with self._lock:
            if record.get("kind") == "step":
                self._records += 1
                for name in self._sums:
                    self._sums[name] += record[name]
        return self._file is None or self._file.emit(record)

    @property
    def dropped(self) -> int:
        return 0 if self._file is None else self._file.dropped

    def close(self, timeout: float = 5.0) -> None:
        if self._file is not None:
            self._file.close(timeout)
