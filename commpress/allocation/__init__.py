"""Bits where they count: statistics of layers in, a plan of rates out (docs/allocation.md).

Numbers only: no tensors, no process groups, and nothing of the package but its errors.

:func:`solve` and :func:`objective_value`: the Gaussian optimum. :class:`Curve`, :func:`solve_on_curve`: real codecs and exact bytes.
:func:`fastest`: the shortest exchange for a distortion target. :class:`Dimensions`: for matrices that travel as low-rank factors.
:class:`Statistics`, :class:`Allocator`, :class:`Plan`: in training. :func:`history_window`: how many steps of the past a prediction should be made from.
"""

from commpress.allocation._allocator import LLOYD_MAX, Allocator
from commpress.allocation._continuous import objective_value, solve
from commpress.allocation._curve import Curve
from commpress.allocation._dimensions import Dimensions, share_dimensions
from commpress.allocation._history import History, history_window, prediction_errors
from commpress.allocation._objective import OBJECTIVES, weights_from_gamma
from commpress.allocation._plan import Plan
from commpress.allocation._problem import Allocation, solve_on_curve
from commpress.allocation._statistics import Statistics
from commpress.allocation._time import Timing, fastest

__all__ = [
    "LLOYD_MAX",
    "OBJECTIVES",
    "Allocation",
    "Allocator",
    "Curve",
    "Dimensions",
    "History",
    "Plan",
    "Statistics",
    "Timing",
    "fastest",
    "history_window",
    "prediction_errors",
    "objective_value",
    "share_dimensions",
    "solve",
    "solve_on_curve",
    "weights_from_gamma",
]
