"""The legs of a two-level all-reduce that stay inside a node: an exact reduce-scatter before phase 1, an exact all-gather after phase 2.

Local rank l has the l-th part of the tensor: all contributions of its node are added up there, chunk by chunk as phase 1 needs them, and from there the result goes back.
Where the ranks of a node see each other's memory, each writes what it gives into a segment of its own, sends one byte that says so, and the others read it there, until they
acknowledge that they have. Else values travel through the channel, to and from the tensor itself. A verdict goes ahead of the first leg (what `prepare` did) and behind the last one (everything else).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, final

import torch

from commpress.collectives._greeting import Greeting
from commpress.collectives._header import HEADER_NBYTES
from commpress.collectives._job import Job
from commpress.collectives._layout import Pool, split
from commpress.collectives._line import Line
from commpress.collectives._message import VERDICT_NBYTES, Message
from commpress.collectives._shared import Mappings, Segment
from commpress.collectives.communicator import Handle
from commpress.errors import PeerError

Range = tuple[int, int]
_NAME_NBYTES = 64


@final
class Legs:
    """Ranges and buffers of one submission.

    Attributes:
        parts[l][c]: ranges of the tensor that chunk c of local rank l's part consists of: one of each node's shard. own: limits of this rank's part.
        room: where values wait, while the submission is under way.
    """

    def __init__(
        self, numel: int, dtype: torch.dtype, codec: Any, local: int, size: int, nodes: int, chunks: int
    ) -> None:
        bounds = part_bounds(numel, size, codec)
        self.parts = [_ranges(codec, bounds[part], bounds[part + 1], nodes, chunks) for part in range(size)]
        self.chunks = chunks
        self.own = bounds[local], bounds[local + 1]
        self.room: Room | None = None
        self.verdicts = [
            [Message(torch.zeros(VERDICT_NBYTES, dtype=torch.uint8), []) for _ in range(size)] for _ in range(2)
        ]
        self.names = torch.zeros(size, _NAME_NBYTES, dtype=torch.uint8)
        self.token = torch.zeros(1, dtype=torch.uint8)
        self.tokens = torch.zeros(2, size, max(chunks, 1), dtype=torch.uint8)
        self.theirs: dict[int, torch.Tensor] = {}  # the peers' segments
        self.told: list[Handle] = []
        self.received: list[
            list[Handle]
        ] = []  # of the first leg, by chunk: of each peer in turn, all ranges, or a token
        self.results: list[tuple[int, int, Handle]] = []  # of the last leg: peer, chunk
        self.sent1: list[tuple[int, Handle]] = []
        self.sent2: list[tuple[int, Handle]] = []


@final
class Room:
    """Attributes: rows: what the others of the node contribute, a row for each, or nothing if they see this rank's memory. segment: what they read there, and its name in bytes.
    acknowledged: that they have read all of it.
    """

    def __init__(self, numel: int, rows: int, own: int, dtype: torch.dtype, shared: bool) -> None:
        self.rows = torch.empty(rows, own, dtype=dtype)
        self.segment = Segment(numel, dtype) if shared else None
        self.acknowledged: list[tuple[int, Handle]] = []
        self.acknowledgements = torch.zeros(rows, 1, dtype=torch.uint8)
        name = b"" if self.segment is None else self.segment.name.encode()
        self.name = torch.frombuffer(bytearray(name.ljust(_NAME_NBYTES, b"\0")), dtype=torch.uint8)


def part_bounds(numel: int, parts: int, codec: Any) -> list[int]:
    """Where the parts of a tensor begin, and its end."""
    return split(codec, 0, numel, parts)


def _ranges(codec: Any, start: int, stop: int, nodes: int, chunks: int) -> list[list[Range]]:
    """For each chunk the ranges of all nodes' shards, neighbours joined."""
    bounds = split(codec, start, stop, nodes)
    cuts = [split(codec, low, high, chunks) for low, high in itertools.pairwise(bounds)]
    found = []
    for c in range(chunks):
        joined: list[Range] = []
        for cut in cuts:
            low, high = cut[c], cut[c + 1]
            if low < high and joined and joined[-1][1] == low:
                joined[-1] = joined[-1][0], high
            elif low < high:
                joined.append((low, high))
        found.append(joined)
    return found


