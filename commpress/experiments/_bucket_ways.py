"""One tensor's mean over the ranks, by each way for gradients to travel that needs no training step around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from commpress.codecs import codec as make_codec
from commpress.collectives import all_reduce
from commpress.errors import SpecError
from commpress.experiments._ways import POWER_SGD

_NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def bucket_way(name: str, numel: int) -> Callable[[torch.Tensor], Any]:
    """A function that replaces a float32 tensor of `numel` values by its mean over the ranks. Collective.

    Args:
        name: a codec's spec, or one of `_ways.PEERS`; "1bit-adam" means the exchange of its momentum.

    Raises:
        SpecError: there is no such way, or it has no meaning for one tensor.
    """
    if name == "fp32":
        return _exact
    if name in _NARROW:
        return lambda tensor: _narrow(tensor, _NARROW[name])
    if found := POWER_SGD.fullmatch(name):
        return PowerIteration(numel, int(found[1]))
    if " " in name or name.startswith(("bits=", "auto", "skip")):
        raise SpecError(f"{name!r} needs layers to choose from: it is for training steps, not for one bucket")
    codec = make_codec("sign" if name == "1bit-adam" else name)
    return lambda tensor: all_reduce(tensor, codec)


def _exact(tensor: torch.Tensor) -> None:
    dist.all_reduce(tensor)
    tensor /= dist.get_world_size()


def _narrow(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    narrow = tensor.to(dtype).div_(dist.get_world_size())
    dist.all_reduce(narrow)
    tensor.copy_(narrow)


class PowerIteration:
    """PowerSGD of one matrix, as near to square as `numel` allows; no error feedback, and Q starts from the last call."""

    def __init__(self, numel: int, dimension: int) -> None:
        self.rows = next(r for r in range(math.isqrt(numel), 0, -1) if numel % r == 0)
        self._q = torch.randn(numel // self.rows, dimension, generator=torch.Generator().manual_seed(0))

    def __call__(self, tensor: torch.Tensor) -> None:
        size = dist.get_world_size()
        matrix = tensor.view(self.rows, -1)
        p = matrix @ self._q
        dist.all_reduce(p)
        p = torch.linalg.qr(p).Q
        self._q = (matrix.T @ p) / size
        dist.all_reduce(self._q)
        torch.mm(p, self._q.T, out=matrix)
