"""A model whose gradients are its inputs, for low-rank factors on real ranks."""

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

SHAPES = [(60, 50), (300,), (40, 5, 20), (5, 3), (), (120, 70), (64, 64)]


class Shaped(torch.nn.Module):
    """Its gradients are the inputs; those whose input is None are unused."""

    def __init__(self, shapes=SHAPES, dtype=torch.float32):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(s, dtype=dtype) for s in shapes)

    def forward(self, gradients):
        parts = [(w * g).sum() for w, g in zip(self.weights, gradients, strict=True) if g is not None]
        return sum(part.real if part.is_complex() else part for part in parts)


def gradients_of(rank, step, shapes=SHAPES, dtype=torch.float32):
    """A common part of rank 2 that stays, a part of each rank's own, and noise."""
    common, own = torch.Generator().manual_seed(5), torch.Generator().manual_seed(1000 * step + rank + 1)
    found = []
    for shape in shapes:
        x = torch.randn(shape, generator=own) * 0.1
        if len(shape) > 1:
            n = x.numel() // shape[0]
            base = torch.randn(shape[0], 2, generator=common) @ torch.randn(2, n, generator=common)
            x += base.view(shape)
        found.append(x.to(dtype))
    return found


def mean_of(step, world_size, **options):
    every = [gradients_of(r, step, **options) for r in range(world_size)]
    return [sum(g.double() for g in gradients) / world_size for gradients in zip(*every, strict=True)]


def wrapped(spec, shapes=SHAPES, dtype=torch.float32, cap=0.01, **options):
    ddp = DDP(Shaped(shapes, dtype), bucket_cap_mb=cap, find_unused_parameters=options.pop("unused", False))
    return ddp, commpress.register(ddp, spec, **{"timeout": 30, **options})


def backward(ddp, gradients):
    for w in ddp.module.weights:
        w.grad = None
    ddp(gradients).backward()


def matrix(rank, m=60, n=90):
    base = torch.randn(m, 3, generator=torch.Generator().manual_seed(5)) @ torch.randn(
        3, n, generator=torch.Generator().manual_seed(6)
    )
    return base + 0.01 * torch.randn(m, n, generator=torch.Generator().manual_seed(rank))
