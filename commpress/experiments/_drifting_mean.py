"""What changes if rounds depend on each other: sequences that can be predicted, correlated noise, means that drift.

Three measurements, each on independent coordinates of which one tensor holds many:

* `reconstruct`: X_t = a X_(t-1) + W_t is sent round by round. The memoryless encoder sends Q(X_t), the predictive one Q(X_t - a x^_(t-1)); every decoder
  knows x^_(t-1), so it adds the prediction itself. Distortions at equal bits, and their quotient, the gain.
* `correlated_mean`: X_t = theta + N_t with AR(1) noise; a weighted average of what was decoded.
* `track`: theta_(t+1) = a theta_t + N(0, q^2), X_t = theta_t + sigma Z_t; a Kalman filter at the server.

"Memoryless" is an encoder whose message depends on X_t and on what everybody knows. If X_t itself is correlated with X_(t-1), a prediction from x^_(t-1) is
exactly what such an encoder may use and the limits for independent rounds do not have in mind.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from commpress.errors import SpecError
from commpress.experiments._mean_oracle import CodecOracle, calibrate, generator_for
from commpress.information import ar1_dithered_variance, causal_gain, drift_error

_MEMORYLESS, _PREDICTIVE = 2, 3  # purposes, so that the two encoders' coins differ


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Distortions of the two encoders for an AR(1) sequence of variance 1, at equal bits.

    Attributes:
        codec, a, rate: the codec, the correlation, and all payload bits per coordinate.
        memoryless, predictive: E|x^ - x|^2 / d of each.
        best_gain: Gorbunov and Pinsker's at `rate` (`commpress.information.causal_gain`).
    """

    codec: str
    a: float
    rate: float
    memoryless: float
    predictive: float
    best_gain: float

    @property
    def gain(self) -> float:
        """Measured: memoryless over predictive distortion."""
        return self.memoryless / self.predictive

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "reconstruction", **dataclasses.asdict(self), "gain": self.gain}


def reconstruct(
    codec: str, a: float, *, d: int = 4096, rows: int = 8, rounds: int = 120, seed: int = 0
) -> Reconstruction:
    """Sends a stationary AR(1) sequence with the memoryless and with the predictive encoder; the first quarter of the rounds is not counted.

    The codec should have the least-squares scale: its error is smaller than the unbiased one's, and smaller than the input, so that the prediction
    cannot grow. With an unbiased codec of variance omega the recursion needs a^2 omega < 1, which fails below about a bit.

    Raises:
        SpecError: not -1 < a < 1, a size is not positive, or there is no such codec.
    """
    _check(a, "a")
    _check_sizes(d, rows, rounds)
    oracle = CodecOracle(codec)
    generator = generator_for("reconstruct", codec, a, d, seed)
    x = torch.randn(rows, d, generator=generator)
    known = torch.zeros(rows, d)
    sums = [0.0, 0.0]
    counted = 0
    for t in range(rounds):
        decoded = oracle.send(x, seed=seed, round_=t, purpose=_MEMORYLESS)
        known = a * known + oracle.send(x - a * known, seed=seed, round_=t, purpose=_PREDICTIVE)
        if t >= rounds // 4:
            counted += x.numel()
            for i, value in enumerate((decoded, known)):
                sums[i] += float((value - x).double().square().sum())
        x = a * x + math.sqrt(1.0 - a * a) * torch.randn(rows, d, generator=generator)
    rate = oracle.bits(d) / d
    return Reconstruction(oracle.name, a, rate, sums[0] / counted, sums[1] / counted, causal_gain(a, rate))


@dataclasses.dataclass(frozen=True)
class CorrelatedMean:
    """T Var / sigma^2 of a mean estimated from T decoded rounds with AR(1) noise.

    Attributes:
        codec, rho, rate, rounds: what was measured; `rate` counts all payload bits.
        measured, standard_error: T Var / sigma^2 per coordinate, where 1 / Var is without the prior's information.
        noise: what the correlated noise alone gives, (1+rho)/(1-rho); for finite T a little less, by about 2 rho / (T (1-rho)^2).
        expected: `noise` + omega of this codec, first rounds included. additive: `noise` + u/(1-u), the best for encoders that are memoryless.
        product: `noise` / (1-u), which is no bound.
    """

    codec: str
    rho: float
    rate: float
    rounds: int
    measured: float
    standard_error: float
    noise: float
    expected: float
    additive: float
    product: float

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "correlated-mean", **dataclasses.asdict(self)}


