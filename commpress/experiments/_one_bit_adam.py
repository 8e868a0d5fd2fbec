"""1-bit Adam, as a peer to compare with: the published algorithm, and this library's one-bit code under it.

No `from __future__ import annotations` here: DDP reads the hook's annotations and refuses text.
"""

from typing import Any, final

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from commpress.hooks import HookState, ddp_hook
from commpress.telemetry import Sink

CODEC = "sign"
WARM_UP_SHARE = 0.2  # DeepSpeed recommends 15 to 25 % of all steps


def exact_steps(steps: int) -> int:
    """How many steps of a run of `steps` are those of plain Adam."""
    return max(2, round(WARM_UP_SHARE * steps))


@final
class OneBitAdam(torch.optim.Optimizer):
    """Adam whose momentum travels in one bit a coordinate (Tang et al., 2021, arXiv:2102.02888).

    For `warm_up` steps it is Adam on exact mean gradients. Then the second moment is frozen, each rank adds its own
    gradient to the momentum that all ranks share, and what is exchanged, with error feedback on both ways, is the
    signs of that momentum and a scale for each block. As in DeepSpeed there is no bias correction; weight decay is
    decoupled, as in the runs that this one is compared with.

    Args:
        groups: parameter groups with ``params`` and ``weight_decay``.
        ddp: the model, without a communication hook; it gets one.
        lr: learning rate.
        betas, eps: of Adam.
        warm_up: steps before the second moment is frozen.
        codec, seed, telemetry: of the exchange, see :class:`commpress.HookState`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        ddp: DistributedDataParallel,
        *,
        lr: float,
        betas: tuple[float, float],
        warm_up: int,
        eps: float = 1e-8,
        codec: str = CODEC,
        seed: int = 0,
        telemetry: Sink | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "steps": 0, "warm_up": warm_up})
        self.exchange = HookState(codec, feedback=True, seed=seed, telemetry=telemetry)
        """State of the compressed exchange."""
        self.exchange.bind({n: p for n, p in ddp.module.named_parameters() if p.requires_grad}, ddp.process_group)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"momentum": torch.zeros_like(p), "square": torch.zeros_like(p)}
        ddp.register_comm_hook(self, _hook)

    @property
    def warming_up(self) -> bool:
        """Whether gradients are still exact."""
        group = self.param_groups[0]
        return group["steps"] < group["warm_up"]

    def step(self, closure: Any = None) -> None:
        """One update; after the warm-up ``grad`` holds what :func:`_hook` made: the mean momentum."""
        with torch.no_grad():
            self._update(exact=self.warming_up)

    def _update(self, *, exact: bool) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            params = [p for p in group["params"] if p.grad is not None]
            received = [p.grad for p in params if p.grad is not None]
            momenta = [self.state[p]["momentum"] for p in params]
            squares = [self.state[p]["square"] for p in params]
            if exact:
                torch._foreach_lerp_(momenta, received, 1 - first)
                torch._foreach_mul_(squares, second)
                torch._foreach_addcmul_(squares, received, received, 1 - second)
            else:
                torch._foreach_copy_(momenta, received)
            scales = torch._foreach_sqrt(squares)
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_addcdiv_(params, momenta, scales, -group["lr"])
            group["steps"] += 1

    def fold_in(self, bucket: dist.GradBucket) -> None:
        """This rank's gradients in the bucket become this rank's momenta."""
        first = self.param_groups[0]["betas"][0]
        for p, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            gradient.mul_(1 - first).add_(self.state[p]["momentum"], alpha=first)


def _hook(state: OneBitAdam, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    if state.warming_up:
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)
    with torch.no_grad():
        state.fold_in(bucket)
    return ddp_hook(state.exchange, bucket)
