"""What an all-reduce with a codec that adds codes computes, in one process and without shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import commpress


def mean_of(
    codec: Any, inputs: list[torch.Tensor], key: commpress.Key, senders: list[int] | None = None, op: str = "mean"
) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """(decoded mean, steps of the agreed grid). Other `senders` than the decoder expects are a control."""
    n, numel = len(inputs), inputs[0].numel()
    own = [torch.empty(codec.scales_nbytes(numel), dtype=torch.uint8) for _ in inputs]
    for x, scales in zip(inputs, own, strict=True):
        codec.own_scales(x, scales)
    agreed = torch.empty_like(own[0])
    codec.agree(own, agreed)
    codes = [torch.empty(codec.codes_nbytes(numel), dtype=torch.uint8) for _ in inputs]
    for i, (x, out) in enumerate(zip(inputs, codes, strict=True)):
        codec.encode_codes(x, agreed, key.replace(sender=senders[i] if senders else i), out=out, offset=0)
    sums = torch.empty(codec.sums_nbytes(numel, n), dtype=torch.uint8)
    codec.add_codes(codes, out=sums, numel=numel)
    mean = torch.empty(numel)
    codec.decode_sums(sums, agreed, key, workers=n, out=mean, offset=0, gain=1 / n if op == "mean" else 1.0)
    largest = (agreed.numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return mean, np.repeat(2 * largest / (2**codec.width - 1), codec.block)[:numel]
