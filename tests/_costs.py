"""Costs for the allocator, written for one layer at a time."""

from collections.abc import Callable

import numpy as np


def each(cost: Callable[[int, float], int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From bytes of a layer at a rate in bits to what the allocator asks: arrays of layers and of rates in millionths."""

    def of_all(layers: np.ndarray, rates: np.ndarray) -> np.ndarray:
        assert len(layers) == len(rates) > 0
        return np.array([cost(i, rate / 1_000_000) for i, rate in zip(layers.tolist(), rates.tolist(), strict=True)])

    return of_all
