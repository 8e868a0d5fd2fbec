"""``commpress experiment local-sgd``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "local-sgd"
SUMMARY = (
    "local steps and quantised averaging: speed-up with the number of workers, parts that take turns, outer momentum, "
    "and the main job's loss against bytes"
)
EXIT_NOT_FLAT = 1

_EXAMPLES = """\
examples:
  commpress experiment local-sgd --quick            less than a minute
  commpress experiment local-sgd --no-training      quadratics alone
  commpress experiment local-sgd --seed 1 --out reports/local-sgd-1
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}; what is predicted stands beside it. It writes table.txt, results.jsonl and local-sgd.png. "
        "The full one takes about 6 minutes on two idle cores.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default reports/local-sgd)")
    parser.add_argument("--quick", action="store_true", help="fewer and rougher measurements: less than a minute")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data, weights and codecs (default 0)")
    parser.add_argument("--no-training", action="store_true", help="leave out the runs of the main job")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and the speed-up was not linear, which means that something is wrong."""
    import json
    import time

    import torch

    from commpress.experiments import PlotError
    from commpress.experiments._local_plot import plot_local
    from commpress.experiments._local_runs import FLAT, quadratics, spread, tables, trainings

    quick, seed = options.quick, options.seed
    out = options.out if options.out is not None else Path("reports") / NAME
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are threads already
    try:
        points, momenta = with_bar("quadratics", lambda tell: quadratics(quick=quick, seed=seed, on_progress=tell))
    finally:
        torch.set_num_threads(threads)
    runs = []
    if not options.no_training:
        runs = with_bar("main job", lambda tell: trainings(quick=quick, seed=seed, out=out, on_progress=tell))
    text = tables(points, momenta, runs)
    print(text, end="")
    (out / "table.txt").write_text(text)
    records = [one.record() for one in (*points, *momenta, *runs)]
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        plot_local(points, momenta, runs, out / "local-sgd.png")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    if spread(points) > FLAT:
        print(
            f"commpress experiment: error times M K spreads by {spread(points):.1%} over the numbers of workers, more than {FLAT:.0%}",
            file=sys.stderr,
        )
        return EXIT_NOT_FLAT
    return 0
