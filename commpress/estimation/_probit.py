"""The maximum-likelihood mean of normal samples from threshold answers."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from commpress.estimation._normal import Array, cdf, density, log_cdf

_STEPS = 12


def fisher_information(offset: Array) -> Array:
    """Of one answer about a normal mean, in units of ``1 / sigma^2``: phi^2 / (Phi (1 - Phi)) for a threshold ``offset`` sigma off the mean; 2/pi at 0."""
    with np.errstate(under="ignore"):
        log = -np.square(offset) - math.log(2 * math.pi) - log_cdf(offset) - log_cdf(-offset)
        values: Array = np.exp(log)
    return values


def spread_information() -> float:
    """int of :func:`fisher_information` over all offsets, 1.806...: what thresholds spread evenly with density 1 per sigma tell."""
    t = np.linspace(-12.0, 12.0, 24001)
    return float(fisher_information(t).sum() * (t[1] - t[0]))


@final
class ProbitTable:
    """Counts of answers by threshold, for many streams; P(yes) = Phi((mu - threshold) / sigma).

    Args:
        streams: how many.
    """

    def __init__(self, streams: int) -> None:
        self._thresholds: Array = np.zeros((streams, 0))
        self._counts: Array = np.zeros((1, 0))
        self._yes: Array = np.zeros((streams, 0))

    def add(self, thresholds: Array, count: int, yes: Array) -> None:
        """`count` more questions at thresholds (streams, 1), of which so many were answered with yes."""
        self._thresholds = np.concatenate([self._thresholds, thresholds], 1)
        self._counts = np.concatenate([self._counts, np.full((1, 1), float(count))], 1)
        self._yes = np.concatenate([self._yes, yes.astype(np.float64)], 1)

    def fit(self, start: Array, sigma: Array) -> Array:
        """(streams, 1): the likelihood is concave in mu, so Newton's steps with the expected curvature, none longer than sigma, climb to its only top."""
        mu = start.astype(np.float64)
        for _ in range(_STEPS):
            z = (mu - self._thresholds) / sigma
            p = np.clip(cdf(z), 1e-12, 1 - 1e-12)
            slope = density(z)
            weight = slope / (p * (1 - p))
            # Far answers that agree with mu say nothing, and their 0 / 0 must not either.
            score = ((self._yes - self._counts * p) * weight).sum(1, keepdims=True)
            curvature = (self._counts * slope * weight).sum(1, keepdims=True)
            step = np.where(curvature > 0, score / np.maximum(curvature, 1e-12), np.sign(score))
            mu = mu + sigma * np.clip(step, -1.0, 1.0)
            if float(np.abs(step).max(initial=0.0)) < 1e-9:
                break
        return mu
