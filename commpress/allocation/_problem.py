"""Real codecs, real bytes: rates that never cost more than the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import numpy as np

from commpress.allocation._curve import Curve, Curves
from commpress.allocation._fill import Filling, Inverse, Linear, Segments
from commpress.allocation._objective import (
    MICRO,
    Array,
    Ints,
    Numbers,
    check_dims,
    check_numbers,
    check_objective,
    check_weights,
    importance,
    value_of,
    weights_from_gamma,
)
from commpress.allocation._price import Cost, Price
from commpress.errors import SpecError

EXACT_RATE = 32.0
_ROUNDS = 40
_NEAR = 0.002  # the part of the budget that is left to single layers
_MARGIN = 0.0005
_ENOUGH = 0.9995
_FAIR = 0.99
_TRIES = 32
_QUICK, _THOROUGH = 4, 64  # questions per layer


@final
@dataclasses.dataclass(frozen=True)
class Allocation:
    """What :func:`solve_on_curve` found.

    Attributes:
        rates: bits per coordinate, multiples of 1e-6, float64 of shape (layers,); `exact_rate` for exact layers, 0 for a layer that isn't sent.
        exact: which layers go exact, bool of shape (layers,).
        nbytes: bytes of all layers together, at most the budget.
        value: the objective's value (see :func:`objective_value`); exact layers have G = 1.
    """

    rates: Array
    exact: np.ndarray
    nbytes: int
    value: float


@final
class Problem:
    """All of an allocation that doesn't change with the statistics. See :func:`solve_on_curve` for arguments and errors."""

    def __init__(
        self,
        objective: str,
        dims: Sequence[int] | Ints,
        budget_bytes: int,
        curve: Curve | Sequence[Curve] | Curves,
        *,
        cost: Cost | None = None,
        exact_below: int = 0,
        exact_rate: float = EXACT_RATE,
        exact_share: float = 0.05,
        lowest_rate: float | None = None,
    ) -> None:
        self.objective = check_objective(objective)
        self.dims = check_dims(dims)
        self.curves = curve if isinstance(curve, Curves) else Curves(curve, len(self.dims))
        if not budget_bytes >= 0 or not math.isfinite(budget_bytes):
            raise SpecError(f"budget_bytes must be at least 0, got {budget_bytes}")
        self.budget = int(budget_bytes)
        if not 0 < exact_rate <= 64 or not 0 <= exact_share <= 1 or exact_below < 0:
            raise SpecError("exact_rate must be in (0, 64], exact_share in [0, 1], exact_below at least 0")
        self.lowest = lowest_micro(objective, self.curves, lowest_rate)
        self.exact_micro = round(exact_rate * MICRO)
        self.price = Price(self.dims, self.curves, cost)
        some = np.flatnonzero(self.dims > 0)
        self.exact, self._exact_bytes = self._choose_exact(some, exact_below, exact_share)
        self.layers = some[~self.exact[some]]
        self._least = self._bytes_at_lowest(self.layers)
        if self._least > self.budget - self._exact_bytes:  # exact layers are a luxury
            self.exact, self._exact_bytes, self.layers = np.zeros(len(self.dims), dtype=bool), 0, some
            self._least = self._bytes_at_lowest(some)
        if self._least > self.budget:
            raise SpecError(
                f"a budget of {self.budget} bytes is too small: these layers need at least {self._least} bytes at the "
                f"lowest rate, {self.lowest / MICRO:g} bits per coordinate"
            )
        self.segments = Segments(self.layers, self.curves, self.price, self.lowest)

    def _bytes_at_lowest(self, layers: Ints) -> int:
        return self.price.together(layers, np.full(len(layers), self.lowest, dtype=np.int64))

    def _choose_exact(self, some: Ints, below: int, share: float) -> tuple[np.ndarray, int]:
        """The smallest layers first, as long as all of them fit the share of the budget."""
        exact, used = np.zeros(len(self.dims), dtype=bool), 0
        for layer in some[np.argsort(self.dims[some], kind="stable")].tolist():
            nbytes = -(-int(self.dims[layer]) * self.exact_micro // (8 * MICRO))
            if self.dims[layer] >= below or used + nbytes > share * self.budget:
                break
            exact[layer], used = True, used + nbytes
        return exact, used

    def solve(self, variances: Array, weights: Array) -> tuple[Ints, int]:
        """Rates of all layers in millionths of a bit, int64 of shape (layers,), and their bytes."""
        rates = np.where(self.exact, self.exact_micro, 0)
        nbytes = self._exact_bytes
        if self.layers.size:
            worth = importance(self.objective, variances[self.layers], weights[self.layers]) * self.dims[self.layers]
            filling = (Inverse if self.objective == "unbiased" else Linear)(self.segments, worth)
            found, used = self._fit(filling, self.budget - nbytes)
            rates[self.layers], nbytes = found, nbytes + used
        return rates, nbytes

    def captured(self, rates: Ints) -> Array:
        """G of all layers at rates in millionths, shape (layers,); 1 at the exact rate."""
        captured = self.curves.at(rates / MICRO)
        return np.where((rates == self.exact_micro) & self.exact, 1.0, captured)

    def _fit(self, filling: Filling, budget: int) -> tuple[Ints, int]:
        """Corrects what the hull asks for until the exact bytes fit, then spends what is left on single layers."""
        best, used = self.segments.micro[:, 0], self.price.together(self.layers, self.segments.micro[:, 0])
        target, low, high = float(budget), 0.0, math.inf
        tried = None
        for _ in range(_ROUNDS):
            rates = filling.rates(target)
            if tried is not None and np.array_equal(rates, tried):
                break
            tried = rates
            now = self.price.together(self.layers, rates)
            if now <= budget:
                low = target
                if now >= used:
                    best, used = rates, now
                if budget - now <= _NEAR * budget:
                    break
            else:
                high = target
            # Short of the budget rather than above it once more: each round asks for every layer's cost.
            target = target + (budget - now) - (_MARGIN * budget if now > budget else 0.0)
            if not low < target < high:
                target = (low + high) / 2.0 if high < math.inf else low + 1.0
        return self._spend_rest(filling, best.copy(), used, budget)

    def _spend_rest(self, filling: Filling, rates: Ints, used: int, budget: int) -> tuple[Ints, int]:
        """Each byte that is left goes to the layer that gains most by it."""
        # A quick round first; then thorough ones, a segment per layer each, while far from the budget and still moving.
        for turn in range(1 + self.segments.micro.shape[1]):
            start, goal = used, (_FAIR if turn else _ENOUGH) * budget
            gains, tops = filling.gains(rates)
            order = np.argsort(-gains, kind="stable")
            for row in (order if turn else order[:_TRIES]).tolist():
                if used >= goal:
                    break
                if rates[row] >= tops[row] or gains[row] <= 0:
                    continue
                before = rates[row]
                layer, top = int(self.layers[row]), int(tops[row])
                rates[row], more = self._raise(layer, int(before), top, budget - used, thorough=turn > 0)
                now = used + int(more) if self.price.exact else self.price.together(self.layers, rates)
                if now > budget:  # single layers are rounded up apart, and all of them together once more
                    rates[row] = before
                else:
                    used = now
            if used >= _FAIR * budget or (turn and used == start):
                break
        return rates, used

    def _raise(self, layer: int, rate: int, top: int, left: int, *, thorough: bool) -> tuple[int, float]:
        """A rate up to ``top`` that costs at most ``left`` bytes more, and those bytes: the highest if thorough, else one found by few questions."""
        base = self.price.of_layer(layer, rate)
        low, high, spent, above = rate, top, 0.0, self.price.of_layer(layer, top) - base
        if above <= left:
            return top, above
        for turn in range(_THOROUGH if thorough else _QUICK):
            if high - low <= 1:
                break
            middle = low + int((high - low) * ((left - spent) / (above - spent)))  # bytes are nearly linear in the rate
            if turn % 2 or not low < middle < high:
                middle = (low + high) // 2
            more = self.price.of_layer(layer, middle) - base
            if more <= left:
                low, spent = middle, more
            else:
                high, above = middle, more
        return low, spent


def lowest_micro(objective: str, curves: Curves, lowest_rate: float | None) -> int:
    """The lowest rate in millionths: 0 where a layer may be left out, at least one millionth for an unbiased estimate."""
    least = 1 if objective == "unbiased" else 0
    if lowest_rate is None:
        return least
    most = curves.highest_rate
    if not 0 <= lowest_rate <= most:
        raise SpecError(f"lowest_rate must be from 0 to the curves' highest rate {most:g}, got {lowest_rate}")
    return max(least, round(lowest_rate * MICRO))


def solve_on_curve(
    objective: str,
    dims: Sequence[int] | Ints,
    variances: Numbers,
    budget_bytes: int,
    curve: Curve | Sequence[Curve],
    *,
    weights: Numbers | None = None,
    gamma: float | None = None,
    cost: Cost | None = None,
    exact_below: int = 0,
    exact_rate: float = EXACT_RATE,
    exact_share: float = 0.05,
    lowest_rate: float | None = None,
) -> Allocation:
    """The best rates for a real codec within a number of bytes: argmin over the concave hull of its measured curve.

    `mse`, `weighted`: min sum w d s (1-G). `fisher`: max sum w (d/s) G. `unbiased`: min sum w d s/G. The first three buy
    segments of the hulls by their slope, the last has G = sqrt(w s g/mu) on a segment of slope g, clipped to it; both are exact for
    costs that are linear between the hull's points, and are corrected until the exact costs fit.
    Only + - * / sqrt, floor and comparisons are used: equal arguments give equal bits on every machine.

    Args:
        objective: `unbiased`, `mse`, `fisher` or `weighted`.
        dims: coordinates of each layer, integers >= 0. An empty layer gets rate 0.
        variances: s of each layer, >= 0, any unit. A layer with s = 0 (or w = 0) is worth nothing: it is served last.
        budget_bytes: the most bytes of all layers together.
        curve: the codec's, or one for each layer.
        weights: w, >= 0, for every objective; 1 unless given. `weighted` needs them or gamma.
        gamma: of `weighted`, w = s^-gamma, a multiple of 1/4 (:func:`weights_from_gamma`).
        cost: ``cost(layers, rates) -> bytes``, a :data:`Cost`: arrays of layers' numbers and of rates in millionths, in (0, highest rate];
            exact, not falling with the rate. None counts dims * (rate + overhead) / 8. A rate of 0 is a layer that isn't sent, and costs nothing.
        exact_below: layers with fewer coordinates go exact at ``exact_rate`` bits per coordinate, the smallest first, as long as all
            of them cost at most ``exact_share`` of the budget. (Their cost is dims * exact_rate / 8 bytes each.)
        lowest_rate: of every layer that isn't exact. None: 0, for `unbiased` 1e-6 (an estimate from no bits isn't unbiased).

    Returns:
        An :class:`Allocation`: at most ``budget_bytes``, and at least 99 % of them unless all layers have their highest rate or the cost's
        steps are coarser than that.

    Raises:
        SpecError: an argument is malformed, or the budget is below the cost of the lowest rates (the message has it).
    """
    layers = len(dims)
    w = check_weights(check_objective(objective), weights, gamma, layers)
    s = check_numbers(variances, layers, "variances")
    if gamma is not None:
        w = weights_from_gamma(s, gamma)
    problem = Problem(
        objective,
        dims,
        budget_bytes,
        curve,
        cost=cost,
        exact_below=exact_below,
        exact_rate=exact_rate,
        exact_share=exact_share,
        lowest_rate=lowest_rate,
    )
    rates, nbytes = problem.solve(s, w)
    value = value_of(objective, problem.dims.astype(np.float64), s, w, problem.captured(rates))
    return Allocation(rates / MICRO, problem.exact, nbytes, value)