def correlated_mean(
    codec: str, rho: float, *, d: int = 4096, rows: int = 4, rounds: int = 4096, seed: int = 0
) -> CorrelatedMean:
    """Estimates a mean from rounds whose noise is AR(1) with correlation rho and variance 1; each message is Q(X_t - current estimate).

    Raises:
        SpecError: not -1 < rho < 1, a size is not positive, or there is no such codec.
    """
    _check(rho, "rho")
    _check_sizes(d, rows, rounds)
    oracle = CodecOracle(codec)
    gain, omega = calibrate(oracle, d, seed=seed)
    generator = generator_for("correlated mean", oracle.name, rho, d, seed)
    theta = torch.randn(rows, d, generator=generator)  # so the prior knows as much as one sample
    noise = torch.randn(rows, d, generator=generator)
    estimate = torch.zeros(rows, d)
    # Over many rounds the correlated noise acts as white noise of this variance, and the weights are equal. A plain average
    # would end in the same place, but not start there: at omega >> 1 its first errors feed the encoder more energy than they remove.
    white = (1.0 + rho) / (1.0 - rho)
    variance = 1.0
    for t in range(rounds):
        decoded = oracle.send(theta + noise - estimate, seed=seed, round_=t)
        received = white + omega * (1.0 + variance)
        variance = 1.0 / (1.0 / variance + 1.0 / received)
        estimate += decoded * (variance / received / gain)
        noise = rho * noise + math.sqrt(1.0 - rho * rho) * torch.randn(rows, d, generator=generator)
    error = float((estimate - theta).double().square().mean())
    measured, expected = (rounds / (1.0 / e - 1.0) if e < 1.0 else math.inf for e in (error, variance))
    rate = oracle.bits(d) / d
    u = 2.0 ** (-2.0 * rate)
    return CorrelatedMean(
        oracle.name, rho, rate, rounds, measured, measured * math.sqrt(2.0 / (rows * d)),
        white, expected, ar1_dithered_variance(rho, rate), white / (1.0 - u),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Steady-state error per coordinate of a server that follows a drifting mean; sigma is 1.

    Attributes:
        codec, a, q, rate: what was measured; `rate` counts all payload bits.
        centred: each message is Q(X_t - the server's prediction). expected: what the Kalman recursion gives for this codec's G.
        limit: what it gives for 1 - 2^(-2R). uncompressed: for X_t itself.
        plain, plain_expected: measured and by the recursion if the message is Q(X_t), without the prediction; None where theta has no
            finite variance (a = 1).
    """

    codec: str
    a: float
    q: float
    rate: float
    centred: float
    expected: float
    limit: float
    uncompressed: float
    plain: float | None
    plain_expected: float | None

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "tracking", **dataclasses.asdict(self)}


def track(
    codec: str, a: float, q: float, *, d: int = 4096, rows: int = 4, rounds: int = 1200, seed: int = 0
) -> Tracking:
    """Follows theta_(t+1) = a theta_t + N(0, q^2) from X_t = theta_t + Z_t. Filters begin in their steady state; the first third of the rounds is not counted.

    Raises:
        SpecError: not 0 <= a <= 1, q or a size is not positive, or there is no such codec.
    """
    if not (0.0 <= a <= 1.0 and q > 0):
        raise SpecError(f"need 0 <= a <= 1 and q > 0, got a={a}, q={q}")
    _check_sizes(d, rows, rounds)
    oracle = CodecOracle(codec)
    gain, omega = calibrate(oracle, d, seed=seed)
    rate = oracle.bits(d) / d
    reached = 1.0 / (1.0 + omega)  # G
    spread = q * q / (1.0 - a * a) if a < 1.0 else 0.0
    generator = generator_for("track", codec, a, q, d, seed)
    theta = math.sqrt(spread) * torch.randn(rows, d, generator=generator)
    steady = drift_error(a, q, 1.0, -0.5 * math.log2(1.0 - reached))  # bits that would reach G at the limit
    # Q(X) is X with noise of variance omega (1 + spread) added: an ordinary Kalman filter.
    noise = math.sqrt(1.0 + omega * (1.0 + spread))
    plain_steady = drift_error(a, q, noise, math.inf) if a < 1.0 else None
    followed = theta + math.sqrt(steady) * torch.randn(rows, d, generator=generator)
    plain = theta + math.sqrt(plain_steady or 0.0) * torch.randn(rows, d, generator=generator)
    sums, counted = [0.0, 0.0], 0
    for t in range(rounds):
        theta = a * theta + q * torch.randn(rows, d, generator=generator)
        x = theta + torch.randn(rows, d, generator=generator)
        ahead = a * a * steady + q * q
        # The decoded value is shrunk to the centroid (G / gain) first, whichever scale the codec has.
        shrunk = oracle.send(x - a * followed, seed=seed, round_=t, purpose=_PREDICTIVE) * (reached / gain)
        followed = a * followed + ahead / (ahead + 1.0) * shrunk
        if plain_steady is not None:
            ahead = a * a * plain_steady + q * q
            decoded = oracle.send(x, seed=seed, round_=t, purpose=_MEMORYLESS) / gain
            plain = a * plain + ahead / (ahead + noise**2) * (decoded - a * plain)
        if t >= rounds // 3:
            counted += theta.numel()
            sums[0] += float((followed - theta).double().square().sum())
            sums[1] += float((plain - theta).double().square().sum())
    return Tracking(
        oracle.name, a, q, rate, sums[0] / counted, steady,
        drift_error(a, q, 1.0, rate),
        drift_error(a, q, 1.0, math.inf),
        None if plain_steady is None else sums[1] / counted, plain_steady,
    )  # fmt: skip


def _check(value: float, name: str) -> None:
    if not -1.0 < value < 1.0:
        raise SpecError(f"{name} must lie in (-1, 1), got {value}")


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise SpecError(f"d, rows and rounds must be at least 1, got {', '.join(map(str, sizes))}")
