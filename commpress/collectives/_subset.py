"""Some of a channel's ranks, as a channel of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from commpress.collectives.communicator import Communicator, Handle
from commpress.errors import StateError


@final
class Subset(Communicator):
    """Numbers the given ranks of a channel from 0.

    Several subsets may share a channel if no two ranks are together in more than one of them: order is kept between each two ranks, and nothing else is promised.

    Args:
        comm: the channel; this rank is one of `ranks`. Aborting or closing a subset aborts or closes all of it.
        ranks: ranks of `comm`, each once.
    """

    def __init__(self, comm: Communicator, ranks: Sequence[int]) -> None:
        if comm.rank not in ranks:
            raise StateError(f"rank {comm.rank} is none of ranks {list(ranks)}")
        self._comm = comm
        self._ranks = list(ranks)
        self.rank = self._ranks.index(comm.rank)
        self.size = len(self._ranks)

    def isend(self, tensor: torch.Tensor, dst: int) -> Handle:
        return self._comm.isend(tensor, self._ranks[dst])

    def irecv(self, tensor: torch.Tensor, src: int) -> Handle:
        return self._comm.irecv(tensor, self._ranks[src])

    def abort(self) -> None:
        self._comm.abort()

    def close(self) -> None:
        self._comm.close()
