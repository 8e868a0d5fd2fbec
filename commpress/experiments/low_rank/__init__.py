"""The low-rank experiment: following a subspace that drifts and jumps, and which layers' gradients are of low rank at all.

`_follow` puts matrices through the library's own reduction by factors, and through PowerSGD's iteration beside it; `_runs` says what is measured and what must hold,
`_plot` draws it. `commpress experiment low-rank` runs it, docs/low-rank.md shows what came out.
"""

from commpress.experiments.low_rank._follow import Followed, Follower, PowerIteration, drifting
from commpress.experiments.low_rank._plot import plot
from commpress.experiments.low_rank._runs import Findings, run

__all__ = ["Findings", "Followed", "Follower", "PowerIteration", "drifting", "plot", "run"]
