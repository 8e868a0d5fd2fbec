"""``commpress experiment side-information``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Tell, add_common, measure

NAME = "side-information"
SUMMARY = "residual and modulo codes for a receiver that knows something similar; how alike the main job's successive gradients are, and whether a longer memory helps"

_EXAMPLES = """\
examples:
  commpress experiment side-information --quick             less than a minute
  commpress experiment side-information --out reports/side-information
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and side-information.png; the exit status is 1 if a "
        "figure is not what theory says. The full one takes about 8 minutes on one idle core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, NAME)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and a figure is not what theory says."""
    from commpress.experiments.side_information import plot
    from commpress.experiments.side_information import run as measure_all

    def work(tell: Tell) -> Any:
        return measure_all(quick=options.quick, seed=options.seed, on_progress=tell)

    return measure(NAME, options, work, plot, f"{NAME}.png")
