"""The side-information experiment: what it is worth that a receiver knows something like what it is sent, and whether successive gradients are alike.

`_coding` measures residual and modulo codes with the library's own parts, `_history` how well the past foretells an aggregate, `_runs` says what must hold, `_plot` draws it.
`commpress experiment side-information` runs it, docs/side-information.md shows what came out.
"""

from commpress.experiments.side_information._plot import plot
from commpress.experiments.side_information._runs import Findings, run

__all__ = ["Findings", "plot", "run"]
