"""How all ranks come to begin with the same numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch

from commpress.collectives import ChannelError, Communicator
from commpress.errors import MismatchError, PeerError
from commpress.hooks import _handshake

_MESSAGE_NBYTES = 16 << 20


def compare_tensors(comm: Communicator, tensors: Mapping[str, torch.Tensor], timeout: float, when: str) -> None:
    """Checks that the ranks hold the same bits. Collective on `comm`.

    Raises:
        MismatchError: on every rank; it names the first tensor that differs, and which ranks hold what.
        PeerError: a rank did not answer.
    """
    mine = [f"{zlib.crc32(memoryview(_bytes(tensor).numpy())):08x}" for tensor in tensors.values()]
    everyones = _handshake.gather(comm, mine, timeout, f"the comparison {when}")
    for i, name in enumerate(tensors):
        found = _handshake.by_value([sums[i] for sums in everyones])
        if len(found) > 1:
            raise MismatchError(
                f"the ranks' models differ {when}: {name!r} is the first that does (checksums: {_handshake.found_text(found)})"
            )


def broadcast_tensors(comm: Communicator, tensors: Mapping[str, torch.Tensor], timeout: float) -> None:
    """Gives all ranks those of rank 0, bit for bit. Collective on `comm`.

    Raises:
        PeerError: a rank did not take part.
    """
    copies = {name: _bytes(tensor) for name, tensor in tensors.items()}
    peers = range(1, comm.size)
    try:
        for group in _groups(list(copies.values())):
            message = torch.cat(group)
            if comm.rank == 0:
                for handle in [comm.isend(message, peer) for peer in peers]:
                    handle.wait(timeout)
                continue
            comm.irecv(message, 0).wait(timeout)
            for piece, received in zip(group, message.split([len(piece) for piece in group]), strict=True):
                piece.copy_(received)
    except ChannelError as error:
        raise PeerError(f"rank {comm.rank} lost a rank while rank 0's model was sent to all: {error}") from error
    if comm.rank:
        for name, tensor in tensors.items():
            real = _real(tensor)
            if not real.is_contiguous():
                real.copy_(copies[name].view(real.dtype).view(real.shape))


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A view of all bytes in row-major order, or a copy where the tensor lies otherwise."""
    return _real(tensor).contiguous().view(-1).view(torch.uint8)


def _groups(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """All of them in order, cut and gathered into messages."""
    group: list[torch.Tensor] = []
    room = _MESSAGE_NBYTES
    for tensor in tensors:
        rest = tensor
        while len(rest):
            group.append(rest[:room])
            room -= len(group[-1])
            rest = rest[len(group[-1]) :]
            if room == 0:
                yield group
                group, room = [], _MESSAGE_NBYTES
    if group:
        yield group
