"""The picture of the mean-estimation experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from commpress.experiments._mean_estimation import Point, Trial
from commpress.experiments._plot import _COLOURS, _MARKERS, PlotError
from commpress.information import rounds_lower_bound


def plot_points(found: Sequence[Point], path: Path) -> None:
    """Writes a PNG of 1500 x 630 pixels: rounds against bits per coordinate, and their ratio to the bound.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    except ImportError as error:
        raise PlotError("matplotlib is not installed; `pip install 'commpress[plot]'` gets it") from error
    known = [p for p in found if math.isfinite(p.rounds)]
    dims = sorted({p.d for p in known})
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        if known:
            first = known[0]
            # The bound depends on d only through B/d and through eps^2 / d, which is the same for all.
            trial = Trial(1, samples=first.samples)
            low = min(0.05, min(p.bits / p.d for p in known))
            rates = [low * (10 / low) ** (i / 200) for i in range(201)]
            bound = [
                rounds_lower_bound(1, r, trial.sigma, math.sqrt(trial.eps2), half_width=trial.half_width) for r in rates
            ]
            left.plot(rates, bound, color="black", linewidth=2.2, label="lower bound")
        for i, d in enumerate(dims, start=1):
            mine = sorted((p for p in known if p.d == d), key=lambda p: p.bits)
            x = [p.bits / d for p in mine]
            style = {"color": _COLOURS[i % 7], "marker": _MARKERS[i % 7], "markersize": 4.5, "linewidth": 1.4}
            left.errorbar(x, [p.rounds for p in mine], [2 * p.rounds_se for p in mine], label=f"d = {d}", **style)
            right.errorbar(x, [p.ratio for p in mine], [2 * p.ratio_se for p in mine], **style)
        for axes in (left, right):
            axes.axvline(1.0, color="grey", linestyle=":", linewidth=1)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(alpha=0.25)
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
            axes.set_xlabel("bits per coordinate and round, all payload bits")
        left.set_ylabel("rounds to the accuracy")
        left.annotate("B = d", (1.0, 0.03), xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points", ha="right", va="bottom", color="grey")  # fmt: skip
        left.legend(fontsize=10, loc="upper right")
        right.axhline(1.0, color="black", linewidth=2.2)
        right.fill_between(
            [1.0, 4.0],
            1.0,
            1.35,
            color="grey",
            alpha=0.2,
            linewidth=0,
            label="goal for d \N{GREATER-THAN OR EQUAL TO} 256",
        )
        right.set_ylabel("rounds / lower bound")
        right.legend(fontsize=10, loc="upper right")
        if known:
            name = known[0].codec.partition(":")[0]
            figure.suptitle(
                f"A Gaussian mean from compressed samples: {name}, as accurate as {known[0].samples} exact samples",
                fontsize=12,
            )
        figure.savefig(path)
