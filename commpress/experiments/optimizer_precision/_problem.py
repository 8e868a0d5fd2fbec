"""Adam and Muon on a smooth non-convex problem, with every mantissa, place and kind of rounding in one array.

Robust regression of a matrix W of 4 x 8, ``f(W) = 1/2 sum r^2 / (1 + r^2)`` with ``r = A W - B`` (Geman and McClure's loss, whose curvature changes its sign at r^2 = 1/3; W begins beyond
that in part of its coordinates). The gradient gets normal noise, so that the moments have something to average. The learning rate is constant in a run and goes with T^(-3/4), so that a longer run ends nearer to the optimum. A step is then T^(-3/4) of a
weight, and to be seen beside it takes 3/4 of a bit of mantissa more for each doubling of T.

The step is that of torch's own Adam and Muon (tests/test_optimizer_precision.py compares them), Muon's orthogonalisation in float32 where torch has bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from commpress.errors import SpecError
from commpress.experiments.optimizer_precision._average import MANTISSAS
from commpress.experiments.optimizer_precision._rounding import F32, masks, round_nearest, round_stochastic

ROWS, COLUMNS = 4, 8
NOISE = 0.1
BETA1, BETA2, MOMENTUM = 0.9, 0.999, 0.95
RATES = {"adam": 0.05, "muon": 0.1}  # at 1000 steps
RATE_EXPONENT = 0.75
PLACES = {
    "adam": ("gradient", "weights", "first moment", "second moment", "all"),
    "muon": ("gradient", "weights", "momentum", "all"),
}
ROUNDINGS = ("stochastic", "nearest")
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LAST = 10  # the final gradient norm is a mean over the last tenth of the steps
_TOLD = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """Runs of one optimizer and horizon that differ in the mantissa alone.

    Attributes:
        optimizer: "adam" or "muon". horizon: steps, T. rounding: "stochastic" or "nearest". place: what was rounded, after each change of it.
        mantissas: bits. norms: final gradient norms, exact gradients, root mean over the copies. exact: that of float32.
    """

    optimizer: str
    horizon: int
    rounding: str
    place: str
    mantissas: tuple[int, ...]
    norms: tuple[float, ...]
    exact: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "final-gradient", **dataclasses.asdict(self)}


def horizons(*, quick: bool) -> tuple[int, ...]:
    """Numbers of steps, 10^3 to 10^5, in quick mode to 10^4."""
    return (1000, 1778, 3162, 5623, 10000) if quick else (1000, 3162, 10000, 31623, 100000)


def copies(horizon: int, *, quick: bool) -> int:
    """Independent repetitions: short runs look at their gradient for a short time."""
    return max(1, min(4, (8000 if quick else 40000) // horizon))


def rate_of(optimizer: str, horizon: int) -> float:
    """Learning rate of a run of so many steps."""
    return RATES[optimizer] * (horizon / 1000.0) ** -RATE_EXPONENT


def problem(seed: int) -> tuple[F32, F32, F32]:
    """A, B and the start."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((ROWS, ROWS)))[0] for _ in range(2))
    a = (left * np.geomspace(1.0, 0.5, ROWS)) @ right
    best = generator.standard_normal((ROWS, COLUMNS))
    start = best + 0.7 * generator.standard_normal((ROWS, COLUMNS))
    return a.astype(np.float32), (a @ best).astype(np.float32), start.astype(np.float32)


def gradient(w: F32, a: F32, b: F32) -> F32:
    """Of every matrix of w, (4, 8, runs)."""
    r = (a @ w.reshape(ROWS, -1)).reshape(w.shape) - b[:, :, None]
    return (a.T @ (r / np.square(1.0 + np.square(r))).reshape(ROWS, -1)).reshape(w.shape)


class _Rounder:
    """Knows which runs are rounded where."""

    def __init__(self, places: tuple[str, ...], repeats: int, seed: int) -> None:
        self._generator = np.random.default_rng([seed, 2])
        block = len(MANTISSAS) * repeats
        bits = np.repeat(np.array(MANTISSAS, np.int32), repeats)
        self._shift, self._mask = masks(bits)
        self.rows = repeats + len(ROUNDINGS) * len(places) * block
        self._slices: dict[str, list[tuple[slice, str]]] = {place: [] for place in places}
        at = repeats  # float32 first
        self.groups: list[tuple[str, str, slice]] = []
        for rounding in ROUNDINGS:
            for place in places:
                rows = slice(at, at + block)
                at += block
                self.groups.append((rounding, place, rows))
                for here in places if place == "all" else (place,):
                    self._slices[here].append((rows, rounding))

    def round(self, x: F32, place: str) -> None:
        """In place, the runs that have it."""
        for rows, rounding in self._slices[place]:
            if rounding == "stochastic":
                round_stochastic(x[:, :, rows], self._mask, self._generator)
            else:
                round_nearest(x[:, :, rows], self._shift, self._mask)


