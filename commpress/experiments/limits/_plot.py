"""The figure of the project. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from commpress.experiments._codec_map import Measured
from commpress.experiments._codec_map_plot import family_of
from commpress.experiments._figure import figure_to, plain_log
from commpress.experiments._plot import _COLOURS
from commpress.experiments.limits._curves import BOUNDS, bounds
from commpress.experiments.limits._runs import GAUSSIAN, GRADIENT, Findings

_GREY = "#8c8c8c"
# What a reader is to tell apart: families, a colour and a marker.
GROUPS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "trellis codes (bitshift)": (("bitshift", "hadamard+bitshift"), _COLOURS[2], "o"),
    "entropy-coded trellis": (("trellis",), _COLOURS[5], "s"),
    "entropy-coded rounding (ecsq, ecdq)": (("ecsq", "ecdq"), _COLOURS[3], "D"),
    "rotation and 2^b levels (hadamard+lloyd)": (("hadamard+lloyd", "lloyd"), _COLOURS[1], "^"),
    "plain rounding (uniform, int8, qsgd, homomorphic)": (("uniform", "int8", "qsgd", "homomorphic"), _COLOURS[6], "v"),
    "some coordinates only (top-k, random-k)": (("topk", "randk", "threshold"), _COLOURS[4], "P"),
    "signs (sign, onebit, ternary)": (("sign", "onebit", "ternary"), "black", "X"),
    "number formats (fp16, fp8, mxfp4, ...)": (("cast", "float", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "natural"), _GREY, "h"),
}  # fmt: skip


def group_of(spec: str) -> str:
    """The entry of `GROUPS` that a codec belongs to."""
    family = spec.split(",")[0].partition(":")[0]
    return next(name for name, (families, _, _) in GROUPS.items() if family in families)


def plot(found: Findings, path: Path) -> None:
    """Writes a PNG: the share of the limit on random data and on a real gradient, and rounds against the bounds.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 16, 6.4) as figure:
        left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1.15, 1, 1)})
        _shares(left, found.of(GAUSSIAN))
        _shares(middle, found.of(GRADIENT))
        _reference(left, found)
        _label(left, found)
        left.set_ylim(0, 1.12)
        left.annotate("the limit: no code can be above this line", (0.98, 1.0), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=10)  # fmt: skip
        left.set_title("1. How much do the bits say\nabout random (Gaussian) numbers?", fontsize=13)
        left.set_ylabel("information carried, of the most possible")
        _percent(left, np.arange(0, 1.01, 0.2))
        middle.set_yscale("log")
        middle.set_ylim(0.05, max(6.0, 1.3 * max(m.eta for m in found.of(GRADIENT))))
        _percent(
            middle,
            [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20] if middle.get_ylim()[1] > 12 else [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10],
        )
        middle.annotate("the same limit", (0.98, 1.0), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=10)  # fmt: skip
        middle.set_title("2. And about a real gradient? Few of its\nnumbers are large: some codes profit", fontsize=13)
        middle.set_ylabel("information carried, of that limit (log scale)")
        _rounds(right, found)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10, frameon=False)


def _shares(axes: Any, measured: list[Measured]) -> None:
    named: set[str] = set()
    for name, (_, colour, marker) in GROUPS.items():
        mine = [m for m in measured if group_of(m.spec) == name]
        for family in dict.fromkeys(family_of(m.spec) for m in mine):
            curve = sorted((m for m in mine if family_of(m.spec) == family), key=lambda m: m.bits)
            joined = len(curve) > 2
            style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.5, "linestyle": "-" if joined else "none"}  # fmt: skip
            axes.plot([m.bits for m in curve], [m.eta for m in curve], label=None if name in named else name, **style)
            named.add(name)
    axes.axhline(1.0, color="black", linewidth=2.4)
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_xlabel("bits per number, everything counted (fp32: 32)")
    axes.grid(alpha=0.25)


def _reference(axes: Any, found: Findings) -> None:
    rates = np.geomspace(0.03, found.optimum.rates[1], 200)
    axes.plot(rates, [found.optimum.eta(float(r)) for r in rates], color="black", linestyle="--", linewidth=1.3)


def _label(axes: Any, found: Findings) -> None:
    """Names beside the curves of the first panel, and beside the best scalar quantiser's."""
    axes.annotate("best possible code that\nrounds each number by itself", (0.036, found.optimum.eta(0.036)), xytext=(-34, 9), textcoords="offset points", fontsize=9)  # fmt: skip
    here = found.of(GAUSSIAN)
    for family, place in (
        ("bitshift", (-4, -16)),
        ("trellis", (6, -13)),
        ("ecsq", (8, -13)),
        ("hadamard+lloyd", (0, -16)),
    ):
        mine = [m for m in here if m.spec.split(",")[0].partition(":")[0] == family]
        if mine:
            first = min(mine, key=lambda m: (round(m.bits, 2), m.eta))
            axes.annotate(family, (first.bits, first.eta), xytext=place, textcoords="offset points", fontsize=10, color=GROUPS[group_of(first.spec)][1])  # fmt: skip


def _percent(axes: Any, ticks: Any) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_yticks(list(ticks), [f"{100 * t:.0f} %" for t in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _rounds(axes: Any, found: Findings) -> None:
    trial = found.trial
    low = min(0.08, *(p.bits / p.d for p in found.rounds))
    rates = np.geomspace(low * 0.8, 12, 200)
    lines = {name: [bounds(trial, float(r))[name] for r in rates] for name in BOUNDS}
    highest = np.max(list(lines.values()), axis=0)
    axes.fill_between(rates, 1, highest, color="0.9", linewidth=0)
    for name, style, width in zip(BOUNDS, ("-", "--", ":"), (2.4, 1.4, 1.6), strict=True):
        axes.plot(rates, lines[name], color="black", linestyle=style, linewidth=width)
    right = float(rates[-1])
    for name, x, level, place, align in (
        (BOUNDS[0], right, lines[BOUNDS[0]][-1], (0, -13), "right"),
        (BOUNDS[1], right, lines[BOUNDS[1]][-1], (0, -13), "right"),
        (BOUNDS[2], 1.0, bounds(trial, 1.0)[BOUNDS[2]], (8, 2), "left"),
    ):
        axes.annotate(f"bound: {name}", (x, level), xytext=place, textcoords="offset points", fontsize=9.5, ha=align, color="0.25")  # fmt: skip
    for group, (_, colour, marker) in GROUPS.items():
        mine = sorted((p for p in found.rounds if group_of(p.codec) == group), key=lambda p: p.bits)
        if mine:
            at, rounds = [p.bits / p.d for p in mine], [p.rounds for p in mine]
            axes.plot(at, rounds, marker=marker, color=colour, markersize=6.5, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1.0, 1.6 * max(p.rounds for p in found.rounds))
    plain_log(axes.xaxis)
    plain_log(axes.yaxis, (1, 10))
    axes.text(0.04, 0.04, "in the grey: impossible", transform=axes.transAxes, fontsize=11, color="0.35")
    axes.set_xlabel("bits per number and round")
    axes.set_ylabel("rounds until the mean is known well enough")
    axes.set_title(
        f"3. Fewer bits take more rounds: a mean\nas exact as from {trial.samples} uncompressed samples", fontsize=13
    )
    axes.grid(alpha=0.25)
