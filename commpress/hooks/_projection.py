"""Random projections of a whole gradient, the same on all ranks, in one pass over its coordinates.

    y = H f,    f = sum over blocks b of D_b g_b

The blocks of 4096 coordinates of every parameter are added up under random signs D (Philox, public coins: by seed, step, parameter and position, so DDP's buckets do not matter), and one Hadamard transform
of the sum gives 4096 projections ``y_j = sum_i +-g_i``: the transform is linear, so transforming the sum is transforming every block. The signs of different j are pairwise independent over the coins, and
``y_j / |g|`` is nearly N(0, 1).
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from commpress.codecs import Key
from commpress.reference._random import ROTATION_1, words

WIDTH = 4096
_SIGNS = 1 << 20  # coordinates whose signs are drawn at once
_FOLD = 1 << 17  # coordinates that are folded at once: they should stay in a cache
_PHASE = 3  # of the key: 0 to 2 are those of codecs and collectives

Array = NDArray[np.float64]


@final
class Projection:
    """Takes a gradient parameter by parameter, in any order.

    Args:
        seed, step: of the signs, equal on all ranks.
    """

    def __init__(self, seed: int, step: int) -> None:
        self._seed, self._step = seed, step & 0xFFFFFFFF
        self._folded = np.zeros(WIDTH)
        self._layers: dict[int, tuple[float, int]] = {}  # sum of squares, coordinates

    def add(self, index: int, values: torch.Tensor) -> None:
        """The gradient of parameter number `index`: flat, contiguous, of any floating-point dtype."""
        key = Key(self._seed, self._step, tensor=index, phase=_PHASE)
        flat: NDArray[np.float32] = values.detach().to(torch.float32).numpy()
        squares, numel = self._layers.get(index, (0.0, 0))
        for start in range(0, flat.size, _SIGNS):
            part = flat[start : start + _SIGNS]
            # Vectorised already, under 1 ns a coordinate: the same in place and in parts that stay in a cache was measured to be no faster.
            drawn = words(key, ROTATION_1, start // 128, -(-part.size // 128))
            signs = np.unpackbits(drawn.view(np.uint8))
            for at in range(0, part.size, _FOLD):
                squares += self._fold(part[at : at + _FOLD], signs[at : at + _FOLD])
        self._layers[index] = squares, numel + flat.size

    def _fold(self, values: NDArray[np.float32], bits: NDArray[np.uint8]) -> float:
        """The sum of squares."""
        with np.errstate(all="ignore"):  # what is not finite is seen by the norm
            squares = float(np.dot(values, values))
            signed = bits[: values.size].astype(np.float32)
            signed -= np.float32(0.5)
            signed *= values
            whole = values.size // WIDTH * WIDTH
            self._folded += signed[:whole].reshape(-1, WIDTH).sum(0)
            self._folded[: values.size - whole] += signed[whole:]
        return squares

    @property
    def norm(self) -> float:
        """Of the gradient so far."""
        squares = sum(squares for squares, _ in self._layers.values())
        return math.sqrt(squares) if squares >= 0 else math.nan

    def rms(self, count: int) -> tuple[Array, NDArray[np.int64]]:
        """Of parameters 0 to `count` - 1 the root mean square, and the coordinates; 0 of what was not added. Only where the norm is finite."""
        pairs = [self._layers.get(index, (0.0, 0)) for index in range(count)]
        squares, numels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.int64)
        return np.sqrt(squares / np.maximum(numels, 1)), numels

    def projections(self, count: int) -> Array:
        """The first `count`, at most 4096, over the norm; NaN where that is 0 or not finite."""
        y, half = 2.0 * self._folded, 1
        with np.errstate(all="ignore"):
            while half < WIDTH:
                pairs = y.reshape(-1, 2, half)
                y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
                half *= 2
            found: Array = y[:count] / (self.norm or math.nan)
        return found
