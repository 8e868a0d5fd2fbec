"""How the ranks agree on the scales of a linear codec, ahead of its codes: each shard's owner gets every rank's scales for it, and tells everybody what serves all.

Both messages are on the channel of phase 1, after the header and ahead of the codes, with a verdict prefix like all others; their bytes count as payload of phase 1.
"""

from __future__ import annotations

from typing import Any, final

import torch

from commpress.collectives._job import Job
from commpress.collectives._line import Line
from commpress.collectives._message import VERDICT_NBYTES, Message
from commpress.collectives.communicator import Handle

Post = tuple[int, Message, Handle]


@final
class Agreement:
    """Buffers of one agreement, and the exchange.

    Args:
        codec: a LinearCodec. bounds: where the shards begin, and the end of the last. targets, sources: of the layout.

    Attributes:
        start, stop: of the tensor, what is reduced. own: this rank's scales of that, to be filled before the exchange. agreed: filled by it.
    """

    def __init__(self, codec: Any, bounds: list[int], rank: int, targets: list[int], sources: list[int]) -> None:
        self._codec = codec
        self._rank = rank
        self.start, self.stop = bounds[0], bounds[-1]
        self._base = codec.scales_nbytes(self.start)
        places = [codec.scales_nbytes(edge) - self._base for edge in bounds]
        self.own = torch.zeros(places[-1], dtype=torch.uint8)
        self.agreed = torch.zeros(places[-1], dtype=torch.uint8)
        self._of = [slice(first, last) for first, last in zip(places[:-1], places[1:], strict=True)]
        self._out = [(peer, self._room(peer)) for peer in targets]
        self._in = [(peer, self._room(rank)) for peer in sources]
        self._result = self._room(rank)
        self._results = [(peer, self._room(peer)) for peer in sources]

    def _room(self, shard: int) -> Message | None:
        nbytes = self._of[shard].stop - self._of[shard].start
        return Message(torch.empty(VERDICT_NBYTES + nbytes, dtype=torch.uint8), []) if nbytes else None

    def scales(self, start: int, stop: int) -> torch.Tensor:
        """The agreed scales of coordinates [start, stop); start is a multiple of 4096."""
        return self.agreed[self._codec.scales_nbytes(start) - self._base : self._codec.scales_nbytes(stop) - self._base]

    def exchange(self, job: Job, line: Line) -> None:
        """Sends, waits and fills `agreed`. What fails here is noted in the job. Raises PeerError."""
        received = self._post(job, line, self._in)
        results = self._post(job, line, self._results)
        for peer, message in self._out:
            if message is not None:
                message.payload.copy_(self.own[self._of[peer]])
                job.write_verdict(message, job.name)
                self._send(job, line, peer, message)
        self._wait(job, line, received)
        mine = self._of[self._rank]
        if not job.failed:
            try:
                self._codec.agree([self.own[mine], *(message.payload for _, message, _ in received)], self.agreed[mine])
            except Exception as problem:
                job.note(problem)
        if self._result is not None:
            self._result.payload.copy_(self.agreed[mine])
            job.write_verdict(self._result, job.name)
            for peer, _ in self._out:
                self._send(job, line, peer, self._result)
        self._wait(job, line, results)
        for owner, message, _ in results:
            self.agreed[self._of[owner]].copy_(message.payload)
        if not job.failed:
            try:
                job.nonfinite = not self._codec.finite(self.agreed)
            except Exception as problem:
                job.note(problem)

    def _post(self, job: Job, line: Line, messages: list[tuple[int, Message | None]]) -> list[Post]:
        return [(peer, m, line.irecv(job, m.data, peer)) for peer, m in messages if m is not None]

    def _send(self, job: Job, line: Line, peer: int, message: Message) -> None:
        job.sent1.append((peer, line.isend(job, message.data, peer)))
        job.report.bytes_payload1 += message.nbytes_payload
        job.report.bytes_header += VERDICT_NBYTES
        job.report.messages += 1

    def _wait(self, job: Job, line: Line, posts: list[Post]) -> None:
        for peer, message, handle in posts:
            line.wait(job, peer, handle)
            job.read_verdict(message)
