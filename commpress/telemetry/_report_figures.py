"""The report's pictures, as PNG bytes. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from commpress.errors import MissingPackageError
from commpress.telemetry._load import RunLog

# Okabe and Ito's colours: told apart with any colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_POINTS = 1500  # of a line; a longer run is drawn as the means of so many stretches
_LABELS = 44  # layer names that fit beside a heat map
_NAME = 34
_ROWS = 250  # more layers than that are stripes; neighbours are joined
_EXACT_BITS = 12.0  # no lossy codec has more: what does goes exact and would swallow the colour scale
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def information(runs: Sequence[RunLog]) -> bytes | None:
    """Achieved, allocated and optimum over steps: as shares of the optimum, and as they are."""
    if not any(len(run.information) for run in runs):
        return None
    with _figure(9.6, 3.5) as (figure, png):
        left, right = figure.subplots(1, 2)
        for i, run in enumerate(runs):
            table = run.information
            with np.errstate(divide="ignore", invalid="ignore"):
                achieved, allocated = table["achieved"] / table["optimum"], table["allocated"] / table["optimum"]
            _line(left, table.steps, 100 * achieved, i, label=_label(run, runs, "achieved"))
            _line(left, table.steps, 100 * allocated, i, label=_label(run, runs, "allocated"), linestyle="--")
            for name, linestyle in (("achieved", "-"), ("allocated", "--"), ("optimum", ":")):
                _line(right, table.steps, table[name], i, label=_label(run, runs, name), linestyle=linestyle)
        left.axhline(100, color="#444444", linewidth=1.2, linestyle=":")
        left.annotate("optimum", (0.01, 100), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
        low, high = left.get_ylim()
        left.set_ylim(max(0, low - 0.15 * (high - low)), high + 0.12 * (high - low))
        left.set_title("of the information at the optimum, per cent")
        right.set_title("Fisher information (trace)")
        if any((run.information["optimum"] > 0).any() for run in runs):
            right.set_yscale("log")
        _finish(left, None)
        _finish(right, None)
        handles, labels = right.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return png.getvalue()


def step_bytes(runs: Sequence[RunLog]) -> bytes | None:
    """Bytes that a rank sends in a step: all on the wire, and payload alone."""
    if not any(np.isfinite(run.steps["wire_bytes"]).any() for run in runs):
        return None
    with _figure(9.6, 2.9) as (figure, png):
        axes = figure.subplots()
        top = max((float(run.steps["wire_bytes"][np.isfinite(run.steps["wire_bytes"])].max(initial=0))) for run in runs)
        unit, name = (1e6, "MB") if top >= 1e6 else (1e3, "kB") if top >= 1e3 else (1.0, "bytes")
        for i, run in enumerate(runs):
            _line(axes, run.steps.steps, run.steps["wire_bytes"] / unit, i, label=_label(run, runs, "on the wire"))
            payload = run.steps["payload_bytes"] / unit
            _line(axes, run.steps.steps, payload, i, label=_label(run, runs, "payload"), linestyle="--")
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * top / unit))
        axes.set_title(f"{name} sent by one rank in a step")
        _finish(axes, figure if len(runs) > 1 else None, legend=True)
    return png.getvalue()


def loss(runs: Sequence[RunLog]) -> bytes | None:
    """Training loss, and held-out loss as points."""
    if not any(len(run.losses) or len(run.held_out) for run in runs):
        return None
    with _figure(9.6, 3.1) as (figure, png):
        axes = figure.subplots()
        for i, run in enumerate(runs):
            _line(axes, *run.losses.points("loss"), i, label=_label(run, runs, "training"), linewidth=1.1)
            steps, values = run.held_out.points("loss")
            _line(axes, steps, values, i, label=_label(run, runs, "held out"), linestyle="--", marker="o", markersize=4)
        axes.set_title("loss")
        _finish(axes, figure if len(runs) > 1 else None, legend=True)
    return png.getvalue()


def bits_map(run: RunLog) -> bytes | None:
    """Bits by layer over steps, and beside it each layer's share of all bits at the end."""
    steps, values = run.bits.table()
    lossy = values[np.isfinite(values) & (values <= _EXACT_BITS)]
    if not np.isfinite(values).any():
        return None
    last = np.full(len(run.layer_names), np.nan)
    last[: len(run.bits.latest)] = run.bits.latest
    spent = np.nan_to_num(last * np.array(run.layer_numels))
    shares = 100 * spent / spent.sum() if spent.sum() > 0 else None
    top = float(lossy.max()) if lossy.size and lossy.max() > 0 else _EXACT_BITS
    if lossy.size and lossy.min() > 0.95 * top:
        top *= 1.5  # one rate for all: it should not look like the most there is
    return _heat_map(run, steps, values, "bits per coordinate", "YlGnBu", (0.0, top), shares)


def nmse_map(run: RunLog) -> bytes | None:
    """NMSE by layer over the sampled steps, logarithmic."""
    steps, values = run.nmse.table()
    positive = values[np.isfinite(values) & (values > 0)]
    if not np.isfinite(values).any():
        return None
    # Exact layers have rounding errors only; without a floor they would take most of the scale.
    top = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), top * 1e-4) if positive.size else 1e-4
    return _heat_map(run, steps, values, "NMSE (log scale)", "YlOrRd", (min(low, top / 2), top), None, log=True)


def scales_map(run: RunLog) -> bytes | None:
    """Root mean square of each layer's gradient on most ranks, over the looks, logarithmic."""
    steps, values = run.scales.rms.table()
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return None
    top = float(positive.max())
    low = max(float(positive.min()), top * 1e-8)
    return _heat_map(
        run, steps, values, "rms of the gradient (log scale)", "viridis", (min(low, top / 2), top), None, log=True
    )


