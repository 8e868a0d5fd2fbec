"""What the side-information experiment measures, its table, and what must hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from commpress.allocation import History, history_window
from commpress.experiments._checks import Check, aligned, at_most, near, within
from commpress.experiments._settings import QUICK, Settings
from commpress.experiments.side_information._coding import crossing, modulo, pair, plain, residual, saving
from commpress.experiments.side_information._history import (
    PHASES,
    Aggregates,
    aggregates,
    long_memory,
    moving_average,
    sequence_errors,
)

CORRELATIONS = (0.5, 0.8, 0.9, 0.95, 0.99)
BITS = 2
CROSSINGS = {1: 0.66, 2: 0.73, 3: 0.76, 4: 0.79}  # above these correlations `modulo` beats plain Lloyd-Max
LONG_MEMORY, MOVING_AVERAGE = 0.3, 0.6  # d and theta of the sequences with known laws
TOLERANCES = (0.02, 0.01, 0.005, 0.0025)  # of the energy

Tell = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Coded:
    """Mean squared errors at one correlation, `BITS` bits, input of unit variance; and the bits that the side information was worth."""

    rho: float
    plain: float
    residual: float
    modulo: float

    @property
    def residual_saving(self) -> float:
        """Bits that a plain quantiser would need more for the residual code's error, at 6 dB a bit."""
        return 0.5 * math.log2(self.plain / self.residual)

    @property
    def modulo_saving(self) -> float:
        """The same of `modulo`; negative where it is worse."""
        return 0.5 * math.log2(self.plain / self.modulo)


@dataclasses.dataclass(frozen=True)
class Decay:
    """Error of the best prediction, over the energy, by the length of the history it is made from (1, 2, ...), and what was fitted to it."""

    name: str
    errors: list[float]
    history: History
    windows: list[int]  # for each of `TOLERANCES`


