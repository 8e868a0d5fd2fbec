"""Checkpoints of the main job: one file per rank, loaded with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from commpress.errors import StateError

_FORMAT = 1


def save(folder: Path, rank: int, world_size: int, settings: Any, step: int, parts: dict[str, Any]) -> None:
    """Writes ``rank<rank>.pt``: whole or not at all.

    Args:
        settings: a dataclass; a checkpoint is only loaded into a job with equal ones.
        parts: things with ``state_dict`` and ``load_state_dict``, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank{rank}.pt"
    half = path.with_suffix(".half")
    content = {name: part.state_dict() for name, part in parts.items()}
    head = {"format": _FORMAT, "rank": rank, "world_size": world_size, "step": step}
    torch.save({**head, "settings": _text(settings), "parts": content}, half)
    os.replace(half, path)


def load(folder: Path, rank: int, world_size: int, settings: Any, parts: dict[str, Any]) -> int:
    """Restores `parts` and returns the number of steps done.

    Raises:
        StateError: there is no such file, it cannot be read, or it is of another rank, world size or other settings.
    """
    path = folder / f"rank{rank}.pt"
    try:
        found = torch.load(path, weights_only=True)
    except Exception as error:  # a torn file can raise anything
        raise StateError(f"cannot read the checkpoint {path}: {type(error).__name__}: {error}") from error
    wanted = {"format": _FORMAT, "rank": rank, "world_size": world_size, "settings": _text(settings)}
    for name, value in wanted.items():
        have = found.get(name) if isinstance(found, dict) else None
        if have != value:
            raise StateError(f"the checkpoint {path} was made with {name} {have}, this run has {value}")
    if sorted(found["parts"]) != sorted(parts):
        raise StateError(f"the checkpoint {path} holds {sorted(found['parts'])}, this run has {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(found["parts"][name])
    return int(found["step"])


def _text(settings: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(settings).items())
