"""Tensors in files: ``.pt`` (torch) and ``.npy`` (NumPy)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from commpress.errors import TensorError


def read_tensor(path: Path) -> torch.Tensor:
    """The one tensor of a file.

    Raises:
        TensorError: the name ends otherwise, or the file does not hold exactly one array or tensor.
        OSError: it cannot be read.
    """
    kind = _kind(path)
    try:
        if kind == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        value = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # a file of something else can raise anything
        raise TensorError(f"{path} is not a {kind} file with one tensor: {type(error).__name__}: {error}") from error
    if not isinstance(value, torch.Tensor):
        raise TensorError(f"{path} holds a {type(value).__name__}, not one tensor")
    return value.detach()


def write_tensor(path: Path, x: torch.Tensor) -> None:
    """Writes one tensor, as the name's ending says.

    Raises:
        TensorError: the name ends otherwise, or NumPy has no such dtype.
    """
    if _kind(path) == ".pt":
        torch.save(x, path)
        return
    try:
        array = x.numpy()
    except TypeError as error:
        raise TensorError(f"a .npy file cannot hold {x.dtype}; write a .pt file") from error
    np.save(path, array)


def _kind(path: Path) -> str:
    if path.suffix not in (".pt", ".npy"):
        raise TensorError(f"{path}: the name must end in .pt or .npy")
    return path.suffix
