"""Optimizers whose states are kept in few bits.

``optimizer = commpress.optim.PackedStates(torch.optim.AdamW(model.parameters()), "float:e8m9")`` keeps both moments in 18 bits a coordinate instead of 32, rounded
stochastically, and is an optimizer like any other.
"""

from commpress.optim._packed import PackedStates
from commpress.optim._schedule import MantissaSchedule, mantissa_for_nearest, mantissa_for_stochastic

__all__ = ["MantissaSchedule", "PackedStates", "mantissa_for_nearest", "mantissa_for_stochastic"]
