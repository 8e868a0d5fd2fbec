"""Running mean squares, sums of products, multiples of an earlier mean: `csrc/ops_moments.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import Isa, library, wrote_argument


def follow_squares(held: torch.Tensor, x: torch.Tensor, share: float) -> None:
    """``held += (x^2 - held) * share`` in one pass, every operation rounded to fp32 by itself. Both 1-D contiguous float32 of the same size. Releases the GIL."""
    library.follow_squares(held, x, share)


def add_multiple(values: torch.Tensor, previous: torch.Tensor, factor: float, *, keep: bool = False) -> None:
    """``values += previous * factor`` in one pass, both operations rounded to fp32 by themselves, so that all machines agree (a fused multiply-add would not).

    Both 1-D contiguous float32 of the same size, and apart from each other. With `keep`, `previous` becomes a copy of the result. Releases the GIL.
    """
    library.add_multiple(values, previous, factor, keep)


def segment_products(
    x: torch.Tensor, y: torch.Tensor, stops: torch.Tensor, sums: torch.Tensor, isa: Isa = Isa.BEST
) -> None:
    """Adds sums of ``x*x``, ``x*y`` and ``y*y`` over each segment to `sums`, in one pass and in an order of its own. Releases the GIL.

    Args:
        x, y: 1-D contiguous, both float32 or both float64, of the same size; may be the same tensor.
        stops: where each segment ends, 1-D int64, ascending; the first begins at 0.
        sums: float64 of shape (segments, 3).
        isa: code path; all give the same sums.
    """
    library.segment_products(x, y, stops, sums, int(isa))


torch.library.register_fake("commpress::follow_squares")(wrote_argument)
torch.library.register_fake("commpress::add_multiple")(wrote_argument)
torch.library.register_fake("commpress::segment_products")(wrote_argument)
