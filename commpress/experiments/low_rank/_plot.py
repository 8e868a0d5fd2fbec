"""The picture of the low-rank experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.low_rank._runs import DIMENSION, PHASES, Findings, LayerFound

_OURS, _POWER, _SCALAR = _COLOURS[1], _COLOURS[2], _COLOURS[3]


def plot(found: Findings, path: Path) -> None:
    """Writes a PNG: on the left a subspace that turns and jumps, on the right the main job's layers.

    Raises:
        PlotError: matplotlib is not installed.
    """
    late = [layer for layer in found.layers if layer.phase == PHASES[-1]]
    with figure_to(path, 13.5, 2.6 + 0.3 * max(len(late), 8)) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.25)})
        _tracking(left, found)
        _layers(right, late, found)


def _tracking(axes: Any, found: Findings) -> None:
    ours = found.traces[-2]
    power = found.traces[-1]
    for trace, colour, name in (
        (power, _POWER, "PowerSGD's iteration"),
        (ours, _OURS, f"commpress {ours.way},\nstarts anew after the jump"),
    ):
        steps = range(1, len(trace.mean))
        axes.plot(steps, trace.mean[1:], color=colour, linewidth=2, marker="o", markersize=3.5, label=name)
    jump = ours.jump
    axes.axhline(1.0, color="black", linewidth=1.6)
    axes.annotate("best that rank 4 can do", (1, 1.0), xytext=(0, 4), textcoords="offset points", fontsize=9.5)
    axes.axvline(jump, color="grey", linestyle=":", linewidth=1.2)
    bottom = min(ours.mean[jump], power.mean[jump])
    axes.annotate(
        "all directions\nreplaced by others",
        (jump, bottom),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9.5,
        color="0.3",
    )
    after = power.mean[jump + 1]
    axes.annotate(
        f"one step later:\nPowerSGD {after:.2f}, commpress {ours.mean[jump + 1]:.3f}",
        (jump + 1, after),
        xytext=(14, -46),
        textcoords="offset points",
        fontsize=9.5,
        arrowprops={"arrowstyle": "-", "color": "0.5"},
    )
    axes.set_ylim(min(bottom - 0.08, 0.45), 1.06)
    axes.set_xlabel("step; the directions turn 3 degrees in each")
    axes.set_ylabel("energy that arrives, of the best possible")
    axes.set_title("Following a low-rank matrix that turns,\nand once jumps", fontsize=12)
    axes.legend(loc="lower left", fontsize=9.5, frameon=False)
    axes.grid(alpha=0.25)


def _layers(axes: Any, late: list[LayerFound], found: Findings) -> None:
    rows: list[tuple[Any, ...]] = [
        (f"{f.layer}  {f.rows} x {f.columns}", f.best, f.ours, f.power, f.scalar, f.limit) for f in late
    ]
    noise = found.noise
    rows.append(
        (f"pure noise  {noise.side} x {noise.side}", noise.best, noise.captured, noise.captured, None, noise.limit)
    )
    places = range(len(rows))
    axes.barh(
        places, [row[1] for row in rows], color="0.88", height=0.8, label=f"best possible with {DIMENSION} dimensions"
    )
    axes.plot(
        [row[3] for row in rows[:-1]], list(places)[:-1], "D", color=_POWER, markersize=6, label="PowerSGD's iteration"
    )
    axes.plot([row[2] for row in rows], places, "o", color=_OURS, markersize=6, label=f"commpress lowrank:{DIMENSION}")
    axes.plot(
        [row[4] for row in rows[:-1]],
        list(places)[:-1],
        "x",
        color=_SCALAR,
        markersize=6,
        markeredgewidth=2,
        label="commpress ecsq, as many bits",
    )
    axes.plot(
        [row[5] for row in rows],
        places,
        "|",
        color="black",
        markersize=13,
        markeredgewidth=2,
        label="limit for Gaussian noise, as many bits",
    )
    axes.set_yticks(list(places), [row[0] for row in rows], fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("part of the gradient's energy that arrives (1 is all)")
    axes.set_title(
        "Which layers of the main job are of low rank? (second half of training)\nRight of the black mark: worth sending as factors",
        fontsize=12,
    )
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3, frameon=False)
