"""Precision scaling: what quantised features cost a linear regression, by the kind of the quantiser's noise (docs/precision-scaling.md)."""

from commpress.experiments.precision_scaling._kinds import SPECS, KindRow, kinds, measured_noise
from commpress.experiments.precision_scaling._measure import Fit, Point, fits, points
from commpress.experiments.precision_scaling._plot import plot_scaling
from commpress.experiments.precision_scaling._tables import failures, records, tables
from commpress.experiments.precision_scaling._theory import EPS, SIZES, risk, slope

__all__ = [
    "EPS",
    "SIZES",
    "SPECS",
    "Fit",
    "KindRow",
    "Point",
    "failures",
    "fits",
    "kinds",
    "measured_noise",
    "plot_scaling",
    "points",
    "records",
    "risk",
    "slope",
    "tables",
]
