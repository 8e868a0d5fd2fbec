"""Number formats and the classic quantisers: `csrc/ops_formats.cpp`."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


class Scheme(enum.IntEnum):
    """Numbers that the C++ kernels use (csrc/kernels/formats.h)."""

    FLOAT = 1
    NVFP4 = 2
    LEVELS = 3
    SIGN = 4
    TWO_MEANS = 5


class FormatFlag(enum.IntFlag):
    """Numbers that `csrc/ops_formats.cpp` uses."""

    STOCHASTIC = 1
    EUCLIDEAN = 2
    TRITS = 4
    MAY_SATURATE = 8


class Format(NamedTuple):
    """What the operators take as ``int[] format``; csrc/kernels/formats.h says what the fields mean."""

    scheme: Scheme
    exponent: int = 0
    mantissa: int = 0
    levels: int = 0
    block: int = 0
    flags: FormatFlag = FormatFlag(0)

    def integers(self) -> list[int]:
        return [int(field) for field in self]


def format_nbytes(format: Format, numel: int) -> int:
    """Exact size in bytes of a payload."""
    return library.format_nbytes(format.integers(), numel)


def format_code(format: Format) -> int:
    """The format as one number: what a table of layers has in place of a rate (:func:`device_table`)."""
    return library.format_code(format.integers())


def format_encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    format: Format,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``format_nbytes``. Releases the GIL."""
    library.format_encode(x, payload, format.integers(), signed(seed), *words, offset, gain, int(isa))


def format_decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    format: Format,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` (1-D contiguous float32). Returns -1, or the first block with an invalid scale or code, and then has written nothing. Releases the GIL."""
    return library.format_decode(payload, out, format.integers(), accumulate, gain, beta, int(isa))


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::format_encode")(wrote_argument)
torch.library.register_fake("commpress::format_decode")(_reported_success)
