"""``commpress experiment``: a measurement by name; one with options of its own has a module."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli import (
    _bandwidth,
    _local_sgd,
    _mean_estimation,
    _optimizer_precision,
    _precision_scaling,
)
from commpress.cli._measurement import Measurement

_COSINE = Measurement(
    "cosine",
    "the cosine of two vectors from b-bit random projections: maximum likelihood against reading codes as numbers, and the best b",
    "2 minutes on one idle core",
)
_LIMITS = Measurement(
    "limits",
    "every codec against what its bits could carry, on random numbers and on a real gradient; rounds to an accuracy against three lower bounds",
    "3 minutes on one idle core",
)
_LOW_RANK = Measurement(
    "low-rank",
    "subspaces that drift and jump, followed by low-rank factors, beside PowerSGD; which layers of the main job are of low rank at all",
    "5 minutes on one idle core",
)
_MEAN_1BIT = Measurement(
    "mean-1bit",
    "a mean from one bit of each sample: thresholds that follow earlier answers, against fixed ones and whole samples",
    "5 minutes on one idle core",
)
_SIDE_INFORMATION = Measurement(
    "side-information",
    "residual and modulo codes for a receiver that knows something similar; how alike the main job's successive gradients are, and whether a longer memory helps",
    "8 minutes on one idle core",
)

EXPERIMENTS: tuple[Any, ...] = (
    _bandwidth,
    _COSINE,
    _LIMITS,
    _local_sgd,
    _LOW_RANK,
    _MEAN_1BIT,
    _mean_estimation,
    _optimizer_precision,
    _precision_scaling,
    _SIDE_INFORMATION,
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
