"""``commpress experiment optimizer-precision``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "optimizer-precision"
SUMMARY = (
    "Adam and Muon with gradients, weights and states in floats of few bits: "
    "the mantissa that each needs, and how it grows with the length of the run"
)
EXIT_DISAGREES = 1

_EXAMPLES = """\
examples:
  commpress experiment optimizer-precision --quick          less than a minute
  commpress experiment optimizer-precision --no-training    without the runs of the main job
  commpress experiment optimizer-precision --seed 1 --out reports/optimizer-precision-1
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and optimizer-precision.png. "
        "The full one takes about ten minutes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where results go (default reports/{NAME})")
    parser.add_argument("--quick", action="store_true", help="up to 10,000 steps: less than a minute")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data, noise and rounding (default 0)")
    parser.add_argument("--no-training", action="store_true", help="leave out the runs of the main job")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and something disagrees with theory."""
    import json
    import time

    from commpress.errors import SpecError
    from commpress.experiments import PlotError
    from commpress.experiments import optimizer_precision as parts

    quick, seed = options.quick, options.seed
    if not 0 <= seed < 1 << 62:
        raise SpecError(f"--seed must be in [0, 2^62), got {seed}")
    out = options.out if options.out is not None else Path("reports") / NAME
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    averages, tracks = parts.averages(), parts.tracks(quick=quick, seed=seed)
    runs = with_bar("runs", lambda tell: parts.runs(quick=quick, seed=seed, on_progress=tell))
    needs = parts.needs(runs)
    growths = parts.growths(needs)
    trainings = []
    if not options.no_training:
        trainings = with_bar("main job", lambda tell: parts.trainings(quick=quick, seed=seed, on_progress=tell))
    text = parts.tables(averages, tracks, runs, needs, growths, trainings)
    print(text, end="")
    (out / "table.txt").write_text(text)
    records = parts.records(averages, tracks, runs, needs, growths, trainings)
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        parts.plot_precision(tracks, needs, out / "optimizer-precision.png")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    wrong = parts.failures(averages, tracks, needs, growths, quick=quick)
    for line in wrong:
        print(f"commpress experiment: {line}", file=sys.stderr)
    return EXIT_DISAGREES if wrong else 0
