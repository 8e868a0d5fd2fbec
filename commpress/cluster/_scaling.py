"""What an all-reduce of a whole model takes on a cluster that nobody has yet: pure functions of sizes, rates and latencies. docs/cost-model.md has every assumption.

A node holds `local_ranks` ranks, which share its one link of `rate`; inside, every rank has a link of `intra` to all others. Nothing is lost, no switch is oversubscribed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final, final

from commpress.cluster._cost import BLOCK, HEADER_NBYTES, MESSAGE_NBYTES, CodecCost
from commpress.errors import SpecError

BUCKET_NBYTES: Final = 25 << 20
MOST_RANKS: Final = 1 << 20
_LOWEST, _HIGHEST = 1e5, 1e13  # bytes per second, between which a break-even is looked for


@final
@dataclasses.dataclass(frozen=True)
class Network:
    """Ranks and what joins them.

    Attributes:
        ranks: all of them. local_ranks: of each node; divides `ranks`.
        link: bytes per second that leave a node, one way. intra: the same for one rank inside a node; needed with more than one local rank.
        latency: seconds between a send and its arrival, on either. message: seconds of a rank's time that each message costs, whatever its size.
    """

    ranks: int
    link: float
    local_ranks: int = 1
    intra: float | None = None
    latency: float = 20e-6
    message: float = 5e-6

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= MOST_RANKS:
            raise SpecError(f"ranks must lie between 1 and {MOST_RANKS}, got {self.ranks}")
        if self.local_ranks < 1 or self.ranks % self.local_ranks:
            raise SpecError(f"{self.ranks} ranks are no whole number of nodes with {self.local_ranks} each")
        if self.local_ranks > 1 and self.intra is None:
            raise SpecError("with several ranks in a node the rate inside it is needed, too")
        for name in ("link", "intra"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SpecError(f"{name} must be above 0 bytes per second, got {value!r}")
        if not (self.latency >= 0 and self.message >= 0):
            raise SpecError("latency and message must be at least 0 seconds")

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.ranks // self.local_ranks

    @property
    def inside(self) -> float:
        """Bytes per second of a rank inside its node."""
        return self.link if self.intra is None else self.intra


@final
@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one all-reduce of a whole model.

    Attributes:
        seconds: with nothing else going on. wire, work: the parts of it that the links and the codec would need alone.
        node_bytes: that leave a node.
        buckets: how many there are. bucket_seconds: of one alone, what is left over when backward ends at the earliest.
    """

    seconds: float
    wire: float
    work: float
    node_bytes: float
    buckets: int
    bucket_seconds: float

    def exposed(self, backward: float) -> float:
        """Seconds that a backward pass of `backward` seconds does not hide. Buckets are ready at even intervals, the last one at its end, so that one is never hidden."""
        ready_early = backward * (self.buckets - 1) / self.buckets
        return max(self.bucket_seconds, self.seconds - ready_early)

    def hidden(self, backward: float) -> float:
        """The share of `seconds` that goes on behind a backward pass of `backward` seconds."""
        return 1.0 - min(1.0, self.exposed(backward) / self.seconds) if self.seconds > 0 else 1.0


def ring_seconds(nbytes: float, ranks: int, link: float, latency: float) -> float:
    """Ring all-reduce: 2 (n-1) rounds of one n-th of the tensor."""
    return 2 * (ranks - 1) * (latency + nbytes / ranks / link)


def tree_seconds(nbytes: float, ranks: int, link: float, latency: float) -> float:
    """Two pipelined binary trees, each for half of the tensor: every rank sends all of it twice, but waits for 2 log2 n messages only."""
    return 0.0 if ranks == 1 else 2 * nbytes / link + 2 * math.ceil(math.log2(ranks)) * latency


def exact(numel: int, nbytes_each: int, network: Network) -> Estimate:
    """An all-reduce of `numel` coordinates as they are, or in 16 bits: the faster of ring and tree, which enter and leave each node once, so that its ranks do not share the link."""
    ranks, link = network.ranks, min(network.link, network.inside) if network.local_ranks > 1 else network.link
    buckets, nbytes = _buckets(numel), numel * nbytes_each
    each = nbytes / buckets
    one = min(
        function(each, ranks, link, network.latency + network.message) for function in (ring_seconds, tree_seconds)
    )
    leaving = 2 * (ranks - 1) / ranks * nbytes if network.nodes > 1 else 0.0
    return Estimate(buckets * one, buckets * one, 0.0, leaving, buckets, one)


