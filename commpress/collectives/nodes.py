"""Which ranks share a machine, and whether an exchange makes use of it."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any, final

from commpress.collectives._gather import gather
from commpress.collectives._shared import Probe
from commpress.collectives.communicator import Communicator
from commpress.errors import MismatchError, SpecError, TopologyError

_log = logging.getLogger("commpress.collectives")
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")

Hierarchical = bool | Sequence[Sequence[int]] | None
"""What callers ask for: None chooses by what the launcher said, False is flat, True demands two levels, and a list has the ranks of each node."""
Asked = bool | tuple[tuple[int, ...], ...] | None


@final
@dataclasses.dataclass(frozen=True)
class NodeMap:
    """Nodes with equally many ranks each.

    Args:
        nodes: the ranks of each node; ranks are those of the process group. Local rank l of a node is its l-th one here.
        shared: whether the ranks of a node see each other's memory, by way of which values then travel.

    Raises:
        SpecError: no partition of ranks 0 to n-1. TopologyError: the nodes differ in size.
    """

    nodes: tuple[tuple[int, ...], ...]
    shared: bool = False

    def __post_init__(self) -> None:
        ranks = sorted(rank for node in self.nodes for rank in node)
        if not ranks or ranks != list(range(len(ranks))) or not all(self.nodes):
            raise SpecError(
                f"nodes must hold each of the group's ranks 0 to n-1 once, and no node be empty, got {self.as_lists()}"
            )
        if len({len(node) for node in self.nodes}) > 1:
            raise TopologyError(
                f"the nodes have {', '.join(str(len(node)) for node in self.nodes)} ranks, and a hierarchical all-reduce needs equally many on each: "
                "start as many on every node, or use hierarchical=False"
            )

    @property
    def size(self) -> int:
        """Ranks in all."""
        return len(self.nodes) * self.per_node

    @property
    def per_node(self) -> int:
        """Ranks of one node."""
        return len(self.nodes[0])

    def place(self, rank: int) -> tuple[int, int]:
        """(node, local rank) of a rank."""
        for number, node in enumerate(self.nodes):
            if rank in node:
                return number, node.index(rank)
        raise SpecError(f"rank {rank} is on none of the nodes {self.as_lists()}")

    def across(self, local: int) -> tuple[int, ...]:
        """The ranks with that local rank, one of each node."""
        return tuple(node[local] for node in self.nodes)

    def as_lists(self) -> list[list[int]]:
        """For messages and JSON."""
        return [list(node) for node in self.nodes]

    def __str__(self) -> str:
        return f"{len(self.nodes)} nodes of {self.per_node} ranks"


def asked_of(hierarchical: Any) -> Asked:
    """Checks an argument and makes it hashable. Raises SpecError."""
    if hierarchical is None or isinstance(hierarchical, bool):
        return hierarchical
    if isinstance(hierarchical, NodeMap):
        return hierarchical.nodes
    try:
        nodes = tuple(tuple(node) for node in hierarchical)
        good = all(isinstance(rank, int) and not isinstance(rank, bool) for node in nodes for rank in node)
    except TypeError:
        good = False
    if not good:
        raise SpecError(
            f"hierarchical is None, True, False, or the ranks of each node as in [[0, 1], [2, 3]], got {hierarchical!r}"
        )
    NodeMap(nodes)
    return nodes


def own_facts(asked: Asked, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What this rank tells the others: what it was asked for, its machine, and what the launcher told it (torchrun's variables)."""
    values = os.environ if environment is None else environment
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    facts: dict[str, Any] = {"asked": asked, "host": f"{socket.gethostname()}/{boot}"}
    for name in ("GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = values.get(name, "").strip()
        facts[name] = int(text) if text.isdecimal() else None
    return facts


def agree_on_nodes(comm: Communicator, asked: Asked, timeout: float) -> NodeMap | None:
    """The nodes of a hierarchical exchange, or None for a flat one; the same on every rank. Collective on `comm`, of which nothing else may be under way.

    Raises:
        MismatchError: ranks ask for different things. TopologyError: what is asked for cannot be had. PeerError: a rank did not answer.
    """
    if comm.size == 1:
        return None
    probe, purpose = Probe(), "the exchange of what each rank's node is"
    said = gather(comm, own_facts(asked) | {"memory": probe.facts}, timeout, purpose)
    nodes = decide(said, comm.rank)
    if nodes is None:
        return None
    near = nodes.nodes[nodes.place(comm.rank)[0]]
    sees = probe.sees([said[rank]["memory"] for rank in near])
    shared = all(gather(comm, sees, timeout, purpose))
    if not shared and comm.rank == 0:
        _log.warning("ranks of one node do not see each other's memory: what stays inside a node goes through sockets")
    return dataclasses.replace(nodes, shared=shared)


def decide(said: Sequence[Mapping[str, Any]], rank: int = 0) -> NodeMap | None:
    """As :func:`agree_on_nodes`, from every rank's :func:`own_facts`, in rank order. `rank` 0 writes the log.

    Two levels are chosen where there are at least two nodes, with at least two ranks and equally many on each. Asked for, they are used on a single node too (where
    nothing is compressed); with one rank on each node they are the flat exchange.
    """
    wishes: dict[str, list[int]] = {}
    for one, facts in enumerate(said):
        wishes.setdefault(str(facts["asked"]), []).append(one)
    if len(wishes) > 1:
        shown = "; ".join(f"ranks {ranks}: {wish}" for wish, ranks in wishes.items())
        raise MismatchError(f"ranks disagree on hierarchical ({shown})")
    asked = said[0]["asked"]
    if asked is False:
        return None
    if asked is None or asked is True:
        problem, groups = _by_launcher(said)
        if not problem and len({len(group) for group in groups}) > 1:
            problem = f"the nodes have {', '.join(str(len(group)) for group in groups)} ranks, and two levels need equally many on each"
        if problem and asked:
            raise TopologyError(
                f"{problem}: start the ranks with torchrun or with one of the scripts in launch/, name the nodes "
                "(hierarchical=[[0, 1], [2, 3]]), or use hierarchical=False"
            )
        if problem:
            if rank == 0:
                _log.warning("all-reduce stays flat: %s", problem)
            return None
    else:
        groups = asked
        if sum(len(group) for group in groups) != len(said):
            raise TopologyError(
                f"nodes {[list(g) for g in groups]} hold {sum(map(len, groups))} ranks, the group has {len(said)}"
            )
    nodes = NodeMap(tuple(tuple(group) for group in groups))
    if nodes.per_node == 1 or (asked is None and len(nodes.nodes) == 1):
        return None
    if rank == 0:
        _log.info("all-reduce in two levels: %s", nodes)
    return nodes


def _by_launcher(said: Sequence[Mapping[str, Any]]) -> tuple[str, list[list[int]]]:
    """What contradicts itself in what the ranks say ("" if nothing does), and the ranks by node, in the order of each node's first rank."""
    for name in ("GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        have = [rank for rank, facts in enumerate(said) if facts[name] is not None]
        if have and len(have) < len(said):
            return f"the launcher told {name} to ranks {have} only", []
    told = said[0]["GROUP_RANK"] is not None
    by_node: dict[Any, list[int]] = {}
    for rank, facts in enumerate(said):
        by_node.setdefault(facts["GROUP_RANK"] if told else facts["host"], []).append(rank)
    for node, ranks in by_node.items():
        hosts = sorted({said[rank]["host"].split("/")[0] for rank in ranks})
        if len({said[rank]["host"] for rank in ranks}) > 1:
            return f"the launcher gave ranks {ranks} the same GROUP_RANK={node}, and they run on {', '.join(hosts)}", []
        sizes = sorted({said[rank]["LOCAL_WORLD_SIZE"] for rank in ranks} - {None})
        if len(sizes) > 1:
            return f"the launcher told ranks {ranks} of one node different LOCAL_WORLD_SIZE: {sizes}", []
        if sizes and len(ranks) > sizes[0]:
            return f"ranks {ranks} are on one node, and LOCAL_WORLD_SIZE is {sizes[0]}", []
        locals_ = [said[rank]["LOCAL_RANK"] for rank in ranks if said[rank]["LOCAL_RANK"] is not None]
        if len(set(locals_)) < len(locals_):
            return f"the launcher told ranks {ranks} of one node LOCAL_RANK {locals_}", []
    return "", list(by_node.values())
