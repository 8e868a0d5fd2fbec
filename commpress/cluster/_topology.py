"""What is connected to what, as the command lines of `ip`, `bridge` and `tc` that make it. Numbers and text only.

Each rank has a network namespace with one interface, `eth0`. All switches are bridges in one more namespace, `fabric`:

* two ranks on one node share one veth pair, without a bridge;
* the ranks of a node hang on its bridge, each by a veth pair shaped at both ends, as a switch with one port each;
* with more than one node, each node's bridge hangs on the bridge `core` by an uplink shaped at both ends.

Neighbours and forwarding tables are written in beforehand: no address is ever asked for and nothing is flooded, so counters hold what ranks sent, and nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

from commpress.cluster._units import bits_per_second, burst_of, nbytes, queue_of, seconds, segment_of
from commpress.errors import SpecError

FABRIC = "fabric"
INTERFACE = "eth0"
RANKS_MOST = 256


@final
@dataclasses.dataclass(frozen=True)
class Shape:
    """What holds one direction of one link to its rate.

    Attributes:
        namespace, device: where it sits; it shapes what this device sends.
        rate: bits per second, frames with their Ethernet headers.
        burst: bytes that may pass at once.
        queue: bytes that may wait.
        delay: seconds added; 0 for none.
    """

    namespace: str
    device: str
    rate: int
    burst: int
    queue: int
    delay: float = 0.0

    def commands(self) -> list[str]:
        """Lines for `tc -batch`."""
        lines = [
            f"qdisc add dev {self.device} root handle 1: tbf rate {self.rate}bit burst {self.burst} limit {self.queue}"
        ]
        if self.delay:
            # Packets that are under way do not fill the queue.
            packets = max(1000, round((self.rate / 8 * self.delay + self.queue) / 500))
            micros = round(1e6 * self.delay)
            lines.append(f"qdisc add dev {self.device} parent 1:1 handle 10: netem delay {micros}us limit {packets}")
        return lines


@final
@dataclasses.dataclass(frozen=True)
class Topology:
    """Ranks, nodes and links.

    Args:
        ranks: number of ranks, 1 to 256.
        rate: of each rank's link, or of each node's uplink where there are several nodes; as ``1gbit``.
        nodes: number of nodes; ranks are divided evenly among them, in order.
        intra: with several nodes, the rate of each rank's link to its node's switch.
        burst: bytes that may pass a link at once, as ``32kb``; None: what the rate needs, `burst_of`.
        delay: added one way, between any two ranks of one node or, with several nodes, between any two nodes; as ``5ms``. Needs a kernel with netem.
        offload: let TCP hand an interface segments of several frames, as it does with any modern network card. Without, interfaces count every frame, and sending costs about twice the CPU time.

    Raises:
        SpecError: a value is outside what is supported.
    """

    ranks: int
    rate: str = "1gbit"
    nodes: int = 1
    intra: str | None = None
    burst: str | None = None
    delay: str | None = None
    offload: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= RANKS_MOST:
            raise SpecError(f"ranks must be from 1 to {RANKS_MOST}, got {self.ranks}")
        if not 1 <= self.nodes <= self.ranks or self.ranks % self.nodes:
            raise SpecError(f"{self.ranks} ranks cannot be divided evenly among {self.nodes} nodes")
        if (self.nodes > 1) != (self.intra is not None):
            raise SpecError("`intra`, the rate inside a node, goes with two or more nodes, and they with it")
        bits_per_second(self.rate)
        if self.intra is not None:
            bits_per_second(self.intra)
        if self.burst is not None:
            nbytes(self.burst)
        if self.delay is not None:
            seconds(self.delay)

    @property
    def per_node(self) -> int:
        """Ranks of one node."""
        return self.ranks // self.nodes

    @property
    def direct(self) -> bool:
        """Two ranks with one veth pair between them."""
        return self.ranks == 2 and self.nodes == 1

    @property
    def namespaces(self) -> list[str]:
        """All network namespaces: the switches', unless there is none, and one for each rank."""
        return [*([] if self.direct else [FABRIC]), *(namespace_of(rank) for rank in range(self.ranks))]

    def node_of(self, rank: int) -> int:
        """The node that a rank belongs to."""
        return rank // self.per_node

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun tells a rank, and the interface for gloo, NCCL and TensorPipe."""
        node, local = divmod(rank, self.per_node)
        values = {
            "RANK": rank,
            "WORLD_SIZE": self.ranks,
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": self.per_node,
            "GROUP_RANK": node,
            "GROUP_WORLD_SIZE": self.nodes,
            "NODE_RANK": node,
            "ROLE_NAME": "default",
            "ROLE_RANK": rank,
            "ROLE_WORLD_SIZE": self.ranks,
            "MASTER_ADDR": address_of(0),
            "MASTER_PORT": 29500,
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_MAX_RESTARTS": 0,
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_USE_AGENT_STORE": False,  # rank 0 holds the store itself
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "NCCL_SOCKET_IFNAME": INTERFACE,
            "TP_SOCKET_IFNAME": INTERFACE,
        }
        return {name: str(value) for name, value in values.items()}

    def hosts(self) -> list[str]:
        """Lines for /etc/hosts: ranks are called ``rank0``, ``rank1`` and so on."""
        return [
            f"{prefix}{address_of(rank)} {namespace_of(rank)}"
            for prefix in ("", "::ffff:")
            for rank in range(self.ranks)
        ]

    def shapes(self) -> list[Shape]:
        """All shapers: each rank's interface in order, then the switch's ports, then both ends of the uplinks."""
        delay = seconds(self.delay) if self.delay is not None else 0.0
        inner = self._shape(self.rate if self.intra is None else self.intra)
        # A delay is met once on the way: at the sending rank, or where a node sends.
        found = [
            dataclasses.replace(inner, namespace=namespace_of(r), delay=0.0 if self.nodes > 1 else delay)
            for r in range(self.ranks)
        ]
        if not self.direct:
            found += [dataclasses.replace(inner, namespace=FABRIC, device=f"port{r}") for r in range(self.ranks)]
        if self.nodes > 1:
            outer = dataclasses.replace(self._shape(self.rate), namespace=FABRIC)
            for node in range(self.nodes):
                found.append(dataclasses.replace(outer, device=f"up{node}", delay=delay))
                found.append(dataclasses.replace(outer, device=f"down{node}"))
        return found

    def _shape(self, text: str) -> Shape:
        rate = bits_per_second(text)
        burst = burst_of(rate) if self.burst is None else nbytes(self.burst)
        return Shape("", INTERFACE, rate, burst, max(queue_of(rate), 2 * burst))

    def link_commands(self, paths: dict[str, str]) -> list[tuple[str, list[str], list[str]]]:
        """(namespace, tool, its input) in the order in which they have to run.

        Args:
            paths: a path to each namespace by which `ip` can open it.
        """
        if self.direct:
            zero, one = namespace_of(0), namespace_of(1)
            pair = f"link add {INTERFACE} type veth peer name {INTERFACE} netns {paths[one]}"
            steps = [(zero, ["ip", "-batch", "-"], [pair])]
        else:
            steps = [(FABRIC, ["ip", "-batch", "-"], self._switches(paths))]
            steps.append((FABRIC, ["bridge", "-batch", "-"], self._forwarding()))
        for rank in range(self.ranks):
            steps.append((namespace_of(rank), ["ip", "-batch", "-"], self._host(rank)))
        for namespace in self.namespaces:
            lines = [line for shape in self.shapes() if shape.namespace == namespace for line in shape.commands()]
            steps.append((namespace, ["tc", "-batch", "-"], lines))
        return steps

    def _switches(self, paths: dict[str, str]) -> list[str]:
        bridges = [f"br{node}" for node in range(self.nodes)] + (["core"] if self.nodes > 1 else [])
        lines = [f"link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0" for name in bridges]
        for rank in range(self.ranks):
            lines += [
                f"link add port{rank} type veth peer name {INTERFACE} netns {paths[namespace_of(rank)]}",
                f"link set port{rank} master br{self.node_of(rank)} up",
            ]
        for node in range(self.nodes if self.nodes > 1 else 0):
            lines += [
                f"link add up{node} type veth peer name down{node}",
                f"link set up{node} master br{node} up",
                f"link set down{node} master core up",
            ]
        return lines + [f"link set {name} up" for name in bridges]

    def _forwarding(self) -> list[str]:
        lines = []
        for rank in range(self.ranks):
            home, mac = self.node_of(rank), _mac_of(rank)
            lines.append(f"fdb add {mac} dev port{rank} master static")
            if self.nodes > 1:
                lines.append(f"fdb add {mac} dev down{home} master static")
                lines += [f"fdb add {mac} dev up{n} master static" for n in range(self.nodes) if n != home]
        return lines

    def _host(self, rank: int) -> list[str]:
        # What passes every link on its way is cut nowhere.
        sizes = [size for shape in self.shapes() if (size := segment_of(shape.burst, shape.rate))]
        segment = f"gso_max_size {min(sizes)}" if sizes else ""
        return [
            "link set lo up",
            f"link set {INTERFACE} address {_mac_of(rank)} {segment if self.offload else 'gso_max_segs 1'} up",
            f"addr add {address_of(rank)}/16 dev {INTERFACE}",
            *(
                f"neigh add {address_of(other)} lladdr {_mac_of(other)} dev {INTERFACE} nud permanent"
                for other in range(self.ranks)
                if other != rank
            ),
        ]

    def record(self) -> dict[str, Any]:
        """The topology as JSON values: bits per second, bytes, seconds."""
        return {
            **dataclasses.asdict(self),
            "per_node": self.per_node,
            "addresses": [address_of(rank) for rank in range(self.ranks)],
            "shapes": [dataclasses.asdict(shape) for shape in self.shapes()],
        }


def namespace_of(rank: int) -> str:
    """Name of a rank's namespace; it means something inside a cluster only."""
    return f"rank{rank}"


def address_of(rank: int) -> str:
    """A rank's IPv4 address."""
    return f"10.231.{(rank + 1) // 256}.{(rank + 1) % 256}"


def _mac_of(rank: int) -> str:
    return f"02:63:70:00:{(rank + 1) // 256:02x}:{(rank + 1) % 256:02x}"
