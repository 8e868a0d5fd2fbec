"""Encoders with memory, noise that is correlated in time, means that drift, and causal prediction.

bits is b, bits per coordinate of one message, throughout, and u = 2^(-2b). Coordinates are independent and alike.
"""

from __future__ import annotations

import math

from commpress.errors import SpecError
from commpress.information._check import count, number, square
from commpress.information._limits import fisher_fraction, fisher_limit
from commpress.information._rounds import _needed


def memory_limit(numel: float, variance: float, bits: float, rounds: int) -> float:
    """(T d/s)(1 - 2^(-2 T b)): the most that one worker's T messages carry together, if its encoder remembers what it saw.

    Error feedback is such an encoder. It may describe the mean of T observations, of variance s/T, with T B bits. Without memory
    the limit is T times :func:`fisher_limit`, which does not bind such an encoder.

    Args:
        numel: d >= 0, coordinates. variance: s > 0. bits: b >= 0, of one message; may be infinite. rounds: T >= 1.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    t = count(rounds, "rounds")
    return t * fisher_limit(numel, variance, t * number(bits, "bits", infinite=True))


def ar1_information(numel: float, variance: float, rho: float, rounds: int) -> float:
    """(d/s) [1 + (T-1)(1-rho)/(1+rho)]: what T uncompressed observations tell when their noise is AR(1).

    Exact, for X_t = theta + e_t with stationary Gaussian e_t, variance s and correlation rho^k at a distance of k rounds.
    Compression only takes from it, so it bounds every encoder, with memory or without.

    Args:
        numel: d >= 0. variance: s > 0, of one e_t. rho: in (-1, 1). rounds: T >= 1.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    gain = (1 - _correlation(rho)) / (1 + rho)
    return (
        number(numel, "numel") / number(variance, "variance", above=True) * (1 + (count(rounds, "rounds") - 1) * gain)
    )


def ar1_dithered_variance(rho: float, bits: float) -> float:
    """T Var/sigma^2 = (1+rho)/(1-rho) + u/(1-u): the mean of T memoryless dithered messages under AR(1) noise, for large T.

    The terms add: dither makes quantisation errors white, so correlation inflates the first term alone. The product
    (1+rho)/(1-rho) * 1/(1-u), which independent noise (rho = 0) suggests, does not hold: at rho = .9 and b = .1 it is 147
    where the truth is 25.7.

    u/(1-u) is the error over sigma^2 of an ideal dithered quantiser at b bits (Zamir and Feder, 1992: a lattice of high
    dimension). For a real one put its own error in place of it, step^2/(12 sigma^2) for a scalar one.

    Args:
        rho: in (-1, 1). bits: b >= 0, may be infinite.

    Returns:
        the ratio; infinite at no bits.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    inflation = (1 + _correlation(rho)) / (1 - rho)
    fraction = fisher_fraction(bits)
    return inflation + _left(bits) / fraction if fraction > 0 else math.inf


def ar1_rounds(
    numel: int, sigma: float, error: float, rho: float, *, half_width: float = math.inf, workers: int = 1
) -> float:
    """Rounds at least under AR(1) noise, whatever the encoder and the bits: van Trees on :func:`ar1_information`.

    With A = (sigma^2 d/eps^2)(1 - pi^2 eps^2/(a^2 d))/n it is T >= 1 + (A-1)(1+rho)/(1-rho) for A >= 1, else A. For large A that is
    A (1+rho)/(1-rho); the difference, 2 rho/(1-rho) rounds, is what the first observation tells in full.

    Args:
        numel, sigma, error, half_width, workers: as in :func:`rounds_lower_bound`; workers' noises are independent.
        rho: in (-1, 1).

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    inflation = (1 + _correlation(rho)) / (1 - rho)
    needed = _needed(count(numel, "numel"), sigma, error, half_width) / count(workers, "workers")
    return 1 + (needed - 1) * inflation if needed >= 1 else needed


