"""Tensors whose layers have a codec each: `csrc/ops_layers.cpp`.

A table is an int64 tensor with a row for each layer: family (0: fp32 as it is), rate in millionths, centroid, number added to the key's tensor, offset, coordinates.
"""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, signed, wrote_argument


def encode_layers(
    x: torch.Tensor,
    payload: torch.Tensor,
    table: torch.Tensor,
    *,
    seed: int,
    words: tuple[int, int, int],
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the layers' payloads of ``gain * x``, one after the other. ``x``: 1-D contiguous float32. Releases the GIL."""
    library.encode_layers(x, payload, table, signed(seed), *words, gain, int(isa))


def decode_layers(
    payload: torch.Tensor,
    out: torch.Tensor,
    table: torch.Tensor,
    *,
    seed: int,
    words: tuple[int, int, int],
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> bool:
    """Decodes into ``out`` (1-D contiguous float32). False for an invalid payload, and then nothing was written. Releases the GIL."""
    return library.decode_layers(payload, out, table, signed(seed), *words, accumulate, gain, beta, int(isa))


def reduce_layers(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    out: torch.Tensor,
    table: torch.Tensor,
    *,
    seed: int,
    senders: list[int],
    words: tuple[int, int, int],
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """As :func:`reduce`."""
    return library.reduce_layers(payloads, senders, values, out, table, signed(seed), *words, beta, int(isa))


def decode_sum_layers(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    table: torch.Tensor,
    *,
    seed: int,
    senders: list[int],
    step: int,
    tensor: int,
    isa: Isa = Isa.BEST,
) -> int:
    """As :func:`decode_sum`."""
    return library.decode_sum_layers(payloads, senders, values, table, signed(seed), step, tensor, int(isa))


def _reported_success(*_: object) -> bool:
    return True


def _reported_finite(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::encode_layers")(wrote_argument)
torch.library.register_fake("commpress::decode_layers")(_reported_success)
torch.library.register_fake("commpress::reduce_layers")(_reported_finite)
torch.library.register_fake("commpress::decode_sum_layers")(_reported_finite)
