"""The picture of the experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.mean_1bit._runs import ERROR, ORDERS, Results, by_order, growth_fit


def plot(results: Results, path: Path) -> None:
    """Writes a PNG of 1650 x 720 pixels: queries against lambda, and error against n.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 11, 4.8, dpi=150) as figure:
        left, right = figure.subplots(1, 2)
        _queries(left, results)
        _errors(right, results)
        figure.suptitle("The mean of samples of which each worker tells one bit", fontsize=13)


def _queries(axes: Any, results: Results) -> None:
    x = np.array([one.half_width for one in results.growth])
    axes.plot(x, [one.fixed for one in results.growth], color=_COLOURS[2], linewidth=1.6, linestyle="--")
    measured = [(o.way.half_width, o.n_mse / ERROR**2) for o in results.fixed if o.way.method == "grid"]
    axes.plot(*zip(*measured, strict=True), color=_COLOURS[2], marker="s", markersize=6, linestyle="")
    axes.plot(x, [one.queries for one in results.growth], color=_COLOURS[1], marker="o", markersize=5, linewidth=1.8)
    axes.axhline(1 / ERROR**2, color="black", linewidth=1.4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(50, 3e8)
    slope, _, _ = growth_fit(results.growth)
    axes.text(2**2, 2e7, "thresholds fixed beforehand: linear\n(line: theory, squares: measured)", color=_COLOURS[2], va="bottom")  # fmt: skip
    axes.text(2**20, 480, f"each threshold chosen by earlier answers:\n+{slope:.1f} bits per doubling of lambda (measured)", color=_COLOURS[1], ha="right", va="bottom")  # fmt: skip
    axes.text(2**20, 92, "whole samples, not one bit of each", ha="right", va="top")
    axes.set_title(f"Bits needed to know the mean to {ERROR} sigma", loc="left", fontsize=11)
    axes.set_xlabel("lambda / sigma: how little is known beforehand")
    axes.set_ylabel("bits, one from each sample")
    axes.grid(alpha=0.25)


def _errors(axes: Any, results: Results) -> None:
    normal = list(results.variants[:2])
    sizes = np.array(sorted({o.way.n for o in results.moments}), dtype=float)
    for i, order in enumerate(ORDERS):
        colour = _COLOURS[(1, 3, 5)[i] % len(_COLOURS)]
        mine, exact = by_order(results, order, "adaptive"), by_order(results, order, "exact")
        axes.plot([o.asked for o in mine], [o.error for o in mine], color=colour, marker="o", markersize=4.5, linewidth=1.7)  # fmt: skip
        axes.plot([o.asked for o in exact], [o.error for o in exact], color=colour, linewidth=1.2, linestyle=":")
        rate = min(0.5, 1 - 1 / order)
        axes.text(sizes[-1] * 1.12, mine[-1].error, f"k = {order:g}\ntheory n$^{{-{rate:.2g}}}$", color=colour, va="center", fontsize=9.5)  # fmt: skip
    axes.plot([o.asked for o in normal], [o.error for o in normal], color="black", marker="D", markersize=5, linestyle="--")  # fmt: skip
    axes.text(normal[-1].asked * 1.15, normal[-1].error * 0.98, "normal noise", va="top", fontsize=9.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] * 0.85, sizes[-1] * 4.2)
    axes.set_title("Heavy tails, E|X - mu|$^k$ bounded (dotted: whole samples)", loc="left", fontsize=11)
    axes.set_xlabel("n, samples with one bit of each")
    axes.set_ylabel("mean |error| / sigma, lambda = 1024 sigma")
    axes.grid(alpha=0.25)
