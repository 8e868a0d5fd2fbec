"""What the network interface says was sent: the kernel's own counters, which no library can embellish."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from pathlib import Path
from typing import final

import torch.distributed as dist

from commpress.collectives import Sent, mss_of, mtu_of, read_counters


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that left one interface between two readings.

    Attributes:
        interface: its name; "" where the system has no such counters (not Linux), and then ``nbytes`` is 0.
        nbytes: bytes sent through it, all headers included.
        packets: as the interface counted them.
        ranks: how many ranks of the job share it, so that ``nbytes / ranks`` is the mean of one rank.
    """

    interface: str
    nbytes: int
    packets: int
    ranks: int

    @property
    def mss(self) -> float:
        """TCP data bytes per frame, as the interface counted."""
        return mss_of(Sent(self.nbytes, self.packets), mtu_of(self.interface))

    @property
    def per_rank(self) -> float:
        """Mean bytes sent by one rank."""
        return self.nbytes / self.ranks


@final
class TrafficMeter:
    """Adds up traffic over the windows between `start` and `stop`; what happens outside them is not counted.

    Which interface carries the job is observed, not configured: it is the one that sent most in the counted windows.
    (Ranks on one machine talk through `lo`, whatever address gloo bound, and there all their traffic adds up.) Other
    programs' traffic on the same interface is counted too. Callers put a barrier around each window, so that no rank
    is still sending when another one reads.

    Args:
        interface: the name of the interface to watch instead.
    """

    def __init__(self, interface: str | None = None) -> None:
        self._interface = interface
        self._sent: dict[str, Sent] = {}
        self._began: dict[str, Sent] | None = None
        self._ranks = _ranks_sharing_counters()

    def start(self) -> None:
        """Begins a window."""
        self._began = read_counters()

    def stop(self) -> None:
        """Ends the window."""
        assert self._began is not None, "stop without start"
        now = read_counters()
        for name, value in now.items():
            self._sent[name] = self._sent.get(name, Sent(0, 0)) + (value - self._began.get(name, value))
        self._began = None

    def total(self) -> Traffic:
        """Everything counted so far."""
        names = self._sent if self._interface is None else [self._interface]
        busiest = max(names, key=lambda name: self._sent.get(name, Sent(0, 0)).nbytes, default="")
        sent = self._sent.get(busiest, Sent(0, 0))
        return Traffic(busiest if sent.nbytes or self._interface else "", sent.nbytes, sent.packets, self._ranks)


@final
class Clock:
    """Time and traffic of training alone, in windows that begin and end together on all ranks."""

    def __init__(self, interface: str | None) -> None:
        self.traffic = TrafficMeter(interface)
        self.seconds = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Begins a window. Collective."""
        dist.barrier()
        self.traffic.start()
        dist.barrier()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Ends the window. Collective."""
        dist.barrier()
        self.seconds += time.perf_counter() - self._began
        self.traffic.stop()
        dist.barrier()


def _ranks_sharing_counters() -> int:
    """How many ranks of the default group live in this process's network namespace. Collective."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        place = socket.gethostname()
    places: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(places, place)
    return places.count(place)
