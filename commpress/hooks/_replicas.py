"""Whether the ranks still hold the same parameters."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

from commpress.collectives import Communicator
from commpress.errors import MismatchError
from commpress.feedback import Layout
from commpress.hooks import _handshake


def replica_hash(layout: Layout, parameters: Mapping[str, torch.Tensor]) -> bytes:
    """8 bytes that differ, but for a chance of about 2^-32, when any parameter of the bucket does."""
    value = 1
    for name in layout.parameters:
        value = value * 1_000_003 + _crc(parameters[name])
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


def name_difference(
    comm: Communicator,
    timeout: float,
    layout: Layout,
    index: int,
    step: int,
    parameters: Mapping[str, torch.Tensor],
) -> None:
    """Finds the first parameter of a bucket that differs. Collective on `comm`.

    Raises:
        MismatchError: always; it names the parameter, and which ranks hold what.
    """
    mine = [_crc(parameters[name]) for name in layout.parameters]
    everyones = _handshake.gather(comm, mine, timeout, "the comparison of replicas")
    for i, name in enumerate(layout.parameters):
        found = _handshake.by_value([f"{hashes[i]:08x}" for hashes in everyones])
        if len(found) > 1:
            raise MismatchError(
                f"replicas have diverged: at step {step} parameter {name!r} of bucket {index} is the first "
                f"that differs (checksums: {_handshake.found_text(found)})"
            )
    raise MismatchError(f"replicas have diverged: at step {step} bucket {index} differed")


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
