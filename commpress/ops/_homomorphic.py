"""Codes whose sums are codes: `csrc/ops_homomorphic.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def homomorphic_scales(x: torch.Tensor, scales: torch.Tensor, *, block: int, isa: Isa = Isa.BEST) -> None:
    """Writes the scale of each ``block`` of ``x`` (1-D contiguous float32): ``scales``, uint8, two bytes each. Releases the GIL."""
    library.homomorphic_scales(x, scales, block, int(isa))


def homomorphic_encode(
    x: torch.Tensor,
    scales: torch.Tensor,
    codes: torch.Tensor,
    *,
    bits: int,
    block: int,
    worker: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the packed codes of ``x`` under scales that are not below its own. ``words``: of a key with sender 0. Releases the GIL."""
    library.homomorphic_encode(x, scales, codes, bits, block, worker, signed(seed), *words, offset, int(isa))


def homomorphic_add(
    codes: list[torch.Tensor], sums: torch.Tensor, *, bits: int, numel: int, isa: Isa = Isa.BEST
) -> None:
    """Writes the packed sums of the workers' codes, ``bits + ceil(log2(len(codes)))`` bits each. Releases the GIL."""
    library.homomorphic_add(codes, sums, bits, numel, int(isa))


def homomorphic_decode(
    sums: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    *,
    bits: int,
    block: int,
    subtract: bool,
    worker: int,
    workers: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes the sum of ``workers`` workers from ``worker`` on into ``out`` (1-D contiguous float32). Returns -1, or the first invalid scale, and then has written nothing. Releases the GIL."""
    return library.homomorphic_decode(
        sums, scales, out, bits, block, subtract, worker, workers, signed(seed), *words, offset, accumulate, gain, beta, int(isa)
    )  # fmt: skip


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::homomorphic_scales")(wrote_argument)
torch.library.register_fake("commpress::homomorphic_encode")(wrote_argument)
torch.library.register_fake("commpress::homomorphic_add")(wrote_argument)
torch.library.register_fake("commpress::homomorphic_decode")(_reported_success)
