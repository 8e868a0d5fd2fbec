"""The fixed-rate quantisers and the casts: `csrc/ops.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def payload_nbytes(family: int, rate: int, centroid: bool, offset: int, numel: int) -> int:
    """Exact size in bytes of a payload; ``rate`` in millionths of a bit per coordinate."""
    return library.payload_nbytes(family, rate, centroid, offset, numel)


def payload_nbytes_each(family: int, centroid: bool, rates: torch.Tensor, numels: torch.Tensor) -> torch.Tensor:
    """``payload_nbytes`` at offset 0 of many payloads: two int64 tensors of shape (n,) in, one out."""
    out = torch.empty_like(rates)
    library.payload_nbytes_each(family, centroid, rates, numels, out)
    return out


def encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``payload_nbytes``. Releases the GIL."""
    library.encode(x, payload, family, rate, centroid, signed(seed), *words, offset, gain, int(isa))


def decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    family: int,
    rate: int,
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
    return library.decode(
        payload, out, family, rate, centroid, signed(seed), *words, offset, accumulate, gain, beta, int(isa)
    )


def reduce(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    out: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    senders: list[int],
    words: tuple[int, int, int],
    offset: int,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """``values = beta * values + sum of the payloads``, encoded to ``out`` and decoded again in place, in one pass over memory.

    ``senders``: word 2 of each payload's key; ``words``: of the key that encodes. Returns -1, -2 if the result is not finite, or the position of an invalid payload,
    and then ``values`` and ``out`` are unfinished. Releases the GIL.
    """
    return library.reduce(
        payloads, senders, values, out, family, rate, centroid, signed(seed), *words, offset, beta, int(isa)
    )


def decode_sum(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    senders: list[int],
    step: int,
    tensor: int,
    offset: int,
    isa: Isa = Isa.BEST,
) -> int:
    """``values`` = the sum of the payloads in their order, in one pass over memory. Arguments and result as of :func:`reduce`."""
    return library.decode_sum(
        payloads, senders, values, family, rate, centroid, signed(seed), step, tensor, offset, int(isa)
    )


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::payload_nbytes_each")(wrote_argument)
torch.library.register_fake("commpress::encode")(wrote_argument)
torch.library.register_fake("commpress::decode")(_reported_success)
torch.library.register_fake("commpress::reduce")(_reported_success)
torch.library.register_fake("commpress::decode_sum")(_reported_success)
