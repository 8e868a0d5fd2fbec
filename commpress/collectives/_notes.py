"""Small notes that ranks pass each other with every bucket, on a channel of their own."""

from __future__ import annotations

from typing import final

import torch

from commpress.collectives.communicator import Communicator, Handle


@final
class Notes:
    """A note of `nbytes` bytes from every rank to every other, in the order of the calls, the same on all ranks.

    Args:
        comm: a channel that nothing else uses.
        nbytes: of each note.
        timeout: seconds that :meth:`Pending.collect` may wait for a peer.
    """

    def __init__(self, comm: Communicator, nbytes: int, timeout: float) -> None:
        self._comm = comm
        self.nbytes = nbytes
        self._timeout = timeout
        self._peers = [r for r in range(comm.size) if r != comm.rank]

    @property
    def bytes_each(self) -> int:
        """Bytes that a note costs the sender."""
        return self.nbytes * len(self._peers)

    @property
    def messages_each(self) -> int:
        """Messages that it takes."""
        return len(self._peers)

    def post(self, note: bytes) -> Pending:
        """Sends the note; does not wait. Raises ChannelError."""
        mine = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        received = {r: torch.zeros(self.nbytes, dtype=torch.uint8) for r in self._peers}
        handles = [self._comm.irecv(into, r) for r, into in received.items()]
        handles += [self._comm.isend(mine, r) for r in self._peers]
        return Pending({**received, self._comm.rank: mine}, handles, self._timeout)


@final
class Pending:
    """A note on its way, and those of the others."""

    def __init__(self, notes: dict[int, torch.Tensor], handles: list[Handle], timeout: float) -> None:
        self._notes = notes
        self._handles = handles
        self._timeout = timeout

    def collect(self) -> list[bytes]:
        """Every rank's note, in rank order. Raises ChannelError."""
        for handle in self._handles:
            handle.wait(self._timeout)
        return [bytes(self._notes[r].numpy()) for r in sorted(self._notes)]
