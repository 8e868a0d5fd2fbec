"""``commpress experiment limits``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Tell, add_common, measure

NAME = "limits"
SUMMARY = "every codec against what its bits could carry, on random numbers and on a real gradient; rounds to an accuracy against three lower bounds"

_EXAMPLES = """\
examples:
  commpress experiment limits --quick             less than a minute
  commpress experiment limits --out reports/limits
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and limits.png; the exit status is 1 if a "
        "figure is not what theory says. The full one takes about 3 minutes on one idle core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, NAME)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and a figure is not what theory says."""
    from commpress.experiments.limits import plot
    from commpress.experiments.limits import run as measure_all

    def work(tell: Tell) -> Any:
        return measure_all(quick=options.quick, seed=options.seed, on_progress=tell)

    return measure(NAME, options, work, plot, f"{NAME}.png")
