"""The picture of the side-information experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from commpress.experiments._figure import figure_to, plain_log
from commpress.experiments._plot import _COLOURS, _MARKERS
from commpress.experiments.side_information._coding import saving
from commpress.experiments.side_information._history import PHASES
from commpress.experiments.side_information._runs import BITS, Decay, Findings, RunFound

_PREDICTS = 1 / 1.1  # the hook's predictor begins where no more than this is left


def plot(found: Findings, path: Path) -> None:
    """Writes a PNG: what side information saves, whether successive aggregates of the main job are alike, what a longer history gives.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with figure_to(path, 15.5, 5.6) as figure:
        left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 1.25, 1)})
        _savings(left, found)
        _correlations(figure, middle, found.runs)
        _decays(right, [*found.decays, *(run.decay for run in found.runs)])


def _savings(axes: Any, found: Findings) -> None:
    rho = np.linspace(0.0, 0.992, 300)
    axes.plot(rho, [saving(float(r)) for r in rho], color="black", linewidth=2.2)
    points = sorted((*found.coded, *found.curve), key=lambda c: c.rho)
    x = [c.rho for c in points]
    axes.plot(x, [c.residual_saving for c in points], "o", color=_COLOURS[1], markersize=6.5)
    axes.plot(x, [c.modulo_saving for c in points], "-^", color=_COLOURS[2], markersize=5.5, linewidth=1.4)
    axes.axhline(0.0, color="grey", linewidth=1)
    line = {"arrowstyle": "-", "color": "0.6"}
    for text, at, place, colour in (
        ("the most that theory allows", (0.96, saving(0.96)), (0.04, 2.3), "black"),
        ("sender and receiver know it:\ncode the difference", (0.85, saving(0.85)), (0.04, 1.25), _COLOURS[1]),
        (
            f"only the receiver knows it:\nmodulo:{BITS}, pays from {found.crossings[BITS]:.2f} on",
            (0.6, -0.24),
            (0.3, -0.85),
            _COLOURS[2],
        ),
    ):
        axes.annotate(text, at, xytext=place, fontsize=10, color=colour, arrowprops=line)
    axes.set_ylim(-1.0, 3.1)
    axes.set_xlabel("correlation of what is sent and what is known")
    axes.set_ylabel("bits saved per coordinate")
    axes.set_title("What is it worth to know\nsomething similar already?", fontsize=12)
    axes.grid(alpha=0.25)


def _correlations(figure: Any, axes: Any, runs: list[RunFound]) -> None:
    table = np.concatenate([np.array(run.correlations) for run in runs], axis=1)
    image = axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks(range(len(runs[0].layers)), runs[0].layers, fontsize=9)
    names = list(PHASES) * len(runs)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=30 if len(runs) > 1 else 0)
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color="white" if abs(value) > 0.6 else "black")  # fmt: skip
    for i, run in enumerate(runs):
        if i:
            axes.axvline(i * len(PHASES) - 0.5, color="black", linewidth=2)
        axes.text((i + 0.5) * len(PHASES) - 0.5, -0.75, f"{run.ranks} ranks", ha="center", fontsize=10.5, fontweight="bold")  # fmt: skip
    axes.set_title(
        "Main job: how alike are the gradients of two\nsuccessive steps? 1: the same, 0: unrelated\n", fontsize=12
    )
    axes.set_xlabel("part of training")
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.7, pad=0.01)


def _decays(axes: Any, decays: list[Decay]) -> None:
    for i, decay in enumerate(decays, start=1):
        style = {"color": _COLOURS[i % 7], "marker": _MARKERS[i % 7], "markersize": 4.5, "linewidth": 1.6}
        h = decay.history
        law = {"power": f"power law, w^-{h.alpha:.1f}", "exponential": f"exponential, {h.tau:.1f} steps"}.get(h.law)
        made = not decay.name.startswith("main job")
        label = f"{decay.name} ({'made up; ' if made else ''}{law or 'a longer history gains nothing'})"
        axes.plot(range(1, len(decay.errors) + 1), decay.errors, label=label, linestyle="--" if made else "-", **style)
    axes.axhline(_PREDICTS, color="black", linewidth=1.4)
    axes.annotate("below this line the library predicts a layer", (0.98, _PREDICTS), xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points", ha="right", va="top", fontsize=9.5)  # fmt: skip
    axes.axhline(1.0, color="grey", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_ylim(0.66, 1.14)
    axes.set_xlabel("steps of history that are used")
    axes.set_ylabel("part of the energy that is left to send")
    axes.set_title("Does a longer memory help\nto foretell the gradient?", fontsize=12)
    axes.legend(fontsize=8, loc="upper right", frameon=False, handlelength=1.6)
    axes.grid(alpha=0.25)
