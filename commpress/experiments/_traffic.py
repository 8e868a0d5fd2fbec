"""What the network interface says was sent: the kernel's own counters, which no library can embellish."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import torch.distributed as dist

_INTERFACES = Path("/sys/class/net")


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


def read_counters(folder: Path = _INTERFACES) -> dict[str, int]:
    """Bytes sent so far by each interface of this network namespace; empty where the system does not count."""
    counters = {}
    for path in sorted(folder.glob("*/statistics/tx_bytes")):
        try:
            counters[path.parent.parent.name] = int(path.read_text())
        except (OSError, ValueError):  # an interface that has just gone
            continue
    return counters


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
