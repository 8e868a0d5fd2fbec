"""Loads the extension; what all operators share."""

from __future__ import annotations

import enum
import pathlib

import torch

LIBRARY = pathlib.Path(__file__).parents[1] / "_C.abi3.so"
if not LIBRARY.exists():
    raise ImportError(
        f"commpress's extension {LIBRARY} is missing: build it with `pip install .` (or `make`) in a checkout of commpress"
    )
try:
    torch.ops.load_library(str(LIBRARY))
except OSError as error:
    raise ImportError(
        f"commpress's extension {LIBRARY} does not load with torch {torch.__version__} ({error.__cause__ or error}): it needs torch 2.10 or newer, and must have been "
        "built for this kind of machine. Build it anew with `pip install --force-reinstall --no-deps --no-cache-dir .` (or `make clean all`) in a checkout of commpress"
    ) from error

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