def flat(numel: int, cost: CodecCost, network: Network) -> Estimate:
    """A compressed all-reduce over all ranks at once: two phases, in each of which every rank sends a message to every other one.

    Of the n-1 messages n - local_ranks leave the node, whose link its ranks share.
    """
    buckets = _buckets(numel)
    part = numel / buckets
    inner = network.local_ranks - 1
    payload, leaving = _phases(part, cost, network.ranks)
    sent_out = network.local_ranks * (network.ranks - network.local_ranks) * (payload + leaving)
    wire = sent_out / network.link + inner * (payload + leaving) / network.inside
    wire += 3 * (network.ranks - 1) * network.message
    work = _work(part, cost, network.ranks)
    return _pipelined(buckets, wire, work, 3 * network.latency, sent_out * buckets)


def hierarchical(numel: int, cost: CodecCost, network: Network) -> Estimate:
    """Exact reduce-scatter inside each node, a compressed all-reduce of each local rank's slice with its peers in the other nodes, and an exact all-gather inside."""
    if network.local_ranks == 1:
        return flat(numel, cost, network)
    buckets = _buckets(numel)
    part = numel / buckets
    local, nodes = network.local_ranks, network.nodes
    inside = 2 * (local - 1) * (part * 4 / local / network.inside + network.latency + network.message)
    if nodes == 1:
        return Estimate(buckets * inside, buckets * inside, 0.0, 0.0, buckets, inside)
    payload, overhead = _phases(part / local, cost, nodes)
    sent_out = local * (nodes - 1) * (payload + overhead)
    between = sent_out / network.link + 3 * (nodes - 1) * network.message
    work = _work(part / local, cost, nodes)
    one = _pipelined(buckets, max(inside, between), work, 3 * network.latency, sent_out * buckets)
    # The links inside and outside are different ones: buckets follow each other on both, and the first has to pass both.
    fill = min(inside, between)
    return dataclasses.replace(
        one,
        seconds=one.seconds + fill,
        wire=one.wire + fill,
        bucket_seconds=inside + between + work + 3 * network.latency,
    )


def break_even(compressed: Callable[[float], float], plain: Callable[[float], float]) -> float | None:
    """Bytes per second of the link below which `compressed` takes less time than `plain`, both functions of that speed.

    Returns:
        The speed, to a thousandth; inf if it wins at any up to 10 TB/s, None if it wins at none down to 100 kB/s.
    """
    if compressed(_HIGHEST) < plain(_HIGHEST):
        return math.inf
    if compressed(_LOWEST) >= plain(_LOWEST):
        return None
    low, high = _LOWEST, _HIGHEST
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if compressed(middle) < plain(middle):
            low = middle
        else:
            high = middle
    return low


def _buckets(numel: int) -> int:
    if numel < 1:
        raise SpecError(f"a model has at least one coordinate, got {numel}")
    return max(1, round(4 * numel / BUCKET_NBYTES))


def _phases(numel: float, cost: CodecCost, ranks: int) -> tuple[float, float]:
    """Bytes of payload, and of everything else, that go from a rank to one other over header and both phases."""
    if ranks == 1:
        return 0.0, 0.0
    bits2 = cost.bits if cost.bits2 is None else cost.bits2
    # A shard is whole blocks: with more ranks than blocks some have none, and those that have one are what all wait for.
    shard = max(numel / ranks, min(numel, BLOCK))
    return shard * (cost.bits + bits2) / 8, 2.0 * MESSAGE_NBYTES + HEADER_NBYTES


def _work(numel: float, cost: CodecCost, ranks: int) -> float:
    """Codec seconds of a rank."""
    if ranks == 1:
        return 0.0
    shard = max(numel / ranks, min(numel, BLOCK))
    return sum(cost.work(numel, ranks, shard))


def _pipelined(buckets: int, wire: float, work: float, latency: float, node_bytes: float) -> Estimate:
    """While one bucket is on the wire another is encoded: the slower of the two goes on throughout, the other shows once."""
    one = wire + work + latency
    return Estimate(
        buckets * max(wire, work) + min(wire, work) + latency, buckets * wire, buckets * work, node_bytes, buckets, one
    )
