"""The limits experiment, the figure of the project: what every codec carries, of what its bits could carry, and how many rounds an accuracy takes.

`_curves` has the references, `_runs` measures (with the codec map's and the mean-estimation experiment's own means) and says what must hold, `_plot` draws it.
`commpress experiment limits` runs it, docs/limits.md shows what came out.
"""

from commpress.experiments.limits._plot import plot
from commpress.experiments.limits._runs import Findings, run

__all__ = ["Findings", "plot", "run"]
