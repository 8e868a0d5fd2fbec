"""One measurement: many repetitions of one way to estimate a mean from one bit of each sample."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commpress.estimation import OneBitMean, ProbitTable

_CHUNK = 1 << 19  # samples of all streams that are drawn at once, about: they should stay in a cache
Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Noise of N(0, 1)."""
    return generator.standard_normal(shape)


@functools.cache
def _pareto_scale(order: float, index: float) -> float:
    """k-th root of the k-th central moment of a Pareto variable, k = order < index; by the substitution that makes its integrand smooth at the tail."""
    v = (np.arange(1 << 18) + 0.5) / (1 << 18)
    power = index / (index - order)
    u = v**power  # uniform u = v^power: |u^(-1/index) - mean|^order du stays bounded
    mean = index / (index - 1)
    values = np.abs(u ** (-1 / index) - mean) ** order * power * v ** (power - 1)
    return float(values.mean()) ** (1 / order)


def pareto(order: float, index: float) -> Draw:
    """Skewed noise of mean 0, with a tail of this index and a k-th central moment of 1, k = order."""
    scale, mean = _pareto_scale(order, index), index / (index - 1)

    def draw(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        # Of 1 - u, which is never 0.
        values: Array = ((1.0 - generator.random(shape)) ** (-1 / index) - mean) / scale
        return values

    return draw


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to estimate, and what it is tried on.

    Attributes:
        name: in tables. method: "adaptive" (`OneBitMean`); "grid": fixed thresholds and maximum likelihood; "random": fixed random thresholds and an average; "exact": the samples' own mean.
        half_width: lambda, in sigma. n: samples, one bit of each. repeats: independent repetitions.
        noise, sigma, known_budget, two_stages: of `OneBitMean`. pareto: order and index of the noise, or None: N(0, 1).
        predicted: what n MSE / sigma^2 should be, if known.
    """

    name: str
    method: str
    half_width: float
    n: int
    repeats: int
    noise: str | float = "gaussian"
    sigma: float | tuple[float, float] = 1.0
    known_budget: bool = True
    two_stages: bool = False
    pareto: tuple[float, float] | None = None
    predicted: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        asked: samples used. located: of them to find the mean to within about sigma. rounds: of adaptivity.
        n_mse, n_mse_se: n E(estimate - mean)^2 / sigma^2 and its Monte-Carlo standard error. error, error_se: E|estimate - mean| / sigma.
    """

    way: Way
    asked: int
    located: int
    rounds: int
    n_mse: float
    n_mse_se: float
    error: float
    error_se: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        found = dataclasses.asdict(self.way) | dataclasses.asdict(self)
        del found["way"]
        return {"kind": "mean-1bit"} | {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def measure(way: Way, seed: int, tell: Callable[[float], None] | None = None) -> Outcome:
    """Carries it out; `tell` gets the share that is done. Every way and seed has random numbers of its own."""
    own = zlib.crc32(repr(way).encode())
    streams = max(1, min(way.repeats, _CHUNK // way.n))
    chunks = -(-way.repeats // streams)
    errors: list[Array] = []
    asked = located = rounds = 0
    for chunk in range(chunks):
        generator = np.random.Generator(np.random.SFC64([seed, own, chunk]))
        mu = generator.uniform(-way.half_width, way.half_width, (streams, 1))
        if way.method == "adaptive":
            estimate, asked, located, rounds = _adaptive(way, generator, mu, streams)
        else:
            estimate, asked, rounds = _FIXED[way.method](way, generator, mu), way.n, 1
        errors.append(estimate - mu[:, 0])
        if tell is not None:
            tell((chunk + 1) / chunks)
    found = np.concatenate(errors)
    squares, sizes = asked * np.square(found), np.abs(found)
    root = math.sqrt(len(found))
    return Outcome(
        way, asked, located, rounds,
        float(squares.mean()), float(squares.std()) / root, float(sizes.mean()), float(sizes.std()) / root,
    )  # fmt: skip


def _draw(way: Way) -> Draw:
    return normal if way.pareto is None else pareto(*way.pareto)


def _adaptive(way: Way, generator: np.random.Generator, mu: Array, streams: int) -> tuple[Array, int, int, int]:
    draw = _draw(way)
    mean = OneBitMean(
        way.half_width,
        sigma=way.sigma,
        noise=way.noise,
        budget=way.n if way.known_budget else None,
        streams=streams,
        two_stages=way.two_stages,
        seed=int(generator.integers(1 << 62)),
    )
    while (queries := mean.next_queries()) is not None and mean.asked + queries.count <= way.n:
        mean.tell(queries.answer(mu + draw(generator, (streams, queries.count))))
    return mean.estimate(), mean.asked, mean.located_after or 0, mean.rounds


def _grid(way: Way, generator: np.random.Generator, mu: Array) -> Array:
    """Thresholds half a sigma apart, each asked equally often, and maximum likelihood."""
    # A search by Newton's steps begins near: at what the shares of yes add up to.
    spacing = 0.5
    reach = way.half_width + 3.0
    grid = np.arange(-reach, reach + spacing, spacing)
    which = np.arange(way.n) % len(grid)
    answers = mu + _draw(way)(generator, (len(mu), way.n)) > grid[which]
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which, minlength=len(grid))
    yes = np.add.reduceat(answers[:, order].astype(np.int64), np.concatenate([[0], np.cumsum(counts)[:-1]]), axis=1)
    start = grid[0] - 0.5 * spacing + spacing * (yes / counts).sum(1, keepdims=True)
    table = ProbitTable(len(mu))
    for i, threshold in enumerate(grid):
        table.add(np.full_like(mu, threshold), int(counts[i]), yes[:, i : i + 1])
    return table.fit(start, np.ones((1, 1)))[:, 0]


def _random(way: Way, generator: np.random.Generator, mu: Array) -> Array:
    """Uniform thresholds: the share of yes is where the mean lies."""
    reach = way.half_width + 3.0
    thresholds = generator.uniform(-reach, reach, (len(mu), way.n))
    answers = mu + _draw(way)(generator, thresholds.shape) > thresholds
    estimate: Array = reach * (2.0 * answers.mean(1) - 1.0)
    return estimate


def _exact(way: Way, generator: np.random.Generator, mu: Array) -> Array:
    """Without quantisation."""
    estimate: Array = (mu + _draw(way)(generator, (len(mu), way.n))).mean(1)
    return estimate


_FIXED: dict[str, Callable[[Way, np.random.Generator, Array], Array]] = {
    "grid": _grid,
    "random": _random,
    "exact": _exact,
}
