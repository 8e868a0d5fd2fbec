"""How many rounds, and how many bits, an accuracy takes at least.

Each of n workers sends one message of B bits about its own fresh X ~ N(theta, sigma^2 I_d) in every round, and may choose it
by all earlier messages (but forgets its own earlier observations). Fisher information adds over workers and rounds, and the van Trees inequality (Gill and Levit, 1995) turns it into an error: under a prior of
cos^2 shape on [-a, a]^d, whose information is pi^2/a^2 per coordinate,

    E|theta^ - theta|^2  >=  d^2 / (Tr I + d pi^2 / a^2).
"""

from __future__ import annotations

import math

from commpress.errors import SpecError
from commpress.information._check import count, number
from commpress.information._limits import fisher_fraction


def rounds_lower_bound(
    numel: int, message_bits: float, sigma: float, error: float, *, half_width: float = math.inf, workers: int = 1
) -> float:
    """T >= (sigma^2 d/eps^2) (1 - pi^2 eps^2/(a^2 d)) / (n (1 - 2^(-2B/d))), for memoryless encoders.

    Args:
        numel: d >= 1, coordinates.
        message_bits: B >= 0, bits of one message (one worker, one round); may be infinite.
        sigma: > 0, noise of one coordinate of one observation (standard deviation, units of the gradient).
        error: eps > 0, root of the mean of |theta^ - theta|^2 over the whole vector (same units).
        half_width: a > 0; the mean is known to lie in [-a, a] in every coordinate. Infinite: nothing is known.
        workers: n >= 1.

    Returns:
        the bound, not rounded up. 0 where the prior alone reaches the error, infinite where no bits are sent.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    d = count(numel, "numel")
    fraction = fisher_fraction(number(message_bits, "message_bits", infinite=True) / d)
    needed = _needed(d, sigma, error, half_width) / count(workers, "workers")
    if needed == 0:
        return 0.0
    return needed / fraction if fraction > 0 else math.inf


def rounds_lower_bound_simple(
    numel: int, message_bits: float, sigma: float, error: float, *, half_width: float = math.inf, workers: int = 1
) -> float:
    """T >= 1/2 (sigma^2 d/eps^2) max{1, d/(2 ln2 B)} / n, which holds where a^2 >= 2 pi^2 eps^2/d.

    Never above :func:`rounds_lower_bound`; arguments as there.

    Raises:
        SpecError: also where the condition does not hold; use :func:`rounds_lower_bound` then.
    """
    d, b = count(numel, "numel"), number(message_bits, "message_bits", infinite=True)
    noise, eps = number(sigma, "sigma", above=True), number(error, "error", above=True)
    a = number(half_width, "half_width", above=True, infinite=True)
    if a * math.sqrt(d) < math.sqrt(2) * math.pi * eps:
        raise SpecError(
            f"the simple form needs half_width >= sqrt(2) pi error / sqrt(numel) = {math.sqrt(2 / d) * math.pi * eps:g}, got {a:g}; "
            "rounds_lower_bound has no such condition"
        )
    stretch = max(1.0, d / (2 * math.log(2) * b)) if b > 0 else math.inf
    ratio = noise / eps
    return d * ratio * ratio / 2 * stretch / count(workers, "workers")


def optimisation_form(sigma: float, gap: float, mu: float) -> tuple[float, float]:
    """Noise and error to put into the bounds, for minimising f = (mu/2)|x - theta|^2 from gradients.

    A gradient mu (x - theta) + noise tells theta with noise sigma/mu, and f - min f <= eps_f is an error of sqrt(2 eps_f/mu).

    Args:
        sigma: > 0, noise of one coordinate of a gradient. gap: eps_f > 0, mean of f - min f. mu: > 0, strong convexity.

    Returns:
        (sigma/mu, sqrt(2 gap/mu)).

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    m = number(mu, "mu", above=True)
    return number(sigma, "sigma", above=True) / m, math.sqrt(2 * number(gap, "gap", above=True) / m)


def communication_bits(numel: int, error: float, prior_sigma: float) -> float:
    """(d/2) log2(d tau^2/eps^2): bits that all messages of all workers have together, at least; 0 where that is negative.

    Rate-distortion theory of theta ~ N(0, tau^2 I_d) itself. It holds for any encoder, with memory or without, any noise
    and any number of rounds: T n B >= this.

    Args:
        numel: d >= 1. error: eps > 0, as in :func:`rounds_lower_bound`. prior_sigma: tau > 0, per coordinate.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    d, eps, tau = (
        count(numel, "numel"),
        number(error, "error", above=True),
        number(prior_sigma, "prior_sigma", above=True),
    )
    return max(0.0, d * (math.log2(d) / 2 + math.log2(tau) - math.log2(eps)))


def communication_rounds(
    numel: int, message_bits: float, error: float, prior_sigma: float, *, workers: int = 1
) -> float:
    """:func:`communication_bits` over the n B bits of a round. Infinite where bits are needed and none are sent."""
    bits = communication_bits(numel, error, prior_sigma)
    sent = number(message_bits, "message_bits", infinite=True) * count(workers, "workers")
    if bits == 0:
        return 0.0
    return bits / sent if sent > 0 else math.inf


def _needed(d: int, sigma: float, error: float, half_width: float) -> float:
    """(sigma^2 d/eps^2)(1 - pi^2 eps^2/(a^2 d)): whole observations that the error takes; 0 where it needs none."""
    noise, eps = number(sigma, "sigma", above=True), number(error, "error", above=True)
    a = number(half_width, "half_width", above=True, infinite=True)
    ratio, prior = noise / eps, math.pi * eps / a / math.sqrt(d)
    # Products, not powers: a float's power raises where it overflows.
    left = 1 - prior * prior
    return d * ratio * ratio * left if left > 0 else 0.0
