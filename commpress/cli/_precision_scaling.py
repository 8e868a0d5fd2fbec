"""``commpress experiment precision-scaling``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "precision-scaling"
SUMMARY = (
    "linear regression on quantised features: noise in proportion to a value costs a constant factor, "
    "noise of one size drowns what is smaller; the noise kind of every codec"
)
EXIT_DISAGREES = 1

_EXAMPLES = """\
examples:
  commpress experiment precision-scaling --quick          some seconds
  commpress experiment precision-scaling --seed 1 --out reports/precision-scaling-1
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and precision-scaling.png. "
        "The full one takes about a minute on two idle cores.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where results go (default reports/{NAME})")
    parser.add_argument("--quick", action="store_true", help="fewer samples and smaller regressions: some seconds")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data and codecs (default 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and something disagrees with theory or with what a codec declares."""
    import json
    import time

    from commpress.errors import SpecError
    from commpress.experiments import PlotError
    from commpress.experiments.precision_scaling import failures, fits, kinds, plot_scaling, points, records, tables

    if not 0 <= options.seed < 1 << 62:
        raise SpecError(f"--seed must be in [0, 2^62), got {options.seed}")
    out = options.out if options.out is not None else Path("reports") / NAME
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rows = with_bar("noise kinds", lambda tell: kinds(options.seed))
    found = with_bar("features", lambda tell: points(quick=options.quick, seed=options.seed, on_progress=tell))
    fitted = with_bar("regressions", lambda tell: fits(quick=options.quick, seed=options.seed, on_progress=tell))
    text = tables(found, fitted, rows)
    print(text, end="")
    (out / "table.txt").write_text(text)
    lines = (json.dumps(record) + "\n" for record in records(found, fitted, rows))
    (out / "results.jsonl").write_text("".join(lines))
    try:
        plot_scaling(found, rows, out / "precision-scaling.png")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    wrong = failures(found, fitted, rows)
    for line in wrong:
        print(f"commpress experiment: {line}", file=sys.stderr)
    return EXIT_DISAGREES if wrong else 0
