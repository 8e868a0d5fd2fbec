"""``commpress experiment``: a measurement by name; each has a module of its own."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli import (
    _bandwidth,
    _cosine,
    _limits,
    _local_sgd,
    _low_rank,
    _mean_1bit,
    _mean_estimation,
    _optimizer_precision,
    _precision_scaling,
    _side_information,
)

EXPERIMENTS = (
    _bandwidth,
    _cosine,
    _limits,
    _local_sgd,
    _low_rank,
    _mean_1bit,
    _mean_estimation,
    _optimizer_precision,
    _precision_scaling,
    _side_information,
)

_EXAMPLES = """\
examples:
  commpress experiment                              list the experiments
  commpress experiment mean-estimation --quick      less than a minute
  commpress experiment bandwidth --quick            less than five minutes; needs root
  commpress experiment local-sgd --quick            likewise
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "experiment",
        help="measure something that theory predicts, or that a network decides",
        description="Runs an experiment by name; without a name, lists them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiments = parser.add_subparsers(dest="experiment", metavar="NAME")
    for module in EXPERIMENTS:
        module.add_to(experiments)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Lists the experiments."""
    width = max(len(module.NAME) for module in EXPERIMENTS)
    for module in EXPERIMENTS:
        print(f"{module.NAME.ljust(width)}  {module.SUMMARY}")
    return 0
