"""The picture of the optimizer-precision experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.optimizer_precision._average import MANTISSAS, Track
from commpress.experiments.optimizer_precision._needs import GROWING, Need, line
from commpress.experiments.optimizer_precision._problem import PLACES

_NAMES = {"adam": "Adam", "muon": "Muon"}
_HOW = {"nearest": "to nearest", "stochastic": "stochastically"}


def plot_precision(tracks: Sequence[Track], needs: Sequence[Need], path: Path) -> None:
    """Writes a PNG of 1400 x 480 pixels: an average that sticks, needed mantissa against the horizon, and by what is rounded.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 14, 4.8, dpi=100) as figure:
        left, middle, right = figure.subplots(1, 3)
        _tracks_panel(left, tracks)
        _growth_panel(middle, needs)
        _places_panel(right, needs)


def _tracks_panel(axes: Any, tracks: Sequence[Track]) -> None:
    nearest, stochastic, wide = tracks
    axes.plot(nearest.steps, nearest.exact, color="grey", linewidth=5, alpha=0.35)
    for track, colour, style in ((nearest, 2, "-"), (stochastic, 1, "-"), (wide, 3, "--")):
        axes.plot(track.steps, track.values, color=_COLOURS[colour], linestyle=style, linewidth=1.6)
    end = nearest.steps[-1]
    labels = (
        (0.98, 1.36, "bfloat16, rounded to nearest: stuck", 2),
        (0.34, 0.62, "bfloat16, rounded stochastically", 1),
        (0.34, 0.47, "12 bits of mantissa, to nearest", 3),
    )
    for x, y, text, colour in labels:
        axes.text(x * end, y, text, color=_COLOURS[colour], fontsize=10, ha="right" if colour == 2 else "left")
    axes.text(0.34 * end, 0.32, "exact (grey)", color="grey", fontsize=10)
    axes.set_ylim(0, 1.6)
    axes.set_xlabel("steps")
    axes.set_ylabel("value of the average")
    axes.set_title("A moving average (decay .999) that should\nfade away, kept in few bits", fontsize=11)
    axes.grid(alpha=0.25)


def _growth_panel(axes: Any, needs: Sequence[Need]) -> None:
    looks = {"nearest": ((2, "s"), (5, "D")), "stochastic": ((1, "o"), (3, "^"))}
    for (rounding, place), optimizer in ((g, o) for g in GROWING[::-1] for o in PLACES):
        colour, marker = looks[rounding][list(PLACES).index(optimizer)]
        mine = sorted(
            (n for n in needs if (n.optimizer, n.rounding, n.place) == (optimizer, rounding, place)),
            key=lambda n: n.horizon,
        )
        slope, intercept, _ = line([math.log2(n.horizon) for n in mine], [n.crossing for n in mine])
        x = [n.horizon for n in mine]
        style = {"color": _COLOURS[colour]}
        axes.plot(x, [n.crossing for n in mine], marker=marker, linestyle="", markersize=6, **style)
        axes.plot(
            x,
            [slope * math.log2(v) + intercept for v in x],
            label=f"{_NAMES[optimizer]}, {place if place == 'weights' else 'everything'} {_HOW[rounding]}: {slope:+.2f}",
            linestyle="-" if optimizer == "adam" else "--",
            **style,
        )
    axes.axhline(7, color="grey", linestyle=":", linewidth=1)
    axes.text(0.01, 7.1, "bfloat16", color="grey", fontsize=9, va="bottom", transform=axes.get_yaxis_transform())
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps of the run, T (log scale)")
    axes.set_ylabel("needed bits of mantissa")
    axes.set_title("Longer runs need more bits:\nto end within 10 % of float32", fontsize=11)
    axes.legend(fontsize=8, loc="lower right", title="rounded, and bits per doubling", title_fontsize=8)
    axes.grid(alpha=0.25)


def _places_panel(axes: Any, needs: Sequence[Need]) -> None:
    longest = max(n.horizon for n in needs)
    rows = [(optimizer, place) for optimizer in PLACES for place in PLACES[optimizer][:-1]]
    for i, (optimizer, place) in enumerate(rows):
        at = len(rows) - 1 - i
        for offset, rounding, colour in ((0.19, "nearest", 2), (-0.19, "stochastic", 1)):
            need = next(
                n
                for n in needs
                if (n.optimizer, n.horizon, n.rounding, n.place) == (optimizer, longest, rounding, place)
            )
            axes.barh(
                at + offset, need.mantissa, height=0.36, color=_COLOURS[colour], label=rounding if i == 0 else None
            )
            text = f"{need.mantissa}" if need.mantissa > MANTISSAS[0] else f"\N{LESS-THAN OR EQUAL TO} {need.mantissa}"
            axes.text(need.mantissa + 0.1, at + offset, text, va="center", fontsize=9, color=_COLOURS[colour])
    axes.axvline(7, color="grey", linestyle=":", linewidth=1)
    axes.text(7.1, len(rows) - 0.55, "bfloat16", color="grey", fontsize=9)
    axes.set_yticks(range(len(rows)), [f"{_NAMES[o]}: {p}" for o, p in reversed(rows)])
    axes.set_xlim(0, MANTISSAS[-1] + 1)
    axes.set_xlabel("needed bits of mantissa")
    axes.set_title(f"One thing rounded, the rest float32:\n{longest:,} steps", fontsize=11)
    axes.legend(fontsize=9, loc="lower right", title="rounded", title_fontsize=9)
