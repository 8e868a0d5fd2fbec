"""The modulo code for side information: `csrc/ops_modulo.cpp`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


class Modulo(NamedTuple):
    """Constants of the code; csrc/kernels/modulo.h says what they mean."""

    bits: int
    step: float
    center: float
    shrink: float


def modulo_encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    code: Modulo,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of its exact size. Releases the GIL."""
    library.modulo_encode(x, payload, *code, signed(seed), *words, offset, gain, int(isa))


def modulo_decode(
    payload: torch.Tensor,
    side: torch.Tensor,
    out: torch.Tensor,
    *,
    code: Modulo,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` with the side information ``side`` (both 1-D contiguous float32). Returns -1, or the first block with an invalid scale, and then has written nothing. Releases the GIL."""
    return library.modulo_decode(
        payload, side, out, *code, signed(seed), *words, offset, accumulate, gain, beta, int(isa)
    )


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::modulo_encode")(wrote_argument)
torch.library.register_fake("commpress::modulo_decode")(_reported_success)
