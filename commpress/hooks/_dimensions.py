"""A bit budget for low-rank factors: the allocator's choice of every matrix's dimension, under the DDP hook."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

from commpress.allocation import Dimensions, Plan
from commpress.codecs import Codec, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.collectives import MatrixShape, factor_nbytes, most_dimensions
from commpress.errors import SpecError, StateError
from commpress.lowrank import Tracker

_FAMILY = "lowrank"
_OBJECTIVES = ("mse", "weighted")


@final
@dataclasses.dataclass(frozen=True)
class DimensionSettings:
    """What a HookState with ``codec="lowrank"`` and a bit budget was asked for.

    Args:
        bits: mean payload bits per coordinate of the model and phase, with what goes exactly.
        family: ``lowrank``, or with options: ``lowrank,factors=SPEC``.
        objective: "mse" (default) or "weighted".
        every: steps between two choices.
        floor: see :class:`commpress.allocation.Dimensions`.
        gamma: of the objective "weighted".

    Raises:
        SpecError: a value out of its range, or an option that does not go with it.
    """

    bits: float
    family: str
    objective: str | None
    every: int
    floor: float
    gamma: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.bits, (int, float)) or not 0 < self.bits <= 32:
            raise SpecError(f"bits must be above 0 and at most 32, got {self.bits!r}")
        if self.objective not in (None, *_OBJECTIVES):
            raise SpecError(f"with lowrank the objective is one of {', '.join(_OBJECTIVES)}, got {self.objective!r}")
        if (self.objective == "weighted") != (self.gamma is not None):
            raise SpecError('gamma= belongs to objective="weighted", which needs it')
        check_replanning(self.every, self.floor)
        self.base()

    def arguments(self) -> dict[str, Any]:
        """Of the HookState that was asked for."""
        names = {"codec": self.family, "bits": self.bits, "objective": self.objective, "gamma": self.gamma}
        return names | {"plan_every": self.every, "plan_floor": self.floor}

    def base(self) -> Codec:
        """The codec without a dimension. It has no power iterations: their bytes would come on top of the budget."""
        _, _, options = self.family.partition(",")
        if "iterations" in options:
            raise SpecError(
                "with bits= there are no power iterations, whose bytes would exceed the budget: leave out iterations="
            )
        codec = make_codec(f"{_FAMILY}:1" + ("," + options if options else ""))
        assert isinstance(codec, LowRankCodec)
        return dataclasses.replace(codec, dimension=0, iterations=0)


def check_replanning(every: Any, floor: Any) -> None:
    """Raises SpecError unless these can be a HookState's `plan_every` and `plan_floor`."""
    if not isinstance(floor, (int, float)) or not 0 <= floor <= 0.95:
        raise SpecError(f"plan_floor must be from 0 to 0.95, got {floor!r}")
    if not isinstance(every, int) or every < 1:
        raise SpecError(f"plan_every must be an integer >= 1, got {every!r}")


def is_low_rank(codec: Any) -> bool:
    """Whether the family of a bit budget is `lowrank`."""
    return codec is not None and str(codec).partition(",")[0].partition(":")[0] == _FAMILY


def dimension_settings(
    codec: Any, bits: Any, objective: Any, every: Any, plan: Any, floor: Any, gamma: Any, optimizer: Any
) -> DimensionSettings:
    """From a HookState's arguments. Raises SpecError."""
    family = str(codec)
    if ":" in family.partition(",")[0]:
        raise SpecError(f"with bits=, codec names a family and no dimension: 'lowrank', got {family!r}")
    if plan is not None or optimizer is not None:
        raise SpecError("plan= and optimizer= do not go with lowrank")
    return DimensionSettings(bits, family, objective, every, floor, gamma)


@final
class DimensionPlanner:
    """The choice for one model. Equal on all ranks.

    Args:
        settings: what was asked for.
        codec: the codec in use.
        dims: coordinates of each layer by name.
        shapes: of those that travel as factors.

    Raises:
        SpecError: the budget is too small for one dimension each.
    """

    def __init__(
        self, settings: DimensionSettings, codec: LowRankCodec, dims: dict[str, int], shapes: dict[str, MatrixShape]
    ) -> None:
        self._settings = settings
        self._dims = dims
        self._shapes = shapes
        self._inner = codec.factors
        ordered = list(shapes.values())
        self._exact_bytes = 4 * sum(n for name, n in dims.items() if name not in shapes)
        self._budget = int(settings.bits * sum(dims.values()) / 8)

        def cost(i: int, dimension: int) -> int:
            return factor_nbytes(ordered[i], dimension, self._inner)

        least = self._exact_bytes + sum(cost(i, 1) for i in range(len(ordered)))
        if least > self._budget:
            raise SpecError(
                f"bits={settings.bits:g} is too little for {codec}: what goes exactly and one dimension of every matrix "
                f"need {8 * least / max(1, sum(dims.values())):.4f} bits a coordinate"
            )
        self._dimensions = Dimensions(
            [s.rows * s.columns for s in ordered],
            [most_dimensions(s) for s in ordered],
            cost,
            self._budget - self._exact_bytes,
            gamma=settings.gamma or 0.0,
            floor=settings.floor,
        )

    @property
    def chosen(self) -> dict[str, int]:
        """Dimension of each matrix by name."""
        return dict(zip(self._shapes, self._dimensions.chosen, strict=True))

    @property
    def plan(self) -> Plan:
        """Bits per coordinate that follow from the dimensions."""
        chosen, rates = self.chosen, []
        for name, n in self._dims.items():
            nbytes = factor_nbytes(self._shapes[name], chosen[name], self._inner) if name in chosen else 4 * n
            rates.append(int(8e6 * nbytes / n) / 1e6 if n else 0.0)
        return Plan(
            names=tuple(self._dims),
            dims=tuple(self._dims.values()),
            rates=tuple(rates),
            exact=tuple(name not in chosen for name in self._dims),
            objective=self._settings.objective or "mse",
            budget_bytes=self._budget,
            planned_bytes=self._exact_bytes + self._dimensions.planned_bytes,
        )

    def observe(self, step: int, trackers: Sequence[Tracker]) -> bool:
        """After a step that was finite on all ranks; whether the dimensions changed. The trackers then have the new ones."""
        for i, tracker in enumerate(trackers):
            if tracker.energy > 0:
                self._dimensions.observe(i, tracker.spectrum, tracker.energy)
        if (step + 1) % self._settings.every or not self._dimensions.replan():
            return False
        self.resize(trackers)
        return True

    def resize(self, trackers: Sequence[Tracker]) -> None:
        """Gives every tracker its dimension."""
        for tracker, dimension in zip(trackers, self._dimensions.chosen, strict=True):
            tracker.resize(dimension)

    def state_dict(self) -> dict[str, Any]:
        """Lists of numbers."""
        return self._dimensions.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave. Raises StateError."""
        try:
            self._dimensions.load_state_dict(state)
        except SpecError as problem:
            raise StateError(str(problem)) from problem
