"""The picture of the local-SGD experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commpress.experiments._local_quadratic import Momentum, SpeedUp
from commpress.experiments._local_runs import CODEC, Training
from commpress.experiments._plot import _COLOURS, _MARKERS, PlotError


def plot_local(points: Sequence[SpeedUp], momenta: Sequence[Momentum], runs: Sequence[Training], path: Path) -> None:
    """Writes a PNG of 1950 x 630 pixels: error against workers, loss against rounds, and held-out loss against bytes where there are runs.

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
    plain = FuncFormatter(lambda v, _: f"{v:,.10g}")
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13 if runs else 9, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12))
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3 if runs else 2)
        _workers(axes[0], points)
        axes[0].xaxis.set_major_locator(LogLocator(2))
        axes[0].xaxis.set_major_formatter(plain)
        axes[0].xaxis.set_minor_locator(NullLocator())
        _rounds(axes[1], momenta)
        if runs:
            _bytes(axes[2], runs)
            axes[2].xaxis.set_major_formatter(plain)
        for one in axes:
            one.grid(alpha=0.25)
        figure.suptitle(
            "LocalSGD: local steps, and rounds of quantised averaging (four bits unless said otherwise)", fontsize=12
        )
        figure.savefig(path)


def _workers(axes: Any, points: Sequence[SpeedUp]) -> None:
    mine = [p for p in points if p.codec == CODEC and p.every == 8 and p.parts == 1]
    lines = {"alone": "never averaged", "value": "x itself quantised", "difference": "x - x_sync quantised"}
    exact = sorted({(p.workers, 1 / (p.workers * p.steps)) for p in mine})
    axes.plot(*zip(*exact, strict=True), color="black", linewidth=2.2, label="sigma\N{SUPERSCRIPT TWO} / (M K)")
    for i, (mode, label) in enumerate(lines.items(), start=1):
        found = sorted((p.workers, p.error) for p in points if p.mode == mode and p in mine)
        x, y = zip(*found, strict=True)
        axes.plot(x, y, color=_COLOURS[i], marker=_MARKERS[i], markersize=6, linewidth=1.4, linestyle="--", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("workers M")
    axes.set_ylabel("mean squared error")
    axes.legend(fontsize=10)


def _rounds(axes: Any, momenta: Sequence[Momentum]) -> None:
    for i, m in enumerate(momenta, start=1):
        rounds = range(1, len(m.losses) + 1)
        axes.plot(rounds, m.predicted, color=_COLOURS[i], linewidth=1.8, label=f"{m.name}, predicted")
        axes.plot(
            rounds, m.losses, color=_COLOURS[i], marker=_MARKERS[i], markersize=4.5, linestyle="", label="measured"
        )
    axes.set_yscale("log")
    axes.set_xlabel("rounds of 8 local steps")
    axes.set_ylabel("loss of an ill-conditioned quadratic")
    axes.legend(fontsize=10)


def _bytes(axes: Any, runs: Sequence[Training]) -> None:
    for i, training in enumerate(runs):
        points = [e for e in training.run.evaluations if e["claimed_bytes_per_rank"] > 0]
        x = [e["claimed_bytes_per_rank"] / 1e6 for e in points]
        y = [e["held_out_loss_sample"] for e in points]
        style = {"color": _COLOURS[i % 7], "marker": _MARKERS[i % 7], "markersize": 4.5, "linewidth": 1.6}
        loss = training.run.summary["held_out_loss"]
        axes.plot(x, y, label=f"{training.name}  \N{RIGHTWARDS ARROW} {loss:.3f}", **style)
    axes.set_xscale("log")
    axes.set_xlabel("megabytes sent by each rank (log scale)")
    axes.set_ylabel("held-out loss, nats per byte")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (0.09 * len(runs) + 0.02) * (high - low))  # room for the legend
    axes.legend(fontsize=9.5, loc="upper right")
