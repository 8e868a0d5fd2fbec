"""Measured risks: from what each feature keeps, up to 10,000 features, and from regressions by least squares, up to 1000."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from commpress.experiments.precision_scaling import _theory
from commpress.experiments.precision_scaling._quantisers import Floating, Grid, Quantiser

_FEATURES = 10_240  # whole blocks of 512
_CURVE = (10, 30, 100, 300, 1000, 3000, 10000)
_TRAIN, _TEST, _TEST_ROWS = 20, 40_000, 10_000


@dataclasses.dataclass(frozen=True)
class Point:
    """A measured risk.

    Attributes:
        quantiser, label: what quantised. size: M, features.
        eps: mean over the first M features of the error's variance over the feature's (multiplicative), or the variance itself (additive).
        risk: measured. predicted: the closed form with the quantiser's own variances. full: without quantisation.
        effective: number of unquantised features with the measured risk.
    """

    quantiser: str
    label: str
    size: int
    eps: float
    risk: float
    predicted: float
    full: float
    effective: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "precision-scaling", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A regression by least squares on quantised features.

    Attributes:
        quantiser, label, size: as of `Point`. train, test: samples.
        risk: squared error on the test samples. predicted: the closed form times what estimating M coefficients from so many samples costs, ``1 + M / (train - M - 1)``.
    """

    quantiser: str
    label: str
    size: int
    train: int
    test: int
    risk: float
    predicted: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "regression", **dataclasses.asdict(self)}


def _features(samples: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(samples, size, generator=generator).mul_(_theory.eigenvalues(size).sqrt().float())


def points(*, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None) -> list[Point]:
    """Risks from what each feature keeps: its squared correlation with what arrives, which is what a regression on ever more samples finds, as errors and features are uncorrelated."""
    samples = 800 if quick else 2400
    tell = on_progress or (lambda share, note: None)
    quantisers: tuple[Quantiser, ...] = (Floating(), Grid(shared=True), Grid(shared=False))
    tell(0.0, "features")
    x = _features(samples, _FEATURES, torch.Generator().manual_seed(seed))
    found = []
    for i, quantiser in enumerate(quantisers):
        tell((i + 0.5) / 3, quantiser.name)
        q, variances = quantiser.quantise(x, seed)
        square = (x * q).sum(0, dtype=torch.float64) ** 2
        kept = square / (x.square().sum(0, dtype=torch.float64) * q.square().sum(0, dtype=torch.float64))
        kept = (kept - 1 / samples) / (1 - 1 / samples)  # two unrelated variables seem to share 1/n
        lost = torch.cumsum(_theory.signal(_FEATURES) * (1.0 - kept), 0)
        for size in sorted({*_CURVE, *_theory.slope_sizes()}):
            v = variances[:size]
            eps = float((v / _theory.eigenvalues(size)).mean() if quantiser.label == "multiplicative" else v.mean())
            risk = float(lost[size - 1]) + _theory.tail(size)
            predicted, full = _theory.risk(size, v), _theory.risk(size)
            found.append(
                Point(quantiser.name, quantiser.label, size, eps, risk, predicted, full, _theory.effective(risk))
            )
    tell(1.0, "done")
    return found


def fits(*, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None) -> list[Fit]:
    """Least squares on quantised features, tested on fresh samples. Labels have no noise but the features that were left out."""
    sizes: Sequence[int] = (50, 200) if quick else (100, 300, 1000)
    # Training and test samples must have the same step, and here are more of them.
    quantisers: tuple[Quantiser, ...] = (Floating(), Grid(shared=True, largest=5.0))
    work = [(size, quantiser) for size in sizes for quantiser in quantisers]
    cost = [float(size) ** 2 for size, _ in work]
    found: list[Fit] = []
    for i, (size, quantiser) in enumerate(work):
        if on_progress is not None:
            on_progress(sum(cost[:i]) / sum(cost), f"{quantiser.label}, M = {size}")
        found.append(_fit(size, quantiser, seed))
    if on_progress is not None:
        on_progress(1.0, "done")
    return found


def _fit(size: int, quantiser: Quantiser, seed: int) -> Fit:
    generator = torch.Generator().manual_seed(seed + 1)
    train = _TRAIN * size
    weights = (_theory.signal(size) / _theory.eigenvalues(size)).sqrt()

    def sample(count: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = _features(count, size, generator)
        rest = torch.randn(count, generator=generator, dtype=torch.float64) * _theory.tail(size) ** 0.5
        q, variances = quantiser.quantise(x, seed + number)
        return q, x.double() @ weights + rest, variances

    q, y, variances = sample(train, 0)
    # Features of very different sizes: each divided by its own, so that the normal equations are well conditioned.
    scale = q.double().square().mean(0).sqrt()
    q = (q.double() / scale).float()
    coefficients = torch.linalg.solve((q.T @ q).double(), (q.T @ y.float()).double())
    total = 0.0
    for number in range(_TEST // _TEST_ROWS):
        q, y, _ = sample(_TEST_ROWS, number + 1)
        total += float(((q.double() / scale) @ coefficients - y).square().sum())
    predicted = _theory.risk(size, variances) * (1.0 + size / (train - size - 1))
    return Fit(quantiser.name, quantiser.label, size, train, _TEST, total / _TEST, predicted)
