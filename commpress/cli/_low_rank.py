"""``commpress experiment low-rank``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Tell, add_common, measure

NAME = "low-rank"
SUMMARY = "subspaces that drift and jump, followed by low-rank factors, beside PowerSGD; which layers of the main job are of low rank at all"

_EXAMPLES = """\
examples:
  commpress experiment low-rank --quick             less than a minute
  commpress experiment low-rank --out reports/low-rank
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and low-rank.png; the exit status is 1 if a "
        "figure is not what theory says. The full one takes about 5 minutes on one idle core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, NAME)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and a figure is not what theory says."""
    from commpress.experiments.low_rank import plot
    from commpress.experiments.low_rank import run as measure_all

    def work(tell: Tell) -> Any:
        return measure_all(quick=options.quick, seed=options.seed, on_progress=tell)

    return measure(NAME, options, work, plot, f"{NAME}.png")
