"""What updates the main job's model: AdamW or Muon, with states as torch keeps them or in a codec's format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from commpress.optim import PackedStates

OPTIMIZERS = ("adamw", "muon")


@final
class Several:
    """Optimizers of different parameters, stepped together: as much of an optimizer as the main job uses."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = tuple(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all of them."""
        return [group for one in self._optimizers for group in one.param_groups]

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """In the order of construction."""
        return self._optimizers

    def step(self) -> None:
        """Of all of them."""
        for one in self._optimizers:
            one.step()

    def zero_grad(self) -> None:
        """Of all of them."""
        for one in self._optimizers:
            one.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """By position."""
        return {str(i): one.state_dict() for i, one in enumerate(self._optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As saved by optimizers of the same kinds."""
        for i, one in enumerate(self._optimizers):
            one.load_state_dict(state[str(i)])


def with_muon(
    model: torch.nn.Module,
    groups: Sequence[dict[str, Any]],
    adamw: Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer],
    *,
    lr: float,
) -> Several:
    """torch's Muon on the matrices of hidden layers, and what `adamw` makes on the rest: embedding, head, vectors. Muon's steps are scaled to those of AdamW, so that one learning rate serves both."""
    outer = {id(p) for name, p in model.named_parameters() if p.dim() != 2 or name.startswith(("embedding", "head"))}
    inside = [{**g, "params": [p for p in g["params"] if id(p) not in outer]} for g in groups]
    outside = [{**g, "params": [p for p in g["params"] if id(p) in outer]} for g in groups]
    muon = torch.optim.Muon([g for g in inside if g["params"]], lr=lr, adjust_lr_fn="match_rms_adamw")
    return Several([muon, adamw([g for g in outside if g["params"]])])


def packed(optimizer: Any, states: str, *, seed: int) -> Any:
    """The same with its states in that format."""
    if isinstance(optimizer, Several):
        return Several([PackedStates(one, states, seed=seed) for one in optimizer.optimizers])
    return PackedStates(optimizer, states, seed=seed)


def state_nbytes(optimizer: Any) -> int | None:
    """Bytes of all states as they are kept; None where they are of an unknown kind."""
    if isinstance(optimizer, Several):
        sizes = [state_nbytes(one) for one in optimizer.optimizers]
        return None if None in sizes else sum(size or 0 for size in sizes)
    if isinstance(optimizer, PackedStates):
        return optimizer.nbytes
    if not isinstance(optimizer, torch.optim.Optimizer):
        return None
    values = (v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    return sum(v.numel() * v.element_size() for v in values)
