"""The entropy-coded quantisers, with and without a trellis: `csrc/ops_ecsq.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def ecsq_payload_nbytes(rate: int, offset: int, numel: int) -> int:
    """Exact size in bytes of a payload; ``rate`` in millionths of a bit per coordinate."""
    return library.ecsq_payload_nbytes(rate, offset, numel)


def ecsq_substream_numel(rate: int, substream: int, numel: int) -> int:
    """Coordinates of each substream but the last, of ``substream`` bytes, of a segment of ``numel`` > 0 coordinates; all of them if ``substream`` is 0."""
    return library.ecsq_substream_numel(rate, substream, numel)


def ecsq_scratch_words(rate: int, states: int, substream: int, numel: int) -> int:
    """int32 of memory that a block of threads on a CUDA device needs to encode a segment of ``numel`` > 0 coordinates."""
    return library.ecsq_scratch_words(rate, states, substream, numel)


def ecsq_encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    rate: int,
    rotate: bool,
    dither: bool,
    centroid: bool,
    states: int,
    substream: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``ecsq_payload_nbytes``; ``states``: of the trellis, or 0; ``substream``: bytes for each, or 0. Releases the GIL."""
    library.ecsq_encode(
        x, payload, rate, rotate, dither, centroid, states, substream, signed(seed), *words, offset, gain, int(isa)
    )


def ecsq_decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    rate: int,
    rotate: bool,
    dither: bool,
    centroid: bool,
    states: int,
    substream: int,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` (1-D contiguous float32). Returns -1, or the first invalid segment, and then has written nothing. Releases the GIL."""
    return library.ecsq_decode(
        payload,
        out,
        rate,
        rotate,
        dither,
        centroid,
        states,
        substream,
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


torch.library.register_fake("commpress::ecsq_encode")(wrote_argument)
torch.library.register_fake("commpress::ecsq_decode")(_reported_success)
