"""Where records go."""

from __future__ import annotations

import abc
import threading
from collections.abc import Mapping
from typing import Any, final


class Sink(abc.ABC):
    """Takes records. `emit` may be called from any thread, returns at once and never raises."""

    @abc.abstractmethod
    def emit(self, record: Mapping[str, Any]) -> bool:
        """Takes one record (a fresh mapping of JSON values that nobody changes afterwards). False if it was dropped."""

    @property
    @abc.abstractmethod
    def dropped(self) -> int:
        """Records lost so far."""

    @abc.abstractmethod
    def close(self, timeout: float = 5.0) -> None:
        """Writes what is queued, for at most `timeout` seconds. May be called twice."""


@final
class MemorySink(Sink):
    """Keeps the records in a list, `records`: for tests and notebooks."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._dropped = 0

    def emit(self, record: Mapping[str, Any]) -> bool:
        with self._lock:
            if self._closed:
                self._dropped += 1
                return False
            self.records.append(dict(record))
            return True

    @property
    def dropped(self) -> int:
        return self._dropped

    def close(self, timeout: float = 5.0) -> None:
        self._closed = True
