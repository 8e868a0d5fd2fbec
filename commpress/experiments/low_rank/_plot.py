"""The picture of the low-rank experiment. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commpress.experiments._figure import figure_to
from commpress.experiments._plot import _COLOURS
from commpress.experiments.low_rank._runs import DIMENSION, PHASES, Findings, LayerFound

_AROUND = 12.5  # steps before and after the jump that are shown
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
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside lower right", ncols=5, fontsize=9.5, frameon=False
        )


def _tracking(axes: Any, found: Findings) -> None:
    ours, power = found.traces[-2:]
    for trace, colour, name in (
        (power, _POWER, "PowerSGD's iteration"),
        (ours, _OURS, f"commpress {ours.way}: starts anew\nin the step after the jump"),
    ):
        steps = range(1, len(trace.mean))
        axes.plot(steps, trace.mean[1:], color=colour, linewidth=2, marker="o", markersize=3.5, label=name)
    jump = ours.jump
    axes.axhline(1.0, color="black", linewidth=1.6)
    axes.annotate("best that rank 4 can do", (0.02, 1.0), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points", fontsize=9.5)  # fmt: skip
    axes.axvline(jump, color="grey", linestyle=":", linewidth=1.2)
    axes.annotate("here all four directions\nare replaced by others", (jump, 0.75), xytext=(-22, 0), textcoords="offset points", ha="right", fontsize=9.5, color="0.3")  # fmt: skip
    after = f"one step after:\nPowerSGD {power.mean[jump + 1]:.2f},\ncommpress {ours.mean[jump + 1]:.3f}"
    axes.annotate(after, (jump, 0.55), xytext=(26, 0), textcoords="offset points", fontsize=9.5, color="0.3")
    axes.set_ylim(0.2, 1.06)
    axes.set_xlim(max(0.5, jump - _AROUND), min(len(ours.mean), jump + _AROUND))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step; the directions turn by 3 degrees in each")
    axes.set_ylabel("energy that arrives, of the best possible")
    axes.set_title("Following a low-rank matrix that turns\nslowly, and jumps once", fontsize=12)
    axes.legend(loc="lower left", fontsize=9.5, frameon=False)
    axes.grid(alpha=0.25)


def _layers(axes: Any, late: list[LayerFound], found: Findings) -> None:
    rows: list[tuple[Any, ...]] = [
        (f"{f.layer}   {f.rows} x {f.columns}", f.best, f.ours, f.power, f.scalar, f.limit) for f in late
    ]
    noise = found.noise
    rows.append((f"pure noise   {noise.side} x {noise.side}", noise.best, noise.captured, None, None, noise.limit))
    places = list(range(len(rows)))
    axes.barh(places, [row[1] for row in rows], color="0.88", height=0.8, label=f"best with {DIMENSION} dimensions")
    marks = (
        (3, "D", _POWER, 6, "PowerSGD's iteration"),
        (2, "o", _OURS, 6, f"commpress lowrank:{DIMENSION}"),
        (4, "x", _SCALAR, 7, "commpress ecsq, as many bits"),
        (5, "|", "black", 14, "most for Gaussian noise, as many bits"),
    )
    for column, marker, colour, size, label in marks:
        here = [(row[column], place) for row, place in zip(rows, places, strict=True) if row[column] is not None]
        x, y = zip(*here, strict=True)
        axes.plot(x, y, marker, color=colour, markersize=size, markeredgewidth=2, label=label, clip_on=False, zorder=3)
    axes.set_yticks(places, [row[0] for row in rows], fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("part of the gradient's energy that arrives (1 is all)")
    axes.set_title(
        "Which layers of the main job are of low rank?\nBlue right of green: factors say more than a quantiser, byte for byte",
        fontsize=12,
    )
    axes.grid(alpha=0.25, axis="x")
