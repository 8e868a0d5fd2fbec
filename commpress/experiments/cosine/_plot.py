"""The picture of the experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from commpress.estimation import CosineEstimator
from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.cosine._runs import BIT_WIDTHS, PROJECTED, Results, changes_of_best


def plot(results: Results, path: Path) -> None:
    """Writes a PNG of 1650 x 720 pixels: the price of a cosine in bits by b, and what reading codes as numbers gives.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 11, 4.8, dpi=150) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.25, 1)})
        _price(left, results)
        _naive(right, results)
        figure.suptitle("The cosine of two vectors from random projections of b bits each", fontsize=13)


def _price(axes: Any, results: Results) -> None:
    """Relative to b = 1, so that the crossings can be seen."""
    rhos = np.linspace(0.0, 0.97, 98)
    one = np.array([CosineEstimator(1).variance(rho) for rho in rhos])
    for bits in BIT_WIDTHS:
        estimator = CosineEstimator(bits)
        curve = bits * np.array([estimator.variance(rho) for rho in rhos]) / one
        axes.plot(rhos, curve, color=_COLOURS[bits], linewidth=1.8)
        mine = [p for p in results.points if p.bits == bits]
        base = np.array([CosineEstimator(1).variance(p.rho) for p in mine])
        axes.errorbar(
            [p.rho for p in mine],
            [p.measured for p in mine] / base,
            [2 * p.measured_se for p in mine] / base,
            color=_COLOURS[bits],
            marker="o",
            markersize=5,
            linestyle="",
        )
        axes.text(-0.015, curve[0] + (-0.045 if bits == 1 else 0.045 if bits == 2 else 0.0), f"b = {bits}", color=_COLOURS[bits], ha="right", va="center")  # fmt: skip
    changes = changes_of_best()
    for (start, bits), (stop, _) in zip(changes, [*changes[1:], (0.97, 0)], strict=True):
        if start >= 0.97:
            continue
        stop = min(stop, 0.97)
        axes.axvspan(start, stop, ymax=0.085, color=_COLOURS[bits], alpha=0.35, linewidth=0)
        axes.text(0.5 * (start + stop), 0.17, f"b = {bits}", ha="center", va="center", fontsize=9.5)
    axes.text(0.0, 0.27, "best b:", fontsize=9.5)
    axes.set_xlim(-0.13, 1.0)
    axes.set_ylim(0.1, 1.85)
    axes.set_title("Bits for the same accuracy, relative to one-bit projections", loc="left", fontsize=11)
    axes.text(0.02, 1.82, "lines: theory, 1 / Fisher information; points: measured", fontsize=9.5, va="top")
    axes.set_xlabel("true cosine")
    axes.set_ylabel("bits needed / those at b = 1")
    axes.grid(alpha=0.25)


def _naive(axes: Any, results: Results) -> None:
    rhos = np.linspace(0.0, 0.98, 50)
    for bits in BIT_WIDTHS[:3]:
        estimator = CosineEstimator(bits)
        axes.plot(rhos, [estimator.naive_limit(rho) - rho for rho in rhos], color=_COLOURS[bits], linewidth=1.6, linestyle="--")  # fmt: skip
        mine = [p for p in results.points if p.bits == bits]
        axes.plot([p.rho for p in mine], [p.naive_bias for p in mine], color=_COLOURS[bits], marker="s", markersize=5, linestyle="")  # fmt: skip
        place = {1: (0.32, -0.165), 2: (0.56, -0.089), 3: (0.3, -0.027)}[bits]
        axes.text(*place, f"b = {bits}", color=_COLOURS[bits])
        errors = [2 * p.likely for p in mine]
        axes.errorbar([p.rho + 0.006 * (bits - 2) for p in mine], [0.0] * len(mine), errors, color=_COLOURS[bits], marker="o", markersize=4, linestyle="")  # fmt: skip
    axes.text(0.02, 0.095, f"maximum likelihood (bars: two standard\ndeviations of one estimate, {PROJECTED:,} projections)", fontsize=9.5, va="bottom")  # fmt: skip
    axes.text(0.02, -0.19, "codes read as numbers\n(naive): too small", fontsize=9.5, va="top")
    axes.axhline(0.0, color="black", linewidth=1.2)
    axes.set_ylim(-0.26, 0.16)
    axes.set_title("Error of the estimate", loc="left", fontsize=11)
    axes.set_xlabel("true cosine")
    axes.set_ylabel("mean estimate - true cosine")
    axes.grid(alpha=0.25)