@dataclasses.dataclass(frozen=True)
class RunFound:
    """A run of the main job.

    Attributes:
        correlations: of successive aggregates, for each layer those of the phases.
        bits: the most that a prediction from the last aggregate saves on what ranks encode, bits a coordinate; by phase, all layers.
        predicted: part of the layers that the hook's predictor turns on; gain: energy before over after; both by phase.
    """

    ranks: int
    steps: int
    layers: list[str]
    correlations: list[list[float]]
    bits: list[float]
    predicted: list[float]
    gain: list[float]
    decay: Decay


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything."""

    coded: list[Coded]
    curve: list[Coded]
    crossings: dict[int, float]
    decays: list[Decay]
    runs: list[RunFound]

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        found: list[dict[str, Any]] = []
        for c in (*self.coded, *self.curve):
            found.append({"kind": "coded", "bits": BITS, **dataclasses.asdict(c), "saving": saving(c.rho), "residual_saving": c.residual_saving, "modulo_saving": c.modulo_saving})  # fmt: skip
        found += [{"kind": "crossing", "bits": b, "rho": rho} for b, rho in self.crossings.items()]
        found += [{"kind": "decay", "tolerances": list(TOLERANCES), **dataclasses.asdict(d)} for d in self.decays]
        return found + [{"kind": "run", "phases": list(PHASES), **dataclasses.asdict(r)} for r in self.runs]

    def checks(self) -> list[Check]:
        """What must hold."""
        found = [near(f"bits saved by the residual code, rho = {c.rho:g}", c.residual_saving, saving(c.rho), 0.02) for c in self.coded]  # fmt: skip
        at = next(c for c in self.coded if c.rho == 0.9)
        found.append(within("residual code, rho = .9, 2 bits: D", at.residual, 0.0223, 0.02))
        found.append(within("modulo:2,rho=0.9: D", at.modulo, 0.0484, 0.03))
        for b, rho in self.crossings.items():
            found.append(near(f"modulo:{b} beats lloyd:{b} from rho on", rho, CROSSINGS[b], 0.01))
        power, exponential = (d.history for d in self.decays)
        found.append(near("long memory: alpha of the power law", power.alpha, 1.0, 0.3))
        ratio = power.power_residual / power.exponential_residual
        found.append(at_most("long memory: residual, power law over exponential", ratio, 0.8))
        rate = -2 * math.log(MOVING_AVERAGE)
        found.append(within("moving average: rate of the exponential", 1 / exponential.tau, rate, 0.2))
        ratio = exponential.exponential_residual / exponential.power_residual
        found.append(at_most("moving average: residual, exponential over power law", ratio, 0.8))
        return found

    def table(self) -> str:
        """Text for people."""
        rows: list[tuple[str, ...]] = [("rho", "most", "residual", "modulo", "D residual", "D modulo", "D plain")]
        for c in self.coded:
            rows.append((f"{c.rho:g}", f"{saving(c.rho):.3f}", f"{c.residual_saving:.3f}", f"{c.modulo_saving:.3f}", f"{c.residual:.5f}", f"{c.modulo:.5f}", f"{c.plain:.5f}"))  # fmt: skip
        text = f"Bits a coordinate that side information of correlation rho saves, at {BITS} bits\n" + aligned(rows)
        rows = [("", *(f"b = {b}" for b in self.crossings)), ("measured", *(f"{rho:.3f}" for rho in self.crossings.values()))]  # fmt: skip
        text += "\nCorrelation from which on modulo:b is better than lloyd:b\n" + aligned(rows)
        for run_ in self.runs:
            rows = [(f"{run_.ranks} ranks, {run_.steps} steps", *PHASES)]
            rows += [(name, *(f"{v:+.2f}" for v in values)) for name, values in zip(run_.layers, run_.correlations, strict=True)]  # fmt: skip
            rows.append(("bits saved at most", *(f"{v:.3f}" for v in run_.bits)))
            rows.append(("layers that predict=True predicts", *(f"{v:.0%}" for v in run_.predicted)))
            rows.append(("its gain in energy", *(f"{v:.3f}" for v in run_.gain)))
            text += "\nCorrelation between successive aggregates of the main job\n" + aligned(rows)
        rows = [("prediction from the last w", "w = 1", "2", "4", "8", "law", "alpha", "tau", *(f"eps {t:g}" for t in TOLERANCES))]  # fmt: skip
        for d in (*self.decays, *(r.decay for r in self.runs)):
            h = d.history
            rows.append((d.name, *(f"{d.errors[w - 1]:.3f}" for w in (1, 2, 4, 8)), h.law, f"{h.alpha:.2f}", f"{h.tau:.2f}", *map(str, d.windows)))  # fmt: skip
        return text + "\nEnergy that is left, and the window by truncation sensitivity\n" + aligned(rows)


def run(*, quick: bool, seed: int, on_progress: Tell | None = None) -> Findings:
    """Measures everything; `on_progress` gets the share that is done, and what is under way."""
    tell = on_progress or (lambda share, note: None)
    numel, window = (1 << 18, 8) if quick else (1 << 20, 16)
    tell(0.0, "residual and modulo codes")
    coded = [_coded(rho, numel, seed) for rho in CORRELATIONS]
    curve = [_coded(rho, numel // 4, seed) for rho in (0.4, 0.6, 0.7, 0.75, 0.85, 0.97)]
    tell(0.1, "where modulo pays")
    crossings = {bits: crossing(bits, 1 << 19 if quick else numel, seed) for bits in CROSSINGS}
    tell(0.2, "sequences with known laws")
    decays = _known_laws(16, quick, seed)
    settings = Settings(seed=seed, **(QUICK | {"steps": 80} if quick else {}))
    teams = (2,) if quick else (2, 8)
    runs, done = [], 0.25
    for ranks in teams:
        share = 0.75 * ranks / sum(teams)

        def tell_mine(part: float, note: str, *, done: float = done, share: float = share) -> None:
            tell(done + share * part, note)

        runs.append(_found(aggregates(settings, ranks, window, tell_mine)))
        done += share
    tell(1.0, "done")
    return Findings(coded, curve, crossings, decays, runs)


def _coded(rho: float, numel: int, seed: int) -> Coded:
    x, known = pair(numel, rho, seed)
    spec = f"lloyd:{BITS}"
    return Coded(rho, plain(spec, x, seed), residual(spec, x, known, seed), modulo(BITS, rho, x, known, seed))


def _known_laws(window: int, quick: bool, seed: int) -> list[Decay]:
    generator = torch.Generator().manual_seed(seed)
    rows = 64 if quick else 256
    return [
        _decay("long memory", sequence_errors(long_memory(LONG_MEMORY, 4096, rows, generator), window)),
        _decay("moving average", sequence_errors(moving_average(MOVING_AVERAGE, 4096, rows, generator), window)),
    ]


def _decay(name: str, errors: Sequence[float] | np.ndarray) -> Decay:
    values = [float(e) for e in errors]
    found = [history_window(values, eps=eps) for eps in TOLERANCES]
    return Decay(name, values, found[-1], [history.window for history in found])


def _found(seen: Aggregates) -> RunFound:
    phases = [seen.phase(which) for which in range(len(PHASES))]
    by_phase = [seen.correlation(steps).tolist() for steps in phases]
    correlations = [list(values) for values in zip(*by_phase, strict=True)]
    on, gain = seen.predicted()
    errors = seen.shares() @ seen.prediction_errors(seen.window)
    return RunFound(
        seen.ranks,
        seen.steps,
        seen.layers,
        correlations,
        [_most_bits(seen, steps) for steps in phases],
        [float(on[steps].mean()) for steps in phases],
        [float(gain[steps].mean()) for steps in phases],
        _decay(f"main job, {seen.ranks} ranks", errors),
    )


def _most_bits(seen: Aggregates, steps: slice) -> float:
    """By the correlation of the ranks' own gradients with the last aggregate, layers weighted by energy; with one coefficient for a phase."""
    t = np.arange(steps.start, steps.stop)
    cross = seen.products[t, :, 1].sum(0)
    local, power = seen.local[t].sum(0), seen.products[t - 1, :, 0].sum(0)
    left = local - cross**2 / np.maximum(power, 1e-300)
    return float(0.5 * np.log2(local.sum() / left.sum()))
