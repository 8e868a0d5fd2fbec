"""How many bits of mantissa an optimizer's states, weights and gradients need (docs/optimizer-precision.md)."""

from commpress.experiments.optimizer_precision._average import Average, Track, averages, tracks
from commpress.experiments.optimizer_precision._needs import Growth, Need, growths, needs
from commpress.experiments.optimizer_precision._plot import plot_precision
from commpress.experiments.optimizer_precision._problem import Run, horizons, runs
from commpress.experiments.optimizer_precision._tables import failures, records, tables
from commpress.experiments.optimizer_precision._trainings import Training, trainings

__all__ = [
    "Average",
    "Growth",
    "Need",
    "Run",
    "Track",
    "Training",
    "averages",
    "failures",
    "growths",
    "horizons",
    "needs",
    "plot_precision",
    "records",
    "runs",
    "tables",
    "tracks",
    "trainings",
]