def drift_error(a: float, q: float, sigma: float, bits: float) -> float:
    """Steady mean squared error P of one coordinate of a drifting mean, at the limit of a memoryless encoder.

    theta_{t+1} = a theta_t + N(0, q^2) is seen in noise of variance sigma^2; the decoder is a Kalman filter, and the encoder spends
    b bits on an observation of which the decoder knows a prediction (that costs nothing in the Gaussian case: Wyner and Ziv, 1976).
    From the error m before an observation follows that after it, P = m [1 - (1-u) m/(m + sigma^2)], and m = a^2 P + q^2. Together
    they are a quadratic in m, (1 - a^2 u) m^2 + (sigma^2 (1 - a^2) - q^2) m - q^2 sigma^2 = 0, solved here in closed form.
    For small q and a = 1, P is about q sigma/sqrt(1-u).

    Args:
        a: any finite number. q: >= 0, standard deviation of one step. sigma: > 0. bits: b >= 0, may be infinite.

    Returns:
        P, in squared units of theta; infinite where the bits do not hold the drift (a^2 u >= 1).

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    a_squared, step = square(number(a, "a", least=-math.inf), "a"), square(number(q, "q"), "q")
    noise, fraction = square(number(sigma, "sigma", above=True), "sigma"), fisher_fraction(bits)
    # 1 - a^2 u, without the loss of digits where u is nearly 1.
    lead, middle, last = (1 - a_squared) + a_squared * fraction, noise * (1 - a_squared) - step, step * noise
    if lead <= 0:
        return math.inf
    if step == 0 and a_squared <= 1:
        return 0.0  # it stands still or dies out: learnt once and for all
    root = math.sqrt(middle * middle + 4 * lead * last)
    # The positive root, in the form that does not subtract nearly equal numbers.
    m = 2 * last / (middle + root) if middle > 0 else (root - middle) / (2 * lead)
    return m * (noise + _left(bits) * m) / (m + noise)


def causal_distortion(a: float, innovation: float, bits: float) -> float:
    """D = s_w/(2^(2b) - a^2): the least mean squared error at b bits, coding X_t = a X_{t-1} + N(0, s_w) without delay.

    Source: Gorbunov and Pinsker (1974). It is reached in high dimension by quantising X_t - a x^_{t-1}; every decoder can form
    that prediction.

    Args:
        a: any finite number. innovation: s_w > 0. bits: b >= 0, may be infinite.

    Returns:
        D per coordinate, in squared units of X; infinite where 2^(2b) <= a^2.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    a_squared, s = square(number(a, "a", least=-math.inf), "a"), number(innovation, "innovation", above=True)
    lead = (1 - a_squared) + a_squared * fisher_fraction(bits)
    return s * _left(bits) / lead if lead > 0 else math.inf


def causal_rate(a: float, innovation: float, distortion: float) -> float:
    """R = 1/2 log2(a^2 + s_w/D), or 0 where that is negative: the inverse of :func:`causal_distortion`, in bits per coordinate.

    Raises:
        SpecError: a value out of its range (distortion must be > 0). TensorError: not one number.
    """
    a_squared, s = square(number(a, "a", least=-math.inf), "a"), number(innovation, "innovation", above=True)
    return max(0.0, math.log2(a_squared + s / number(distortion, "distortion", above=True)) / 2)


def causal_gain(a: float, bits: float) -> float:
    """(1 - a^2 u)/(1 - a^2): the error of memoryless coding at b bits over that of causal prediction, for stationary AR(1) input.

    Args:
        a: in (-1, 1). bits: b >= 0, may be infinite.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    a_squared = _correlation(a, "a") ** 2
    return 1 + a_squared * fisher_fraction(bits) / (1 - a_squared)


def _left(bits: float) -> float:
    """u = 2^(-2b)."""
    return 2.0 ** (-2 * bits)


def _correlation(value: float, name: str = "rho") -> float:
    x = number(value, name, least=-math.inf)
    if abs(x) >= 1:
        raise SpecError(f"{name} must be between -1 and 1, both left out, got {value}")
    return x
