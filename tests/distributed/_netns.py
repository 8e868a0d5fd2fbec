"""Links of a given speed between processes on one machine: network namespaces, veth pairs, token bucket filters. Needs root, `ip` and `tc`.

    with Links(4, rate="1gbit") as links:
        launch(__file__, "worker", 4, prefix=links.prefix, interface=links.interface)

Two ranks get one veth pair. More hang on a bridge in a namespace of its own, each by a veth pair shaped at both ends, as a switch with one port each. Everything is
removed at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess

_numbers = itertools.count()


def unavailable() -> str | None:
    """Why links cannot be made here, or None if they can. Tries it."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"no `{tool}` on this machine (Debian: iproute2)"
    try:
        with Links(2):
            return None
    except subprocess.CalledProcessError as problem:
        return f"{' '.join(problem.cmd)}: {problem.stderr.strip()}"


class Links:
    """`size` namespaces with an interface each.

    Args:
        size: number of ranks, 2 or more.
        rate: tc's rate of each direction of each link, such as "1gbit".
        burst: bytes that may pass at once; no more than the rate needs, or short exchanges run faster than the link. Below 64 KiB it also makes the
            kernel cut large segments before the interface counts them, so that counters show frames as a real wire has them.
        latency: longest time in the queue.
    """

    def __init__(self, size: int, *, rate: str = "1gbit", burst: str = "32kb", latency: str = "50ms") -> None:
        self.size = size
        self._shape = ["tbf", "rate", rate, "burst", burst, "latency", latency]
        tag = f"cp{os.getpid() % 100_000}x{next(_numbers)}"
        self._names = [f"{tag}n{rank}" for rank in range(size)]
        self._switch = f"{tag}sw"

    def prefix(self, rank: int) -> list[str]:
        """The command that runs another one in a rank's namespace."""
        return ["ip", "netns", "exec", self._names[rank]]

    def interface(self, rank: int) -> str:
        """Name of a rank's interface."""
        return f"eth{rank}"

    def counters(self, rank: int) -> tuple[int, int]:
        """(bytes sent, bytes received) of a rank's interface."""
        answer = _run("ip", "-n", self._names[rank], "-j", "-s", "link", "show", "dev", self.interface(rank))
        stats = json.loads(answer)[0]["stats64"]
        return stats["tx"]["bytes"], stats["rx"]["bytes"]

    def __enter__(self) -> Links:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self._names, self._switch]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", name)

    def _make(self) -> None:
        direct = self.size == 2
        for name in self._names if direct else [*self._names, self._switch]:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            # no IPv6 chatter in the counters; where there is no IPv6 there is nothing to switch off
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        if direct:
            _run(
                *("ip", "link", "add", self.interface(0), "netns", self._names[0], "type", "veth"),
                *("peer", "name", self.interface(1), "netns", self._names[1]),
            )
        else:
            _run(
                "ip", "-n", self._switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"
            )
            _run("ip", "-n", self._switch, "link", "set", "br0", "up")
        for rank, name in enumerate(self._names):
            interface = self.interface(rank)
            if not direct:
                port = f"port{rank}"
                _run(
                    *("ip", "link", "add", interface, "netns", name, "type", "veth"),
                    *("peer", "name", port, "netns", self._switch),
                )
                _run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
                _run("tc", "-n", self._switch, "qdisc", "add", "dev", port, "root", *self._shape)
            _run("ip", "-n", name, "addr", "add", f"10.231.7.{rank + 1}/24", "dev", interface)
            _run("ip", "-n", name, "link", "set", interface, "up")
            _run("tc", "-n", name, "qdisc", "add", "dev", interface, "root", *self._shape)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
