"""Tensors of any floating-point dtype, shape and strides as pieces of one flat work buffer, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def numel_of(tensor: torch.Tensor) -> int:
    """Real numbers in a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def is_flat_fp32(tensor: torch.Tensor) -> bool:
    """Whether it can serve as the work buffer itself."""
    return (
        tensor.is_contiguous()
        and tensor.dtype in (torch.float32, torch.complex64)
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def pieces_of(tensors: Sequence[torch.Tensor], flat: torch.Tensor) -> list[torch.Tensor]:
    """Where each tensor's values lie in the work buffer."""
    return list(flat.split([numel_of(one) for one in tensors])) if tensors else []


def put_back(piece: torch.Tensor, target: torch.Tensor) -> None:
    """Copies a piece of the work buffer into its tensor."""
    if target.is_complex():
        pairs = piece.view(*target.shape, 2)  # maybe at an odd place, where no complex view may begin
        target.copy_(torch.complex(pairs[..., 0], pairs[..., 1]))
    else:
        target.copy_(piece.view(target.shape))
