"""Predictive coding of layers against the previous aggregate, which every rank knows to the bit.

Where the gradients of one step resemble the mean of the step before, their difference has less energy, and the same bits leave a smaller error. A layer's gradient g is
coded as ``g - a p``, p the previous mean and a the same number on all ranks, and ``a p`` is added to the mean of what arrives: nothing is lost, the mean stays unbiased.
With ``c`` the mean over ranks of ``<g_i, p>`` the best a is ``c / |p|^2`` and the energy falls by the factor ``1 - n c^2 / (|p|^2 sum |g_i|^2)`` (linear prediction;
the gain over coding without it is that of Gorbunov and Pinsker's causal codes).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

import numpy as np
import torch

from commpress import ops
from commpress.errors import StateError
from commpress.feedback import Layout
from commpress.hooks._statistics import LayerStatistics
from commpress.hooks._sums import Column, LayerSums

_NEW = 0.5  # weight of the newest step in the running means
_ON, _OFF = 1.1, 1.05  # gains in energy from which prediction begins and under which it ends: a tenth is 0.07 bits
PAYS_BELOW = 1 / _ON
"""Part of a layer's energy that a prediction may leave for the layer to be predicted."""


@final
class Predictor:
    """The previous mean and the coefficient of every layer. Equal on all ranks.

    Args:
        dims: coordinates of each layer by name.

    Memory: 4 bytes a coordinate.
    """

    def __init__(self, dims: dict[str, int]) -> None:
        self.names = list(dims)
        self.coefficients = dict.fromkeys(dims, 0.0)
        self.gains = dict.fromkeys(dims, 1.0)
        # Of the products with the previous mean, and of its squares, over |g|^2: of one step alone they are noisy.
        self._means: dict[str, tuple[float, float]] = {}
        self._previous: dict[str, torch.Tensor] = {}
        self._dims = dims

    @property
    def active(self) -> bool:
        """Whether any layer is predicted."""
        return any(self.coefficients.values())

    def observe(self, statistics: LayerStatistics, exact: Collection[str] = ()) -> None:
        """Decides for the next steps. Layers that are sent `exact`ly have nothing to gain."""
        table = statistics.table
        for i, name in enumerate(self.names):
            if name in exact:
                self.gains[name], self.coefficients[name] = 1.0, 0.0
                continue
            local, cross, power = (float(table[i, c]) for c in (Column.LOCAL, Column.CROSS, Column.PREVIOUS))
            if power > 0 and local > 0:
                new = cross / local, power / local
                known = self._means.get(name, new)
                self._means[name] = known[0] + _NEW * (new[0] - known[0]), known[1] + _NEW * (new[1] - known[1])
            c, q = self._means.get(name, (0.0, 1.0))  # power is n |p|^2: every rank has added the same
            gain = 1.0 / max(1.0 - c * c / q, 1e-6)
            on = gain > (_OFF if self.coefficients[name] else _ON)
            self.gains[name] = gain
            self.coefficients[name] = c / q if on else 0.0

    def bucket(self, layout: Layout) -> BucketPrediction:
        """The part of one bucket."""
        return BucketPrediction(self, layout)

    def forget(self) -> None:
        """Gives the memory back; only while not active."""
        self._previous = {}

    def previous(self, name: str) -> torch.Tensor | None:
        """The previous mean of a layer, flat fp32."""
        return self._previous.get(name)

    def keep(self, name: str, mean: torch.Tensor) -> None:
        """Remembers a layer's mean."""
        held = self._previous.get(name)
        if held is None:
            self._previous[name] = mean.to(torch.float32, copy=True)
        else:
            held.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        return {
            "coefficients": dict(self.coefficients),
            "gains": dict(self.gains),
            "means": {name: list(pair) for name, pair in self._means.items()},
            "previous": {name: value.clone() for name, value in self._previous.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises StateError if it is of other layers."""
        sizes = {name: value.numel() for name, value in state["previous"].items()}
        if set(state["coefficients"]) != set(self._dims) or any(self._dims.get(k) != n for k, n in sizes.items()):
            raise StateError("the saved prediction is of other layers")
        self.coefficients, self.gains = dict(state["coefficients"]), dict(state["gains"])
        self._means = {name: (c, q) for name, (c, q) in state["means"].items()}
        self._previous = {name: value.clone() for name, value in state["previous"].items()}


@final
class BucketPrediction:
    """What a bucket's observer calls."""

    def __init__(self, predictor: Predictor, layout: Layout) -> None:
        self._predictor = predictor
        self._segments = list(layout.segments())
        self._kept = False  # what is predicted, by `add_back`

    def measure(self, flat: torch.Tensor, sums: LayerSums) -> None:
        """Adds the products with the previous mean to the table."""
        for i, (name, start, stop) in enumerate(self._segments):
            previous = self._predictor.previous(name)
            if previous is not None:
                sums.add_previous(i, flat[start:stop], previous)

    def subtract(self, flat: torch.Tensor) -> None:
        """Phase 1, first: leaves the difference."""
        self._add(flat, -1.0, keep=False)

    def add_back(self, flat: torch.Tensor, *, final: bool = False) -> None:
        """At the end: makes a mean of the mean difference. If that is `final`, and finite, it is remembered in the same pass over memory."""
        self._add(flat, 1.0, keep=final)
        self._kept = final

    def _add(self, flat: torch.Tensor, sign: float, *, keep: bool) -> None:
        for name, start, stop in self._segments:
            coefficient, previous = self._predictor.coefficients[name], self._predictor.previous(name)
            if not coefficient or previous is None:
                continue
            values = flat[start:stop]
            if values.dtype == torch.float32:
                ops.add_multiple(values, previous, sign * coefficient, keep=keep)
                continue
            values.add_(previous * (sign * coefficient))
            if keep:
                previous.copy_(values)

    def keep(self, flat: torch.Tensor, *, every_layer: bool) -> None:
        """Remembers the mean for the next step, of the layers that are predicted or of all."""
        for name, start, stop in self._segments:
            predicted = bool(self._predictor.coefficients[name])
            if predicted and self._kept and self._predictor.previous(name) is not None:
                continue
            if every_layer or predicted:
                self._predictor.keep(name, flat[start:stop])


def prediction_record(predictor: Predictor, table: np.ndarray) -> dict[str, Any]:
    """For telemetry: the layers that were predicted, and the gain in energy that was measured with the present table's weights."""
    on = [name for name, a in predictor.coefficients.items() if a]
    energies = dict(zip(predictor.names, table[:, Column.LOCAL], strict=True))
    before = sum(energies[name] for name in on)
    after = sum(energies[name] / predictor.gains[name] for name in on)
    return {
        "layers": [{"name": name, "gain": predictor.gains[name], "a": predictor.coefficients[name]} for name in on],
        "gain": before / after if after else None,
    }
