"""What Adam knows about the layers: how much an error in a gradient's coordinate costs after Adam has divided by its own scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from commpress.errors import SpecError, StateError

_KEY = "exp_avg_sq"


def check_optimizer(optimizer: Any) -> None:
    """Raises SpecError unless `optimizer` is a torch optimizer of Adam's kind."""
    if not isinstance(optimizer, torch.optim.Optimizer) or "betas" not in optimizer.defaults:
        raise SpecError(
            f"optimizer must be one that keeps second moments, such as torch.optim.AdamW, got {type(optimizer).__name__}"
        )


def second_moments(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.Tensor]) -> dict[str, float]:
    """Sum over each parameter's coordinates of Adam's running mean of squares, by name; 0 for one that was not stepped yet.

    Raises:
        StateError: the optimizer keeps something else.
    """
    found = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:
            found[name] = 0.0
        elif _KEY not in state:
            raise StateError(f"{type(optimizer).__name__} keeps {sorted(state)} of {name!r}, and no {_KEY!r}")
        else:
            moments = state[_KEY]
            if hasattr(moments, "to_local"):  # a sharded parameter's: this rank's part
                moments = moments.to_local()
            found[name] = float(moments.sum(dtype=torch.float64))
    return found


def adam_weights(sums: np.ndarray, dims: np.ndarray) -> np.ndarray | None:
    """Weight of a coordinate's squared error in each layer, ``1 / sqrt(v)``, v the layer's mean second moment; None before the first step.

    Adam moves by ``g / sqrt(v)``, which is Newton's step for a curvature h of sqrt(v). A gradient's error e then costs ``h (e / sqrt(v))^2 / 2 = e^2 / (2 sqrt(v))``:
    in general w = h / v.

    Args:
        sums: of the second moments of each layer. dims: coordinates.
    """
    if not bool((sums > 0).any()):
        return None
    v = sums / np.maximum(dims, 1)
    return np.where(v > 0, 1.0 / np.sqrt(np.where(v > 0, v, 1.0)), 0.0)
