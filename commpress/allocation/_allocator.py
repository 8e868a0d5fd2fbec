"""Statistics in, plans out: the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from commpress.allocation._curve import Curve, Curves
from commpress.allocation._objective import (
    MICRO,
    Array,
    Ints,
    Numbers,
    check_dims,
    check_numbers,
    check_objective,
    check_weights,
    loss_of,
    value_of,
    weights_from_gamma,
)
from commpress.allocation._plan import Plan
from commpress.allocation._price import Cost, Price
from commpress.allocation._problem import EXACT_RATE, Problem, lowest_micro
from commpress.allocation._statistics import Statistics
from commpress.errors import SpecError, StateError

LLOYD_MAX = Curve.from_distortions(
    (1, 2, 3, 4, 5, 6, 7, 8),
    (0.3633802276, 0.1174818478, 0.0345477608, 0.0095010080, 0.0025046684, 0.0006442397, 0.0001634782, 0.0000411851),
)
"""Curve of the codec `hadamard+lloyd`: D of Lloyd-Max quantisers of N(0,1) with 2^b levels (Max 1960; from the codec's own tables)."""


@final
class Allocator:
    """Plans for one model: gathers statistics at chosen steps and makes a new plan where it pays.

    The layers' second moments are energies / dims for `unbiased`, `mse` and `weighted` (a codec's error is in proportion to the energy
    that it encodes), and for `fisher` the noise variances where they were observed. Equal calls give equal plans on every rank and machine.

    Args:
        names: of the layers, each another one.
        dims: their coordinates.
        bits: budget as bits per coordinate: what uniform rates of that many bits cost. Or:
        budget_bytes: budget in bytes. One of the two, neither only with ``pinned``.
        objective: `unbiased`, `mse`, `fisher` or `weighted`.
        curve: the codec's, one for all layers or one for each.
        every: steps between observations, >= 1, after
        warmup: first steps that are all observed, >= 0.
        hysteresis: a new plan must lower the objective's loss (what exact layers would remove from it: w d s (1-G), or w d s (1/G - 1) for
            `unbiased`) by more than this part.
        exact_below, exact_share, cost, lowest_rate: as in :func:`solve_on_curve`. Under 512 coordinates a rate can't be mixed inside a layer.
        weights: w of each layer; ``observe`` may replace them.
        gamma: of `weighted`: w = s^-gamma, a multiple of 1/4.
        pinned: a plan that stays.
        decay, drift: of :class:`Statistics`.

    Raises:
        SpecError: an argument is malformed, the budget is too small, or the pinned plan is for other layers.
    """

    def __init__(
        self,
        names: Sequence[str],
        dims: Sequence[int],
        *,
        bits: float | None = None,
        budget_bytes: int | None = None,
        objective: str = "unbiased",
        curve: Curve | Sequence[Curve] = LLOYD_MAX,
        every: int = 50,
        warmup: int = 5,
        hysteresis: float = 0.02,
        exact_below: int = 512,
        exact_share: float = 0.05,
        cost: Cost | None = None,
        weights: Numbers | None = None,
        gamma: float | None = None,
        lowest_rate: float | None = None,
        pinned: Plan | None = None,
        decay: float = 0.9,
        drift: float = 4.0,
    ) -> None:
        self.names, sizes = tuple(names), check_dims(dims)
        if len(self.names) != len(sizes):
            raise SpecError(f"got {len(self.names)} names for {len(sizes)} layers")
        if every < 1 or warmup < 0 or not 0 <= hysteresis < 1:
            raise SpecError("need every >= 1, warmup >= 0, hysteresis in [0, 1)")
        self.objective, self.every, self.warmup = check_objective(objective), every, warmup
        self.hysteresis, self.gamma = float(hysteresis), gamma
        self.statistics = Statistics(len(sizes), decay=decay, drift=drift)
        self._dims = sizes
        self._weights = check_weights(objective, weights, gamma, len(sizes))
        if gamma is not None:
            weights_from_gamma(np.ones(len(sizes)), gamma)  # refuses what isn't a multiple of 1/4
        self._curves = Curves(curve, len(sizes))
        self._pinned = pinned
        self._problem: Problem | None = None
        if pinned is not None:
            pinned.check(self.names, sizes.tolist())
            self._plan = pinned
            return
        uniform, budget, used = self._uniform(bits, budget_bytes, Price(sizes, self._curves, cost), lowest_rate)
        self._problem = Problem(
            objective,
            sizes,
            budget,
            self._curves,
            cost=cost,
            exact_below=exact_below,
            exact_rate=EXACT_RATE,
            exact_share=exact_share,
            lowest_rate=lowest_rate,
        )
        self._uniform_rates = uniform
        self._plan = self._as_plan(uniform, used, None)

    def _uniform(
        self, bits: float | None, budget_bytes: int | None, price: Price, lowest_rate: float | None
    ) -> tuple[Ints, int, int]:
        """Uniform rates in millionths, the budget, and what they use of it."""
        layers = np.arange(len(self._dims))
        top = round(self._curves.highest_rate * MICRO)
        low = lowest_micro(self.objective, self._curves, lowest_rate)

        def rates(micro: int) -> Ints:
            return np.where(self._dims > 0, micro, 0)

        if (bits is None) == (budget_bytes is None):
            raise SpecError("give the budget as bits (per coordinate) or as budget_bytes, one of the two")
        if bits is not None:
            if not max(low, 1) / MICRO <= bits <= top / MICRO:
                raise SpecError(f"bits must be from {max(low, 1) / MICRO:g} to the curve's {top / MICRO:g}, got {bits}")
            micro = int(bits * MICRO + 0.5)
            used = price.together(layers, rates(micro))
            return rates(micro), used, used
        if not isinstance(budget_bytes, (int, np.integer)) or isinstance(budget_bytes, bool) or budget_bytes < 0:
            raise SpecError(f"budget_bytes must be an integer that is at least 0, got {budget_bytes!r}")
        least = price.together(layers, rates(low))
        if least > budget_bytes:
            raise SpecError(f"a budget of {budget_bytes} bytes is too small: these layers need at least {least} bytes")
        high = top + 1
        while high - low > 1:
            middle = (low + high) // 2
            if price.together(layers, rates(middle)) <= budget_bytes:
                low = middle
            else:
                high = middle
        return rates(low), int(budget_bytes), price.together(layers, rates(low))

    @property
    def plan(self) -> Plan:
        """The present plan; uniform rates before the first :meth:`replan`."""
        return self._plan

    @property
    def pinned(self) -> bool:
        """Whether the plan stays whatever is observed."""
        return self._pinned is not None

    def due(self, step: int) -> bool:
        """Whether statistics should be gathered at this step: the first ``warmup`` steps, then every ``every``-th. Never for a pinned plan."""
        return not self.pinned and (step < self.warmup or step % self.every == 0)

    def observe(
        self,
        step: int,
        energies: Numbers | Mapping[str, float],
        variances: Numbers | Mapping[str, float] | None = None,
        *,
        weights: Numbers | Mapping[str, float] | None = None,
    ) -> tuple[int, ...]:
        """Takes in one step's statistics, which must be the same on every rank (reduced).

        Args:
            step: >= 0, for the message of an error only.
            energies: |g|^2 of each layer, in the layers' order or by name.
            variances: noise variance per coordinate, likewise.
            weights: replace the present ones from now on, likewise.

        Returns:
            Layers whose means began anew because of drift.

        Raises:
            SpecError: a value is negative or not finite, or a layer is missing; nothing has changed then.
        """
        if step < 0:
            raise SpecError(f"step must be at least 0, got {step}")
        try:
            by_layer = [self._by_layer(values) for values in (energies, variances, weights)]
            new = None
            if by_layer[2] is not None:
                if self.gamma is not None:
                    raise SpecError("weights follow from gamma here; give one of the two")
                new = check_numbers(by_layer[2], len(self._dims), "weights")
            assert by_layer[0] is not None
            again = self.statistics.update(by_layer[0], by_layer[1])
        except SpecError as error:
            raise SpecError(f"step {step}: {error}") from None
        if new is not None:
            self._weights = new
        return again

    def _by_layer(self, values: Numbers | Mapping[str, float] | None) -> Numbers | None:
        if not isinstance(values, Mapping):
            return values
        if set(values) != set(self.names):
            wrong = sorted(set(values) ^ set(self.names), key=str)
            raise SpecError(f"statistics must be of the plan's layers; missing or unknown: {wrong[:3]}")
        return [values[name] for name in self.names]

    def second_moments(self) -> Array:
        """s of each layer, as the objective takes it, shape (layers,)."""
        if self.objective == "fisher" and self.statistics.variances is not None:
            return self.statistics.variances
        return self.statistics.energies / np.maximum(self._dims, 1)

    def replan(self, step: int) -> Plan | None:
        """A new plan, which becomes the present one, if it pays by the present statistics; else None.

        Args:
            step: >= 0; says nothing about the plan.

        None before the first observation and for a pinned plan. SpecError for a negative step.
        """
        if step < 0:
            raise SpecError(f"step must be at least 0, got {step}")
        if self._problem is None or not self.statistics.updates or not len(self._dims):
            return None
        s = self.second_moments()
        w = self._weights if self.gamma is None else weights_from_gamma(s, self.gamma)
        rates, used = self._problem.solve(s, w)
        d = self._dims.astype(np.float64)
        present = loss_of(self.objective, d, s, w, self._captured(self._plan))
        new = loss_of(self.objective, d, s, w, self._problem.captured(rates))
        if not new < (1.0 - self.hysteresis) * present:
            return None
        self._plan = self._as_plan(rates, used, (s, w))
        return self._plan

    def _captured(self, plan: Plan) -> Array:
        """G of a plan's layers; exact ones 1."""
        return np.where(np.array(plan.exact, dtype=bool), 1.0, self._curves.at(np.array(plan.rates)))

    def _as_plan(self, rates: Ints, used: int, statistics: tuple[Array, Array] | None) -> Plan:
        assert self._problem is not None
        exact = self._problem.exact & (statistics is not None)
        predicted = uniform = 0.0
        if statistics is not None:
            d = self._dims.astype(np.float64)
            predicted = value_of(self.objective, d, *statistics, self._problem.captured(rates))
            at_uniform = self._curves.at(self._uniform_rates / MICRO)
            uniform = value_of(self.objective, d, *statistics, at_uniform)
        return Plan(
            names=self.names,
            dims=tuple(self._dims.tolist()),
            rates=tuple((rates / MICRO).tolist()),
            exact=tuple(exact.tolist()),
            objective=self.objective,
            budget_bytes=self._problem.budget,
            planned_bytes=used,
            predicted=predicted,
            predicted_uniform=uniform,
        )

    def state_dict(self) -> dict[str, Any]:
        """Statistics, plan and weights, as JSON values."""
        return {
            "statistics": self.statistics.state_dict(),
            "plan": self._plan.to_dict(),
            "weights": self._weights.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave. A pinned plan stays.

        Raises:
            StateError: it is malformed, of other layers, or its plan exceeds the budget; nothing has changed then.
        """
        statistics = Statistics(len(self._dims))
        try:
            plan = Plan.from_dict(state["plan"], names=self.names, dims=self._dims.tolist())
            weights = check_numbers(state["weights"], len(self._dims), "weights")
            statistics.load_state_dict(state["statistics"])
        except (KeyError, TypeError, SpecError) as error:
            raise StateError(f"this is no state of this allocator: {error}") from None
        if self._problem is not None and plan.planned_bytes > self._problem.budget:
            raise StateError(
                f"the saved plan uses {plan.planned_bytes} bytes, the budget is {self._problem.budget}; to begin with uniform "
                "rates again, load the statistics alone: allocator.statistics.load_state_dict(state['statistics'])"
            )
        self.statistics, self._weights = statistics, weights
        if not self.pinned:
            self._plan = plan
