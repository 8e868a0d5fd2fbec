"""Whom a rank exchanges what with: all others in compressed form; or, on nodes, the others of its node exactly, and one rank of every other node in compressed form."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.collectives._greeting import AgreedError, Greeting
from commpress.collectives._in_node import InNode
from commpress.collectives._job import Job
from commpress.collectives._layout import BLOCK, chunk_count
from commpress.collectives._line import Line
from commpress.collectives._link import chunk_nbytes
from commpress.collectives._subset import Subset
from commpress.collectives.communicator import Communicator

if TYPE_CHECKING:
    from commpress.collectives.nodes import NodeMap


@final
class Levels:
    """Both levels share two channels: a pair of ranks is on one node or on two.

    Attributes:
        name, world: this rank and the number of ranks in the group. rank, size: the same among those that exchange compressed values.
        line1, line2, greeting: between these. node: the level inside the node, or None.
    """

    def __init__(self, comm1: Communicator, comm2: Communicator, timeout: float, nodes: NodeMap | None) -> None:
        self.name, self.world = comm1.rank, comm1.size
        names: Sequence[int] = range(self.world)
        self.node: InNode | None = None
        if nodes is not None:
            node, local = nodes.place(self.name)
            names, near = nodes.across(local), nodes.nodes[node]
            lines = [Line(Subset(comm, near), phase, timeout, near) for phase, comm in ((1, comm1), (2, comm2))]
            self.node = InNode(lines[0], lines[1], near, self.world, len(nodes.nodes), nodes.shared)
            comm1, comm2 = Subset(comm1, names), Subset(comm2, names)
        self.rank, self.size = comm1.rank, comm1.size
        self.line1 = Line(comm1, 1, timeout, names)
        self.line2 = Line(comm2, 2, timeout, names)
        self.greeting = Greeting(self.line1, names, self.world)

    def part(self, numel: int, codec: Any) -> tuple[int, int]:
        """Limits of what this rank exchanges in compressed form."""
        return (0, numel) if self.node is None else self.node.part(numel, codec)

    def chunks(self, job: Job, nbytes: int | None) -> int:
        """Into how many chunks shards are cut, for messages of `nbytes`, or as suits the link; from what all ranks know alike."""
        numel = job.flat.numel()
        if numel == 0 or self.size == 1:
            return 1
        block = _block_nbytes(job.codec1, job.codec2, numel, job.flat.dtype)
        link = (self.greeting if self.node is None else self.node.greeting).link
        return chunk_count(numel, self.world, block, nbytes or chunk_nbytes(link))

    def begin(self, job: Job) -> None:
        """What a job must know of its place. On nodes compares headers inside the node, before those between nodes: where the ranks of a node disagree, all others have to hear of
        it. Raises AgreedError, PeerError or WireError."""
        report = job.report
        report.world_size, job.name, job.senders = self.world, self.name, self.size
        if job.row is None:  # a reduce-scatter has its own
            job.gain = 1.0 / self.world if job.op == "mean" else 1.0
        if self.node is None or self.world == 1:
            return
        before = time.perf_counter()
        try:
            self.node.greet(job, self.greeting.link)
        except AgreedError as agreed:
            self.greeting.farewell(f"{type(agreed.problem).__name__}: {agreed}")
            raise
        report.nodes = self.size
        report.seconds_header += time.perf_counter() - before
        job.part = self.node.part(job.flat.numel(), job.codec1)

    def match(self, job: Job) -> None:
        """Compares headers. Raises AgreedError, PeerError or WireError."""
        try:
            self.greeting.match(job)
        except AgreedError:
            if self.node is not None:
                self.node.abandon(job)
            raise

    def arrive(self, job: Job, c: int) -> None:
        """Before chunk c is looked at. Raises PeerError."""
        if self.node is not None:
            self.node.arrive(job, c)

    def leave(self, job: Job, c: int) -> None:
        """Chunk c is final. Raises PeerError."""
        if self.node is not None:
            self.node.leave(job, c)

    def finish(self, job: Job) -> None:
        """All chunks are. Raises PeerError."""
        if self.node is not None:
            self.node.finish(job)

    def farewell(self, reason: str) -> None:
        """Tells all peers that may start another exchange why this rank will not."""
        self.greeting.farewell(reason)
        if self.node is not None:
            self.node.greeting.farewell(reason)

    def abort(self) -> None:
        """Breaks both channels."""
        self.line1.comm.abort()
        self.line2.comm.abort()

    def close(self) -> None:
        """Gives both channels back."""
        self.line1.comm.close()
        self.line2.comm.close()


@functools.lru_cache(maxsize=256)
def _block_nbytes(codec1: Any, codec2: Any, numel: int, dtype: torch.dtype) -> int:
    """Mean payload of 4096 coordinates, under the larger of the two codecs."""
    codecs = [codec for codec in (codec1, codec2) if codec is not None]
    return max(codec.payload_nbytes(numel, dtype=dtype) for codec in codecs) * BLOCK // numel or 1
