"""How many bits of mantissa a running average needs, and a format that grows with the number of steps."""

from __future__ import annotations

import dataclasses
import math
from typing import final

from commpress.codecs import Codec, codec
from commpress.errors import SpecError

_MOST = 23
_ROUNDING = 0.077  # mean of (error / value)^2 of stochastic rounding at no bits of mantissa, over values spread evenly in their logarithm: (1/6) 2 ln 2 / 3
_SMALL = 0.36  # half the mean of unit in the last place over value, at no bits of mantissa: 1 / (4 ln 2)


def mantissa_for_nearest(beta: float) -> int:
    """Fewest bits of mantissa with which ``v <- beta v + (1 - beta) g``, rounded to nearest, never sticks: the least m with ``m > log2(1 / (1 - beta)) - 1``.

    A step changes v by (1 - beta) v or so; in the lower end of a binade half a unit in the last place is ``2^-(m + 1)`` of v, and what is smaller is rounded away. bfloat16 has
    m = 7: a second moment with beta = .999, which needs 9, does not decay at all.

    Raises:
        SpecError: beta is not in [0, 1).
    """
    _check_beta(beta)
    return max(0, math.floor(math.log2(1.0 / (1.0 - beta)) - 1.0 + 1e-9) + 1)


def mantissa_for_stochastic(beta: float, tolerance: float = 0.1) -> int:
    """Fewest bits of mantissa with which the same average, rounded stochastically, strays from the exact one by at most `tolerance` (relative, root mean square).

    For inputs that differ from the average by about its own size. Rounding a change of (1 - beta) v then has a variance of at most one unit in the last place times that change, and of a
    sixth of the unit's square where changes are larger than it; the average remembers ``1 / (1 - beta^2)`` steps of it. Its relative variance is so about the smaller of ``0.36 * 2^-m``,
    whatever beta, and ``0.077 * 4^-m / (1 - beta^2)``.

    Raises:
        SpecError: beta is not in [0, 1), or the tolerance is not positive.
    """
    _check_beta(beta)
    if not tolerance > 0:
        raise SpecError(f"tolerance must be positive, got {tolerance}")
    small = math.log2(_SMALL / tolerance**2)
    large = 0.5 * math.log2(_ROUNDING / ((1.0 - beta * beta) * tolerance**2))
    return max(0, math.ceil(min(small, large)))


def _check_beta(beta: float) -> None:
    if not 0 <= beta < 1:
        raise SpecError(f"beta must be in [0, 1), got {beta}")


@final
@dataclasses.dataclass(frozen=True)
class MantissaSchedule:
    """Floats whose mantissa gains a bit whenever the horizon demands it.

    Quantised optimizers need a mantissa that grows with the logarithm of the number of steps (arXiv 2510.21314; docs/optimizer-precision.md). At step t it has

        mantissa + floor(per_doubling * log2(t / horizon))

    bits, at least `mantissa` and at most `most`.

    Args:
        mantissa: bits until `horizon`.
        horizon: steps that these are enough for.
        per_doubling: bits for each doubling of the number of steps beyond it.
        most: bits that are never exceeded.
        exponent: bits of exponent.

    Raises:
        SpecError: a value is out of range.
    """

    mantissa: int = 7
    horizon: int = 1000
    per_doubling: float = 0.5
    most: int = 16
    exponent: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.mantissa <= self.most <= _MOST:
            raise SpecError(f"mantissa and most must have 0 <= mantissa <= most <= {_MOST}, got {self}")
        if self.horizon < 1 or not (0 <= self.per_doubling < math.inf):
            raise SpecError(f"horizon must be at least 1 and per_doubling finite and not negative, got {self}")
        self.codec(0)

    def bits(self, step: int) -> int:
        """Bits of mantissa at a step, which counts from 0."""
        if step <= self.horizon or not self.per_doubling:
            return self.mantissa
        # A doubling that is just reached counts, whatever the logarithm's last digit says.
        more = math.floor(self.per_doubling * math.log2(step / self.horizon) + 1e-9)
        return min(self.most, self.mantissa + more)

    def codec(self, step: int) -> Codec:
        """The format at a step."""
        return codec(f"float:e{self.exponent}m{self.bits(step)}")

    def __str__(self) -> str:
        return f"float:e{self.exponent}m{self.mantissa}, +{self.per_doubling:g} bits per doubling of {self.horizon} steps, at most {self.most}"