@final
class InNode:
    """What one rank of a node does with the others.

    Args:
        line1, line2: channels between the ranks of the node, for the two legs.
        names: their ranks in the group. world: ranks of the group. nodes: number of nodes. shared: whether they see each other's memory.
    """

    def __init__(self, line1: Line, line2: Line, names: Sequence[int], world: int, nodes: int, shared: bool) -> None:
        self.rank, self.size = line1.comm.rank, line1.comm.size
        self.name = names[self.rank]
        self.greeting = Greeting(line1, names, world)
        self._line1, self._line2 = line1, line2
        self._nodes, self._shared = nodes, shared
        self._mappings = Mappings()
        self._peers = [(self.rank + d) % self.size for d in range(1, self.size)]  # the order of summation
        self._pool: Pool[Legs] = Pool()
        self._rooms: Pool[Room] = Pool()  # apart from the legs, which change with every codec

    def greet(self, job: Job, link: int) -> None:
        """Compares headers; `greeting.link` is the slowest of the links then. Raises AgreedError, PeerError or WireError."""
        self.greeting.send(job, link)
        self.greeting.match(job)
        nbytes, count = HEADER_NBYTES * len(self._peers), len(self._peers)
        report = job.report  # the greeting has counted them as sent between nodes
        report.bytes_header -= nbytes
        report.bytes_received -= nbytes
        report.messages -= count
        report.messages_received -= count
        self._count(job, nbytes, count)
        report.bytes_node_received += nbytes
        report.messages_node_received += count

    def part(self, numel: int, codec: Any) -> Range:
        """Limits of this rank's part of a tensor."""
        bounds = part_bounds(numel, self.size, codec)
        return bounds[self.rank], bounds[self.rank + 1]

    def _key(self, job: Job, chunks: int) -> tuple[Any, ...]:
        return job.flat.numel(), job.flat.dtype, job.codec1, self.rank, self.size, self._nodes, chunks

    def open(self, job: Job, chunks: int) -> None:
        """Starts the first leg, with everything that this rank contributes. Raises PeerError."""
        key, start = self._key(job, chunks), time.perf_counter()
        legs = job.legs = self._pool.take(key, lambda: Legs(*key))
        line, place = self._line1, self._room_key(job, legs)
        room = legs.room = self._rooms.take(place, lambda: Room(*place))
        self._wait_all(job, self._line2, room.acknowledged)
        legs.told = [line.irecv(job, legs.verdicts[0][peer].data, peer) for peer in self._peers]
        if room.segment is None:
            legs.received = [
                [
                    line.irecv(job, _bytes(room.rows[row, low - legs.own[0] : high - legs.own[0]]), peer)
                    for row, peer in enumerate(self._peers)
                    for low, high in ranges
                ]
                for ranges in legs.parts[self.rank]
            ]
        else:
            legs.told += [line.irecv(job, legs.names[peer], peer) for peer in self._peers]
            legs.received = [
                [line.irecv(job, legs.tokens[0, peer, c : c + 1], peer) for peer in self._peers] for c in range(chunks)
            ]
        self._tell(job, legs, 0, line, legs.sent1)
        if room.segment is not None:
            for peer in self._peers:
                self._post(job, line, peer, room.name, legs.sent1)
        for c in range(chunks):
            for peer in reversed(self._peers):  # so that what a rank adds first is sent first
                self._give(job, legs, line, peer, legs.parts[peer][c], legs.sent1)
        job.report.seconds_node += time.perf_counter() - start

    def arrive(self, job: Job, c: int) -> None:
        """Adds what the others of the node contribute to chunk c of the own part. Raises PeerError."""
        legs, start = job.legs, time.perf_counter()
        assert legs is not None and legs.room is not None
        room = legs.room
        if c == 0:
            for peer, handle in zip(itertools.cycle(self._peers), legs.told, strict=False):
                self._line1.wait(job, peer, handle)
            for peer in self._peers:
                self._hear(job, legs.verdicts[0][peer])
                if room.segment is not None:
                    name = bytes(legs.names[peer].numpy()).rstrip(b"\0").decode()
                    self._heard(job, _NAME_NBYTES)
                    try:
                        legs.theirs[peer] = self._mappings.get(name, job.flat.numel(), job.flat.dtype)
                    except PeerError as problem:  # it has given up meanwhile, and there is a better reason to come
                        job.note(problem)
                        legs.theirs.pop(peer, None)
            legs.told = []
        handles = iter(legs.received[c])
        for row, peer in enumerate(self._peers):
            if room.segment is not None:
                self._line1.wait(job, peer, next(handles))
            for low, high in legs.parts[self.rank][c]:
                if room.segment is None:
                    self._line1.wait(job, peer, next(handles))
                    values = room.rows[row, low - legs.own[0] : high - legs.own[0]]
                elif peer in legs.theirs:
                    values = legs.theirs[peer][low:high]
                else:
                    continue
                job.flat[low:high].add_(values)
            self._took(job, legs, legs.parts[self.rank][c])
        legs.received[c] = []
        job.report.seconds_node += time.perf_counter() - start

    def leave(self, job: Job, c: int) -> None:
        """Starts to give chunk c of the own part, which is final, to the others of the node. Raises PeerError."""
        legs, start, line = job.legs, time.perf_counter(), self._line2
        assert legs is not None and legs.room is not None
        room = legs.room
        if c == 0:
            if room.segment is None:  # what is received lands where the first leg sent from
                self._wait_all(job, self._line1, legs.sent1)
            for part in range(legs.chunks):
                for peer in self._peers:
                    if room.segment is None:
                        for low, high in legs.parts[peer][part]:
                            legs.results.append((peer, part, line.irecv(job, _bytes(job.flat[low:high]), peer)))
                    else:
                        token = legs.tokens[1, peer, part : part + 1]
                        legs.results.append((peer, part, line.irecv(job, token, peer)))
                    self._took(job, legs, legs.parts[peer][part])
            legs.told = [line.irecv(job, legs.verdicts[1][peer].data, peer) for peer in self._peers]
        if room.segment is not None:
            self._write(job, room.segment, legs.parts[self.rank][c])
        for peer in self._peers:
            self._give(job, legs, line, peer, legs.parts[self.rank][c], legs.sent2, written=True)
        job.report.seconds_node += time.perf_counter() - start

    def abandon(self, job: Job) -> None:
        """Lets the first leg end, which all ranks of the node have begun: nobody's messages meet a closed buffer, or memory that is gone. Raises PeerError."""
        legs = job.legs
        assert legs is not None and legs.room is not None
        for handles in ([*legs.told], *legs.received):
            for handle in handles:
                self._line1.wait(job, self.rank, handle)
        self._wait_all(job, self._line1, legs.sent1)
        self._rooms.give(self._room_key(job, legs), legs.room)  # stays as long as the reducer, which is of no more use

    def finish(self, job: Job) -> None:
        """Ends the last leg: all of the result is there, and every failure of the node known. Raises PeerError."""
        legs, start, line = job.legs, time.perf_counter(), self._line2
        assert legs is not None and legs.room is not None
        room = legs.room
        self._tell(job, legs, 1, line, legs.sent2)
        for peer, c, handle in legs.results:
            line.wait(job, peer, handle)
            if room.segment is not None and peer in legs.theirs:
                for low, high in legs.parts[peer][c]:
                    job.flat[low:high].copy_(legs.theirs[peer][low:high])
        legs.results.clear()
        for peer, handle in zip(self._peers, legs.told, strict=True):
            line.wait(job, peer, handle)
            self._hear(job, legs.verdicts[1][peer])
        if room.segment is not None:
            room.acknowledged = [
                (peer, line.irecv(job, room.acknowledgements[row], peer)) for row, peer in enumerate(self._peers)
            ]
            for peer in self._peers:
                self._post(job, line, peer, legs.token, legs.sent2)
                self._heard(job, 1)
        self._wait_all(job, self._line1, legs.sent1)
        self._wait_all(job, line, legs.sent2)
        job.legs, legs.room = None, None
        self._rooms.give(self._room_key(job, legs), room)
        self._pool.give(self._key(job, legs.chunks), legs)
        job.report.seconds_node += time.perf_counter() - start

    def _room_key(self, job: Job, legs: Legs) -> tuple[int, int, int, torch.dtype, bool]:
        own = 0 if self._shared else legs.own[1] - legs.own[0]
        return job.flat.numel(), self.size - 1, own, job.flat.dtype, self._shared

    @staticmethod
    def _write(job: Job, segment: Segment, ranges: list[Range]) -> None:
        """Copies ranges of the tensor to where the others read them."""
        for low, high in ranges:
            segment.values[low:high].copy_(job.flat[low:high])

    def _give(
        self,
        job: Job,
        legs: Legs,
        line: Line,
        peer: int,
        ranges: list[Range],
        sent: list[tuple[int, Handle]],
        *,
        written: bool = False,
    ) -> None:
        """Sends ranges of the tensor to a peer, or writes them down and says so."""
        assert legs.room is not None
        if legs.room.segment is None:
            for low, high in ranges:
                self._post(job, line, peer, _bytes(job.flat[low:high]), sent)
            return
        if not written:
            self._write(job, legs.room.segment, ranges)
        job.report.bytes_node += _nbytes(job, ranges)
        self._post(job, line, peer, legs.token, sent)

    def _took(self, job: Job, legs: Legs, ranges: list[Range]) -> None:
        job.report.bytes_node_received += _nbytes(job, ranges) + self._shared
        job.report.messages_node_received += 1 if self._shared else len(ranges)

    def _post(self, job: Job, line: Line, peer: int, data: torch.Tensor, sent: list[tuple[int, Handle]]) -> None:
        sent.append((peer, line.isend(job, data, peer)))
        self._count(job, data.numel(), 1)

    def _tell(self, job: Job, legs: Legs, which: int, line: Line, sent: list[tuple[int, Handle]]) -> None:
        message = legs.verdicts[which][self.rank]
        job.write_verdict(message, self.name)
        for peer in self._peers:
            self._post(job, line, peer, message.data, sent)

    def _hear(self, job: Job, message: Message) -> None:
        job.hear(message)
        self._heard(job, VERDICT_NBYTES)

    @staticmethod
    def _heard(job: Job, nbytes: int) -> None:
        job.report.bytes_node_received += nbytes
        job.report.messages_node_received += 1

    def _count(self, job: Job, nbytes: int, messages: int) -> None:
        job.report.bytes_node += nbytes
        job.report.messages_node += messages

    @staticmethod
    def _wait_all(job: Job, line: Line, posted: list[tuple[int, Handle]]) -> None:
        for peer, handle in posted:
            line.wait(job, peer, handle)
        posted.clear()


def _nbytes(job: Job, ranges: list[Range]) -> int:
    return sum(high - low for low, high in ranges) * job.flat.element_size()


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.uint8)
