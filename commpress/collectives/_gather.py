"""What every rank says, to every rank, once: small facts that are needed before anything else can be exchanged."""

from __future__ import annotations

import json
from typing import Any

import torch

from commpress.collectives.communicator import ChannelError, Communicator
from commpress.errors import PeerError


def gather(comm: Communicator, value: Any, timeout: float, purpose: str) -> list[Any]:
    """Every rank's `value` (JSON), in rank order. Collective on `comm`, of which nothing else may be under way.

    Raises:
        PeerError: some rank did not answer within `timeout` seconds.
    """
    mine = json.dumps(value).encode()
    texts = {comm.rank: mine}
    peers = [r for r in range(comm.size) if r != comm.rank]
    sizes = {r: torch.zeros(8, dtype=torch.uint8) for r in peers}
    _exchange(comm, _tensor(len(mine).to_bytes(8, "little")), sizes, timeout, purpose)
    data = {r: torch.zeros(int.from_bytes(_bytes(size), "little"), dtype=torch.uint8) for r, size in sizes.items()}
    _exchange(comm, _tensor(mine), data, timeout, purpose)
    texts |= {r: _bytes(text) for r, text in data.items()}
    return [json.loads(texts[r]) for r in range(comm.size)]


def _exchange(
    comm: Communicator, mine: torch.Tensor, received: dict[int, torch.Tensor], timeout: float, purpose: str
) -> None:
    peer = comm.rank
    try:
        handles = {r: [comm.irecv(into, r)] for r, into in received.items()}
        for r in received:
            handles[r].append(comm.isend(mine, r))
        for r, pair in handles.items():
            peer = r
            for handle in pair:
                handle.wait(timeout)
    except ChannelError as error:
        raise PeerError(f"rank {comm.rank} lost rank {peer} during {purpose}: {error}") from error


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.numpy())
