"""Trellis-coded quantisation for an entropy coder: `csrc/ops_tcq.cpp`. Not a codec by itself."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, wrote_argument


def tcq_quantise(
    values: torch.Tensor,
    indices: torch.Tensor,
    *,
    block: int,
    levels: torch.Tensor,
    prices: torch.Tensor,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the indices that minimise ``sum (value - level)^2 + price`` for each run of ``block`` values, from state 0 on. Releases the GIL.

    Args:
        values: 1-D contiguous float32, whole blocks, in units of the quantiser's step.
        indices: 1-D contiguous int16 of the same length; ``|k| < 64``.
        levels, prices: float32 of shape (2, 64), for each quantiser and ``|k|``: the decoder's value in steps, and lambda times the bits in squared steps.
    """
    library.tcq_quantise(values, indices, block, levels, prices, int(isa))


def tcq_dequantise(indices: torch.Tensor, values: torch.Tensor, *, block: int, levels: torch.Tensor) -> None:
    """Writes the levels of any indices. Shapes and dtypes as :func:`tcq_quantise`."""
    library.tcq_dequantise(indices, values, block, levels)


torch.library.register_fake("commpress::tcq_quantise")(wrote_argument)
torch.library.register_fake("commpress::tcq_dequantise")(wrote_argument)
