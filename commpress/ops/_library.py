"""Loads the extension; what all operators share."""

from __future__ import annotations

import enum
import pathlib

import torch

_LIBRARY = pathlib.Path(__file__).parents[1] / "_C.abi3.so"
if not _LIBRARY.exists():
    raise ImportError(
        f"commpress's extension {_LIBRARY} is missing: build it with `pip install .` (or `make`) in a checkout of commpress"
    )
torch.ops.load_library(str(_LIBRARY))

library = torch.ops.commpress


class Isa(enum.IntEnum):
    """Code paths of the CPU kernels. All give the same bytes; ``BEST`` is chosen at run time."""

    BEST = -1
    PLAIN = 0
    AVX2 = 1
    AVX512 = 2


def isa_available(isa: Isa) -> bool:
    """Whether this machine can run the code path."""
    return isa is Isa.BEST or library.isa_available(int(isa))


def signed(seed: int) -> int:
    """A 64-bit seed as the operators take it."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def wrote_argument(*_: object) -> None:
    """Fake of an operator that writes to its arguments: torch calls it in place of the kernel when it traces."""
