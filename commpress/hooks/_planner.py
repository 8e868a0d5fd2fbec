"""The allocator under the DDP hook: statistics in, a codec for every bucket out."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from commpress.allocation import LLOYD_MAX, OBJECTIVES, Allocator, Curve, Plan
from commpress.codecs import Codec, Key, LayeredCodec
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError, StateError
from commpress.feedback import Layout
from commpress.hooks._dimensions import DimensionSettings, check_replanning, dimension_settings, is_low_rank
from commpress.hooks._optimizer import adam_weights, check_optimizer, second_moments
from commpress.hooks._statistics import LayerStatistics
from commpress.hooks._sums import Column

_RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
_LOWEST_RATE = 0.05  # every layer is heard of now and then, whatever the objective
_SAMPLE = 1 << 17
_EXACT = make_codec("none")
FAMILIES = ("hadamard+lloyd", "uniform", "lloyd", "hadamard+bitshift", "bitshift")
_LOW_RATES = (0.05, 0.1, 0.125, 0.2, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of bitshift


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What a HookState with a bit budget was asked for.

    Args:
        bits: mean payload bits per coordinate and phase, headers apart.
        family: of the codec whose rates are chosen.
        objective: see :mod:`commpress.allocation`; None: "unbiased" for an unbiased codec, else "mse".
        every: steps between two plans.
        pinned: a plan that is kept, or the path of a saved one.
        gamma: of the objective "weighted": w = s^-gamma, a multiple of 1/4.
        optimizer: one of Adam's kind, whose second moments weigh the layers' errors (:func:`adam_weights`); None: all weigh the same, or as `gamma` says.
        predict: code a layer against the previous mean where that pays; see :mod:`commpress.hooks._prediction`.
        floor: least rate of a layer as a share of `bits`. An optimizer like Adam divides every layer's gradient by its own scale, so a quiet layer needs its bits too.

    Raises:
        SpecError: a value out of its range.
    """

    bits: float
    family: str = "hadamard+lloyd"
    objective: str | None = None
    every: int = 10
    pinned: Plan | str | os.PathLike[str] | None = None
    floor: float = 0.9
    gamma: float | None = None
    predict: bool = True
    optimizer: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, (int, float)) or not 0 < self.bits <= 8:
            raise SpecError(f"bits must be above 0 and at most 8, got {self.bits!r}")
        name, _, options = self.family.partition(",")
        if name not in FAMILIES or (options and "bitshift" not in name):
            raise SpecError(
                f"with bits=, codec names a family and no rate: one of {', '.join(FAMILIES)}, lowrank, bitshift also with "
                f"options, such as 'hadamard+bitshift,length=8'; got {self.family!r}"
            )
        self.base()
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise SpecError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.optimizer is not None:
            check_optimizer(self.optimizer)
        if self.gamma is not None and (self.objective != "weighted" or self.optimizer is not None):
            raise SpecError('gamma= belongs to objective="weighted" without an optimizer')
        if self.objective == "weighted" and self.gamma is None and self.optimizer is None:
            raise SpecError('objective="weighted" takes its weights from gamma= or from optimizer=')
        check_replanning(self.every, self.floor)

    def arguments(self) -> dict[str, Any]:
        """Of the HookState that was asked for. Raises StateError if they cannot be pickled."""
        if self.optimizer is not None:
            raise StateError("a HookState with an optimizer cannot be pickled: save its state_dict() instead")
        names = {"codec": self.family, "bits": self.bits, "objective": self.objective}
        return names | {
            "plan": self.pinned,
            "plan_every": self.every,
            "plan_floor": self.floor,
            "predict": self.predict,
            "gamma": self.gamma,
        }

    def base(self) -> Codec:
        """The codec at the mean rate: what stands for all layers before there is a plan."""
        return make_codec(_spec(self.family, f"{self.bits:.6f}"))


def default_family(bits: Any) -> str:
    """Of a budget: fast where bits are plenty; below three quarters of a bit, where that one sends but a part of the coordinates, the trellis, which carries nearly twice as much."""
    few = isinstance(bits, (int, float)) and 0.05 <= bits < 0.75
    return "hadamard+bitshift,length=8" if few else "hadamard+lloyd"


def plan_settings(
    codec: Any, bits: Any, objective: Any, every: Any, plan: Any, floor: Any, predict: Any, gamma: Any, optimizer: Any
) -> PlanSettings | DimensionSettings | None:
    """From a HookState's arguments; None without a budget. Raises SpecError."""
    if bits is not None and is_low_rank(codec):
        return dimension_settings(codec, bits, objective, every, plan, floor, gamma, optimizer)
    if bits is not None:
        family = default_family(bits) if codec is None else str(codec)
        return PlanSettings(bits, family, objective, every, plan, floor, gamma, bool(predict), optimizer)
    if plan is not None or objective is not None or gamma is not None or optimizer is not None:
        raise SpecError("plan, objective, gamma and optimizer belong to a bit budget: give bits= too")
    return None


def _spec(family: str, rate: str) -> str:
    name, _, options = family.partition(",")
    return f"{name}:{rate}" + ("," + options if options else "")


