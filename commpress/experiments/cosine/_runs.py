"""What is measured, what must hold, and the tables."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from commpress.estimation import CosineEstimator, fisher_information_unquantised
from commpress.experiments._checks import Check, between, near
from commpress.hooks._projection import Projection
from commpress.hooks._worker_agreement import BITS, NBYTES, PROJECTIONS

BIT_WIDTHS = (1, 2, 3, 4)
COSINES = (0.0, 0.2, 0.5, 0.8, 0.9, 0.95)
PROJECTED = 2000  # m
PUBLISHED = {
    (1, 0.5): 1.645, (2, 0.5): 1.392, (3, 0.5): 1.549,
    (1, 0.8): 0.579, (2, 0.8): 0.368, (3, 0.8): 0.320,
    (1, 0.9): 0.231, (2, 0.9): 0.147, (3, 0.9): 0.0997,
}  # fmt: skip
"""bits * variance for one projection, as the theory's table has it."""
_WITHIN = 0.05
_STANDARD_ERRORS = 3.0
_CHUNK = 250  # pairs of vectors at once


@dataclasses.dataclass(frozen=True)
class Point:
    """Estimates of one cosine from m projections of b bits.

    Attributes:
        bits, rho, projections, repeats: what. predicted: bits times the variance of one projection, b / I_b. measured, measured_se: bits times m times the estimates' variance.
        bias_se: of the mean estimate from rho, in its standard errors.
        likely: root mean squared error of the maximum-likelihood estimate; naive, naive_bias: of reading the codes as numbers; naive_predicted: its bias by theory.
    """

    bits: int
    rho: float
    projections: int
    repeats: int
    predicted: float
    measured: float
    measured_se: float
    bias_se: float
    likely: float
    naive: float
    naive_bias: float
    naive_predicted: float

    @property
    def ratio(self) -> float:
        """Measured variance over 1 / (m I_b)."""
        return self.measured / self.predicted

    @property
    def ratio_se(self) -> float:
        """Its Monte-Carlo standard error."""
        return self.measured_se / self.predicted

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "cosine", **dataclasses.asdict(self), "ratio": self.ratio}


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The monitor's own projections on heavy-tailed vectors like gradients: the error against the forecast.

    Attributes:
        rho: the vectors' exact cosine, mean over the repeats. rms: root mean squared error. forecast: 1 / sqrt(m I_2). seconds: to project one vector.
    """

    rho: float
    numel: int
    repeats: int
    rms: float
    forecast: float
    seconds: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "cosine-gradient", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    quick: bool
    points: list[Point]
    gradients: list[Gradient]

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        return [*(one.record() for one in self.points), *(one.record() for one in self.gradients)]

    def table(self) -> str:
        """Text for people."""
        return tables(self)

    def checks(self) -> list[Check]:
        """What must hold."""
        return checks(self)


def run(*, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None) -> Results:
    """Measures everything."""
    repeats = 1500 if quick else 24000
    tell = on_progress or (lambda share, what: None)
    points = []
    for i, rho in enumerate(COSINES):
        points += _points(rho, repeats, seed + 1000 * i, lambda share, i=i: tell(0.8 * (i + share) / len(COSINES), f"rho = {COSINES[i]:g}"))  # type: ignore[misc]  # fmt: skip
    gradients = []
    several = (0.05, 0.5, 0.9)
    for i, rho in enumerate(several):
        tell(0.8 + 0.2 * i / len(several), f"projected gradients, rho = {rho:g}")
        gradients.append(_gradients(rho, 1 << 17 if quick else 1 << 19, 48 if quick else 160, seed))
    tell(1.0, "done")
    return Results(quick, points, gradients)


def _points(rho: float, repeats: int, seed: int, tell: Callable[[float], None]) -> list[Point]:
    generator = np.random.Generator(np.random.SFC64([seed, 77]))
    estimators = [CosineEstimator(bits) for bits in BIT_WIDTHS]
    likely: list[list[np.ndarray]] = [[] for _ in BIT_WIDTHS]
    naive: list[list[np.ndarray]] = [[] for _ in BIT_WIDTHS]
    for done in range(0, repeats, _CHUNK):
        shape = (min(_CHUNK, repeats - done), PROJECTED)
        x = generator.standard_normal(shape)
        y = rho * x + math.sqrt(1 - rho * rho) * generator.standard_normal(shape)
        for i, estimator in enumerate(estimators):
            counts = estimator.counts(estimator.cells(x), estimator.cells(y))
            likely[i].append(estimator.maximum_likelihood(counts))
            naive[i].append(estimator.naive(counts))
        tell((done + shape[0]) / repeats)
    found = []
    for estimator, mine, codes in zip(estimators, likely, naive, strict=True):
        estimates, read = np.concatenate(mine), np.concatenate(codes)
        scale = estimator.bits * PROJECTED
        variance = float(estimates.var())
        fourth = float(np.square(np.square(estimates - estimates.mean())).mean())
        found.append(
            Point(
                bits=estimator.bits,
                rho=rho,
                projections=PROJECTED,
                repeats=repeats,
                predicted=estimator.bits * estimator.variance(rho),
                measured=scale * variance,
                measured_se=scale * math.sqrt(max(fourth - variance**2, 0.0) / repeats),
                bias_se=float((estimates.mean() - rho) / math.sqrt(variance / repeats)),
                likely=float(np.sqrt(np.square(estimates - rho).mean())),
                naive=float(np.sqrt(np.square(read - rho).mean())),
                naive_bias=float(read.mean() - rho),
                naive_predicted=estimator.naive_limit(rho) - rho,
            )
        )
    return found


def _gradients(rho: float, numel: int, repeats: int, seed: int) -> Gradient:
    """Of vectors whose entries are heavy-tailed and of very different size by layer, as gradients' are."""
    import time

    estimator = CosineEstimator(BITS)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 0, 8).repeat_interleave(numel // 8)
    errors, exact, seconds = [], [], 0.0
    for step in range(repeats):
        shared, one, two = (
            sizes * torch.randn(numel, generator=generator) / torch.rand(numel, generator=generator).add_(0.05)
            for _ in range(3)
        )
        a = math.sqrt(rho) * shared + math.sqrt(1 - rho) * one
        b = math.sqrt(rho) * shared + math.sqrt(1 - rho) * two
        cells = []
        began = time.perf_counter()
        for vector in (a, b):
            projection = Projection(seed, step)
            projection.add(0, vector)
            cells.append(estimator.cells(projection.projections(PROJECTIONS)[None, :]))
        seconds += time.perf_counter() - began
        truth = float(torch.dot(a.double(), b.double()) / (a.double().norm() * b.double().norm()))
        exact.append(truth)
        errors.append(float(estimator.maximum_likelihood(estimator.counts(*cells))[0]) - truth)
    mean = float(np.mean(exact))
    forecast = math.sqrt(estimator.variance(mean, PROJECTIONS))
    return Gradient(mean, numel, repeats, float(np.sqrt(np.mean(np.square(errors)))), forecast, seconds / repeats / 2)


def checks(results: Results) -> list[Check]:
    """What must hold."""
    found = []
    for (bits, rho), published in PUBLISHED.items():
        point = next(p for p in results.points if (p.bits, p.rho) == (bits, rho))
        # The table has three or four digits.
        found.append(between(f"bits * variance by theory, b = {bits}, rho = {rho:g}", point.predicted, published, (published * 0.997, published * 1.003)))  # fmt: skip
    for p in results.points:
        allowance = _STANDARD_ERRORS * p.ratio_se if results.quick else 0.0
        text = f"variance over 1/(m I), b = {p.bits}, rho = {p.rho:g}"
        found.append(between(text, p.ratio, 1.0, (1 - _WITHIN, 1 + _WITHIN), allowance))
    found.append(near("I_1(0)", CosineEstimator(1).fisher_information(0.0), 4 / math.pi**2, 1e-6))
    for g in results.gradients:
        spread = _STANDARD_ERRORS * math.sqrt(0.5 / g.repeats)
        found.append(between(f"monitor's error over its forecast, rho = {g.rho:.2f}", g.rms / g.forecast, 1.0, (0.95, 1.05), spread))  # fmt: skip
    return found


def best(rho: float) -> int:
    """The number of bits for each projection that serves a budget of bits best, at this cosine."""
    return min(BIT_WIDTHS, key=lambda bits: bits * CosineEstimator(bits).variance(rho))


@functools.cache
def changes_of_best() -> list[tuple[float, int]]:
    """From which cosine on which b is best: (0, 1), then the crossings, to .0005."""
    found = [(0.0, best(0.0))]
    for high in np.arange(0.02, 0.99, 0.02):
        now = best(float(high))
        if now != found[-1][1]:
            low = float(high) - 0.02
            while high - low > 0.0005:
                middle = 0.5 * (low + high)
                low, high = (middle, high) if best(middle) == found[-1][1] else (low, middle)
            found.append((float(high), now))
    return found


def tables(results: Results) -> str:
    """Everything measured beside what is predicted. Every line ends in a newline."""
    lines = [f"{PROJECTED} projections of b bits; bits * m * variance of the maximum-likelihood estimate, and root mean squared errors", ""]  # fmt: skip
    lines.append(
        f"{'rho':>5}{'b':>4}{'measured':>11}{'+-':>9}{'b / I_b':>10}{'ratio':>8}{'bias/se':>9}{'likely':>9}{'naive':>9}{'naive bias':>12}{'predicted':>11}"
    )
    for p in results.points:
        star = " *" if best(p.rho) == p.bits else ""
        lines.append(
            f"{p.rho:>5g}{p.bits:>4}{p.measured:>11.4f}{p.measured_se:>9.4f}{p.predicted:>10.4f}{p.ratio:>8.3f}{p.bias_se:>9.1f}"
            f"{p.likely:>9.5f}{p.naive:>9.5f}{p.naive_bias:>12.4f}{p.naive_predicted:>11.4f}{star}"
        )
    text = ", ".join(f"b = {bits} from {rho:.3g} on" for rho, bits in changes_of_best())
    whole = float(fisher_information_unquantised(np.array([0.5]))[0])
    lines += ["", f"* the best b for a given number of bits: {text}", f"(unquantised, rho = .5: variance {1 / whole:.4f} for a projection)"]  # fmt: skip
    lines += ["", f"The monitor's projections ({PROJECTIONS} of {BITS} bits, {NBYTES} bytes with the norm) of heavy-tailed vectors", ""]  # fmt: skip
    lines.append(f"{'rho':>7}{'coordinates':>13}{'pairs':>7}{'rms error':>11}{'forecast':>10}{'ns per coordinate':>19}")
    for g in results.gradients:
        lines.append(
            f"{g.rho:>7.3f}{g.numel:>13,}{g.repeats:>7}{g.rms:>11.4f}{g.forecast:>10.4f}{1e9 * g.seconds / g.numel:>19.2f}"
        )
    return "\n".join(lines) + "\n"
