"""Interactive estimation of a Gaussian mean from B bits a round, with real codecs, against the lower bound on the rounds.

In each round another worker sees X = theta + sigma Z in R^d and sends Q(X - c), where c is the server's estimate, which everybody knows. The server
decodes y = c + x^ / gain. Given the past, y is theta plus noise of mean zero, whose variance per coordinate is v = sigma^2 + omega (sigma^2 + e), where e is the
estimate's own error: the encoder's error is in proportion to the energy that it is given. So the best linear estimate weighs y by w = 1 / v, and
its error follows 1/e <- 1/e + w: this is a Kalman filter, and c + e' w (y - c) its step. Once e is small this takes sigma^2 (1 + omega) d / eps^2 rounds; the
bound (`commpress.information.rounds_lower_bound`) has sigma^2 d / eps^2 / (1 - 2^(-2B/d)).

theta is drawn from the prior of the bound, cos^2(pi x / 2a) / a in each coordinate, so the bound is a theorem about exactly this average, for any estimator and any memoryless encoder of B bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from commpress.collectives._header import HEADER_NBYTES
from commpress.errors import SpecError
from commpress.experiments._mean_oracle import Oracle, calibrate, generator_for
from commpress.information import rounds_lower_bound

HEADER_BITS = 8 * HEADER_NBYTES  # the message that goes ahead of a payload in our exchanges
STANDARD_ERRORS = 4.0  # a bound is called beaten if the ratio is below 1 by more than this
_WINDOW = 1.25  # errors within this factor of the target are fitted
_GIVE_UP = 60  # times the bound


def prior_variance(half_width: float) -> float:
    """Variance of the density cos^2(pi x / 2a) / a on [-a, a]."""
    return half_width**2 * (1.0 / 3.0 - 2.0 / math.pi**2)


def draw_prior(shape: tuple[int, ...], half_width: float, generator: torch.Generator) -> torch.Tensor:
    """float32 values with that density, by rejection."""
    count = math.prod(shape)
    kept = [torch.empty(0)]
    while sum(len(part) for part in kept) < count:
        x = 2.0 * torch.rand(2 * count + 16, generator=generator) - 1.0
        kept.append(x[torch.rand(len(x), generator=generator) < torch.cos(0.5 * math.pi * x) ** 2])
    return (half_width * torch.cat(kept)[:count]).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What decides one measurement.

    Attributes:
        d: coordinates.
        samples: the target: eps^2 = sigma^2 d / samples, what the mean of so many uncompressed samples has.
        repeats: independent repetitions over which the error is averaged.
        seed: of data and coins.
        sigma: standard deviation of a coordinate.
        half_width: of the prior, a.

    Raises:
        SpecError: a value makes no sense.
    """

    d: int
    samples: int = 200
    repeats: int = 8
    seed: int = 0
    sigma: float = 1.0
    half_width: float = 4.0

    def __post_init__(self) -> None:
        if self.d < 1 or self.samples < 16 or self.repeats < 2:
            raise SpecError(
                "mean estimation needs d >= 1, samples >= 16 and repeats >= 2, "
                f"got {self.d}, {self.samples}, {self.repeats}"
            )
        if not (self.sigma > 0 and self.half_width > 0 and math.isfinite(self.sigma * self.half_width)):
            raise SpecError(f"sigma and half_width must be positive and finite, got {self.sigma}, {self.half_width}")
        if not 0 <= self.seed < 1 << 63:
            raise SpecError(f"seed must be in [0, 2^63), got {self.seed}")
        if prior_variance(self.half_width) * self.samples <= self.sigma**2:
            raise SpecError(f"half_width {self.half_width} is so small that nothing need be sent")

    @property
    def eps2(self) -> float:
        """The target for E|theta^ - theta|^2."""
        return self.sigma**2 * self.d / self.samples


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        codec: the oracle's name. d, samples, repeats, seed: as in `Trial`.
        bits: of one message, all of its payload. header_bits: of the exchange's header, not in `bits`.
        gain, omega: what the calibration gave.
        rounds: until the mean squared error was eps^2, interpolated; inf if it was not within 60 times the bound.
        rounds_se: its Monte-Carlo standard error.
        forecast: rounds that the filter's own recursion expects.
        limit: the bound at `bits`. limit_with_header: the bound at `bits + header_bits`.
    """

    codec: str
    d: int
    samples: int
    repeats: int
    seed: int
    bits: int
    header_bits: int
    gain: float
    omega: float
    rounds: float
    rounds_se: float
    forecast: float
    limit: float
    limit_with_header: float

    @property
    def ratio(self) -> float:
        """Measured rounds over the bound; 1 is the optimum."""
        return self.rounds / self.limit

    @property
    def ratio_se(self) -> float:
        """Its Monte-Carlo standard error."""
        return self.rounds_se / self.limit

    @property
    def ratio_with_header(self) -> float:
        """The same against the bound that may use the header's bits too."""
        return self.rounds / self.limit_with_header

    @property
    def beaten(self) -> bool:
        """Whether the bound is beaten beyond the Monte-Carlo error, which no memoryless encoder can do: bits are not counted, or the program is wrong."""
        return self.ratio + STANDARD_ERRORS * self.ratio_se < 1.0

    def record(self) -> dict[str, Any]:
        """For a line of JSON; what is not finite becomes None."""
        values = dataclasses.asdict(self) | {
            name: getattr(self, name) for name in ("ratio", "ratio_se", "ratio_with_header", "beaten")
        }
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return {"kind": "mean-estimation", **known}


