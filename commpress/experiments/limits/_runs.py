"""What the limits experiment measures, its table, and what must hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from commpress.experiments._checks import Check, aligned, at_least, at_most, near
from commpress.experiments._codec_map import SPECS, Measured, measure, recorded_gradient
from commpress.experiments._mean_estimation import STANDARD_ERRORS, Point, Trial
from commpress.experiments._mean_runs import Plan, points
from commpress.experiments._model import Shape
from commpress.experiments.limits._curves import BOUNDS, ScalarOptimum, bounds

QUICK_SPECS = (
    *(f"bitshift:{b},length=8" for b in ("0.1", "0.5", "1", "2")),
    *(f"hadamard+bitshift:{b},length=8" for b in ("0.1", "0.5", "1", "2")),
    *(f"trellis:{b}" for b in ("0.5", "1", "2", "3")),
    *(f"ecsq:{b}" for b in ("0.1", "0.25", "0.5", "1", "2", "4")),
    *(f"hadamard+lloyd:{b}" for b in ("0.1", "0.5", "1", "2", "4")),
    *("uniform:2", "uniform:4", "topk:0.01", "randk:0.01", "sign", "ternary", "float:e4m3", "mxfp4", "cast:bf16"),
)
MORE_SPECS = (
    *(f"bitshift:{b},length={length}" for length in (8, 16) for b in ("0.1", "0.5", "1", "2")),
    *("bitshift:3", "bitshift:4"),
    *(f"hadamard+bitshift:{b}" for b in ("0.1", "0.25", "0.5", "1", "2", "4")),
    *(f"trellis:{b},states=256" for b in ("0.5", "1", "2", "3")),
)
SLOW = ("length=16",)  # on Gaussian data only, and less of it
GAUSSIAN, GRADIENT = "gaussian", "gradient"
# Share of the Gaussian limit: what the codes are known to reach, and no less than that.
REACHED = {
    "trellis:1": 0.94, "trellis:2": 0.99, "trellis:1,states=256": 0.96, "trellis:2,states=256": 0.994,
    "bitshift:0.1": 0.92, "bitshift:0.5": 0.9495, "bitshift:1": 0.968, "bitshift:2": 0.988,
    "bitshift:0.1,length=8": 0.845, "bitshift:0.5,length=8": 0.892, "bitshift:1,length=8": 0.934, "bitshift:2,length=8": 0.97,
    "bitshift:0.1,length=16": 0.953, "bitshift:0.5,length=16": 0.968, "bitshift:1,length=16": 0.982, "bitshift:2,length=16": 0.9938,
}  # fmt: skip
_SLACK = 0.004  # of those figures' rounding and this sample
_SIGN = 0.8488  # one bit a coordinate: (2/pi) / (3/4)

Tell = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything: codecs on Gaussian data and on a recorded gradient, and rounds to an accuracy."""

    measured: list[Measured]
    rounds: list[Point]
    trial: Trial
    optimum: ScalarOptimum

    def of(self, source: str) -> list[Measured]:
        """Those on one input."""
        return [m for m in self.measured if m.source == source]

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        found = [{"kind": "codec", **_known(dataclasses.asdict(m))} for m in self.measured]
        low, high = self.optimum.rates
        for bits in np.geomspace(max(0.02, low), high, 40).tolist():
            found.append({"kind": "ecsq optimum", "bits": bits, "eta": self.optimum.eta(bits)})
        for point in self.rounds:
            found.append({**point.record(), "kind": "rounds", "bounds": bounds(self.trial, point.bits / point.d)})
        return found

    def checks(self) -> list[Check]:
        """What must hold."""
        here = {m.spec: m for m in self.of(GAUSSIAN)}
        best = max(here.values(), key=lambda m: m.eta)
        found = [at_most(f"the most of any codec on Gaussian data ({best.spec}), of the limit", best.eta, 1.001)]
        if "hadamard+lloyd:1" in here:
            found.append(near("hadamard+lloyd:1, of the limit: one sign a coordinate", here["hadamard+lloyd:1"].eta, _SIGN, 0.006))  # fmt: skip
        for spec, m in here.items():
            if spec.startswith("ecsq:"):
                share = m.captured / self.optimum.captured(m.bits)
                # Its tables and scales are a part of so few bits.
                found.append(
                    Check(f"{spec}, of the best scalar quantiser", share, 1.0, 0.97 if m.bits < 0.4 else 0.99, 1.01)
                )
            if spec in REACHED:
                found.append(at_least(f"{spec}, of the limit", m.eta, REACHED[spec] - _SLACK))
        for point in self.rounds:
            least = max(bounds(self.trial, point.bits / point.d).values())
            slack = STANDARD_ERRORS * point.rounds_se / least
            found.append(
                Check(f"{point.codec}: rounds, over the highest bound", point.rounds / least, 1.0, low=1.0 - slack)
            )
        return found

    def table(self) -> str:
        """Text for people."""
        gradient = {m.spec: m for m in self.of(GRADIENT)}
        rows: list[tuple[str, ...]] = [("codec", "bits", "Gaussian", "best scalar", "gradient's bits", "gradient")]
        low, high = self.optimum.rates
        for m in self.of(GAUSSIAN):
            scalar = f"{self.optimum.eta(m.bits):.1%}" if low < m.bits < high else ""
            real = gradient.get(m.spec)
            rows.append((m.spec, f"{m.bits:.4f}", f"{m.eta:.1%}", scalar, *(("", "") if real is None else (f"{real.bits:.4f}", f"{real.eta:.1%}"))))  # fmt: skip
        text = "Information carried, of the most that so many bits can carry about Gaussian data\n" + aligned(rows)
        trial = self.trial
        rows = [("codec", "bits", "rounds", "+-", *BOUNDS)]
        for p in self.rounds:
            least = bounds(trial, p.bits / p.d)
            rows.append((p.codec, f"{p.bits / p.d:.4f}", f"{p.rounds:.1f}", f"{p.rounds_se:.1f}", *(f"{least[name]:.1f}" for name in BOUNDS)))  # fmt: skip
        return text + (
            f"\nRounds until a mean of {trial.d} coordinates is as exact as from {trial.samples} samples in full, and three lower bounds\n"
            + aligned(rows)
        )


