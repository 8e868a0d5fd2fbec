"""How fast the link is, measured on what goes over it, and the message size that follows."""

from __future__ import annotations

import collections
import threading
from typing import final

_LEAST_NBYTES = 128 * 1024
_MEMORY = 8


@final
class LinkMeter:
    """Bytes per second of the last submissions. Load on the CPU only ever lowers a measurement, so the largest of the last few counts."""

    def __init__(self) -> None:
        self._speeds: collections.deque[float] = collections.deque(maxlen=_MEMORY)
        self._lock = threading.Lock()

    def record(self, nbytes: int, seconds: float) -> float:
        """Adds a measurement and returns it in bytes per second; 0 (and nothing added) for too few bytes to say anything."""
        if nbytes < _LEAST_NBYTES or seconds <= 0:
            return 0.0
        speed = nbytes / seconds
        with self._lock:
            self._speeds.append(speed)
        return speed

    def quantised(self) -> int:
        """KiB/s as a power of two; 0 before the first measurement."""
        with self._lock:
            best = max(self._speeds, default=0.0)
        if best <= 0:
            return 0
        return 1 << max(0, min(31, round(best / 1024).bit_length() - 1))


def chunk_nbytes(link: int) -> int:
    """Payload bytes per message for a link of `link` KiB/s (0: unknown): what takes about 6 ms, between 256 KiB and 8 MiB.

    Smaller pieces overlap better on paper, but each costs work on both sides, which a busy machine feels first.
    """
    if link == 0:
        return 512 * 1024
    return max(256 * 1024, min(8 << 20, link * 1024 // 160))
