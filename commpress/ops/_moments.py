"""Running mean squares: `csrc/ops_moments.cpp`."""

from __future__ import annotations

import torch

from commpress.ops._library import library, wrote_argument


def follow_squares(held: torch.Tensor, x: torch.Tensor, share: float) -> None:
    """``held += (x^2 - held) * share`` in one pass, every operation rounded to fp32 by itself. Both 1-D contiguous float32 of the same size. Releases the GIL."""
    library.follow_squares(held, x, share)


torch.library.register_fake("commpress::follow_squares")(wrote_argument)
