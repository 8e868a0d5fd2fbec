"""``commpress experiment optimizer-precision``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Results, add_parser
from commpress.cli._progress import with_bar

NAME = "optimizer-precision"
SUMMARY = (
    "Adam and Muon with gradients, weights and states in floats of few bits: "
    "the mantissa that each needs, and how it grows with the length of the run"
)
_EXAMPLES = "  commpress experiment optimizer-precision --no-training    without the runs of the main job\n"


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = add_parser(experiments, NAME, SUMMARY, run, takes="ten minutes", examples=_EXAMPLES)
    parser.add_argument("--no-training", action="store_true", help="leave out the runs of the main job")


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and something disagrees with theory."""
    from commpress.experiments import optimizer_precision as parts

    quick, seed = options.quick, options.seed
    results = Results(NAME, options)
    averages, tracks = parts.averages(), parts.tracks(quick=quick, seed=seed)
    runs = with_bar("runs", lambda tell: parts.runs(quick=quick, seed=seed, on_progress=tell))
    needs = parts.needs(runs)
    growths = parts.growths(needs)
    trainings = []
    if not options.no_training:
        trainings = with_bar("main job", lambda tell: parts.trainings(quick=quick, seed=seed, on_progress=tell))
    return results.conclude(
        parts.tables(averages, tracks, runs, needs, growths, trainings),
        parts.records(averages, tracks, runs, needs, growths, trainings),
        lambda path: parts.plot_precision(tracks, needs, path),
        parts.failures(averages, tracks, needs, growths, quick=quick),
    )
