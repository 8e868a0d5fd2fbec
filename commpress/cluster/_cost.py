"""An alpha-beta-gamma model of what an all-reduce takes: numbers in, seconds out. docs/cost-model.md says what it assumes, and how near it comes.

alpha: a message's latency and a call's fixed cost. beta: bytes that a rank's link carries in a second while all ranks send at once. gamma: seconds that a codec, and the sockets,
take for a coordinate or a byte while all ranks of the machine compute at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, final

from commpress.cluster._overlap import Exchange, exchange_seconds
from commpress.errors import SpecError, StateError

BLOCK: Final = 4096
"""Coordinates of a block: shards and chunks begin at multiples of it."""
MOST_CHUNKS: Final = 64
MESSAGE_NBYTES: Final = 128 + 48 + 48
"""Of each message beside its payload: the verdict, and gloo's notice and preamble."""
HEADER_NBYTES: Final = 512
TORCH: Final = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a coordinate in each of torch's own all-reduces."""


@final
@dataclasses.dataclass(frozen=True)
class CodecCost:
    """gamma of one codec, measured while all local ranks work at once.

    Attributes:
        spec: its canonical text.
        bits: payload bits per coordinate. bits2: of phase 2, where another codec serves it.
        encode, decode: seconds for a coordinate. reduce: seconds for a coordinate of the own shard, at `ranks` ranks: everybody's contribution decoded and summed, the result
            encoded and decoded.
        encode_call, decode_call, reduce_call: seconds of each call beside those: tables, searches for a step size.
        ranks: how many ranks `reduce` is for; each one more costs another `decode`.
        scales: (coordinates, measured over modelled time) of real exchanges of this codec, ascending; empty where none was tried.

    Raises:
        SpecError: a number is negative or not finite, or the sizes of `scales` do not ascend from above 0.
    """

    spec: str
    bits: float
    encode: float
    decode: float
    reduce: float
    ranks: int
    encode_call: float = 0.0
    decode_call: float = 0.0
    reduce_call: float = 0.0
    bits2: float | None = None
    scales: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("bits", "encode", "decode", "reduce", "encode_call", "decode_call", "reduce_call"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise SpecError(f"{name} of {self.spec} must be a number >= 0, got {value!r}")
        sizes = [0.0, *(size for size, _ in self.scales)]
        if any(a >= b for a, b in itertools.pairwise(sizes)) or not all(
            0 < factor < math.inf for _, factor in self.scales
        ):
            raise SpecError(f"scales of {self.spec} must be (coordinates, factor > 0), ascending, got {self.scales!r}")

    def scale_at(self, numel: float) -> float:
        """Measured over modelled time at a size: between the sizes that were tried a line over their logarithms, beyond them the nearest; 1 where none was tried."""
        if not self.scales:
            return 1.0
        points = [(math.log(size), factor) for size, factor in self.scales]
        at = min(max(math.log(max(numel, 1.0)), points[0][0]), points[-1][0])
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if at <= x1:
                return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
        return points[-1][1]

    def at(self, ranks: int) -> CodecCost:
        """The same codec at another number of ranks: each further contribution to the own shard is decoded, too."""
        more = ranks - self.ranks
        return dataclasses.replace(
            self,
            reduce=max(0.0, self.reduce + more * self.decode),
            reduce_call=max(0.0, self.reduce_call + more * self.decode_call),
            ranks=ranks,
        )

    def work(self, numel: float, ranks: int, shard: float | None = None) -> tuple[float, float, float]:
        """Seconds for encoding the others' shards, reducing the own one of `shard` coordinates (by default an equal part), and decoding the others', of `numel` coordinates."""
        peers, here = ranks - 1, self.at(ranks)
        return (
            peers * self.encode_call + self.encode * numel * peers / ranks,
            here.reduce_call + here.reduce * (numel / ranks if shard is None else shard),
            peers * self.decode_call + self.decode * numel * peers / ranks,
        )


@final
@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a probe found; equal on all ranks. Times in seconds, sizes in bytes.

    Attributes:
        ranks: of the group. local_ranks: most of them on one machine. cores: that those may use.
        latency: until a small message from every rank has reached every other one.
        call: fixed cost of a compressed all-reduce beside its messages: hand-overs between threads, buffers, Python.
        link: bytes per second and rank while all ranks send to all at once; the sockets' work is in it.
        socket: CPU seconds of a byte sent and received, as wall time on cores that all local ranks share.
        message_nbytes: payload of a message at that speed.
        torch: for each of `TORCH` that was tried, measured (bytes of the tensor, seconds), ascending.
        codecs: by spec.
        seconds: what the probe took.
    """

    ranks: int
    local_ranks: int
    cores: int
    latency: float
    call: float
    link: float
    socket: float
    message_nbytes: int
    torch: dict[str, tuple[tuple[float, float], ...]]
    codecs: dict[str, CodecCost]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.local_ranks < 1 or self.cores < 1 or self.message_nbytes < 1:
            raise SpecError("ranks, local_ranks, cores and message_nbytes of a calibration must be at least 1")
        for name in ("latency", "call", "socket"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{name} of a calibration must be a number >= 0, got {getattr(self, name)!r}")
        if not self.link > 0:
            raise SpecError(f"link of a calibration must be above 0, got {self.link!r}")

    @property
    def candidates(self) -> list[str]:
        """Everything that :meth:`predict` knows: of torch's own, and codecs."""
        return [*self.torch, *self.codecs]

    def predict(self, what: str, numel: int) -> float:
        """Seconds of one all-reduce of `numel` fp32 coordinates.

        Args:
            what: "fp32", "bf16" or "fp16", torch's own all-reduce (the conversion from fp32 and back is not in it); or the spec of a codec that was probed.

        Raises:
            StateError: it was not probed. SpecError: `numel` is negative.
        """
        if numel < 0:
            raise SpecError(f"a tensor has no {numel} coordinates")
        if what in self.torch:
            # Latency hides behind the wire in large tensors, so that small ones alone would promise too much.
            wire = 2 * (self.ranks - 1) / self.ranks / self.link
            return on_line(self.torch[what], float(numel * TORCH[what]), least_slope=wire)
        if what not in self.codecs:
            raise StateError(f"{what!r} was not probed: {', '.join(self.candidates) or 'nothing was'}")
        if self.ranks == 1:
            return 0.0
        cost = self.codecs[what]
        return self.call + cost.scale_at(numel) * exchange_seconds(self.exchange(cost, numel))

    def exchange(self, cost: CodecCost, numel: int) -> Exchange:
        """What the model works through for one codec and size."""
        n = self.ranks
        chunks = chunk_count(numel, n, cost.bits, self.message_nbytes)
        part, peers = numel / chunks, n - 1
        payload = part / n / 8
        encode, reduce, decode = cost.work(part, n)
        bits2 = cost.bits if cost.bits2 is None else cost.bits2
        return Exchange(
            chunks=chunks,
            header=self.latency,
            latency=self.latency,
            encode=encode,
            reduce=reduce,
            decode=decode,
            bytes1=peers * (payload * cost.bits + MESSAGE_NBYTES),
            bytes2=peers * (payload * bits2 + MESSAGE_NBYTES),
            link=self.link,
            socket=self.socket,
            shared=2 * self.local_ranks > self.cores,
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers, text, lists and dicts."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Calibration:
        """From what :meth:`to_dict` gave. Raises SpecError."""
        try:
            torch = {n: tuple((float(b), float(s)) for b, s in points) for n, points in saved["torch"].items()}
            codecs = {
                spec: CodecCost(**{**cost, "scales": tuple((float(size), float(by)) for size, by in cost["scales"])})
                for spec, cost in saved["codecs"].items()
            }
            return Calibration(**{**saved, "torch": torch, "codecs": codecs})
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise SpecError(f"this is no calibration: {problem}") from problem


def chunk_count(numel: int, ranks: int, bits: float, message_nbytes: int) -> int:
    """Into how many chunks a shard is cut: the rule of the collectives (`collectives/_layout.py`), for a mean of `bits` per coordinate."""
    blocks = -(-numel // BLOCK)
    shard_blocks = -(-blocks // ranks)
    return max(1, min(MOST_CHUNKS, shard_blocks, round(shard_blocks * BLOCK * bits / 8 / message_nbytes)))


def on_line(points: Sequence[tuple[float, float]], x: float, least_slope: float = 0.0) -> float:
    """Piecewise linear through `points`, ascending in x; beyond the ends the nearest piece goes on, above the last with at least `least_slope`; nothing falls below 0.

    Raises:
        SpecError: no points.
    """
    if not points:
        raise SpecError("no points")
    if len(points) == 1:
        return points[0][1]
    after = next((i for i, (at, _) in enumerate(points) if at >= x and i), len(points) - 1)
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    if x > x1:
        return y1 + max(slope, least_slope) * (x - x1)
    return max(0.0, y0 + slope * (x - x0))
