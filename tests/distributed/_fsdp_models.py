"""FSDP2 models on real ranks, and what their tests compare them with."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

PRELOAD = ("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo")
"""What FSDP2 imports takes seconds, most of them for the last one."""
WIDTH = 37  # no number of ranks divides it: every shard is padded


def plain(seed: int = 0, *, frozen: bool = False) -> torch.nn.Sequential:
    """Three linear layers, of uneven sizes."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 301),
        torch.nn.GELU(),
        torch.nn.Linear(301, 65),
        torch.nn.GELU(),
        torch.nn.Linear(65, 7),
    )
    if frozen:
        model[2].weight.requires_grad_(False)
    return model


def sharded(
    seed: int = 0,
    *,
    mesh: DeviceMesh | None = None,
    policy: MixedPrecisionPolicy | None = None,
    reshard: bool | int | None = None,
    frozen: bool = False,
) -> torch.nn.Sequential:
    """The same, with fully_shard on two layers and on the whole."""
    model = plain(seed, frozen=frozen)
    more: dict[str, Any] = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy()}
    if reshard is not None:
        more["reshard_after_forward"] = reshard
    for module in (model[0], model[2], model):
        fully_shard(module, **more)
    return model


def data(step: int, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + (dist.get_rank() if rank is None else rank))
    x = torch.randn(16, WIDTH, generator=generator)
    return x, x[:, :7].tanh()


def loss_of(model: torch.nn.Module, step: int, rank: int | None = None) -> torch.Tensor:
    x, y = data(step, rank)
    return (model(x).float() - y).square().mean()


def train(model: torch.nn.Module, steps: int, *, start: int = 0, optimizer: Any = None) -> list[float]:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(start, start + steps):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    """This rank's shards."""
    return [p.grad.to_local().clone() for p in model.parameters() if p.grad is not None]


def shards(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.to_local().detach().clone() for p in model.parameters()]


def mesh2d(replicas: int, size: int) -> DeviceMesh:
    return init_device_mesh("cpu", (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))


def error(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Squared error over energy."""
    wrong = sum(float((g.double() - w.double()).square().sum()) for g, w in zip(got, want, strict=True))
    return wrong / max(sum(float(w.double().square().sum()) for w in want), 1e-30)
