"""Error models of reductions over n ranks with codecs in between.

omega is a codec's error over energy for an unbiased estimate (vNMSE). Errors of different ranks and phases are independent.
"""

from __future__ import annotations

import math

from commpress.errors import SpecError
from commpress.information._check import count, number, square
from commpress.information._limits import fisher_fraction


def two_stage_error(
    energy_sum: float, mean_energy: float, workers: int, omega_one: float, omega_two: float, *, own_exact: bool = False
) -> float:
    """E|result - mean|^2 of scatter-reduce and all-gather with unbiased codecs.

    (w1/n^2) sum |g_i|^2 + w2 (|gbar|^2 + (w1/n^2) sum |g_i|^2): the second phase encodes the mean with the first one's error in it.

    Args:
        energy_sum: sum of |g_i|^2 over ranks, >= 0. mean_energy: |gbar|^2, >= 0.
        workers: n >= 1. omega_one, omega_two: >= 0, of the two phases.
        own_exact: what a rank owns is not encoded in the first phase, as in this library: a share of 1/n of the first error
            is spared, if every rank's energy is spread evenly over the shards.

    Raises:
        SpecError: a value out of its range, or a mean with more energy than its parts allow. TensorError: not one number.
    """
    n, total, mean = count(workers, "workers"), number(energy_sum, "energy_sum"), number(mean_energy, "mean_energy")
    if mean > total / n * (1 + 1e-3):
        raise SpecError(f"mean_energy {mean:g} exceeds energy_sum / workers = {total / n:g}; a mean cannot")
    first = number(omega_one, "omega_one") / n * (total / n) * ((n - 1) / n if own_exact else 1.0)
    return first + number(omega_two, "omega_two") * (mean + first)


def two_stage_inflation(omega_one: float, omega_two: float) -> float:
    """(1+w1)(1+w2): variance of the result over that of the exact mean, d sigma^2/n, where gradients are nearly all noise."""
    return (1 + number(omega_one, "omega_one")) * (1 + number(omega_two, "omega_two"))


def two_stage_fraction(bits_one: float, bits_two: float, *, workers: int | None = None) -> float:
    """(1 - 2^(-2 b1))(1 - 2^(-2 b2)): share of all gradients' information in the result, with codecs at the limit in both phases.

    It is the reciprocal of :func:`two_stage_inflation` at the limit's omega = 1/(2^(2b) - 1). It takes the input of the second phase
    as Gaussian. That is a model, not a bound: one rank's 1-bit message can be sent on in 1 bit without a loss. A bound is the smaller of the
    two factors.

    Args:
        bits_one, bits_two: bits per coordinate of the phases, >= 0; may be infinite.
        workers: n, if what a rank owns is not encoded in the first phase: the first factor is then (1 + (n-1)(1 - 2^(-2 b1)))/n.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    first = fisher_fraction(bits_one)
    if workers is not None:
        n = count(workers, "workers")
        first = (1 + (n - 1) * first) / n
    return first * fisher_fraction(bits_two)


def ring_inflation(omega: float, workers: int) -> float:
    """Variance over that of the exact mean when a ring encodes the running sum again at every hop: v/n.

    v <- (1+w) v + 1, n-1 times from v = 1, which is ((1+w)^n - 1)/w. It grows exponentially in n; that is why this library has no ring.

    Args:
        omega: w >= 0. workers: n >= 1.

    Returns:
        the ratio; infinite where it leaves the range of a double.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    w, n = number(omega, "omega"), count(workers, "workers")
    if w == 0:
        return 1.0
    try:
        return math.expm1(n * math.log1p(w)) / (w * n)
    except OverflowError:
        return math.inf


def homomorphic_width(bits: int, workers: int) -> int:
    """b + ceil(log2 n): bits that hold the sum of n integers of b bits.

    Args:
        bits: b >= 1. workers: n >= 1.

    Raises:
        SpecError: out of range or not whole. TensorError: not one number.
    """
    return count(bits, "bits") + (count(workers, "workers") - 1).bit_length()


def homomorphic_mse(step: float, workers: int) -> float:
    """step^2/(12 n): error of one coordinate of the mean, where n ranks round with one step and subtractive dither and integers are summed.

    No second error is added: the sum is exact. Values must lie in the range of the quantiser.

    Args:
        step: > 0, units of the gradient. workers: n >= 1.

    Raises:
        SpecError: a value out of its range. TensorError: not one number.
    """
    return square(number(step, "step", above=True), "step") / 12 / count(workers, "workers")
