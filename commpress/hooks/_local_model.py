"""The model under a LocalSGD: its parameters and buffers, and DDP's own gradient exchange."""

from __future__ import annotations

from typing import Any, final

import torch
from torch.nn.parallel import DistributedDataParallel

from commpress.errors import StateError, TensorError
from commpress.hooks._ddp import _WRAPPERS, ModelError


@final
class LocalModel:
    """What is averaged of a model: its trainable parameters, and its floating-point buffers.

    Args:
        model: plain, or DistributedDataParallel; either bare or wrapped by torch.compile or Lightning Fabric.

    Attributes:
        ddp: the DDP module, or None. module: the plain one.
        parameters: name to tensor, of all parameters that are trained, in the order of the model.
        buffers: of all buffers that hold floating-point numbers.

    Raises:
        ModelError: no parameter is trained, or the parameters are sharded.
        TensorError: a parameter or buffer is not on the CPU, or is not a dense floating-point or complex one.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        if not isinstance(model, torch.nn.Module):
            raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
        self.ddp: DistributedDataParallel | None = None
        found: Any = model
        while True:
            if isinstance(found, DistributedDataParallel):
                self.ddp = found
                found = found.module
                break
            inner = [getattr(found, n) for n in _WRAPPERS if isinstance(getattr(found, n, None), torch.nn.Module)]
            if not inner:
                break
            found = inner[0]
        self.module: torch.nn.Module = found
        ignored = set(self.ddp.parameters_to_ignore) if self.ddp is not None else set()
        self._ignored = ignored
        self.state = {n: t for n, t in _all_of(found).items() if n not in ignored}
        for name, tensor in self.state.items():
            _check(name, tensor)
        self.parameters = {n: p for n, p in found.named_parameters() if p.requires_grad and n not in ignored}
        self.buffers = {n: b for n, b in found.named_buffers() if n not in ignored and b.is_floating_point()}
        if not any(p.numel() for p in self.parameters.values()):
            raise ModelError("the model has no parameter that is trained: nothing would ever be averaged")
        for name, p in self.parameters.items():
            if not (p.is_floating_point() or p.is_complex()):
                raise TensorError(f"parameter {name!r} has dtype {p.dtype}, not a floating-point or complex one")
        self._found_on = self.ddp.require_backward_grad_sync if self.ddp is not None else True

    def described(self) -> list[list[str]]:
        """Of all parameters and buffers: what must be equal on all ranks."""
        kinds = dict.fromkeys(self.parameters, "") | dict.fromkeys(self.buffers, "buffer")
        return [
            [repr(name), str(list(t.shape)), str(t.dtype).removeprefix("torch."), kinds.get(name, "left alone")]
            for name, t in self.state.items()
        ]

    def check_same(self) -> None:
        """Raises StateError if the model's parameters are no longer those that were found, or others are trained now."""
        known = dict(self.parameters)
        for name, p in self.module.named_parameters():
            mine = known.pop(name, None)
            if mine is not None and p is not mine:
                raise StateError(f"parameter {name!r} was replaced by another tensor: make a new LocalSGD")
            if mine is None and p.requires_grad and name not in self._ignored:
                raise StateError(
                    f"parameter {name!r} is trained now and was frozen before: make a new LocalSGD after such a change"
                )
            _check(name, p)
        if known:
            raise StateError(f"parameter {next(iter(known))!r} has left the model: make a new LocalSGD")
        if self.ddp is not None and self.ddp.require_backward_grad_sync:
            raise StateError(
                "DDP exchanges gradients again, which LocalSGD had switched off: something has set "
                "require_backward_grad_sync (no_sync() does not)"
            )

    def exchange_gradients(self, on: bool) -> None:
        """Switches DDP's gradient exchange, the way its ``no_sync`` does."""
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = on
            if not on:
                self.ddp.require_forward_param_sync = False  # nor are buffers broadcast in forward

    def give_back(self) -> None:
        """DDP as it was found."""
        self.exchange_gradients(self._found_on)


def _all_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check(name: str, tensor: torch.Tensor) -> None:
    if hasattr(tensor, "device_mesh"):
        raise ModelError(
            f"parameter {name!r} is sharded (a DTensor): LocalSGD averages whole replicas, as plain modules and DDP have them"
        )
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TensorError(f"{name!r} is a {tensor.layout} tensor on {tensor.device}: only dense CPU tensors so far")
