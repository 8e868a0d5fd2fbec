"""Headers: sent ahead of the payloads, compared on every rank; and the one that says that no payload will follow."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import final

import torch

from commpress._version import __version__
from commpress.collectives import _header
from commpress.collectives._job import Job
from commpress.collectives._line import Line
from commpress.collectives.communicator import ChannelError, Handle
from commpress.errors import CommpressError, MismatchError, PeerError

_MISMATCH = "MismatchError: "


@final
class AgreedError(Exception):
    """Carries a failure that every rank finds at the same point by itself, so that nobody has to be told."""

    def __init__(self, problem: CommpressError) -> None:
        super().__init__(str(problem))
        self.problem = problem


@final
class Greeting:
    """Buffers and peers of the header exchange of one reducer.

    Args:
        line: the channel. names: its ranks in the group. world: ranks of the group.

    Attributes:
        link: speed of the slowest rank's link in KiB/s as the last headers had it; 0: unknown.
    """

    def __init__(self, line: Line, names: Sequence[int], world: int) -> None:
        self._line = line
        self._names, self._world = names, world
        self._name = names[line.comm.rank]
        self._rank, self._size = line.comm.rank, line.comm.size
        self._peers = [(self._rank + d) % self._size for d in range(1, self._size)]
        self._in = torch.zeros(self._size, _header.HEADER_NBYTES, dtype=torch.uint8)
        self._out = torch.zeros(_header.HEADER_NBYTES, dtype=torch.uint8)
        self._views = [memoryview(one.numpy()) for one in self._in]
        self._view = memoryview(self._out.numpy())
        self._texts: tuple[object, ...] | None = None  # in the header that `_out` holds
        self._handles: list[tuple[int, Handle, Handle]] = []
        self._farewells: list[Handle] | None = None
        self._sent_link = 0
        self.link = 0

    def send(self, job: Job, link: int) -> None:
        """Sends this rank's header and posts receives for the others'; `link` is what this rank measured, in KiB/s."""
        key, report, line = job.key, job.report, self._line
        texts = (job.op, job.flat.dtype, report.codec1, report.codec2, job.plan)
        if texts == self._texts:
            _header.renumber(self._view, job.sequence, job.flat.numel(), key.seed, key.step, key.tensor, link)
        else:
            header = _header.Header(
                rank=self._name,
                world_size=self._world,
                op=job.op,
                dtype=job.flat.dtype,
                sequence=job.sequence,
                numel=job.flat.numel(),
                seed=key.seed,
                step=key.step,
                tensor=key.tensor,
                version=__version__,
                codec1=report.codec1,
                codec2=report.codec2,
                plan=job.plan,
                digest=_header.digest(report.codec1, report.codec2, job.plan),
                link=link,
            )
            _header.write(header, self._out)
            self._texts = texts
        receives = [line.irecv(job, self._in[peer], peer) for peer in self._peers]
        sends = [line.isend(job, self._out, peer) for peer in self._peers]
        self._handles = list(zip(self._peers, receives, sends, strict=True))
        self._sent_link = link
        number = len(self._peers)
        report.bytes_header += _header.HEADER_NBYTES * number
        report.bytes_received += _header.HEADER_NBYTES * number
        report.messages += number
        report.messages_received += number

    def match(self, job: Job) -> None:
        """Waits for all headers and compares them. Raises AgreedError, PeerError or WireError."""
        for peer, receive, _ in self._handles:
            self._line.wait(job, peer, receive)
        links = [_header.link_if_same(self._views[peer], self._view, self._names[peer]) for peer in self._peers]
        if min(links, default=0) < 0:
            self._explain(job)
        for peer, _, send in self._handles:
            self._line.wait(job, peer, send)
        self.link = min([*links, self._sent_link])

    def _explain(self, job: Job) -> None:
        """Raises what is wrong with the headers."""
        self._in[self._rank].copy_(self._out)
        try:
            headers = [_header.read(self._in[r], self._names[r]) for r in range(self._size)]
            for header in headers:
                if header.failed:
                    if header.reason.startswith(_MISMATCH):  # found by the ranks of another node
                        found = header.reason.removeprefix(_MISMATCH)
                        raise MismatchError(f"{found} (as rank {header.rank} says)")
                    raise AgreedError(
                        PeerError(f"rank {header.rank} failed before: {header.reason}: {job.where(self._name)}")
                    )
            _header.compare(headers)
        except MismatchError as found:
            raise AgreedError(MismatchError(f"{found}: {job.where(self._name)}")) from None
        raise AgreedError(MismatchError(f"the headers differ in reserved bytes: {job.where(self._name)}"))

    def farewell(self, reason: str) -> None:
        """Tells peers that may start another exchange why this rank will not. Only the first call does anything."""
        if self._farewells is not None:
            return
        self._farewells = []
        header = _header.Header(
            self._name,
            self._world,
            "sum",
            torch.float32,
            0,
            0,
            0,
            0,
            0,
            __version__,
            "",
            "",
            "",
            b"",
            failed=True,
            reason=reason,
        )
        _header.write(header, self._out)
        self._texts = None
        for peer in self._peers:
            with contextlib.suppress(ChannelError):
                self._farewells.append(self._line.comm.isend(self._out, peer))
