"""How a codec's error depends on the coordinate that it falls on.

Quantisers are of two kinds, and what they cost a learner differs in kind too (arXiv 2602.19241; docs/precision-scaling.md): an error in proportion to the coordinate costs a constant
factor, an error of the same size everywhere drowns all coordinates that are smaller than it. Said here of coordinates that share a scale, over the :data:`OCTAVES` octaves below the
largest of them, and tested by measuring the mean squared error octave by octave (tests/test_noise.py):

* ``"multiplicative"``: it is in proportion to the coordinate's square, within a factor of 2.
* ``"additive"``: it is the same for all of them, within a factor of 2.
* ``"mixed"``: neither. Stochastic rounding under its step (the error goes with the coordinate's size, not its square), small floats under their smallest normal number,
  quantisers that saturate, and sparsifiers, which lose small coordinates whole.
* ``"none"``: there is no error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Noise = Literal["multiplicative", "additive", "mixed", "none"]
KINDS: tuple[Noise, ...] = ("multiplicative", "additive", "mixed", "none")
OCTAVES = 8
_FINE, _FINE_NEAREST = 32, 64


def of_grid(levels: float, *, nearest: bool = False) -> Noise:
    """Of rounding on a grid with a point at zero and `levels` steps from there to the largest coordinate: additive unless the smallest octaves lie far below a step."""
    return "additive" if levels >= (_FINE_NEAREST if nearest else _FINE) else "mixed"


def of_float(exponent: int, mantissa: int, *, scaled: bool = True, nearest: bool = False) -> Noise:
    """Of floats with so many bits of exponent and mantissa, `scaled` up to a block's largest, or by nothing (and then said of coordinates up to 1)."""
    if (
        exponent == 1 and scaled
    ):  # no octave but the first is normal: a grid, half of which a power-of-two scale may leave unused
        return of_grid(2.0**mantissa, nearest=nearest)
    return "multiplicative" if exponent >= (4 if scaled else 5) else "mixed"


def of_parts(kinds: Iterable[Noise]) -> Noise:
    """Of a tensor whose parts have codecs of these kinds; parts without error do not count."""
    found = set(kinds) - {"none"}
    if not found:
        return "none"
    return found.pop() if len(found) == 1 else "mixed"
