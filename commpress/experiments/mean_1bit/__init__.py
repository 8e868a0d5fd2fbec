"""The experiment `mean-1bit`: a mean from one bit of each sample, sequentially, against thresholds that are fixed beforehand and against unquantised samples."""

from commpress.experiments.mean_1bit._plot import plot
from commpress.experiments.mean_1bit._runs import Results, run

__all__ = ["Results", "plot", "run"]