def forecast(trial: Trial, omega: float) -> float:
    """Rounds after which the recursion of the module's text is at the target."""
    variance, target = prior_variance(trial.half_width), trial.sigma**2 / trial.samples
    rounds = 0.0
    while True:
        weight = 1.0 / (trial.sigma**2 + omega * (trial.sigma**2 + variance))
        wanted = (1.0 / target - 1.0 / variance) / weight
        if wanted <= 1.0:
            return rounds + wanted
        variance, rounds = 1.0 / (1.0 / variance + weight), rounds + 1.0


def measure(oracle: Oracle, trial: Trial, on_round: Callable[[int, float], None] | None = None) -> Point:
    """Runs the rounds until the error is below the target.

    Args:
        oracle: how a worker's vector becomes bits.
        trial: what to estimate.
        on_round: called now and then with rounds done and about how many there will be.

    Raises:
        StateError: the oracle's output does not correlate with its input, or its messages are not as large as it says.
    """
    d, sigma2 = trial.d, trial.sigma**2
    bits = oracle.bits(d)
    gain, omega = calibrate(oracle, d, seed=trial.seed)
    limits = [
        rounds_lower_bound(d, b, trial.sigma, math.sqrt(trial.eps2), half_width=trial.half_width)
        for b in (bits, bits + HEADER_BITS)
    ]
    expected = forecast(trial, omega)
    generator = generator_for("mean estimation", oracle.name, d, trial.samples, trial.seed)
    theta = draw_prior((trial.repeats, d), trial.half_width, generator)
    estimate = torch.zeros(trial.repeats, d)
    variance = prior_variance(trial.half_width)
    errors: list[torch.Tensor] = []  # per round: of each repeat, over eps^2
    most = math.ceil(_GIVE_UP * limits[0])
    while len(errors) < most:
        x = theta + trial.sigma * torch.randn(trial.repeats, d, generator=generator)
        decoded = oracle.send(x - estimate, seed=trial.seed, round_=len(errors))
        after = 1.0 / (1.0 / variance + 1.0 / (sigma2 + omega * (sigma2 + variance)))
        estimate += decoded * (after / (sigma2 + omega * (sigma2 + variance)) / gain)
        variance = after
        errors.append((estimate - theta).double().square().sum(1) / trial.eps2)
        if on_round is not None and len(errors) % 16 == 0:
            on_round(len(errors), _WINDOW * expected)
        if float(errors[-1].mean()) <= 1.0 / _WINDOW:
            break
    rounds, rounds_se = _crossing(torch.stack(errors), d)
    return Point(
        oracle.name, d, trial.samples, trial.repeats, trial.seed, bits, HEADER_BITS, gain, omega, rounds, rounds_se, expected, *limits,
    )  # fmt: skip


def _crossing(errors: torch.Tensor, d: int) -> tuple[float, float]:
    """Where the mean of (rounds, repeats) errors is 1, by a straight line through its logarithm near there, and its standard error."""
    mean = errors.mean(1)
    if float(mean[-1]) > 1.0:
        return math.inf, math.inf
    # From the last round that is above the window on: the curve is noisy and may touch it earlier.
    above = torch.nonzero(mean > _WINDOW)
    first = int(above[-1]) + 1 if len(above) else 0
    time = torch.arange(first + 1, len(mean) + 1, dtype=torch.float64).log()
    level = mean[first:].log()
    if len(time) < 3:  # a jump through the window: nothing to fit
        return float(first + 1), math.inf
    centred = time - time.mean()
    slope = float((centred * level).sum() / centred.square().sum())
    rounds = math.exp(float(time.mean()) - float(level.mean()) / slope) if slope < 0 else float(first + 1)
    at = errors[min(len(errors), max(1, round(rounds))) - 1]
    # Few repeats give a rough estimate of their spread; that of d Gaussian coordinates is the least it can be.
    relative = max(float(at.std() / at.mean()), math.sqrt(2.0 / d)) / math.sqrt(len(at))
    return rounds, rounds * relative / max(abs(slope), 0.1)
