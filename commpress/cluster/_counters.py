"""Bytes and packets, as interfaces and their shapers count them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

from commpress.cluster._topology import FABRIC, INTERFACE, Topology, namespace_of


@final
@dataclasses.dataclass(frozen=True)
class Count:
    """One direction of one link.

    Attributes:
        bytes, packets: of the interface. A segment of several frames that TCP hands over whole is one packet here, and has one set of headers.
        frame_bytes, frames: of the shaper (`tc -s`), which counts each frame with its own headers: what a wire would carry. 0 where shapers were not asked.
        dropped: frames that found the shaper's queue full.
    """

    bytes: int = 0
    packets: int = 0
    frame_bytes: int = 0
    frames: int = 0
    dropped: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@final
@dataclasses.dataclass(frozen=True)
class Counters:
    """All links: `sent` and `received` by rank, `left` and `entered` by node (through its uplink; empty with one node)."""

    sent: tuple[Count, ...]
    received: tuple[Count, ...]
    left: tuple[Count, ...] = ()
    entered: tuple[Count, ...] = ()

    def __sub__(self, other: Counters) -> Counters:
        """What was counted in between."""
        return Counters(
            *(
                tuple(a - b for a, b in zip(getattr(self, f.name), getattr(other, f.name), strict=True))
                for f in dataclasses.fields(self)
            )
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def read(
    topology: Topology,
    text: Callable[[str, str], str],
    qdiscs: Callable[[str], list[dict[str, Any]]] | None,
) -> Counters:
    """Reads all counters.

    Args:
        text: a file's text, seen from a namespace.
        qdiscs: what `tc -s -j qdisc show` says in a namespace; None: do not ask.
    """
    devices = {name: _devices(text(name, "/proc/net/dev")) for name in topology.namespaces}
    shapers = {name: _shapers(qdiscs(name)) if qdiscs is not None else {} for name in topology.namespaces}

    def count(namespace: str, device: str, way: int, by: tuple[str, str]) -> Count:
        # What an interface received was shaped by the interface that sent it.
        return Count(*devices[namespace][device][way], *shapers[by[0]].get(by[1], (0, 0, 0)))

    own = [namespace_of(rank) for rank in range(topology.ranks)]
    peers = (
        [(own[1], INTERFACE), (own[0], INTERFACE)]
        if topology.direct
        else [(FABRIC, f"port{r}") for r in range(topology.ranks)]
    )
    nodes = range(topology.nodes) if topology.nodes > 1 else range(0)
    return Counters(
        tuple(count(name, INTERFACE, 1, (name, INTERFACE)) for name in own),
        tuple(count(name, INTERFACE, 0, peer) for name, peer in zip(own, peers, strict=True)),
        tuple(count(FABRIC, f"up{n}", 1, (FABRIC, f"up{n}")) for n in nodes),
        tuple(count(FABRIC, f"up{n}", 0, (FABRIC, f"down{n}")) for n in nodes),
    )


def _devices(text: str) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """{name: ((bytes, packets) received, (bytes, packets) sent)} of /proc/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, values = line.split(":")
        fields = [int(value) for value in values.split()]
        found[name.strip()] = ((fields[0], fields[1]), (fields[8], fields[9]))
    return found


def _shapers(qdiscs: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    return {q["dev"]: (q["bytes"], q["packets"], q["drops"]) for q in qdiscs if q["kind"] == "tbf"}