@functools.lru_cache(maxsize=8)
def measured_curve(family: str) -> Curve:
    """Captured fraction of N(0,1) at each whole rate: exact for `hadamard+lloyd`, else from 131,072 coordinates, to four digits."""
    if family == "hadamard+lloyd":
        return LLOYD_MAX
    x = torch.randn(_SAMPLE, generator=torch.Generator().manual_seed(20_261_122))
    rates: tuple[float, ...] = _RATES
    found = []
    if "bitshift" in family:
        rates = tuple(r for r in _LOW_RATES if _exists(_spec(family, f"{r:g}")))
    for rate in rates:
        codec = make_codec(_spec(family, f"{rate:g}"))
        y = codec.decode(codec.encode(x, Key()), Key(), out=torch.empty_like(x)).double()
        z = x.double()
        found.append(round(float((z @ y) ** 2 / ((z @ z) * (y @ y))), 4))
    return Curve(rates, tuple(found))


def _exists(spec: str) -> bool:
    try:
        make_codec(spec)
    except SpecError:
        return False
    return True


@final
class Planner:
    """Args: dims: coordinates of each layer by name. settings: what was asked for. feedback: whether codecs get the least-squares scale."""

    def __init__(self, dims: dict[str, int], settings: PlanSettings, *, feedback: bool) -> None:
        self._settings = settings
        self._base = settings.base().for_feedback() if feedback else settings.base()
        self._sizes = list(dims.values())
        sizes = np.array(self._sizes, dtype=np.int64)
        self._codecs: dict[Layout, LayeredCodec] = {}
        unbiased = settings.base().unbiased and not feedback
        pinned = settings.pinned
        if pinned is not None and not isinstance(pinned, Plan):
            pinned = Plan.load(pinned)
        self.allocator = Allocator(
            list(dims),
            self._sizes,
            budget_bytes=None if pinned else int(settings.bits * sum(self._sizes) / 8),
            objective=settings.objective or ("unbiased" if unbiased else "mse"),
            curve=measured_curve(settings.family),
            gamma=settings.gamma,
            weights=np.ones(len(sizes)) if settings.objective == "weighted" and settings.gamma is None else None,
            every=settings.every,
            cost=lambda layers, rates: self._base.payload_nbytes_each(rates, sizes[layers]),
            lowest_rate=max(_LOWEST_RATE, settings.floor * settings.bits),
            pinned=pinned,
        )

    def identity(self) -> dict[str, Any]:
        """What must be equal on all ranks."""
        return {
            "weights from an optimizer": self._settings.optimizer is not None,
            "plan settings": repr(dataclasses.replace(self._settings, pinned=None)),
            "plan": self.plan.digest(),
            "curve": [float(g) for g in measured_curve(self._settings.family).captured],
        }

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self.allocator.plan

    @property
    def weighs_noise(self) -> bool:
        """Whether plans follow the gradients' variance between ranks, which is known only with the codec's distortion."""
        return self._settings.objective == "fisher"

    def due(self, step: int) -> bool:
        """Whether the statistics of this step are wanted."""
        return self.allocator.due(step)

    def moments(self, parameters: dict[str, torch.Tensor]) -> dict[str, float] | None:
        """Sums of the optimizer's second moments by parameter, if they are wanted."""
        optimizer = self._settings.optimizer
        return None if optimizer is None else second_moments(optimizer, parameters)

    def observe(self, statistics: LayerStatistics) -> Plan | None:
        """Takes a step's statistics; a new plan if it changed."""
        if not statistics.finite:
            return None
        variances: np.ndarray | None = statistics.variances
        if variances is not None and not bool(np.isfinite(variances).all()):
            variances = None
        weights = None
        if self._settings.optimizer is not None:
            weights = adam_weights(statistics.table[:, Column.MOMENT], np.array(self._sizes))
        # Shares: gradients shrink as training goes on, and a mean of energies would be that of the first steps.
        energies = statistics.encoded_energies
        total = math.fsum(energies)
        self.allocator.observe(statistics.step, energies / total if total > 0 else energies, variances, weights=weights)
        plan = self.allocator.replan(statistics.step)
        if plan is not None:
            self._codecs.clear()
        return plan

    def codec(self, layout: Layout) -> LayeredCodec:
        """Of a bucket, or of a row of a reduce-scatter, under the plan in use."""
        if layout not in self._codecs:
            rates = dict(zip(self.plan.names, zip(self.plan.rates, self.plan.exact, strict=True), strict=True))
            pairs = [
                (size, self._at(*rates.get(name, (0.0, True))))
                for name, size in zip(layout.parameters, layout.sizes, strict=True)
            ]
            self._codecs[layout] = LayeredCodec(pairs)
        return self._codecs[layout]

    def payload_bits(self) -> np.ndarray:
        """Payload bits per coordinate of each layer under the plan in use."""
        plan = self.plan
        return np.array(
            [
                8 * self._at(rate, exact).payload_nbytes(n) / n if n else 0.0
                for n, rate, exact in zip(self._sizes, plan.rates, plan.exact, strict=True)
            ]
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text and lists."""
        return self.allocator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the plan and the averages of `state`. Raises StateError."""
        self.allocator.load_state_dict(state)
        self._codecs.clear()

    def _at(self, rate: float, exact: bool) -> Codec:
        return _EXACT if exact else self._base.at_rate(round(rate * 1_000_000))


def layers_of(parameters: dict[str, torch.Tensor]) -> dict[str, int]:
    """Coordinates of each parameter that has any; a complex one has two for each element."""
    return {n: p.numel() * (2 if p.is_complex() else 1) for n, p in parameters.items() if p.numel()}


def plan_codecs(planner: Planner | None, codec: Codec, layouts: Sequence[Layout]) -> list[Codec]:
    """The codec of each bucket."""
    return [codec if planner is None else planner.codec(layout) for layout in layouts]
