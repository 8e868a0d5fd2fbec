"""Needed mantissas, and how they grow with the horizon."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from commpress.experiments.optimizer_precision._problem import Run

WITHIN = 0.1
_LEAST = 1e-3
GROWING = (("stochastic", "all"), ("nearest", "weights"))
"""What grows with the horizon. (To nearest, Adam's second moment needs its constant number of bits from the first, and hides the rest.)"""


@dataclasses.dataclass(frozen=True)
class Need:
    """How many bits of mantissa runs needed.

    Attributes:
        optimizer, horizon, rounding, place: as of `Run`.
        mantissa: the least with which the final gradient norm is within 10 % of that of float32, and with all larger ones too; one more than was tried if there is none.
        crossing: where the difference is 10 %, a fraction of a bit: the logarithm of the difference, by a straight line between two mantissas.
    """

    optimizer: str
    horizon: int
    rounding: str
    place: str
    mantissa: int
    crossing: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "needed-mantissa", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Growth:
    """A straight line through needed mantissas over log2 T.

    Attributes:
        optimizer, rounding, place: as of `Run`. slope: bits for each doubling of the horizon. r2: of the whole mantissas. crossing_slope, crossing_r2: of the crossings.
        bits: needed mantissas, the shortest horizon first.
    """

    optimizer: str
    rounding: str
    place: str
    bits: tuple[int, ...]
    slope: float
    r2: float
    crossing_slope: float
    crossing_r2: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "growth", **dataclasses.asdict(self)}


def needs(runs: Sequence[Run]) -> list[Need]:
    """Of each run."""
    return [_need(one) for one in runs]


def _need(one: Run) -> Need:
    off = [abs(norm / one.exact - 1.0) if math.isfinite(norm) else math.inf for norm in one.norms]
    bad = [i for i, value in enumerate(off) if not value <= WITHIN]
    if not bad:
        return Need(one.optimizer, one.horizon, one.rounding, one.place, one.mantissas[0], float(one.mantissas[0]))
    last = bad[-1]
    mantissa = one.mantissas[last] + 1
    crossing = float(mantissa)
    if last + 1 < len(off) and math.isfinite(off[last]):
        high, low = (math.log(max(_LEAST, value)) for value in off[last : last + 2])
        crossing = one.mantissas[last] + (high - math.log(WITHIN)) / (high - low)
    return Need(one.optimizer, one.horizon, one.rounding, one.place, mantissa, crossing)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, R^2) of a least-squares line; R^2 is 0 where y is constant."""
    xs, ys = (torch.tensor(list(v), dtype=torch.float64) for v in (x, y))
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    total = float(dy.square().sum())
    left = float((dy - slope * dx).square().sum())
    return slope, float(ys.mean() - slope * xs.mean()), 1.0 - left / total if total else 0.0


def growths(found: Sequence[Need]) -> list[Growth]:
    """One for each optimizer, rounding and place."""
    lines = []
    for which in dict.fromkeys((n.optimizer, n.rounding, n.place) for n in found):
        mine = sorted((n for n in found if (n.optimizer, n.rounding, n.place) == which), key=lambda n: n.horizon)
        x = [math.log2(n.horizon) for n in mine]
        slope, _, r2 = line(x, [float(n.mantissa) for n in mine])
        crossing_slope, _, crossing_r2 = line(x, [n.crossing for n in mine])
        lines.append(Growth(*which, tuple(n.mantissa for n in mine), slope, r2, crossing_slope, crossing_r2))
    return lines
