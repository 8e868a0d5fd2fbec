"""The picture of the bandwidth experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from commpress.cluster import bits_per_second
from commpress.experiments._bandwidth import Results
from commpress.experiments._bandwidth_table import EXACT, break_even, medians, rate_text, seconds_to, speed_ups
from commpress.experiments._plot import _COLOURS, _MARKERS, PlotError
from commpress.experiments._ways import SKIP


def plot_results(results: Results, path: Path) -> None:
    """Writes a PNG of 1500 pixels' width: speed-up against link rate; and if losses were measured, loss against time and bytes.

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
    sweep = results.sweep
    ways = list(dict.fromkeys([*(r["way"] for r in results.steps), *(r["way"] for r in results.bucket), *results.runs]))
    styles = {
        name: {"color": _COLOURS[i % 7], "marker": _MARKERS[i % 7], "linestyle": ("-", "--")[i // 7 % 2]}
        for i, name in enumerate(name for name in ways if name != SKIP)
    }
    rates = sorted({r["rate"] for r in results.steps}, key=bits_per_second)
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        wide = bool(results.runs)
        figure = Figure(figsize=(15, 5.4) if wide else (10, 5.4), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3 if wide and rates else 2 if wide else 1, squeeze=False)[0]
        records = results.steps or [r for r in results.bucket if r["ranks"] == max(sweep.ranks)]
        _speed_panel(panels[0], records, styles, "training step" if results.steps else "one bucket")
        if wide:
            if rates:
                rate = "100mbit" if "100mbit" in rates else rates[0]
                _loss_panel(
                    panels[1],
                    results,
                    styles,
                    lambda name, point: seconds_to(results, name, point["step"], rate),
                    f"seconds of training at {rate} (log scale)",
                )
            _loss_panel(
                panels[-1],
                results,
                styles,
                lambda name, point: point["interface_bytes_per_rank"] / 1e6,
                "megabytes sent by each rank (log scale)",
            )
        for i, axes in enumerate(panels):
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1,) if i == 0 else (1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.25)
        for axes in panels[1:]:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
        panels[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate_text(x)))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=10)
        figure.savefig(path)


def _speed_panel(axes: Any, records: list[dict[str, Any]], styles: dict[str, Any], what: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    seconds = medians(records)
    if not any(speed_ups(seconds, name) for name in seconds):
        axes.text(0.5, 0.5, "no fp32 or 16-bit way\nto compare with", ha="center", transform=axes.transAxes)
        axes.set_xscale("log")
        for name, times in seconds.items():  # so that the legend names them
            axes.plot(
                [bits_per_second(rate) for rate in times], [math.nan] * len(times), label=name, **styles.get(name, {})
            )
        return
    for name in seconds:
        ratios = speed_ups(seconds, name)
        if name == SKIP:
            axes.plot(
                list(ratios), list(ratios.values()), color="grey", linewidth=1, linestyle=":", label="no exchange"
            )
            continue
        crossing = break_even(ratios)
        label = name
        if name not in EXACT and crossing is not None and 0 < crossing < math.inf:
            label += f" (even at {rate_text(crossing)})"
            axes.plot([crossing], [1.0], marker="x", color=styles[name]["color"], markersize=9, markeredgewidth=2)
        axes.plot(list(ratios), list(ratios.values()), label=label, markersize=5, linewidth=1.6, **styles[name])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}x"))
    axes.set_xlabel("link rate")
    axes.set_ylabel(f"speed of a {what}" if what != "one bucket" else "speed of one bucket")
    axes.set_title("times as fast as the quickest of fp32 and 16 bits", fontsize=11)


def _loss_panel(axes: Any, results: Results, styles: dict[str, Any], where: Any, label: str) -> None:
    for name, run in results.runs.items():
        points = [point for point in run.evaluations if point["step"] > 0]
        pairs = [(where(name, point), point["held_out_loss_sample"]) for point in points]
        pairs = [pair for pair in pairs if not math.isnan(pair[0])]
        if pairs:
            style = dict(styles[name], markevery=max(1, len(pairs) // 5))
            axes.plot(*zip(*pairs, strict=True), markersize=5, linewidth=1.6, **style)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("held-out loss, nats per byte")
