"""Rates, sizes and times as `tc` writes them, and the burst that a rate needs."""

from __future__ import annotations

import re
from typing import Final

from commpress.errors import SpecError

FRAME_NBYTES: Final = 1514
"""A full Ethernet frame: 1500 bytes of IP and 14 of header, as interfaces and `tc` count it (preamble, checksum and gap are not)."""

_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SIZES = {"": 1, "b": 1, "k": 1024, "kb": 1024, "m": 1 << 20, "mb": 1 << 20}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

_BURST_SECONDS = 200e-6
_LATE_SECONDS = 50e-6
_BURST_LEAST = 3200
_QUEUE_SECONDS = 0.05
_QUEUE_LEAST = 256 * 1024
_SEGMENT_MOST = 65536
_MSS = 1448
_TCP_HEADER_ROOM = 400


def bits_per_second(text: str) -> int:
    """A rate such as ``1gbit``, ``100mbit`` or ``2.5gbit`` in bits per second.

    Raises:
        SpecError: it is no rate, or none between 64 kbit and 100 gbit.
    """
    value = round(_number(text, _RATES, "rate", "1gbit, 100mbit or 2.5gbit"))
    if not 64_000 <= value <= 100 * 10**9:
        raise SpecError(f"a rate must lie between 64kbit and 100gbit, got {text!r}")
    return value


def nbytes(text: str) -> int:
    """A size such as ``12500``, ``32kb`` or ``1mb`` in bytes (1 kb is 1024 bytes, as for `tc`).

    Raises:
        SpecError: it is no size, or less than one frame.
    """
    value = round(_number(text, _SIZES, "size", "12500, 32kb or 1mb"))
    if value < FRAME_NBYTES:
        raise SpecError(f"a burst must let a frame of {FRAME_NBYTES} bytes pass, got {text!r}")
    return value


def seconds(text: str) -> float:
    """A time such as ``5ms``, ``200us`` or ``1s`` in seconds.

    Raises:
        SpecError: it is no time, or not above 0, or above 10 s.
    """
    value = _number(text, _TIMES, "time", "5ms, 200us or 1s")
    if not 0 < value <= 10:
        raise SpecError(f"a delay must be above 0 and at most 10s, got {text!r}")
    return value


def burst_of(rate: int) -> int:
    """Bytes that a token bucket of `rate` bits/s has to let pass at once to reach its rate: what 200 us bring, at least two frames and what 50 us bring, at least 3200 bytes.

    A token bucket sleeps on a high-resolution timer until it has tokens for the next segment. What comes in while the timer is late is kept only as far as the bucket holds, so the burst has to
    cover how late timers are (tens of microseconds, more on a busy machine), not a tick of the scheduler (rate / HZ, the rule of old kernels, is 500 kB at 1 Gbit/s and lets 4 ms of traffic pass for free).
    docs/cluster.md has the measurements.
    """
    two_frames = 2 * FRAME_NBYTES + round(rate / 8 * _LATE_SECONDS)
    return max(_BURST_LEAST, two_frames, round(rate / 8 * _BURST_SECONDS))


def queue_of(rate: int) -> int:
    """Bytes that may wait at a link: 50 ms, at least 256 KiB."""
    return max(_QUEUE_LEAST, round(rate / 8 * _QUEUE_SECONDS))


def segment_of(burst: int, rate: int) -> int | None:
    """The interface's `gso_max_size` in bytes, so that a segment of TCP's passes a bucket of `burst` bytes and `rate` bits/s whole; None: the kernel's own 64 KiB do.

    TCP hands segments of up to 64 KiB to an interface. A bucket that cannot hold one cuts it into frames in software, which costs as much CPU time as everything else together. Beside a segment the
    bucket holds what comes in while its timer is 50 us late: without that room it falls short of its rate by 4 to 6 %.
    """
    frames = max(2, (burst - round(rate / 8 * _LATE_SECONDS)) // FRAME_NBYTES)
    # The kernel takes its largest header off before it fits frames in.
    size = frames * _MSS + _TCP_HEADER_ROOM
    return size if size < _SEGMENT_MOST else None


def _number(text: str, units: dict[str, int] | dict[str, float], what: str, examples: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise SpecError(f"not a {what}: {text!r}; write {examples}")
    return float(match[1]) * units[match[2]]
