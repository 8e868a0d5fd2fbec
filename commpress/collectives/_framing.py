"""How large the frames are that the interface of the job counts, read off the kernel's own counters.

A network interface of MTU 1500 counts a header for every 1448 bytes of TCP data, if TCP or the interface's queue cuts the data. Where that happens behind the counter
(segmentation offload on a virtual interface, or the loopback with its MTU of 65536) it counts one for up to 64 KiB: 4 % fewer bytes. The number of packets tells.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading
from pathlib import Path
from typing import final

from commpress.collectives._accounting import FRAME_NBYTES, MSS, NOTICE_FRAME_NBYTES

# The figures of /sys/class/net/*/statistics, but always those of this process's own network namespace: /sys shows the namespace of whoever mounted it.
_COUNTERS = Path("/proc/self/net/dev")
_SENT_BYTES, _SENT_PACKETS = 8, 9  # columns
_SIOCGIFMTU = 0x8921
_TCP_IP_NBYTES = 52  # IPv4 20, TCP 20 and its timestamp option 12
_LARGEST_MSS = 65160  # of a segment that is cut behind the counter, at an MTU of 1500
_ENOUGH_NBYTES = 1 << 18
_CARRIES = 0.75  # of what was sent: the end of it may wait in a socket or in the link's queue, and is counted later


@dataclasses.dataclass(frozen=True)
class Sent:
    """What one interface has sent: bytes with all headers, packets."""

    nbytes: int
    packets: int

    def __sub__(self, other: Sent) -> Sent:
        return Sent(self.nbytes - other.nbytes, self.packets - other.packets)

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.nbytes + other.nbytes, self.packets + other.packets)


def read_counters(path: Path = _COUNTERS) -> dict[str, Sent]:
    """What each interface of this network namespace has sent so far; empty where the system does not count."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.rpartition(":") for line in lines if ":" in line)
    split = {name.strip(): figures.split() for name, _, figures in rows}
    return {name: Sent(int(row[_SENT_BYTES]), int(row[_SENT_PACKETS])) for name, row in split.items()}


def mtu_of(interface: str) -> int:
    """Largest packet of an interface, in bytes; 1500, Ethernet's, where the system does not say."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            answer = fcntl.ioctl(asking.fileno(), _SIOCGIFMTU, struct.pack("<16si12x", interface.encode(), 0))
        return int(struct.unpack("<16si12x", answer)[1])
    except (ImportError, OSError):
        return 1500


def mss_of(sent: Sent, mtu: int, notices: float = 0) -> float:
    """TCP data bytes per frame as an interface of that MTU counted them.

    Args:
        sent: what it counted. mtu: in bytes. notices: how many of the packets were gloo's short notices, which say nothing about the length of the others.
    """
    packets, nbytes = sent.packets - notices, sent.nbytes - NOTICE_FRAME_NBYTES * notices
    least = mtu - _TCP_IP_NBYTES
    return least if packets <= 0 else min(max(nbytes / packets - FRAME_NBYTES, least), max(_LARGEST_MSS, least))


@final
class FramingMeter:
    """The `mss` of the interface that carries the job: 1448 until 256 KiB are sent, then what the busiest interface's counters say, anew whenever the bytes have doubled.

    Args:
        loopback: whether the job may go over the loopback interface (what goes between nodes does not).
    """

    def __init__(self, *, loopback: bool = True) -> None:
        self._loopback = loopback
        self.mss: float = MSS
        self._lock = threading.Lock()
        self._nbytes = self._messages = 0  # sent by this process since the last reading
        self._next = _ENOUGH_NBYTES
        self._began = read_counters()

    def record(self, sent: int, messages: int) -> float:
        """Takes note of bytes sent, and messages sent and received; returns the `mss` to count with."""
        with self._lock:
            self._nbytes += sent
            self._messages += messages
            if self._began and self._nbytes >= self._next:
                now = read_counters()
                counted = {
                    name: value - self._began.get(name, value)
                    for name, value in now.items()
                    if self._loopback or name != "lo"
                }
                name = max(counted, key=lambda one: counted[one].nbytes, default="")
                if name and counted[name].nbytes >= _CARRIES * self._nbytes:
                    ranks = counted[name].nbytes / self._nbytes  # that share the interface
                    self.mss = mss_of(counted[name], mtu_of(name), ranks * self._messages)
                    self._next, self._nbytes, self._messages, self._began = 2 * self._nbytes, 0, 0, now
                else:  # most is still in the sockets, or no interface of the kernel's carries the job
                    self._next = self._nbytes + self._nbytes // 4
            return self.mss
