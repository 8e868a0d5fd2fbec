"""``commpress bounds``: what a budget allows at most, and how many rounds an accuracy takes at least."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_EXAMPLES = """\
examples:
  commpress bounds --numel 124M --bits 2 --workers 8
  commpress bounds --numel 7B --bits 0.5 --workers 64 --plot bounds.png
  commpress bounds --numel 1e6 --bits 4 --sigma 0.01 --eps 0.5
  commpress bounds --numel 1e6 --bits 4 --sigma 0.01 --gap 1e-4 --mu 0.1
  commpress bounds --numel 124M --bits 2 --json

The bounds are of Gaussian mean estimation: in every round each worker sees the true mean (the gradient) in
fresh Gaussian noise and sends one message about it, without memory of its own earlier observations.
docs/information.md has the formulas and their sources.
"""


def size(text: str) -> int:
    """A whole number >= 1 from text such as 7B, 124M, 1.5k or 1e6 (an argparse type)."""
    match = re.fullmatch(r"(\d[\d_]*\.?\d*(?:e\+?\d+)?)([kmbgt]?)", text.strip(), flags=re.IGNORECASE)
    value = float(match[1].replace("_", "")) * _UNITS[match[2].upper()] if match else math.nan
    if not 1 <= value < 1e18 or abs(value - round(value)) > 1e-6:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; write a whole number, as 124M, 7B, 1.5k or 1e6")
    return round(value)


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "bounds",
        help="show what a budget of bits allows at most",
        description="For a model's size, a budget and a number of workers: the largest share of the gradient's "
        "information that messages can carry, and the fewest rounds and bytes that an accuracy takes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--numel", type=size, required=True, metavar="D", help="parameters, as 124M, 7B or 1e6")
    parser.add_argument(
        "--bits", type=float, default=2.0, metavar="B", help="bits per coordinate of one message (default %(default)g)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="messages per round (default %(default)s)")
    parser.add_argument(
        "--sigma",
        type=float,
        default=1.0,
        metavar="S",
        help="noise of one coordinate of one worker's gradient: standard deviation (default %(default)g)",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--eps",
        type=float,
        metavar="E",
        help="wanted error: root mean square of the norm over all coordinates "
        "(default: a tenth of one gradient's noise, 0.1 S sqrt(D))",
    )
    goal.add_argument(
        "--gap", type=float, metavar="F", help="instead of --eps, a wanted loss above the minimum; needs --mu"
    )
    parser.add_argument("--mu", type=float, metavar="M", help="with --gap: strong convexity of the loss")
    parser.add_argument(
        "--half-width",
        type=float,
        default=math.inf,
        metavar="A",
        help="the mean is known to lie in [-A, A] in every coordinate (default: nothing is known)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw rounds against bits, as PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    figures = bounds_of(options)
    if options.plot is not None:
        plot(figures, options.plot)
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(table(figures), end="")
        if options.plot is not None:
            print(f"\nPicture: {options.plot.resolve()}")
    return 0


def bounds_of(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON values: the problem, one row for each rate, and what stands in the text below the table."""
    from commpress.errors import SpecError
    from commpress.information import fisher_fraction, optimisation_form, rounds_lower_bound, two_stage_fraction

    if not 0 < options.bits < math.inf:
        raise SpecError(f"--bits must be above 0 and finite, got {options.bits}")
    if options.workers < 1:
        raise SpecError(f"--workers must be at least 1, got {options.workers}")
    for name in ("sigma", "eps", "gap", "mu"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise SpecError(f"--{name} must be above 0 and finite, got {value}")
    if not options.half_width > 0:
        raise SpecError(f"--half-width must be above 0, got {options.half_width}")
    if (options.gap is None) != (options.mu is None):
        raise SpecError("--gap and --mu go together: pass both, or --eps")
    d, n, sigma = options.numel, options.workers, options.sigma
    eps = options.eps
    if options.gap is not None:
        sigma, eps = optimisation_form(sigma, options.gap, options.mu)
    elif eps is None:
        eps = 0.1 * sigma * math.sqrt(d)

    def rounds(bits: float) -> float:
        return rounds_lower_bound(d, bits * d, sigma, eps, half_width=options.half_width, workers=n)

    rows = []
    for bits in sorted({*_RATES, options.bits}):
        fraction, bound = fisher_fraction(bits), rounds(bits)
        rows.append(
            {
                "bits": bits,
                "message_bytes": bits * d / 8,
                "information_per_round": n * (d / sigma) / sigma * fraction,
                "fraction": fraction,
                "rounds": bound,
                "total_bytes": bound * n * bits * d / 8,
                "yours": bits == options.bits,
            }
        )
    figures = {
        "numel": d,
        "bits": options.bits,
        "workers": n,
        "sigma": sigma,
        "eps": eps,
        "half_width": options.half_width if math.isfinite(options.half_width) else None,
        "rounds_uncompressed": rounds(math.inf),
        "rows": rows,
        "bend_bits_per_message": d,
        # Halving b divides 1 - 2^(-2b) = (1 - 2^-b)(1 + 2^-b) by its second factor.
        "halving": {"rounds_factor": 1 + 2**-options.bits, "bytes_factor": (1 + 2**-options.bits) / 2},
        "all_reduce_fraction": two_stage_fraction(options.bits, options.bits, workers=n) if n > 1 else None,
    }
    if not all(math.isfinite(x) for row in rows for x in row.values()):
        raise SpecError("these values leave the range of a double; choose --sigma and --eps nearer to each other")
    return figures


def table(figures: dict[str, Any]) -> str:
    """What is printed."""
    head = ["bits/coordinate", "message", "information/round", "of uncompressed", "rounds >=", "all messages >="]
    lines = [
        [
            f"{row['bits']:g}",
            _bytes(row["message_bytes"]),
            f"{row['information_per_round']:.4g}",
            _percent(row["fraction"]),
            _figure(row["rounds"]),
            _bytes(row["total_bytes"]),
        ]
        for row in figures["rows"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    out = [
        _problem(figures),
        "",
        "  " + "  ".join(word.rjust(width) for word, width in zip(head, widths, strict=True)),
    ]
    for row, line in zip(figures["rows"], lines, strict=True):
        mark = "  <- yours" if row["yours"] else ""
        out.append("  " + "  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) + mark)
    out += ["", *sentences(figures)]
    return "\n".join(out) + "\n"


def sentences(figures: dict[str, Any]) -> list[str]:
    """The table in words."""
    d, n, bits, halving = figures["numel"], figures["workers"], figures["bits"], figures["halving"]
    if figures["rounds_uncompressed"] == 0:
        return ["What is known beforehand reaches this error already: no round is needed."]
    yours = next(row for row in figures["rows"] if row["yours"])
    side = "at" if bits == 1 else "above" if bits > 1 else "below"
    lines = [
        f"The bend lies at B = d: {_bytes(d / 8)} per message, 1 bit per coordinate. Well above it, more bits save almost no rounds;",
        "well below it, half the bits take nearly twice the rounds, and almost no bytes are saved.",
        f"Your {bits:g} bit{'s' * (bits != 1)} per coordinate {'is' if bits == 1 else 'are'} {side} the bend: {_figure(yours['rounds'])} rounds at least, and "
        f"{_figure(figures['rounds_uncompressed'])} without compression.",
        f"Halving your budget to {bits / 2:g} costs {_percent(halving['rounds_factor'] - 1)} more rounds and saves "
        f"{_percent(1 - halving['bytes_factor'])} of all bytes.",
    ]
    if figures["all_reduce_fraction"] is not None:
        share = figures["all_reduce_fraction"]
        rounds, sent = figures["rounds_uncompressed"] / share, 2 * (n - 1) / n * bits * d / 8
        lines += [
            f"In an all-reduce with {bits:g} bits in both phases, codecs at the limit keep {_percent(share)} of the information:",
            f"about {_figure(rounds)} rounds, each rank sending {_bytes(sent)} in each.",
        ]
    lines.append("These are limits for Gaussian noise and encoders without memory. Error feedback may pass them.")
    return lines


def plot(figures: dict[str, Any], path: Path) -> None:
    """Writes a PNG of rounds against bits, 1350 x 900 pixels.

    Raises:
        PlotError: matplotlib is not installed.
    """
    from commpress.experiments import PlotError
    from commpress.information import fisher_fraction

    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullLocator
    except ImportError as error:
        raise PlotError("matplotlib is not installed; `pip install 'commpress[plot]'` gets it") from error
    from commpress.errors import SpecError

    floor, bits = figures["rounds_uncompressed"], figures["bits"]
    if floor == 0:
        raise SpecError("no round is needed (the prior alone reaches the error), so there is nothing to draw")
    low, high = min(_RATES[0], bits / 2), max(_RATES[-1], 2 * bits)
    grid = [low * (high / low) ** (i / 400) for i in range(401)]
    linear = [b for b in grid if b <= 1 / (2 * math.log(2))]
    # No pyplot: it keeps global state and picks a display.
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(grid, [floor / fisher_fraction(b) for b in grid], color="#0072b2", linewidth=2.6, label="lower bound")
        axes.plot(
            linear, [floor / (2 * math.log(2) * b) for b in linear],
            color="#555555", linestyle="--", label="few bits: rounds go as 1 / bits",
        )  # fmt: skip
        axes.axhline(floor, color="#555555", linestyle=":", label=f"without compression: {_figure(floor)} rounds")
        axes.axvline(1, color="#d55e00", linewidth=1.4)
        span = 1 / fisher_fraction(low)
        bottom, top = floor / span**0.17, floor * span**1.15
        axes.set_ylim(bottom, top)
        axes.set_xlim(low, high)
        axes.text(
            1, top / span**0.03, "bend: B = d ", color="#d55e00", rotation=90, ha="right", va="top",
            fontweight="bold",
        )  # fmt: skip
        if low > 0.01 and high < 200:  # else there is no room for words
            below = math.sqrt(floor * bottom)
            axes.text(0.92, below, "half the bits, up to twice the rounds", color="#d55e00", va="center", ha="right")
            axes.text(1.08, below, "more bits save few rounds", color="#d55e00", va="center")
        mine = floor / fisher_fraction(bits)
        axes.plot([bits], [mine], "o", color="black", markersize=9, zorder=5)
        axes.annotate(
            f"yours: {bits:g} bit{'s' * (bits != 1)},\n{_figure(mine)} rounds at least", (bits, mine), xytext=(12, 10),
            textcoords="offset points", ha="left" if bits < high / 8 else "right", va="bottom", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )  # fmt: skip
        axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(_ticks(_RATES, low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 0.01 else f"{x:.0e}"))
        multiples = _ticks((1, 2, 5, 10, 20, 50, 100), 1, top / floor)
        axes.yaxis.set_major_locator(matplotlib.ticker.FixedLocator([floor * m for m in multiples]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{_figure(y)}  ({y / floor:.3g}x)"))
        axes.set_xlabel("bits per coordinate of one message (log scale)")
        axes.set_ylabel("rounds, at least (log scale)")
        axes.set_title(
            _problem(figures),
            fontsize=12,
        )
        axes.grid(alpha=0.25)
        axes.legend(loc="upper right", framealpha=0.95)
        figure.savefig(path, format="png")


def _problem(figures: dict[str, Any]) -> str:
    d, n = figures["numel"], figures["workers"]
    return (
        f"{d:,} coordinate{'s' * (d > 1)}, {n:,} worker{'s' * (n > 1)}, noise {_figure(figures['sigma'])} per coordinate, "
        f"wanted error {_figure(figures['eps'])}"
    )


def _ticks(usual: Sequence[float], low: float, high: float) -> list[float]:
    """The usual ticks, or where the range is much wider than theirs, powers of ten (at most eight of them)."""
    if low >= usual[0] / 8 and high <= usual[-1] * 8:
        return [x for x in usual if low <= x <= high]
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**k for k in range(first, last + 1, 1 + (last - first) // 8)]


def _bytes(x: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if x < 999.5:
            return f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} EB"


def _percent(x: float) -> str:
    if 0 < x < 1e-4:
        return "<0.01 %"
    return ">99.99 %" if 0.9999 <= x <= 1 else f"{100 * x:.4g} %"


def _figure(x: float) -> str:
    if x >= 1e7:
        return f"{x:.3e}"
    return f"{x:,.0f}" if x >= 999.5 else f"{x:.4g}"
