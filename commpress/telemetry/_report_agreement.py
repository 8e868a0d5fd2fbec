"""The report's part about the worker-agreement monitor: a heat map of cosines, lines by rank, who stood out; and the layers' scales."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from commpress.telemetry import _report_text as text
from commpress.telemetry._load import RunLog
from commpress.telemetry._report_data import mean_to_others
from commpress.telemetry._report_figures import _COLOURS, _figure

_WRITTEN = 12  # more ranks than that, and the numbers would not be legible
_NAMED = 8  # ranks with a colour of their own
_LISTED = 20


def heat_map(run: RunLog) -> bytes:
    """Mean cosine of every two ranks on the left, each rank's mean cosine to the others over the steps on the right."""
    from matplotlib.ticker import MaxNLocator

    kept = run.agreements.kept
    stack = np.stack([cosines for _, cosines in kept])
    mean = _mean(stack)
    n = len(mean)
    with _figure(9.6, 4.2) as (figure, png):
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.25)})
        _map(figure, left, mean, len(kept))
        steps = np.array([step for step, _ in kept])
        lines = np.array([mean_to_others(cosines) for cosines in stack])
        special = [rank for rank in _most_often(run) if 0 <= rank < n]
        for rank in _drawn_last(n, special):
            stands_out = rank in special
            colour = _COLOURS[1] if stands_out else _COLOURS[0] if n <= _NAMED else "#9a9a9a"
            right.plot(
                steps,
                lines[:, rank],
                color=colour,
                linewidth=2.2 if stands_out else 1.0,
                alpha=1.0 if stands_out else 0.7,
                marker="o" if len(steps) < 12 else None,
                markersize=3.5,
            )
        for rank in special[:3]:
            known = np.flatnonzero(np.isfinite(lines[:, rank]))
            if known.size:
                at = known[-1]
                right.annotate(
                    f"rank {rank}",
                    (steps[at], lines[at, rank]),
                    xytext=(5, 0),
                    textcoords="offset points",
                    color=_COLOURS[1],
                    va="center",
                    annotation_clip=False,
                )
        right.set_title("mean cosine to the other ranks: one line for each rank")
        right.set_xlabel("step")
        right.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        low = float(np.nanmin(lines)) if np.isfinite(lines).any() else 0.0
        right.set_ylim(min(-0.05, low - 0.05), 1.05)
        right.axhline(0.0, color="#444444", linewidth=0.8)
        right.annotate(
            "0: nothing in common", (0.01, 0.0), xycoords=("axes fraction", "data"), va="bottom", fontsize=8.5
        )
        right.grid(alpha=0.25)
    return png.getvalue()


def _map(figure: Any, axes: Any, mean: np.ndarray, samples: int) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    n = len(mean)
    low = -1.0 if np.nanmin(mean, initial=0.0) < -0.05 else 0.0
    colours = colormaps["RdBu" if low < 0 else "Blues"].with_extremes(bad="#ececec")
    image = axes.imshow(np.ma.masked_invalid(mean), cmap=colours, norm=Normalize(low, 1.0))
    every = max(1, -(-n // 16))
    axes.set_xticks(range(0, n, every), range(0, n, every))
    axes.set_yticks(range(0, n, every), range(0, n, every))
    axes.set_xlabel("rank")
    axes.set_ylabel("rank")
    if n <= _WRITTEN:
        for i in range(n):
            for j in range(n):
                value = mean[i, j]
                written = "?" if value != value else f"{value:.2f}"
                dark = value == value and abs(value) > 0.6
                axes.text(j, i, written, ha="center", va="center", fontsize=8, color="white" if dark else "#222222")
    axes.set_title(f"cosine of two ranks' gradients, mean of {samples:,} step{'s' if samples != 1 else ''}")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).outline.set_visible(False)


def _mean(stack: np.ndarray) -> np.ndarray:
    known = np.isfinite(stack)
    counts = known.sum(0)
    return np.where(counts > 0, np.where(known, stack, 0.0).sum(0) / np.maximum(counts, 1), np.nan)


def _most_often(run: RunLog) -> list[int]:
    counts = collections.Counter(int(one["rank"]) for one in run.standing_out)
    return [rank for rank, _ in counts.most_common()]


def _drawn_last(n: int, special: list[int]) -> list[int]:
    return [r for r in range(n) if r not in special] + [r for r in range(n) if r in special]


def words(run: RunLog) -> str:
    """What the picture says, and the list of those who stood out, as HTML."""
    parts = []
    mean = run.agreement.mean("mean")
    if mean is not None:
        parts.append(
            f"<p>Two ranks' gradients had a cosine of <b>{mean:.3f}</b> in the mean. 1: all see the same gradient, and more ranks bring nothing; "
            "0: each step's gradients are mostly noise, or the ranks have different data, and a mean of n ranks is worth most.</p>"
        )
    counts = collections.Counter(int(one["rank"]) for one in run.standing_out)
    samples = len(run.agreement)
    if not counts:
        parts.append("<p>No rank stood out.</p>")
    for rank, count in counts.most_common(3):
        reasons = sorted({one["why"] for one in run.standing_out if int(one["rank"]) == rank})
        parts.append(
            f"<p><b>Rank {rank} stood out</b> in {count:,} of {samples:,} looks ({text.escape(', '.join(reasons))}): "
            "its data, its hardware or its replica may be bad.</p>"
        )
    rows = [
        [
            text.figure(one["step"]),
            text.figure(one["rank"]),
            text.escape(one["why"]),
            text.figure(one["cosine"], ".3f"),
            text.figure(one["others"], ".3f"),
            text.figure(one["norm"], ".3g"),
        ]
        for one in run.standing_out[-_LISTED:]
    ]
    if rows:
        head = (
            "step",
            "rank",
            "why",
            "its cosine to the others",
            "theirs among themselves",
            "norm over the others\u2019",
        )
        parts.append(text.table(head, rows))
    parts.append(
        "<p class=note>Estimated from 2-bit random projections of each rank's own gradient, before compression (docs/cosine.md).</p>\n"
    )
    return "\n".join(parts)


def scale_words(run: RunLog) -> str:
    """What the picture of the layers' scales says, and the list of ranks that were far from them, as HTML."""
    parts = [
        "<p class=note>How large each layer's gradient is on most ranks: the median of their root mean squares, to a quarter. "
        "A row that fades is a layer whose gradient vanishes, one that brightens may be about to explode; all rows at once are the loss scale or the learning rate.</p>\n"
    ]
    looks = run.scales.looks
    counts = run.scales.looks_of
    if not counts and looks and int(run.head.get("world_size") or 0) > 2:
        parts.append("<p>No rank's layers were eight times as large as on most ranks, or an eighth.</p>")
    for rank, count in sorted(counts.items(), key=lambda pair: -pair[1])[:3]:
        parts.append(
            f"<p><b>Layers of rank {rank} had another size</b> than on most ranks in {count:,} of {looks:,} looks: its loss scale, "
            "a part of its parameters or its data may be wrong.</p>"
        )
    rows = [
        [
            text.figure(one["step"]),
            text.figure(one["rank"]),
            text.escape(one["layer"]),
            text.figure(one["ratio"], ".3g"),
        ]
        for one in run.scales.far[-_LISTED:]
    ]
    if rows:
        parts.append(text.table(("step", "rank", "layer", "over most ranks\u2019"), rows))
    return "\n".join(parts)
