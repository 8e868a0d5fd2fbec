"""Which rank's vector is unlike those of the others."""

from __future__ import annotations

import dataclasses
from typing import final

import numpy as np

from commpress.errors import TensorError
from commpress.estimation._normal import Array

_STANDARD_ERRORS = 5.0
_SPREADS = 2.0
_LEAST_GAP = 0.05
_NORM_FACTOR = 8.0


@final
@dataclasses.dataclass(frozen=True)
class Unlike:
    """A rank that stands out.

    Attributes:
        rank: it. cosine: its mean cosine to the others. others: the mean cosine between those. norm: its norm over the median of all.
        why: "cosine", "norm" or "not finite".
    """

    rank: int
    cosine: float
    others: float
    norm: float
    why: str


def standing_out(cosines: Array, norms: Array, standard_error: float) -> list[Unlike]:
    """The ranks whose vectors are unlike those of the others.

    A rank stands out by its cosines if their mean is below the mean cosine between the others by five standard errors of a cosine, by twice the spread of the others' own cosines, and by
    0.05 at least; by its norm, if that is 8 times the median or more, or an eighth of it or less; and always if it is not finite. Of two ranks neither can stand out by cosine or norm.

    Args:
        cosines: (ranks, ranks), symmetric; NaN where a vector is zero or not finite.
        norms: (ranks,); NaN or infinite where a vector is not finite.
        standard_error: of one cosine.

    Raises:
        TensorError: the shapes do not fit.
    """
    n = len(norms)
    if cosines.shape != (n, n):
        raise TensorError(f"expected {n} x {n} cosines for {n} norms, got shape {cosines.shape}")
    found = []
    usual = norms[np.isfinite(norms)]
    middle = float(np.median(usual)) if usual.size else float("nan")
    for rank in range(n):
        rest = [r for r in range(n) if r != rank]
        own = _mean(cosines[rank, rest])
        between = np.array([cosines[a, b] for i, a in enumerate(rest) for b in rest[:i]])
        between = between[np.isfinite(between)]
        others = _mean(between)
        ratio = float(norms[rank]) / middle if middle > 0 else float("nan")
        gap = max(
            _STANDARD_ERRORS * standard_error, _LEAST_GAP, _SPREADS * float(between.std()) if between.size else 0.0
        )
        why = ""
        if not np.isfinite(norms[rank]):
            why = "not finite"
        elif others - own > gap:
            why = "cosine"
        elif n > 2 and (ratio >= _NORM_FACTOR or ratio <= 1 / _NORM_FACTOR):
            why = "norm"
        if why:
            found.append(Unlike(rank, own, others, ratio, why))
    return found


def _mean(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")
