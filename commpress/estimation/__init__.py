"""Estimation from few bits: a mean or a scale from one-bit answers, a cosine from quantised projections.

    mean = estimation.OneBitMean(half_width=1024.0, sigma=1.0, budget=4000)      # which thresholds to ask about, and what the answers say
    cosine = estimation.CosineEstimator(2)                                       # b-bit projections: cells, information, maximum likelihood
    unlike = estimation.standing_out(cosines, norms, 0.03)                       # the rank that differs from the others

Numbers only, in float64 arrays; who asks whom, and over what, is for others. This room imports none of the others.
"""

from commpress.estimation._cells import lloyd_max_cells, rectangle_probabilities, rectangle_slopes
from commpress.estimation._cosine import CosineEstimator, best_bits, fisher_information_unquantised
from commpress.estimation._density import ThresholdDensity
from commpress.estimation._mean import OneBitMean, second_stage_thresholds
from commpress.estimation._probit import ProbitTable, fisher_information, spread_information
from commpress.estimation._queries import Queries
from commpress.estimation._unlike import Unlike, standing_out

__all__ = [
    "CosineEstimator",
    "OneBitMean",
    "ProbitTable",
    "Queries",
    "ThresholdDensity",
    "Unlike",
    "best_bits",
    "fisher_information",
    "fisher_information_unquantised",
    "lloyd_max_cells",
    "rectangle_probabilities",
    "rectangle_slopes",
    "second_stage_thresholds",
    "spread_information",
    "standing_out",
]