def run(*, quick: bool, seed: int, on_progress: Tell | None = None) -> Findings:
    """Measures everything; `on_progress` gets the share that is done, and what is under way."""
    tell = on_progress or (lambda share, note: None)
    tell(0.0, "the best scalar quantiser")
    optimum = ScalarOptimum()
    numel, keys = (1 << 19, 1) if quick else (1 << 20, 2)
    inputs = {GAUSSIAN: torch.randn(numel, generator=torch.Generator().manual_seed(seed))}
    tell(0.03, "recording a gradient")
    small = Shape(width=64, layers=2, heads=2, context=32)
    inputs[GRADIENT] = recorded_gradient(seed, steps=12, shape=small) if quick else recorded_gradient(seed)
    specs = QUICK_SPECS if quick else (*SPECS, *MORE_SPECS)
    jobs = [(spec, name) for spec in specs for name in inputs if name == GAUSSIAN or not spec.endswith(SLOW)]
    measured = []
    for i, (spec, name) in enumerate(jobs):
        tell(0.05 + 0.45 * i / len(jobs), f"{spec}, {name}")
        x = inputs[name][: 1 << 18] if spec.endswith(SLOW) else inputs[name]
        measured.append(measure(spec, name, x, keys=keys, rounds=0))
    plans = _plans(quick, seed)
    found: list[Point] = []
    for i, plan in enumerate(plans):

        def tell_mine(part: float, note: str, *, i: int = i) -> None:
            tell(0.5 + 0.5 * (i + part) / len(plans), note)

        found += points(plan, tell_mine)
    tell(1.0, "done")
    return Findings(measured, found, plans[0].trial(plans[0].dims[0]), optimum)


def _plans(quick: bool, seed: int) -> list[Plan]:
    if quick:
        common: dict[str, Any] = {"dims": (4096,), "samples": 40, "values": 4096, "seed": seed}
        return [Plan("hadamard+lloyd", rates=(0.25, 1.0, 4.0), **common)]
    common = {"dims": (4096,), "samples": 200, "seed": seed}
    rates = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
    return [
        Plan("hadamard+lloyd", rates=(*rates, 8.0), **common),
        Plan("ecdq", rates=(1.0, 2.0, 4.0), **common),
        Plan("hadamard+bitshift:R,length=8", rates=rates[:5], **common),
    ]


def _known(record: dict[str, Any]) -> dict[str, Any]:
    """Speeds are not measured here."""
    return {k: v for k, v in record.items() if not (isinstance(v, float) and math.isnan(v))}
