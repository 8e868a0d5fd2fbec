"""The picture of the precision-scaling experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commpress.codecs import OCTAVES
from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.precision_scaling import _theory
from commpress.experiments.precision_scaling._kinds import KindRow
from commpress.experiments.precision_scaling._measure import Point

# Colour, octave of the label, its offset and alignment.
_SHOWN: dict[str, tuple[int, int, tuple[int, int], str]] = {
    "float:e4m3": (1, 4, (8, -10), "left"),
    "homomorphic:4": (2, 2, (0, -15), "center"),
    "uniform:4": (5, 3, (0, 8), "center"),
}
_STYLE = {"multiplicative": (1, "o"), "additive": (2, "^"), "additive by block": (3, "D")}


def plot_scaling(points: Sequence[Point], rows: Sequence[KindRow], path: Path) -> None:
    """Writes a PNG of 1210 x 506 pixels: what the kinds of noise are, and what they cost a regression.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 11, 4.6, dpi=110) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.35)})
        _kinds_panel(left, rows)
        _risk_panel(right, points)


def _kinds_panel(axes: Any, rows: Sequence[KindRow]) -> None:
    size = [0.72 * 2.0**-k for k in range(OCTAVES)]
    for row in rows:
        if row.spec not in _SHOWN:
            continue
        colour = _COLOURS[_SHOWN[row.spec][0]]
        axes.plot(size, [e**0.5 for e in row.errors], color=colour, marker="o", markersize=4)
        at, offset, side = _SHOWN[row.spec][1:]
        where = (size[at], row.errors[at] ** 0.5)
        text = f"{row.spec}: {row.measured}"
        axes.annotate(text, where, xytext=offset, textcoords="offset points", color=colour, fontsize=10, ha=side)
    axes.plot(size, size, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "error as large as\nthe value itself", (size[1], size[1]), xytext=(-6, 2), textcoords="offset points",
        color="grey", fontsize=9, ha="right",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("size of a value, largest of its block = 1")
    axes.set_ylabel("typical error (root mean square)")
    axes.set_title("Kinds of quantisation noise:\nhow the error goes with the value", fontsize=11)
    axes.grid(alpha=0.25)


def _risk_panel(axes: Any, points: Sequence[Point]) -> None:
    first = {p.label: p for p in points}
    sizes = sorted({p.size for p in points})
    axes.plot(sizes, [_theory.risk(m) for m in sizes], color="black", linewidth=1.6)
    # Where the label goes: M, offset, alignment.
    notes: dict[str, tuple[str, int, tuple[int, int], str]] = {
        "multiplicative": ("floats, error in proportion:\nno loss to be seen", 300, (-10, -26), "right"),
        "additive": ("one step for all: stuck", 10000, (0, 8), "right"),
        "additive by block": ("a step for every 512 features", 1000, (8, 8), "left"),
    }
    shown = (10, 30, 100, 300, 1000, 3000, 10000)
    for label, (colour, marker) in _STYLE.items():
        mine = sorted((p for p in points if p.label == label), key=lambda p: p.size)
        style = {"color": _COLOURS[colour]}
        axes.plot([p.size for p in mine], [p.predicted for p in mine], linewidth=1.6, **style)
        dots = [p for p in mine if p.size in shown]
        axes.plot([p.size for p in dots], [p.risk for p in dots], marker=marker, linestyle="", markersize=5.5, **style)
        text, place, offset, side = notes[label]
        at = next(p for p in mine if p.size == place)
        axes.annotate(
            text, (at.size, at.risk), xytext=offset, textcoords="offset points", ha=side, fontsize=10, **style
        )
    eps = first["additive"].eps
    axes.axvline(eps**-0.5, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "from here on a feature is\nsmaller than the step's error", (eps**-0.5, 0.02), xytext=(5, 0),
        textcoords="offset points", ha="left", va="bottom", color="grey", fontsize=9,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5)
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("features kept, M (log scale)")
    axes.set_ylabel("risk: energy of the label that is missed")
    axes.set_title(
        "Linear regression on quantised features\n(lines: theory, points: measured, black: no quantisation)",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
