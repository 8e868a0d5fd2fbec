"""The sparsifiers: `csrc/ops_sparse.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def sparse_payload_nbytes(
    kind: int, fraction: int, bits: int, scaled: bool, block: int, offset: int, numel: int
) -> int:
    """Exact size in bytes of a payload; ``fraction`` in millionths of the coordinates, ``offset`` a multiple of ``block``."""
    return library.sparse_payload_nbytes(kind, fraction, bits, scaled, block, offset, numel)


def sparse_encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    kind: int,
    fraction: int,
    bits: int,
    scaled: bool,
    block: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``sparse_payload_nbytes``. Releases the GIL."""
    library.sparse_encode(x, payload, kind, fraction, bits, scaled, block, signed(seed), *words, offset, gain, int(isa))


def sparse_decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    kind: int,
    fraction: int,
    bits: int,
    scaled: bool,
    block: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` (1-D contiguous float32). Returns -1, or the first segment with an invalid header, and then has written nothing. Releases the GIL."""
    return library.sparse_decode(
        payload,
        out,
        kind,
        fraction,
        bits,
        scaled,
        block,
        signed(seed),
        *words,
        offset,
        accumulate,
        gain,
        beta,
        int(isa),
    )


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::sparse_encode")(wrote_argument)
torch.library.register_fake("commpress::sparse_decode")(_reported_success)
