"""What a layer costs at a rate: exact bytes from the caller, or its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

from commpress.allocation._curve import Curves
from commpress.allocation._objective import MICRO, Array, Ints
from commpress.errors import SpecError

Cost = Callable[[int, float], int]


@final
class Price:
    """Bytes of layers at rates.

    Args:
        dims: coordinates of each layer, int64 of shape (layers,).
        curves: of each layer; their overheads count where ``cost`` is None.
        cost: ``cost(layer, rate) -> bytes``: the payload's exact bytes at ``rate`` bits per coordinate; must not fall with the rate. None
            counts dims * (rate + overhead) / 8, rounded up once for all layers together.

    A rate of 0 is a layer that isn't sent: 0 bytes, and ``cost`` isn't asked.
    """

    def __init__(self, dims: Ints, curves: Curves, cost: Cost | None) -> None:
        self._dims, self._curves, self._cost = dims, curves, cost
        self._has_overhead = curves.has_overhead
        self.exact = cost is not None
        """Whether single layers cost whole bytes, so that their sum is that of all."""
        self._known: dict[int, tuple[int, int]] = {}  # the last rate of a layer, and its bytes

    def of_layer(self, layer: int, micro: int) -> float:
        """Bytes of one layer; a whole number if there is a cost."""
        if micro == 0 or self._dims[layer] == 0:
            return 0
        if self._cost is None:
            rate = np.array([micro / MICRO])
            over = self._curves.at(rate, np.array([layer]), overhead=True)[0] if self._has_overhead else 0.0
            return float(self._dims[layer]) * (micro + over * MICRO) / (8 * MICRO)
        known = self._known.get(layer)
        if known is not None and known[0] == micro:
            return known[1]
        nbytes = self._cost(layer, micro / MICRO)
        if not nbytes >= 0 or nbytes != int(nbytes):
            raise SpecError(f"cost({layer}, {micro / MICRO}) must be a whole number of bytes, got {nbytes}")
        self._known[layer] = (micro, int(nbytes))
        return int(nbytes)

    def at_each(self, layers: Ints, micro: Ints) -> Array:
        """Bytes at every vertex, float64 of shape (layers, vertices)."""
        if self._cost is None:
            rates = micro / MICRO
            if self._has_overhead:
                rates = rates + self._curves.at(rates, layers, overhead=True)
            return self._dims[layers][:, None] * rates / 8.0
        result = np.zeros(micro.shape)
        for row, layer in enumerate(layers.tolist()):
            for k, rate in enumerate(micro[row].tolist()):
                same = k > 0 and rate == micro[row, k - 1]
                result[row, k] = result[row, k - 1] if same else self.of_layer(layer, rate)
        return result

    def together(self, layers: Ints, micro: Ints) -> int:
        """Bytes of several layers, a whole number, never less than they need."""
        if self._cost is not None:
            return sum(int(self.of_layer(i, m)) for i, m in zip(layers.tolist(), micro.tolist(), strict=True))
        bits = int((self._dims[layers] * micro).sum())  # in millionths; fits, see MOST_COORDINATES
        nbytes = -(-bits // (8 * MICRO))
        if self._has_overhead:
            over = self._curves.at(micro / MICRO, layers, overhead=True)
            nbytes += int(np.ceil(np.add.accumulate(self._dims[layers] * over)[-1] / 8.0)) if layers.size else 0
        return nbytes
