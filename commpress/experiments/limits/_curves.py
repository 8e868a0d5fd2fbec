"""What codecs are held against: the best scalar quantiser with an ideal entropy code, and three lower bounds on rounds."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch

from commpress.experiments._mean_estimation import Trial
from commpress.information import communication_rounds, fisher_fraction, rounds_lower_bound, rounds_lower_bound_simple

_STEPS = np.geomspace(0.12, 7.0, 120)
_ZERO_BINS = np.linspace(0.6, 1.05, 13)  # width of the bin around zero over the step
_FARTHEST = 8.0  # standard deviations


@final
class ScalarOptimum:
    """Entropy-coded scalar quantisation of N(0,1) with uniform steps, a zero bin of its own width, and every bin's mean for its value.

    The best step and zero bin for each rate; with those two free it is within 0.1 % of the best of all scalar quantisers (ECSQ).
    """

    def __init__(self) -> None:
        rates, captured = [], []
        for step in _STEPS:
            for zero in _ZERO_BINS:
                rate, kept = _quantiser(float(step), float(zero))
                rates.append(rate)
                captured.append(kept)
        self._rates, self._captured = _upper_hull(np.array([0.0, *rates]), np.array([0.0, *captured]))

    def captured(self, bits: float) -> float:
        """G, the part of the energy that the reconstruction keeps, at this rate; by time sharing between the quantisers next to it."""
        return float(np.interp(bits, self._rates, self._captured))

    def eta(self, bits: float) -> float:
        """G over the Gaussian limit."""
        return self.captured(bits) / fisher_fraction(bits)

    @property
    def rates(self) -> tuple[float, float]:
        """Limits within which the curve is known."""
        return float(self._rates[1]), float(self._rates[-1])


def _quantiser(step: float, zero: float) -> tuple[float, float]:
    """Entropy in bits, and G, of one quantiser."""
    first = zero * step / 2
    edges = np.append(np.arange(first, _FARTHEST, step), np.inf)
    tail = torch.special.ndtr(torch.from_numpy(-edges)).numpy()
    probability = tail[:-1] - tail[1:]
    density = np.exp(-0.5 * edges[:-1] ** 2) / math.sqrt(2 * math.pi)
    moment = density - np.append(density[1:], 0.0)  # of x over each bin
    inside = 1.0 - 2.0 * float(tail[0])
    live = probability > 1e-15
    p = probability[live]
    rate = -2.0 * float((p * np.log2(p)).sum()) - (inside * math.log2(inside) if inside > 0 else 0.0)
    return rate, 2.0 * float((moment[live] ** 2 / p).sum())


def _upper_hull(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that no mixture of two others passes, by x."""
    hull: list[tuple[float, float]] = []
    for point in sorted(zip(x.tolist(), y.tolist(), strict=True)):
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        if not hull or point[1] > hull[-1][1]:
            hull.append(point)
    found = np.array(hull)
    return found[:, 0], found[:, 1]


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


BOUNDS = ("noise and bits together", "noise, and bits, each alone", "bits alone")


def bounds(trial: Trial, bits: float) -> dict[str, float]:
    """Three lower bounds on the rounds of a `Trial` with messages of `bits` bits for each of its d coordinates.

    The van Trees bound; its simple form, half the larger of two parts; and the bits that name theta so exactly, whatever the noise. theta has no Gaussian prior here but that of the
    trial, so the last one (Shannon's lower bound) has the prior's entropy power, 8 a^2 / (pi e^3), for a variance.
    """
    message, error = bits * trial.d, math.sqrt(trial.eps2)
    known: dict[str, Any] = {"half_width": trial.half_width}
    power = math.sqrt(8.0 / (math.pi * math.e**3)) * trial.half_width
    return {
        BOUNDS[0]: rounds_lower_bound(trial.d, message, trial.sigma, error, **known),
        BOUNDS[1]: rounds_lower_bound_simple(trial.d, message, trial.sigma, error, **known),
        BOUNDS[2]: communication_rounds(trial.d, message, error, power),
    }
