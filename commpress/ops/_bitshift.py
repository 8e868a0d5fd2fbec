"""The bitshift trellis: `csrc/ops_bitshift.cpp`. ``bits`` k and ``values`` V: k new bits for a codeword of V coordinates; ``length`` L: bits of a state."""

from __future__ import annotations

import functools

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def bitshift_nbytes(bits: int, values: int, length: int, rotated: bool, centroid: bool, offset: int, numel: int) -> int:
    """Exact size in bytes of a payload."""
    return library.bitshift_nbytes(bits, values, length, rotated, centroid, offset, numel)


@functools.cache
def bitshift_codebooks(trellises: tuple[tuple[int, int, int], ...], device: torch.device) -> torch.Tensor:
    """The levels that states decode to, ``2^(length - 2) * values`` float32 for each (bits, values, length), one codebook behind the other; made once in a process for a device, and kept there."""
    books = [torch.empty(values << (length - 2)) for _, values, length in trellises]
    for levels, trellis in zip(books, trellises, strict=True):
        library.bitshift_codebook(levels, *trellis)
    return torch.cat(books).to(device)  # waits: whatever stream reads them comes later


def bitshift_scratch_words(bits: int, values: int, length: int) -> int:
    """The int32 that a block of threads of the encoder on CUDA devices needs."""
    return library.bitshift_scratch_words(bits, values, length)


def bitshift_encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    bits: int,
    values: int,
    length: int,
    rotated: bool,
    centroid: bool,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``bitshift_nbytes``. Releases the GIL."""
    library.bitshift_encode(
        x, payload, bits, values, length, rotated, centroid, signed(seed), *words, offset, gain, int(isa)
    )


def bitshift_decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    bits: int,
    values: int,
    length: int,
    rotated: bool,
    centroid: bool,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` (1-D contiguous float32). Returns -1, or the first block with an invalid scale, and then has written nothing. Releases the GIL."""
    return library.bitshift_decode(
        payload,
        out,
        bits,
        values,
        length,
        rotated,
        centroid,
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


torch.library.register_fake("commpress::bitshift_encode")(wrote_argument)
torch.library.register_fake("commpress::bitshift_decode")(_reported_success)
torch.library.register_fake("commpress::bitshift_codebook")(wrote_argument)