def _heat_map(
    run: RunLog,
    steps: np.ndarray,
    values: np.ndarray,
    title: str,
    colours: str,
    limits: tuple[float, float],
    shares: np.ndarray | None,
    *,
    log: bool = False,
) -> bytes:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FixedLocator, MaxNLocator

    names, full, shares = _rows(run, values, shares)
    rows = len(names)
    height = min(10.0, 1.3 + 0.21 * max(rows, 5))
    with _figure(9.6, height) as (figure, png):
        if shares is None:
            left, right = figure.subplots(), None
        else:
            left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (4, 1)})
        cmap = colormaps[colours].with_extremes(bad="#ececec", over="#d55e00", under="#fffff2")
        norm = LogNorm(*limits) if log else Normalize(*limits)
        drawn = np.where(full <= 0, limits[0] / 2, full) if log else full
        mesh = left.pcolormesh(_edges(steps), np.arange(rows + 1), np.ma.masked_invalid(drawn), cmap=cmap, norm=norm)
        every = max(1, math.ceil(rows / _LABELS))
        shown = list(range(0, rows, every))
        left.set_yticks([i + 0.5 for i in shown], [_short(names[i]) for i in shown], fontsize=8)
        left.set_ylim(rows, 0)
        left.tick_params(axis="y", length=0)
        left.set_xlabel("step")
        exact = bool((full > limits[1] * (1 + 1e-6)).any())
        notes = ["layers joined by name"] if rows < len(run.layer_names) else []
        notes += [f"one name in {every} shown"] if every > 1 else []
        left.set_title("; ".join([title, *notes]))
        left.xaxis.set_major_locator(FixedLocator(list(steps)) if len(steps) == 1 else MaxNLocator(integer=True))
        bar = figure.colorbar(mesh, ax=left, extend="max" if exact else "neither", fraction=0.05, pad=0.01, aspect=30)
        bar.outline.set_visible(False)
        if exact:
            bar.ax.set_title("exact", fontsize=8)
        if right is not None:
            right.barh(np.arange(rows) + 0.5, shares, height=0.8, color="#0072b2", linewidth=0)
            right.set_title("share of all bits, %")
            right.tick_params(axis="y", length=0, labelleft=False)
            right.grid(axis="x", alpha=0.25)
    return png.getvalue()


def _rows(
    run: RunLog, values: np.ndarray, shares: np.ndarray | None
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Names, values (rows x steps) and shares: of layers, or of neighbours with a common start where they are too many.

    Joined values are means over coordinates; joined shares are sums.
    """
    names = run.layer_names
    full = np.full((len(names), values.shape[1]), np.nan)
    full[: len(values)] = values
    if len(names) <= _ROWS:
        return names, full, shares
    paths = [name.split(".") for name in names]
    for depth in range(max(map(len, paths)) - 1, 0, -1):
        keys = [".".join(path[:depth]) for path in paths]
        starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        if len(starts) <= _ROWS:
            weights = np.where(np.isfinite(full), np.array(run.layer_numels)[:, None], 0.0)
            total = np.add.reduceat(weights, starts)
            with np.errstate(divide="ignore", invalid="ignore"):
                joined = np.add.reduceat(np.nan_to_num(full) * weights, starts) / total
            return [keys[i] for i in starts], joined, None if shares is None else np.add.reduceat(shares, starts)
    return names, full, shares


def _edges(steps: np.ndarray) -> np.ndarray:
    """Where one step's column ends and the next begins: halfway."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate(([steps[0] - (middle[0] - steps[0])], middle, [steps[-1] + (steps[-1] - middle[-1])]))


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, run: int, *, label: str, **style: Any) -> None:
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    if not values.size:
        return
    if len(steps) > _POINTS:
        stretches = np.linspace(0, len(steps), _POINTS + 1).astype(int)[:-1]
        counts = np.diff(np.append(stretches, len(steps)))
        steps, values = np.add.reduceat(steps, stretches) / counts, np.add.reduceat(values, stretches) / counts
    style = {"linewidth": 1.7, "color": _COLOURS[run % len(_COLOURS)]} | style
    if len(steps) < 12:  # a line through one point shows nothing
        style.setdefault("marker", "o")
        style.setdefault("markersize", 3.5)
    axes.plot(steps, values, label=label, **style)


def _label(run: RunLog, runs: Sequence[RunLog], what: str) -> str:
    return what if len(runs) == 1 else f"{_short(run.name)}: {what}"


def _short(name: str) -> str:
    """At most so many characters that the font has; `$` would begin a formula, a leading `_` hides from the legend."""
    text = "".join(c if " " <= c <= "~" or "\xa1" <= c <= "\xff" else "?" for c in name)
    if len(text) > _NAME:
        text = text[: _NAME // 3] + "\N{HORIZONTAL ELLIPSIS}" + text[-(_NAME - _NAME // 3 - 1) :]
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def _finish(axes: Any, beside: Any, *, legend: bool = False) -> None:
    """Grid, steps as whole numbers, and the legend: beside the plot if a figure is given, else inside."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(alpha=0.25)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if legend and axes.get_legend_handles_labels()[0]:
        if beside is None:
            axes.legend(fontsize=8.5, framealpha=0.9, loc="best")
        else:
            beside.legend(fontsize=8.5, frameon=False, loc="outside right upper")


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure (sizes in inches), and the PNG that it becomes when the block ends."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib is not installed; `pip install 'commpress[plot]'` gets it") from error
    png = io.BytesIO()
    # No pyplot: it keeps global state and picks a display.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, png
        figure.savefig(png, format="png")
