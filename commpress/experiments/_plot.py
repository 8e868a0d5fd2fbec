"""The demo's picture: loss against bytes and against time. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commpress.errors import CommpressError
from commpress.experiments._records import Run
from commpress.experiments._report import name_of

# Okabe and Ito's colours: told apart with any colour vision, and in grey by their line styles.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "-", "-", "-", "--", "--", "--")
_MARKERS = ("s", "o", "^", "D", "v", "P", "X")


class PlotError(CommpressError, ImportError):
    """matplotlib is not installed."""


def plot(runs: Sequence[Run], path: Path) -> None:
    """Writes a PNG of 1500 x 600 pixels.

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
    # No pyplot: it keeps global state and picks a display.
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.2, 1)})
        _panel(left, runs, lambda e: e["interface_bytes_per_rank"] / 1e6)
        _panel(right, runs, lambda e: e["train_seconds"])
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
        left.xaxis.set_minor_locator(NullLocator())
        left.set_xlabel("megabytes sent by each rank (log scale)")
        left.set_ylabel("held-out loss, nats per byte")
        right.set_xlabel("seconds of training")
        right.set_xlim(left=0)
        right.legend(loc="upper right", fontsize=11, framealpha=0.95)
        head = runs[0].head
        figure.suptitle(
            f"Byte-level GPT, {head['parameters'] / 1e6:.1f} M parameters, {head['world_size']} ranks, "
            "same seed and data",
            fontsize=12,
        )
        figure.savefig(path)


def _panel(axes: Any, runs: Sequence[Run], where: Any) -> None:
    for i, run in enumerate(runs):
        points = [e for e in run.evaluations if e["step"] > 0]
        x = [where(e) for e in points]
        y = [e["held_out_loss_sample"] for e in points]
        style = {"color": _COLOURS[i % 7], "linestyle": _STYLES[i % 7], "marker": _MARKERS[i % 7]}
        loss = run.summary["held_out_loss"]
        axes.plot(
            x, y, label=f"{name_of(run)}  \N{RIGHTWARDS ARROW} {loss:.3f}", markersize=4.5, linewidth=1.8, **style
        )
    axes.grid(alpha=0.25)
