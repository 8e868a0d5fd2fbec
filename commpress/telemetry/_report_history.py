"""The report's part about history: what the last aggregates foretell of a gradient, and whether more of them would pay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from commpress.telemetry import _report_text as text
from commpress.telemetry._load import RunLog
from commpress.telemetry._report_data import number
from commpress.telemetry._report_figures import _COLOURS, _figure, _finish, _label, _short


def told(run: RunLog) -> list[float]:
    """Part of the energy that a prediction from the last 1, 2, ... aggregates leaves; [] if the run does not tell."""
    listed = run.history.get("errors")
    found = [number(value) for value in listed] if isinstance(listed, list) else []
    errors = [value for value in found if value is not None and value >= 0]
    return errors if len(errors) == len(found) else []


def decay(runs: Sequence[RunLog]) -> bytes | None:
    """What is left, by the number of aggregates, one line for each run."""
    shown = [run for run in runs if told(run)]
    if not shown:
        return None
    with _figure(9.6, 2.9) as (figure, png):
        axes = figure.subplots()
        for i, run in enumerate(runs):
            if errors := told(run):
                label = _short(run.name) if len(runs) == 1 else _label(run, runs, "left")
                axes.plot(range(1, len(errors) + 1), errors, color=_COLOURS[i % len(_COLOURS)], marker="o", markersize=3.5, label=label)  # fmt: skip
        limits = [limit for run in shown if (limit := number(run.history.get("pays_below"))) is not None]
        if limits:
            axes.axhline(limits[0], color=_COLOURS[1], linewidth=1.2, linestyle="--")
            axes.annotate("below this a layer is predicted", (0.99, limits[0]), xycoords=("axes fraction", "data"), va="top", ha="right", fontsize=9, xytext=(0, -4), textcoords="offset points")  # fmt: skip
        lowest = min(min(told(run)) for run in shown)
        axes.set_ylim(max(0.0, min([lowest, *limits]) - 0.06), max(1.02, *(max(told(run)) for run in shown)))
        axes.set_title("part of the gradient's energy that a prediction leaves")
        _finish(axes, figure if len(runs) > 1 else None, legend=len(runs) > 1)
        axes.set_xlabel("aggregates that it is made from")
    return png.getvalue()


def words(run: RunLog) -> str:
    """What the picture says of one run, as HTML."""
    errors, said = told(run), run.history
    window, law = number(said.get("window")), str(said.get("law", ""))
    eps, limit = number(said.get("eps")), number(said.get("pays_below"))
    parts = [f"The last aggregate foretells {1 - errors[0]:.1%} of a rank's gradient"]
    if window is not None and law in ("power", "exponential") and window > 1:
        at = min(int(window), len(errors))
        saved = 0.5 * math.log2(max(errors[0], 1e-9) / max(errors[at - 1], 1e-9))
        parts.append(
            f", the last {at} foretell {1 - errors[at - 1]:.1%}: {saved:.3f} bits a coordinate more, for {4 * (at - 1)} bytes of memory. "
            f"The decay is best described by {_law(law, said)}; from <b>{window:,.0f} steps</b> of history on {eps or 0:.0%} of the energy or less is left to gain"
            + (f", which is extrapolated: {len(errors)} were measured." if window > len(errors) else ".")
        )
    else:
        parts.append(f", and more of them less than {eps or 0:.0%} more: <b>one step of history is enough</b>.")
    if limit is not None:
        best = float(np.min(errors))
        if best > limit:
            parts.append(f" <b>Prediction does not pay here</b>: a layer is predicted where {1 - limit:.0%} can be foretold, and of this gradient as a whole that is so with no history. Single layers may differ.")  # fmt: skip
        elif errors[0] > limit:
            parts.append(
                " One step alone is not worth it, a longer history is: <code>predict=True</code> has one step."
            )
        else:
            parts.append(" With a bit budget <code>predict=True</code> makes use of the last one.")
    return f"<p>{''.join(parts)}</p>\n"


def _law(law: str, said: Mapping[str, Any]) -> str:
    if law == "power":
        return f"a power law, w^-{number(said.get('alpha')) or 0:.2f}"
    return f"an exponential of {number(said.get('tau')) or 0:.1f} steps"


def heading(run: RunLog, several: bool) -> str:
    """Before the words of one of several runs."""
    return f"<p><code>{text.escape(run.name)}</code></p>\n" if several else ""
