"""How much of the past is worth keeping: the error of a prediction against the length of the history that it is made from.

Truncation costs the less the longer the history. Two laws are fitted to the cost, each with the error of an unlimited history as its floor:

    power        e(w) = floor + c w^(-alpha)        as where the past matters for ever, however little
    exponential  e(w) = floor + c exp(-w / tau)     as where it is forgotten

and the better one says from which window on the error is within eps of its floor: (c / eps)^(1 / alpha), or tau log(c / eps).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, final

import numpy as np

from commpress.errors import SpecError

Law = Literal["power", "exponential", "none"]

_FEWEST = 4  # lengths: three parameters, and one to tell the laws apart
_EXPONENTS = (0.05, 8.0)
_DECAYS = (0.01, 8.0)  # 1 / tau
_GRID = 80
_LARGEST = 1 << 20


@final
@dataclasses.dataclass(frozen=True)
class History:
    """What :func:`history_window` found.

    Attributes:
        law: "power" or "exponential", whichever fits better; "none" where no more than eps is to be gained by more than one step of history.
        window: steps of history from which on the error is within eps of the floor; at least 1, at most 2^20.
        floor: error with unlimited history, by the chosen law.
        alpha, tau: of the two laws, each by its own fit; tau in steps.
        power_residual, exponential_residual: root mean square of each fit's residuals, in the unit of the errors.
    """

    law: Law
    window: int
    floor: float
    alpha: float
    tau: float
    power_residual: float
    exponential_residual: float


def history_window(errors: Sequence[float], *, eps: float) -> History:
    """Fits both laws to a decay and chooses the window.

    Args:
        errors: error of the best prediction from the last 1, 2, 3, ... steps, at least 4 of them; in any unit, such as the energy without prediction.
        eps: > 0, how much above that of unlimited history the error may be, in the same unit.

    Raises:
        SpecError: too few errors, one that is negative or not finite, or an eps that is not positive.
    """
    e = np.asarray(errors, dtype=np.float64)
    if e.ndim != 1 or len(e) < _FEWEST:
        raise SpecError(f"a history needs the errors of at least {_FEWEST} lengths, got {e.size}")
    if not np.isfinite(e).all() or (e < 0).any():
        raise SpecError("errors must be finite and not negative")
    if not (eps > 0 and math.isfinite(eps)):
        raise SpecError(f"eps must be positive and finite, got {eps}")
    w = np.arange(1, len(e) + 1, dtype=np.float64)
    alpha, power = _fit(e, _EXPONENTS, lambda rate: w**-rate)
    decay, exponential = _fit(e, _DECAYS, lambda rate: np.exp(-rate * w))
    best = power if power.residual <= exponential.residual else exponential
    known = {
        "alpha": alpha, "tau": 1 / decay, "power_residual": power.residual, "exponential_residual": exponential.residual
    }  # fmt: skip
    if float(e[0] - e.min()) <= eps:
        return History("none", 1, float(e.min()), **known)
    law: Law
    if best is power:
        law, needed = "power", (best.scale / eps) ** (1 / alpha) if best.scale > 0 else 1.0
    else:
        law, needed = "exponential", math.log(best.scale / eps) / decay if best.scale > 0 else 1.0
    # Rounded up, but not for the last percent: no fit is better than that.
    window = int(min(_LARGEST, max(1, math.ceil(0.99 * needed))))
    return History(law, window, best.floor, **known)


def prediction_errors(fit: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Energy that the best linear prediction from the last 1, 2, ... vectors leaves, over the energy: what `history_window` takes.

    Args:
        fit, test: mean products of (g_t, g_(t-1), ..., g_(t-W)) with each other, shape (W+1, W+1): of the steps that coefficients are fitted to, and of those that they are tested on. The
            same twice is optimistic: every further coefficient gains something by chance.

    Returns:
        float64, shape (W,), in units of ``test[0, 0]``.
    """
    found = []
    for w in range(1, len(fit)):
        a = np.linalg.lstsq(fit[1 : w + 1, 1 : w + 1], fit[1 : w + 1, 0], rcond=1e-10)[0]
        found.append(test[0, 0] - 2 * a @ test[1 : w + 1, 0] + a @ test[1 : w + 1, 1 : w + 1] @ a)
    return np.array(found) / test[0, 0]


@dataclasses.dataclass(frozen=True)
class _Line:
    floor: float
    scale: float
    residual: float


def _fit(e: np.ndarray, limits: tuple[float, float], shape: Callable[[float], np.ndarray]) -> tuple[float, _Line]:
    """The rate with the least residual, and that fit: on a grid, which is then made finer around the best point."""
    low, high = limits
    for _ in range(3):
        rates = np.geomspace(low, high, _GRID)
        lines = [_line(e, shape(float(rate))) for rate in rates]
        i = min(range(_GRID), key=lambda k: lines[k].residual)
        low, high = float(rates[max(0, i - 1)]), float(rates[min(_GRID - 1, i + 1)])
    return float(rates[i]), lines[i]


def _line(e: np.ndarray, x: np.ndarray) -> _Line:
    """Least squares of ``floor + scale x`` with neither below zero."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    scale = max(0.0, float(centred @ e) / spread) if spread > 0 else 0.0
    floor = float(e.mean() - scale * x.mean())
    if floor < 0:
        floor, scale = 0.0, max(0.0, float(x @ e) / float(x @ x))
    return _Line(floor, scale, math.sqrt(float(np.square(e - floor - scale * x).mean())))
