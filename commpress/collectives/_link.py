"""How fast the link is, measured on what goes over it, and the message size that follows."""

from __future__ import annotations

import collections
import threading
from typing import final

_LEAST_NBYTES = 128 * 1024
_MEMORY = 8
_FIRST = 3  # measurements before anything is concluded from them
_MOST_NBYTES = 8 << 20


@final
class LinkMeter:
    """Bytes per second of the last submissions. Load on the CPU only ever lowers a measurement, so the largest counts.

    Where compute and wire overlapped, the bytes over the whole time are a lower bound, which says little about a link faster than the codec. So bounds never displace
    measurements of the wire alone, and as long as nothing is known messages are long, which is when the wire is alone.
    """

    def __init__(self) -> None:
        self._alone: collections.deque[float] = collections.deque(maxlen=_MEMORY)
        self._bounds: collections.deque[float] = collections.deque(maxlen=_MEMORY)
        self._lock = threading.Lock()

    def record(self, nbytes: int, seconds: float, *, overlapped: bool) -> float:
        """Adds a measurement and returns it in bytes per second; 0 (and nothing added) for too few bytes to say anything."""
        if nbytes < _LEAST_NBYTES or seconds <= 0:
            return 0.0
        speed = nbytes / seconds
        with self._lock:
            (self._bounds if overlapped else self._alone).append(speed)
        return speed

    def quantised(self) -> int:
        """KiB/s as a power of two; 0 before the first few measurements."""
        with self._lock:
            speeds = [*self._alone, *self._bounds]
        if len(speeds) < _FIRST:
            return 0
        best = max(speeds)
        return 1 << max(0, min(31, round(best / 1024).bit_length() - 1))


def chunk_nbytes(link: int) -> int:
    """Payload bytes per message for a link of `link` KiB/s: what takes about 3 ms, between 256 KiB and 8 MiB; 8 MiB for 0, unknown.

    Smaller pieces overlap better on paper, but each costs work on both sides, which a busy machine feels first.
    """
    if link == 0:
        return _MOST_NBYTES
    return max(256 * 1024, min(_MOST_NBYTES, link * 1024 // 320))
