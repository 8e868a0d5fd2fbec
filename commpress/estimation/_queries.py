"""What a worker is asked, and how it answers with one bit."""

from __future__ import annotations

import dataclasses
from typing import final

import numpy as np
from numpy.typing import NDArray

from commpress.errors import TensorError
from commpress.estimation._normal import Array


@final
@dataclasses.dataclass(frozen=True)
class Queries:
    """One question for each of `count` workers, who can all answer at once; for each stream.

    Attributes:
        count: questions for each stream.
        thresholds: "is your sample above this?", shape (streams, count), or (streams, 1) where all get the same one; or, with `cell`, None.
        cell, origin, bits: otherwise worker i is asked for bit ``bits[i]`` of the Gray code of ``floor((sample - origin) / cell)``.
    """

    count: int
    thresholds: Array | None = None
    cell: float = 0.0
    origin: float = 0.0
    bits: NDArray[np.int64] | None = None

    def answer(self, samples: Array) -> NDArray[np.bool_]:
        """The workers' bits for their samples, both of shape (streams, count). Raises TensorError: another shape."""
        if samples.ndim != 2 or samples.shape[1] != self.count:
            raise TensorError(f"expected samples of shape (streams, {self.count}), got {samples.shape}")
        if self.thresholds is not None:
            above: NDArray[np.bool_] = samples > self.thresholds
            return above
        assert self.bits is not None
        most = 1 << int(self.bits.max()) + 1
        place = np.clip(np.floor((samples - self.origin) / self.cell), 0, most - 1).astype(np.int64)
        return ((place ^ place >> 1) >> self.bits[None, :] & 1).astype(bool)
