"""Whether a prediction from more than the last aggregate would pay: measured in training, from what the hook sees anyway.

`predict=True` looks one step back. How much of this rank's gradient would the last 2, 3, ... aggregates explain? In every 24th step the meter takes the products of the gradient and
the eight means before it, with each other, from a sample of the coordinates. From the running means of those follow the errors of the best predictions, and from these
:func:`commpress.allocation.history_window` says which window would be worth its memory. Nothing is sent; the sample is the same on all ranks and in every run.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import numpy as np
import torch

from commpress.allocation import history_window, prediction_errors
from commpress.feedback import Layout

WINDOW = 8  # aggregates
EVERY = 24  # steps between two measurements; only the last eight before one cost anything
EPS = 0.01  # of the energy: what a longer history has to gain
_SAMPLE = 1 << 15  # coordinates
_RUN = 16  # that follow each other: to fetch one from memory is to fetch all
_KEPT = 0.9  # of the earlier measurements' weight, with each: about ten count in each half


@final
class HistoryMeter:
    """Of one rank.

    Args:
        dims: coordinates of each layer by name.
        pays_below: the part of the energy that must be left for a layer to be predicted; for the record.

    Memory: 10 samples of 32,768 coordinates and where they lie, 1.8 MB.
    """

    def __init__(self, dims: dict[str, int], pays_below: float) -> None:
        self._stride = max(1, -(-sum(dims.values()) // _SAMPLE))
        counts = {name: self._sample(numel).numel() for name, numel in dims.items()}
        ends = np.cumsum(list(counts.values()))
        self._places = {
            name: (int(end) - count, int(end)) for (name, count), end in zip(counts.items(), ends, strict=True)
        }
        self._pays_below = pays_below
        self._own, self._mean = torch.zeros(int(ends[-1])), torch.zeros(int(ends[-1]))
        self._past: list[torch.Tensor] = []
        self._buckets: dict[Layout, BucketHistory] = {}
        # Fitted on one half of the measurements, tested on the other: what is gained by chance counts as a loss.
        self._halves = np.zeros((2, WINDOW + 1, WINDOW + 1))
        self._measured = 0

    def _sample(self, numel: int) -> torch.Tensor:
        """Coordinates of a layer: runs from all over it, or single ones of a small layer."""
        runs = numel // (_RUN * self._stride)
        if not runs:
            return torch.arange(0, numel, self._stride)
        return (torch.arange(runs)[:, None] * (_RUN * self._stride) + torch.arange(_RUN)).flatten()

    def bucket(self, layout: Layout) -> BucketHistory:
        """The part of one bucket."""
        if layout not in self._buckets:
            segments = list(layout.segments())
            source = torch.cat([start + self._sample(stop - start) for _, start, stop in segments])
            target = torch.cat([torch.arange(*self._places[name]) for name, _, _ in segments])
            self._buckets[layout] = BucketHistory(source, target, self._own, self._mean)
        return self._buckets[layout]

    def end(self, step: int, *, whole: bool) -> None:
        """After all buckets of a step; it is not `whole` if something was not finite, or some buckets had no turn."""
        if not whole:
            self._past = []  # a history without gaps, or none
            return
        if _before_measurement(step):
            self._past.insert(0, self._mean.clone())
            return
        if step % EVERY == 0 and len(self._past) == WINDOW:
            rows = torch.stack([self._own, *self._past]).double()
            gram = (rows @ rows.T).numpy()
            if gram[0, 0] > 0:
                half = self._halves[self._measured % 2]
                half *= _KEPT
                half += gram / gram[0, 0]
                self._measured += 1
        self._past = []

    def record(self) -> dict[str, Any]:
        """For a step's record: "history", once each half has a measurement."""
        if self._measured < 2:
            return {}
        halves = [half / half[0, 0] for half in self._halves]
        both = [prediction_errors(halves[a], halves[1 - a]) for a in (0, 1)]
        errors = np.maximum(np.mean(both, axis=0), 0.0).tolist()
        found = dataclasses.asdict(history_window(errors, eps=EPS))
        names = ("law", "window", "floor", "alpha", "tau")
        told = {
            "errors": errors,
            **{name: found[name] for name in names},
            "eps": EPS,
            "pays_below": self._pays_below,
            "measurements": self._measured,
        }
        return {"history": told}


@final
class BucketHistory:
    """What a bucket's observer calls."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor, own: torch.Tensor, mean: torch.Tensor) -> None:
        self._source, self._target, self._own, self._mean = source, target, own, mean

    def gradient(self, flat: torch.Tensor, step: int) -> None:
        """This rank's own, before anything is done to it; only steps that are measured need it."""
        if step % EVERY == 0:
            self._copy(flat, self._own)

    def mean(self, flat: torch.Tensor, step: int) -> None:
        """What all ranks got."""
        if _before_measurement(step):
            self._copy(flat, self._mean)

    def _copy(self, flat: torch.Tensor, sample: torch.Tensor) -> None:
        # Two calls for a bucket, however many layers it has.
        sample.index_copy_(0, self._target, flat.index_select(0, self._source).to(sample.dtype))


def _before_measurement(step: int) -> bool:
    return step % EVERY >= EVERY - WINDOW
