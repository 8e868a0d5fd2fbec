"""``commpress experiment local-sgd``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Results, add_parser, one_thread
from commpress.cli._progress import with_bar

NAME = "local-sgd"
SUMMARY = (
    "local steps and quantised averaging: speed-up with the number of workers, parts that take turns, outer momentum, "
    "and the main job's loss against bytes"
)
_EXAMPLES = "  commpress experiment local-sgd --no-training      quadratics alone\n"


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = add_parser(experiments, NAME, SUMMARY, run, takes="6 minutes on two idle cores", examples=_EXAMPLES)
    parser.add_argument("--no-training", action="store_true", help="leave out the runs of the main job")


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and the speed-up was not linear, which means that something is wrong."""
    from commpress.experiments._local_plot import plot_local
    from commpress.experiments._local_runs import FLAT, quadratics, spread, tables, trainings

    quick, seed = options.quick, options.seed
    results = Results(NAME, options)
    with one_thread():  # the workers are threads already
        points, momenta = with_bar("quadratics", lambda tell: quadratics(quick=quick, seed=seed, on_progress=tell))
    runs = []
    if not options.no_training:
        runs = with_bar("main job", lambda tell: trainings(quick=quick, seed=seed, out=results.out, on_progress=tell))
    wide = f"error times M K spreads by {spread(points):.1%} over the numbers of workers, more than {FLAT:.0%}"
    return results.conclude(
        tables(points, momenta, runs),
        [one.record() for one in (*points, *momenta, *runs)],
        lambda path: plot_local(points, momenta, runs, path),
        [wide] if spread(points) > FLAT else [],
    )
