"""``commpress experiment precision-scaling``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Results, add_parser
from commpress.cli._progress import with_bar

NAME = "precision-scaling"
SUMMARY = (
    "linear regression on quantised features: noise in proportion to a value costs a constant factor, "
    "noise of one size drowns what is smaller; the noise kind of every codec"
)


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    add_parser(experiments, NAME, SUMMARY, run, takes="a minute on two idle cores", quick="some seconds")


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and something disagrees with theory or with what a codec declares."""
    from commpress.experiments.precision_scaling import failures, fits, kinds, plot_scaling, points, records, tables

    results = Results(NAME, options)
    rows = with_bar("noise kinds", lambda tell: kinds(options.seed))
    found = with_bar("features", lambda tell: points(quick=options.quick, seed=options.seed, on_progress=tell))
    fitted = with_bar("regressions", lambda tell: fits(quick=options.quick, seed=options.seed, on_progress=tell))
    return results.conclude(
        tables(found, fitted, rows),
        records(found, fitted, rows),
        lambda path: plot_scaling(found, rows, path),
        failures(found, fitted, rows),
    )
