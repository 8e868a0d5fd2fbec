"""``commpress experiment mean-1bit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "mean-1bit"
SUMMARY = (
    "a mean from one bit of each sample: thresholds that follow earlier answers, against fixed ones and whole samples"
)
EXIT_FAILED = 1

_EXAMPLES = """\
examples:
  commpress experiment mean-1bit --quick            less than a minute
  commpress experiment mean-1bit --seed 1 --out reports/mean-1bit-1
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}; what is predicted stands beside it. It writes table.txt, results.jsonl and "
        "mean-1bit.png. The full one takes about 5 minutes on one idle core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default reports/mean-1bit)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: less than a minute")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of samples and thresholds (default 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and something did not come out as it has to."""
    import json
    import time

    import torch

    from commpress.errors import SpecError
    from commpress.experiments import PlotError
    from commpress.experiments.mean_1bit._plot import plot_results
    from commpress.experiments.mean_1bit._runs import checks, tables
    from commpress.experiments.mean_1bit._runs import run as measure_all

    if options.seed < 0:
        raise SpecError(f"--seed must be at least 0, got {options.seed}")
    out = options.out if options.out is not None else Path("reports") / NAME
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # arrays are small here
    try:
        results = with_bar(NAME, lambda tell: measure_all(quick=options.quick, seed=options.seed, on_progress=tell))
    finally:
        torch.set_num_threads(threads)
    text = tables(results)
    print(text, end="")
    (out / "table.txt").write_text(text)
    records = [o.record() for o in (*results.variants, *results.fixed, *results.moments)]
    records += [{"kind": "mean-1bit-growth", **vars(one)} for one in results.growth]
    found = checks(results)
    records += [{"kind": "check", "good": check.good, **vars(check)} for check in found]
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        plot_results(results, out / "mean-1bit.png")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    failed = [check for check in found if not check.good]
    for check in failed:
        print(
            f"commpress experiment: {check.text.strip()} is {check.measured:.4g}, not in [{check.lowest:.4g}, {check.highest:.4g}]",
            file=sys.stderr,
        )
    return EXIT_FAILED if failed else 0
