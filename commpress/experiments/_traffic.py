"""What the network interface says was sent: the kernel's own counters, which no library can embellish."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import time
from pathlib import Path
from typing import final

import torch.distributed as dist

# The figures of /sys/class/net/*/statistics/tx_bytes, but always those of this process's own network namespace:
# /sys shows the namespace of whoever mounted it.
_COUNTERS = Path("/proc/self/net/dev")
_SENT_BYTES = 8  # column
_SIOCGIFMTU = 0x8921


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that left one interface between two readings.

    Attributes:
        interface: its name; "" where the system has no such counters (not Linux), and then ``nbytes`` is 0.
        nbytes: bytes sent through it, all headers included.
        ranks: how many ranks of the job share it, so that ``nbytes / ranks`` is the mean of one rank.
    """

    interface: str
    nbytes: int
    ranks: int

    @property
    def per_rank(self) -> float:
        """Mean bytes sent by one rank."""
        return self.nbytes / self.ranks


def read_counters(path: Path = _COUNTERS) -> dict[str, int]:
    """Bytes sent so far by each interface of this network namespace; empty where the system does not count."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.rpartition(":") for line in lines if ":" in line)
    return {name.strip(): int(figures.split()[_SENT_BYTES]) for name, _, figures in rows}


def mtu_of(interface: str) -> int:
    """Largest packet of an interface, in bytes; 1500, Ethernet's, where the system does not say."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            answer = fcntl.ioctl(asking.fileno(), _SIOCGIFMTU, struct.pack("<16si12x", interface.encode(), 0))
        return int(struct.unpack("<16si12x", answer)[1])
    except (ImportError, OSError):
        return 1500


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
        self._sent: dict[str, int] = {}
        self._began: dict[str, int] | None = None
        self._ranks = _ranks_sharing_counters()

    def start(self) -> None:
        """Begins a window."""
        self._began = read_counters()

    def stop(self) -> None:
        """Ends the window."""
        assert self._began is not None, "stop without start"
        now = read_counters()
        for name, value in now.items():
            self._sent[name] = self._sent.get(name, 0) + value - self._began.get(name, value)
        self._began = None

    def total(self) -> Traffic:
        """Everything counted so far."""
        sent = self._sent if self._interface is None else {self._interface: self._sent.get(self._interface, 0)}
        if not sent:
            return Traffic("", 0, self._ranks)
        busiest = max(sent, key=lambda name: sent[name])
        return Traffic(busiest, sent[busiest], self._ranks)


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
