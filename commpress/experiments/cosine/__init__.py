"""The experiment `cosine`: the cosine of two vectors from b-bit random projections, maximum likelihood against reading the codes as numbers, and the best b."""

from commpress.experiments.cosine._plot import plot
from commpress.experiments.cosine._runs import Results, run

__all__ = ["Results", "plot", "run"]
