"""What a codec captures at each rate, and its concave hull."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import numpy as np

from commpress.allocation._objective import MICRO, Array, Ints
from commpress.errors import SpecError

HIGHEST_RATE = 64.0


def concave_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the upper concave hull of points (x, y), x not decreasing, from the first point to the highest.

    Of points with equal x the highest counts. Uses + - * and comparisons alone.
    """
    hull: list[int] = []
    for i, (x, y) in enumerate(points):
        if hull and y <= points[hull[-1]][1]:
            continue
        while hull and points[hull[-1]][0] == x:
            hull.pop()
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = points[hull[-2]], points[hull[-1]]
            if (y1 - y0) * (x - x1) > (y - y1) * (x1 - x0):
                break
            hull.pop()
        hull.append(i)
    return hull


@final
@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a codec's rate-distortion curve.

    Attributes:
        rates: payload bits per coordinate, ascending, multiples of 1e-6, above 0.
        captured: G = 1 - D at each rate, in [0, 1]: D is the squared error of the best linear reconstruction over the energy.
            An unbiased estimate has the relative variance 1/G - 1.
        overhead: further bits per coordinate at each rate (scales, headers), >= 0; empty means none. The hull is that of G over
            rate + overhead, and both are mixed alike.

    Between the points of the hull rates are mixed by time sharing, so G is linear there; above the highest rate it stays.

    Raises:
        SpecError: the points are malformed.
    """

    rates: tuple[float, ...]
    captured: tuple[float, ...]
    overhead: tuple[float, ...] = ()
    hull: tuple[tuple[float, float], ...] = dataclasses.field(init=False, repr=False, compare=False)
    """(rate, G), from (0, 0) to the highest G; slopes fall strictly."""
    hull_overhead: tuple[float, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            rates = tuple(float(r) for r in self.rates)
            captured = tuple(float(g) for g in self.captured)
            overhead = tuple(float(o) for o in self.overhead) or (0.0,) * len(rates)
        except (TypeError, ValueError) as error:
            raise SpecError(f"a curve's points are numbers: {error}") from None
        if not rates or not len(rates) == len(captured) == len(overhead):
            raise SpecError("a curve needs at least one rate, and as many captured fractions (and overheads) as rates")
        if not all(0 < r <= HIGHEST_RATE for r in rates):
            raise SpecError(f"rates must be above 0 and at most {HIGHEST_RATE:g} bits per coordinate, got {rates}")
        exact = tuple(round(r * MICRO) / MICRO for r in rates)
        if any(abs(r - e) > 1e-9 for r, e in zip(rates, exact, strict=True)):
            raise SpecError(f"rates must be multiples of 1e-6 bits per coordinate, got {rates}")
        if not all(0 <= g <= 1 for g in captured) or max(captured) == 0:
            raise SpecError(f"captured fractions must be in [0, 1] and not all 0, got {captured}")
        if not all(0 <= o < math.inf for o in overhead):
            raise SpecError(f"overheads must be finite and at least 0, got {overhead}")
        spent = [r + o for r, o in zip(exact, overhead, strict=True)]
        if any(a >= b for a, b in zip(exact, exact[1:])) or any(a >= b for a, b in zip(spent, spent[1:])):  # noqa: B905
            raise SpecError("rates, and rates with their overheads, must ascend")
        points = [(0.0, 0.0), *zip(spent, captured, strict=True)]
        kept = concave_hull(points)
        object.__setattr__(self, "rates", exact)
        object.__setattr__(self, "captured", captured)
        object.__setattr__(self, "overhead", overhead if any(overhead) else ())
        object.__setattr__(self, "hull", tuple(((0.0, *exact)[i], points[i][1]) for i in kept))
        object.__setattr__(self, "hull_overhead", tuple((0.0, *overhead)[i] for i in kept))

    @classmethod
    def from_distortions(
        cls, rates: Sequence[float], distortions: Sequence[float], overhead: Sequence[float] = ()
    ) -> Curve:
        """A curve from normalised distortions D = 1 - G in [0, 1], for example those of Lloyd-Max quantisers."""
        return cls(tuple(rates), tuple(1.0 - d for d in distortions), tuple(overhead))

    @property
    def highest_rate(self) -> float:
        """The highest rate that is worth its bits, bits per coordinate."""
        return self.hull[-1][0]

    def captured_at(self, rate: float) -> float:
        """G of the hull at ``rate`` bits per coordinate (>= 0)."""
        if not rate >= 0:
            raise SpecError(f"a rate is at least 0, got {rate}")
        return float(interpolate(self, np.array([rate]))[0])

    def overhead_at(self, rate: float) -> float:
        """Bits per coordinate that ``rate`` costs beside itself, mixed as on the hull."""
        if not rate >= 0:
            raise SpecError(f"a rate is at least 0, got {rate}")
        return float(interpolate(self, np.array([rate]), overhead=True)[0])


def interpolate(curve: Curve, rates: Array, *, overhead: bool = False) -> Array:
    """G (or the overhead) on the hull, any shape. Not ``numpy.interp``: its compiled loop may fuse operations."""
    x = np.array([point[0] for point in curve.hull])
    y = np.array(curve.hull_overhead if overhead else [point[1] for point in curve.hull])
    right = np.clip(np.searchsorted(x, rates, side="left"), 1, len(x) - 1)
    left = right - 1
    part = (np.minimum(rates, x[-1]) - x[left]) / (x[right] - x[left])
    # At the vertices themselves the value is theirs to the bit.
    return np.where(part == 1.0, y[right], y[left] + (y[right] - y[left]) * part)


@final
class Curves:
    """The curves of all layers, each different one once.

    Args:
        curve: one for all layers, or one for each.
        layers: their number.

    Attributes:
        kinds: the different curves.
        which: number of each layer's curve, int64 of shape (layers,).

    Raises:
        SpecError: ``curve`` is neither.
    """

    def __init__(self, curve: Curve | Sequence[Curve], layers: int) -> None:
        self.kinds: list[Curve] = [curve] if isinstance(curve, Curve) else []
        self.which = np.zeros(layers, dtype=np.int64)
        if isinstance(curve, Curve):
            return
        if not isinstance(curve, Sequence) or len(curve) != layers or not all(isinstance(c, Curve) for c in curve):
            raise SpecError(f"give one Curve, or one for each of the {layers} layers")
        # By identity first: a curve's hash is slow, and mostly the same object stands many times.
        objects = {id(one): one for one in curve}
        numbers: dict[Curve, int] = {}
        number_of = {key: numbers.setdefault(one, len(numbers)) for key, one in objects.items()}
        self.kinds = list(numbers)
        self.which = np.array([number_of[id(one)] for one in curve], dtype=np.int64)

    @property
    def has_overhead(self) -> bool:
        """Whether any curve has overheads."""
        return any(curve.overhead for curve in self.kinds)

    @property
    def highest_rate(self) -> float:
        """The highest rate that all curves have, bits per coordinate; 1 without curves."""
        return min((curve.highest_rate for curve in self.kinds), default=1.0)

    def at(self, rates: Array, layers: Ints | None = None, *, overhead: bool = False) -> Array:
        """G (or the overhead) of layers (all unless given) at their rates: shape (layers,) or (layers, n)."""
        which = self.which if layers is None else self.which[layers]
        if len(self.kinds) == 1:
            return interpolate(self.kinds[0], rates, overhead=overhead)
        result = np.zeros(rates.shape)
        for number, one in enumerate(self.kinds):
            mine = which == number
            result[mine] = interpolate(one, rates[mine], overhead=overhead)
        return result