def orthogonalise(x: F32) -> F32:
    """Newton and Schulz's iteration with Muon's coefficients, of each matrix of x, (4, 8, runs)."""
    a, b, c = (np.float32(v) for v in _COEFFICIENTS)
    x = x / np.maximum(np.sqrt(np.square(x).sum((0, 1))), np.float32(1e-7))
    for _ in range(5):
        gram = np.einsum("ikr,jkr->ijr", x, x)
        x = a * x + np.einsum("ijr,jkr->ikr", b * gram + c * np.einsum("ijr,jkr->ikr", gram, gram), x)
    return x


def run(
    optimizer: str,
    horizon: int,
    *,
    repeats: int = 1,
    seed: int = 0,
    noise: float = NOISE,
    rate: float | None = None,
    on_step: Callable[[int], None] | None = None,
    weights: list[npt.NDArray[np.float32]] | None = None,
) -> list[Run]:
    """All mantissas, places and roundings of one optimizer and horizon.

    Args:
        repeats: copies with noise of their own. noise: standard deviation of a gradient's coordinate. rate: learning rate; None: `rate_of`.
        on_step: called now and then with the steps done. weights: gets the float32 copies' weights after every step, (4, 8, repeats).

    Raises:
        SpecError: there is no such optimizer, or no step.
    """
    if optimizer not in PLACES or horizon < 1:
        raise SpecError(
            f"the optimizers here are {', '.join(PLACES)}, for at least one step; got {optimizer!r}, {horizon}"
        )
    places = PLACES[optimizer]
    rounder = _Rounder(places, repeats, seed)
    noises = np.random.default_rng([seed, 1])
    a, b, start = problem(seed)
    w = np.repeat(start[:, :, None], rounder.rows, axis=2)
    first, second = np.zeros_like(w), np.zeros_like(w)
    rate = rate_of(optimizer, horizon) if rate is None else rate
    squares, looked = np.zeros(rounder.rows), 0
    tail = horizon - max(1, horizon // _LAST)
    for step in range(1, horizon + 1):
        g = gradient(w, a, b)
        if step > tail:
            squares += np.square(g).sum((0, 1), dtype=np.float64)
            looked += 1
        # The copies' noise, the same for all mantissas: run i of every group is copy i modulo `repeats`.
        xi = np.float32(noise) * noises.standard_normal((ROWS, COLUMNS, 1, repeats), dtype=np.float32)
        g = (g.reshape(ROWS, COLUMNS, -1, repeats) + xi).reshape(w.shape)
        rounder.round(g, "gradient")
        if optimizer == "adam":
            first += np.float32(1 - BETA1) * (g - first)
            rounder.round(first, "first moment")
            second *= np.float32(BETA2)
            second += np.float32(1 - BETA2) * np.square(g)
            rounder.round(second, "second moment")
            scale = np.sqrt(second) * np.float32((1 - BETA2**step) ** -0.5) + np.float32(1e-8)
            w -= np.float32(rate / (1 - BETA1**step)) * first / scale
        else:
            first += np.float32(1 - MOMENTUM) * (g - first)
            rounder.round(first, "momentum")
            w -= np.float32(rate) * orthogonalise(first)
        rounder.round(w, "weights")
        if weights is not None:
            weights.append(w[:, :, :repeats].copy())
        if on_step is not None and step % _TOLD == 0:
            on_step(step)
    norms = np.sqrt((squares / looked).reshape(-1, repeats).mean(1))
    found = []
    for rounding, place, rows in rounder.groups:
        mine = norms[rows.start // repeats : rows.stop // repeats]
        found.append(Run(optimizer, horizon, rounding, place, MANTISSAS, tuple(mine.tolist()), float(norms[0])))
    return found


def runs(*, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None) -> list[Run]:
    """All of them, both optimizers and every horizon."""
    lengths = horizons(quick=quick)
    work = [(optimizer, horizon) for optimizer in PLACES for horizon in lengths]
    # Seconds go with steps; a Muon step takes about as long as two of Adam's.
    cost = [horizon * (1.0 if optimizer == "adam" else 2.0) for optimizer, horizon in work]
    found: list[Run] = []
    for i, (optimizer, horizon) in enumerate(work):

        def tell(steps: int, i: int = i) -> None:
            if on_progress is not None:
                optimizer, horizon = work[i]
                share = (sum(cost[:i]) + cost[i] * steps / horizon) / sum(cost)
                on_progress(share, f"{optimizer}, {horizon:,} steps")

        tell(0)
        found += run(optimizer, horizon, repeats=copies(horizon, quick=quick), seed=seed, on_step=tell)
    if on_progress is not None:
        on_progress(1.0, "done")
    return found
