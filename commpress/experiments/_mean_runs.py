"""The mean-estimation experiment as a whole: which measurements, in which order, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from commpress.errors import SpecError
from commpress.experiments._checks import aligned
from commpress.experiments._drifting_mean import (
    CorrelatedMean,
    Reconstruction,
    Tracking,
    correlated_mean,
    reconstruct,
    track,
)
from commpress.experiments._mean_estimation import Point, Trial, measure
from commpress.experiments._mean_oracle import CodecOracle, specs

RATES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
DIMS = (16, 64, 256, 1024, 4096)
_FEWEST, _MOST, _VALUES = 16, 192, 16384


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the experiment measures.

    Attributes:
        template: codec; R stands for the rate (`_mean_oracle.specs`).
        dims: values of d, each at least 1.
        rates: requested bits per coordinate. What is counted are the payload's bits, which at small d are more.
        samples: the target, eps^2 = sigma^2 d / samples.
        values: the error is averaged over about so many coordinates: values / d repetitions, at least 16 and at most 192.
        seed: of everything.

    Raises:
        SpecError: a value makes no sense.
    """

    template: str = "hadamard+lloyd"
    dims: tuple[int, ...] = DIMS
    rates: tuple[float, ...] = RATES
    samples: int = 200
    values: int = _VALUES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.dims or not self.rates:
            raise SpecError("mean estimation needs at least one dimension and one rate")
        for d in self.dims:
            self.trial(d)
        specs(self.template, self.rates)

    def trial(self, d: int) -> Trial:
        """The measurement at d coordinates."""
        if d < 1:
            raise SpecError(f"a dimension is at least 1, got {d}")
        repeats = max(_FEWEST, min(_MOST, self.values // d))
        return Trial(d, samples=self.samples, repeats=repeats, seed=self.seed)

    def pairs(self) -> list[tuple[str, int]]:
        """(spec, d) of all measurements. Where several rates give payloads of one size, the highest stands for all."""
        found: dict[tuple[int, int], tuple[str, int]] = {}
        for d in self.dims:
            for spec in specs(self.template, tuple(sorted(self.rates))):
                found[d, CodecOracle(spec).bits(d)] = spec, d
        return list(found.values())


QUICK: dict[str, Any] = {
    "dims": (16, 256, 1024, 4096),
    "rates": (0.25, 1.0, 2.0, 4.0),
    "samples": 100,
    "values": 512,
}
"""Settings of a run of seconds."""


def points(plan: Plan, on_progress: Callable[[float, str], None] | None = None) -> list[Point]:
    """Measures everything in the plan; `on_progress` gets the share of the work that is done, from 0 to 1, and what is under way."""
    pairs = plan.pairs()
    # A message costs about the same whatever its size, and the rounds go with the bound.
    cost = [plan.trial(d).repeats * max(1.0, d / CodecOracle(spec).bits(d)) ** 1.2 for spec, d in pairs]
    done, found = 0.0, []
    for (spec, d), mine in zip(pairs, cost, strict=True):

        def tell(
            rounds: int, of: float, *, done: float = done, mine: float = mine, what: str = f"{spec}, d={d}"
        ) -> None:
            if on_progress is not None:
                on_progress((done + mine * min(1.0, rounds / of)) / sum(cost), what)

        found.append(measure(CodecOracle(spec), plan.trial(d), tell))
        done += mine
    if on_progress is not None:
        on_progress(1.0, "done")
    return found


def drifting(
    *, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None
) -> list[dict[str, Any]]:
    """Records of the measurements on sequences: predictive coding, correlated noise, a drifting mean."""
    rows, rounds, tracked = (4, 1024, 450) if quick else (8, 4096, 1200)
    jobs: list[tuple[str, Callable[[], Reconstruction | CorrelatedMean | Tracking]]] = []
    for rate in (0.25, 0.5, 1, 2, 3, 4):
        spec = f"hadamard+lloyd:{rate},scale=centroid"
        for a in (0.5, 0.9, 0.99):
            jobs.append((f"AR(1) {a}, {rate} bits", partial(reconstruct, spec, a, rows=rows, seed=seed)))
    for rho, rate in ((0.0, 1), (0.5, 1), (0.9, 1), (0.9, 0.1)):
        spec = f"hadamard+lloyd:{rate}"
        job = partial(correlated_mean, spec, rho, rows=rows, rounds=rounds, seed=seed)
        jobs.append((f"noise {rho}, {rate} bits", job))
    for a, q, rate in ((1.0, 0.01, 0.5), (1.0, 0.01, 0.1), (0.99, 0.5, 1), (0.99, 0.5, 2)):
        spec = f"hadamard+lloyd:{rate},scale=centroid"
        jobs.append((f"drift {a}, {rate} bits", partial(track, spec, a, q, rows=rows, rounds=tracked, seed=seed)))
    records = []
    for i, (name, measured) in enumerate(jobs):
        if on_progress is not None:
            on_progress(i / len(jobs), name)
        records.append(measured().record())
    if on_progress is not None:
        on_progress(1.0, "done")
    return records


def points_table(found: Sequence[Point]) -> str:
    """A table of measurements and, below it, what its columns mean. Every line ends in a newline."""
    head = ("codec", "d", "bits", "B/d", "rounds", "+-", "forecast", "bound", "ratio", "+-", "with header", "")
    rows = [head]
    for p in found:
        rows.append((
            p.codec, f"{p.d}", f"{p.bits}", f"{p.bits / p.d:.4f}", f"{p.rounds:.1f}", f"{p.rounds_se:.1f}", f"{p.forecast:.1f}",
            f"{p.limit:.1f}", f"{p.ratio:.3f}", f"{p.ratio_se:.3f}", f"{p.ratio_with_header:.2f}", "BEATEN" if p.beaten else "",
        ))  # fmt: skip
    text = aligned(rows)
    if not found:
        return text
    first = found[0]
    return text + (
        f"\nrounds        until E|estimate - theta|^2 <= sigma^2 d / {first.samples}, with their Monte-Carlo standard error\n"
        "bits, B/d     of one message: all of its payload, scales and padding included\n"
        "forecast      what the server's own recursion expects\n"
        "bound         least rounds for any estimator and any memoryless encoder of these bits\n"
        f"with header   rounds against the bound that may use the exchange's header too ({first.header_bits} bits a message)\n"
    )


def drifting_table(records: Sequence[dict[str, Any]]) -> str:
    """Three tables, one for each kind of record. Every line ends in a newline."""
    kinds = {
        "reconstruction": "AR(1) sequences: distortion of the memoryless and of the predictive encoder, and the gain",
        "correlated-mean": "Correlated noise: T Var / sigma^2 (the product form is no bound)",
        "tracking": "Drifting mean: error per coordinate in the steady state (centred: the encoder subtracts the server's prediction)",
    }
    parts = []
    for kind, title in kinds.items():
        mine = [{k: v for k, v in r.items() if k != "kind"} for r in records if r["kind"] == kind]
        if mine:
            rows = [tuple(mine[0]), *(tuple(_short(v) for v in r.values()) for r in mine)]
            parts.append(f"{title}\n{aligned(rows)}")
    return "\n".join(parts)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
