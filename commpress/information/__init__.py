"""Information: what messages of so many bits can carry about a mean, what they did carry, and how many rounds that takes.

    limit = information.fisher_limit(numel, variance, bits)           # the most, in units of 1/variance
    best = information.fisher_optimum(dims, variances, total_bits)    # the same over layers, best shared out
    info = information.achieved_information(dims, variances, bits, captured)
    rounds = information.rounds_lower_bound(numel, bits * numel, sigma, error, workers=8)

Pure functions on numbers and float64 arrays, one value for each layer. Bits are per coordinate unless a name says
``total_bits`` or ``message_bits``. docs/information.md is the guide. This room imports none of the others.
"""

from commpress.information._achieved import (
    Information,
    achieved_information,
    captured,
    efficiency,
    eta_alloc,
    eta_codec,
    vnmse,
)
from commpress.information._all_reduce import (
    homomorphic_mse,
    homomorphic_width,
    ring_inflation,
    two_stage_error,
    two_stage_fraction,
    two_stage_inflation,
)
from commpress.information._limits import (
    fisher_fraction,
    fisher_limit,
    fisher_limit_linear,
    fisher_optimum,
    fisher_waterfilling,
    layer_limits,
    layer_limits_linear,
    total_limit,
)
from commpress.information._memory import (
    ar1_dithered_variance,
    ar1_information,
    ar1_rounds,
    causal_distortion,
    causal_gain,
    causal_rate,
    drift_error,
    memory_limit,
)
from commpress.information._rounds import (
    communication_bits,
    communication_rounds,
    optimisation_form,
    rounds_lower_bound,
    rounds_lower_bound_simple,
)

__all__ = [
    "Information",
    "achieved_information",
    "ar1_dithered_variance",
    "ar1_information",
    "ar1_rounds",
    "captured",
    "causal_distortion",
    "causal_gain",
    "causal_rate",
    "communication_bits",
    "communication_rounds",
    "drift_error",
    "efficiency",
    "eta_alloc",
    "eta_codec",
    "fisher_fraction",
    "fisher_limit",
    "fisher_limit_linear",
    "fisher_optimum",
    "fisher_waterfilling",
    "homomorphic_mse",
    "homomorphic_width",
    "layer_limits",
    "layer_limits_linear",
    "memory_limit",
    "optimisation_form",
    "ring_inflation",
    "rounds_lower_bound",
    "rounds_lower_bound_simple",
    "total_limit",
    "two_stage_error",
    "two_stage_fraction",
    "two_stage_inflation",
    "vnmse",
]
