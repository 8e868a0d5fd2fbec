"""The picture of the codecs' map. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from commpress.experiments._codec_map import Measured, pareto
from commpress.experiments._plot import _COLOURS, _MARKERS, PlotError


def family_of(spec: str) -> str:
    """What comes before the rate; options that make another curve stay."""
    head, *options = spec.split(",")
    return ",".join([head.partition(":")[0], *options])


def plot_map(found: Sequence[Measured], path: Path, *, link: float, ranks: int) -> None:
    """Writes a PNG: for each input, on the left eta against bits with the limit, on the right distortion against time on the link with the Pareto front.

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
    inputs = list(dict.fromkeys(m.source for m in found))
    families = list(dict.fromkeys(family_of(m.spec) for m in found))
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.0 * len(inputs)), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(inputs), 2, squeeze=False)
        for (left, right), source in zip(rows, inputs, strict=True):
            here = [m for m in found if m.source == source]
            for i, family in enumerate(families):
                mine = sorted((m for m in here if family_of(m.spec) == family), key=lambda m: m.bits)
                style = {
                    "color": _COLOURS[i % 7],
                    "marker": _MARKERS[(i + i // 7) % 7],
                    "markersize": 4.5,
                    "linewidth": 1.2,
                }
                left.plot([m.bits for m in mine], [m.eta for m in mine], label=family, **style)
                style["linestyle"] = "none"
                right.plot([1e3 * m.seconds(link, ranks) for m in mine], [m.vnmse for m in mine], **style)
            front = pareto(here, link, ranks)
            times = [1e3 * m.seconds(link, ranks) for m in front]
            right.plot(times, [m.vnmse for m in front], color="black", linewidth=1, drawstyle="steps-post", zorder=0)
            left.axhline(1.0, color="black", linewidth=1.5)
            left.annotate("Gaussian limit", (0.99, 1.0), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", ha="right", color="black", fontsize=9)  # fmt: skip
            left.set_ylim(bottom=0)
            left.set_xscale("log")
            left.set_ylabel(f"{source}: information, of the limit")
            left.set_xlabel("bits per coordinate, everything included")
            right.set_xscale("log")
            right.set_yscale("log")
            right.set_xlabel(f"ms for one all-reduce, {ranks} ranks, {8 * link / 1e9:g} Gbit/s, no overlap")
            right.set_ylabel("squared error / energy (vNMSE)")
            for axes in (left, right):
                axes.grid(alpha=0.25)
                axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        rows[0][0].legend(fontsize=8, ncols=2, loc="lower right")
        figure.savefig(path)
