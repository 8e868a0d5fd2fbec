"""Running statistics of the layers, as all ranks have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from commpress.allocation._objective import Array, Numbers, check_numbers
from commpress.errors import SpecError, StateError

_FIELDS = ("weight", "energy", "variance_weight", "variance", "held", "held_variance")
_COUNTS = ("leaving", "restarts", "outliers")


@final
class Statistics:
    """Running means of the layers' energies and noise variances, with exponential decay and without its bias at the start.

    After k updates the mean is sum beta^(k-i) x_i / sum beta^(k-i). Where a layer's new value is more than ``drift`` times the running
    mean, or less than a ``drift``-th of it, the value is held back; is the next one so too (either way), the layer's means begin anew with
    these two values, and `restarts` counts it. A value that stays alone is dropped, and `outliers` counts it.
    Only + - * / and comparisons are used: equal updates give equal bits on every machine.

    Args:
        layers: number of layers, >= 0.
        decay: beta in [0, 1): the weight of the past; 1/(1-beta) updates are averaged.
        drift: factor above 1.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(self, layers: int, *, decay: float = 0.9, drift: float = 4.0) -> None:
        if layers < 0 or not 0 <= decay < 1 or not drift > 1:
            raise SpecError(f"need layers >= 0, decay in [0, 1), drift > 1; got {layers}, {decay}, {drift}")
        self.layers, self.decay, self.drift = layers, float(decay), float(drift)
        self.updates = 0
        self._state: dict[str, Array] = {name: np.zeros(layers) for name in _FIELDS}
        self._counts = {name: np.zeros(layers, dtype=np.int64) for name in _COUNTS}

    @property
    def energies(self) -> Array:
        """Mean of |g|^2 of each layer, float64 of shape (layers,); 0 before the first update."""
        return _mean(self._state["energy"], self._state["weight"])

    @property
    def variances(self) -> Array | None:
        """Mean noise variance per coordinate of each layer, shape (layers,); None before an update had any."""
        if self.layers and not self._state["variance_weight"].all():
            return None
        return _mean(self._state["variance"], self._state["variance_weight"]) if self.updates else None

    @property
    def restarts(self) -> tuple[int, ...]:
        """How often drift made each layer's means begin anew."""
        return tuple(self._counts["restarts"].tolist())

    @property
    def outliers(self) -> tuple[int, ...]:
        """How many single values of each layer were dropped."""
        return tuple(self._counts["outliers"].tolist())

    def update(self, energies: Numbers, variances: Numbers | None = None) -> tuple[int, ...]:
        """Takes in one step's values, the same on every rank.

        Args:
            energies: |g|^2 of each layer, finite and >= 0, shape (layers,).
            variances: noise variance per coordinate, finite and >= 0, shape (layers,); None leaves their means as they are.

        Returns:
            The layers whose means began anew.

        Raises:
            SpecError: a value is negative or not finite, or their number is wrong; nothing has changed then. (A step that
                overflowed has no statistics: leave it out.)
        """
        x = check_numbers(energies, self.layers, "energies")
        v = None if variances is None else check_numbers(variances, self.layers, "variances")
        state, counts = self._state, self._counts
        leaves = self._leaves(x, "energy", "weight")
        if v is not None:
            leaves |= self._leaves(v, "variance", "variance_weight")
        again = leaves & (counts["leaving"] > 0)
        counts["outliers"] += ~leaves & (counts["leaving"] > 0)
        counts["restarts"] += again
        for name in ("weight", "energy", "variance_weight", "variance"):
            state[name][again] = 0.0
        takes = ~leaves | again
        self._add("energy", "weight", state["held"], again)
        self._add("energy", "weight", x, takes)
        if v is not None:
            # A held update may have had no variances: then there is -1.
            self._add("variance", "variance_weight", state["held_variance"], again & (state["held_variance"] >= 0))
            self._add("variance", "variance_weight", v, takes)
        first = leaves & ~again
        counts["leaving"] = first.astype(np.int64)
        state["held"] = np.where(first, x, 0.0)
        state["held_variance"] = np.where(first, -1.0 if v is None else v, 0.0)
        self.updates += 1
        return tuple(np.flatnonzero(again).tolist())

    def _leaves(self, x: Array, name: str, weight: str) -> np.ndarray:
        mean = _mean(self._state[name], self._state[weight])
        with np.errstate(over="ignore"):
            return (self._state[weight] > 0) & ((x > mean * self.drift) | (x * self.drift < mean))

    def _add(self, name: str, weight: str, x: Array, where: np.ndarray) -> None:
        state, keep, take = self._state, self.decay, 1.0 - self.decay
        state[name] = np.where(where, keep * state[name] + take * x, state[name])
        state[weight] = np.where(where, keep * state[weight] + take, state[weight])

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers and lists (JSON keeps it to the bit)."""
        head: dict[str, Any] = {
            "layers": self.layers,
            "decay": self.decay,
            "drift": self.drift,
            "updates": self.updates,
        }
        return head | {name: array.tolist() for name, array in (self._state | self._counts).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave.

        Raises:
            StateError: it is of another number of layers, or malformed; nothing has changed then.
        """
        try:
            if state["layers"] != self.layers:
                raise StateError(f"the state is of {state['layers']} layers, these statistics of {self.layers}")
            decay, drift, updates = float(state["decay"]), float(state["drift"]), int(state["updates"])
            arrays = {name: np.array(state[name], dtype=np.float64) for name in _FIELDS}
            counts = {name: np.array(state[name], dtype=np.int64) for name in _COUNTS}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"this is no state of allocation statistics: {error!r}") from None
        for name, array in (arrays | counts).items():
            low = -1 if name == "held_variance" else 0
            if array.shape != (self.layers,) or not np.isfinite(array).all() or (array < low).any():
                raise StateError(f"this is no state of allocation statistics: {name} is malformed")
        if not 0 <= decay < 1 or not drift > 1 or updates < 0:
            raise StateError("this is no state of allocation statistics: decay, drift or updates is out of range")
        self.decay, self.drift, self.updates = decay, drift, updates
        self._state, self._counts = arrays, counts


def _mean(sums: Array, weights: Array) -> Array:
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), 0.0)
