"""Posting messages and waiting for them, with errors that say who, when and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from commpress.collectives._job import Job
from commpress.collectives._message import Message
from commpress.collectives.communicator import ChannelError, Communicator, Handle
from commpress.errors import PeerError


@final
class Line:
    """The channel of one phase.

    Args:
        comm: the channel. phase: 1 or 2, for messages. timeout: seconds that a wait may take. names: its ranks in the group.
    """

    def __init__(self, comm: Communicator, phase: int, timeout: float, names: Sequence[int]) -> None:
        self.comm = comm
        self._names = names
        self._phase = phase
        self._timeout = timeout

    def isend(self, job: Job, data: torch.Tensor, peer: int) -> Handle:
        """Starts sending. Raises PeerError."""
        try:
            return self.comm.isend(data, peer)
        except ChannelError as problem:
            raise self._failure(job, peer, problem) from None

    def irecv(self, job: Job, data: torch.Tensor, peer: int) -> Handle:
        """Posts a receive. Raises PeerError."""
        try:
            return self.comm.irecv(data, peer)
        except ChannelError as problem:
            raise self._failure(job, peer, problem) from None

    def receive(self, job: Job, messages: list[Message | None], peers: list[int]) -> list[Handle | None]:
        """Posts one receive for each message that there is."""
        return [
            None if message is None else self.irecv(job, message.data, peer)
            for message, peer in zip(messages, peers, strict=True)
        ]

    def wait(self, job: Job, peer: int, handle: Handle) -> None:
        """Waits for a message from or to `peer`. Raises PeerError."""
        try:
            handle.wait(self._timeout)
        except ChannelError as problem:
            raise self._failure(job, peer, problem) from None

    def _failure(self, job: Job, peer: int, problem: ChannelError) -> PeerError:
        name = self._names[peer]
        if problem.timed_out:
            text = f"rank {name} was silent for {self._timeout:g} s ({problem})"
        else:
            text = f"rank {name} is gone: {problem}; it died, or gave up after an error of its own (see its log)"
        return PeerError(f"{text}: {job.where(self._names[self.comm.rank], self._phase)}")
