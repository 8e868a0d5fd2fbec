"""What a layer costs at a rate: exact bytes from the caller, or its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

from commpress.allocation._curve import Curves
from commpress.allocation._objective import MICRO, Array, Ints
from commpress.errors import SpecError

Cost = Callable[[Ints, Ints], Ints]
"""``cost(layers, rates) -> bytes``: int64 arrays of shape (n,): numbers of layers, rates in millionths of a bit per coordinate (above 0); the payloads' exact bytes."""


@final
class Price:
    """Bytes of layers at rates.

    Args:
        dims: coordinates of each layer, int64 of shape (layers,).
        curves: of each layer; their overheads count where ``cost`` is None.
        cost: a :data:`Cost`: the payloads' exact bytes, which must not fall with the rate. None counts dims * (rate + overhead) / 8, rounded up once for all layers together.

    A rate of 0 is a layer that isn't sent: 0 bytes, and ``cost`` isn't asked.
    """

    def __init__(self, dims: Ints, curves: Curves, cost: Cost | None) -> None:
        self._dims, self._curves, self._cost = dims, curves, cost
        self._has_overhead = curves.has_overhead
        self.exact = cost is not None
        """Whether single layers cost whole bytes, so that their sum is that of all."""

    def of_layer(self, layer: int, micro: int) -> float:
        """Bytes of one layer; a whole number if there is a cost."""
        if micro == 0 or self._dims[layer] == 0:
            return 0
        if self._cost is None:
            rate = np.array([micro / MICRO])
            over = self._curves.at(rate, np.array([layer]), overhead=True)[0] if self._has_overhead else 0.0
            return float(self._dims[layer]) * (micro + over * MICRO) / (8 * MICRO)
        return int(self._ask(np.array([layer]), np.array([micro]))[0])

    def _ask(self, layers: Ints, micro: Ints) -> Ints:
        """The cost of layers at rates; 0 where nothing is sent."""
        assert self._cost is not None
        result = np.zeros(len(layers), dtype=np.int64)
        some = np.flatnonzero((micro > 0) & (self._dims[layers] > 0))
        nbytes = np.asarray(self._cost(layers[some], micro[some])) if some.size else result[some]
        if nbytes.shape != some.shape or nbytes.dtype.kind not in "iu" or (nbytes < 0).any():
            raise SpecError(f"cost must give a whole number of bytes for each of {some.size} layers, got {nbytes!r}")
        result[some] = nbytes
        return result

    def at_each(self, layers: Ints, micro: Ints) -> Array:
        """Bytes at every vertex, float64 of shape (layers, vertices)."""
        if self._cost is None:
            rates = micro / MICRO
            if self._has_overhead:
                rates = rates + self._curves.at(rates, layers, overhead=True)
            return self._dims[layers][:, None] * rates / 8.0
        width = micro.shape[1]
        return self._ask(np.repeat(layers, width), micro.ravel()).reshape(micro.shape).astype(np.float64)

    def together(self, layers: Ints, micro: Ints) -> int:
        """Bytes of several layers, a whole number, never less than they need."""
        if self._cost is not None:
            return int(self._ask(layers, micro).sum())
        bits = int((self._dims[layers] * micro).sum())  # in millionths; fits, see MOST_COORDINATES
        nbytes = -(-bits // (8 * MICRO))
        if self._has_overhead:
            over = self._curves.at(micro / MICRO, layers, overhead=True)
            nbytes += int(np.ceil(np.add.accumulate(self._dims[layers] * over)[-1] / 8.0)) if layers.size else 0
        return nbytes
