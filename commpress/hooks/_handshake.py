"""What all ranks must agree on before the first exchange."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from commpress.collectives import ChannelError, Communicator
from commpress.errors import MismatchError, PeerError


def library_version() -> str:
    """``commpress.__version__`` as it is now. (The package's top imports this room, not the other way round.)"""
    return str(sys.modules["commpress"].__version__)


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


def compare(records: Sequence[dict[str, Any]]) -> None:
    """Checks that the ranks' records are equal. ``"parameters"`` is a list, of which the first difference is named.

    Raises:
        MismatchError: the same on every rank; the message names each field that differs, the values and their ranks.
    """
    differences = []
    names = dict.fromkeys(name for record in records for name in record if name != "parameters")
    for name in names:
        found = by_value([record.get(name) for record in records])
        if len(found) > 1:
            differences.append(f"{name} ({found_text(found)})")
    lists = [record["parameters"] for record in records]
    for i in range(max(map(len, lists))):
        found = by_value([entry[i] if i < len(entry) else "none" for entry in lists])
        if len(found) > 1:
            differences.append(f"parameter {i}, the first that differs ({found_text(found)})")
            break
    if differences:
        raise MismatchError("ranks disagree on " + ", and on ".join(differences))


def by_value(values: Sequence[Any]) -> dict[str, list[int]]:
    """Which ranks have which value, as text."""
    found: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        text = (
            value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, list) else repr(value)
        )
        found.setdefault(text, []).append(rank)
    return found


def found_text(found: dict[str, list[int]]) -> str:
    """``rank 0: x; ranks 1, 2: y``"""
    return "; ".join(f"rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}: {value}" for value, r in found.items())
