"""``commpress experiment mean-estimation``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "mean-estimation"
SUMMARY = (
    "rounds to estimate a Gaussian mean from B bits a round, against the lower bound; "
    "correlated and drifting means with memoryless and predictive encoders"
)
EXIT_BEATEN = 1

_EXAMPLES = """\
examples:
  commpress experiment mean-estimation --quick      less than a minute
  commpress experiment mean-estimation --out reports/mean-estimation
  commpress experiment mean-estimation --codec lloyd:R --dims 256,4096 --rates 1,2,4
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It writes table.txt, results.jsonl and rounds.png. "
        "The full one takes about 8 minutes on one idle core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default reports/mean-estimation)")
    parser.add_argument("--quick", action="store_true", help="fewer and rougher measurements: less than a minute")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data and codecs (default 0)")
    parser.add_argument("--dims", metavar="D,...", help="numbers of coordinates, separated by commas")
    parser.add_argument("--rates", metavar="R,...", help="bits per coordinate, separated by commas")
    parser.add_argument(
        "--codec",
        default="hadamard+lloyd",
        metavar="SPEC",
        help="a codec; R, or nothing, where its rate goes (default %(default)s)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="accuracy: that of the mean of N exact samples")
    parser.add_argument("--no-drift", action="store_true", help="leave out correlated noise and drifting means")
    parser.set_defaults(run=run)


def plan_of(options: argparse.Namespace) -> Any:
    """The `Plan` that options ask for."""
    from commpress.experiments._mean_runs import QUICK, Plan

    changes: dict[str, Any] = dict(QUICK) if options.quick else {}
    if options.dims is not None:
        changes["dims"] = _numbers(options.dims, int, "--dims")
    if options.rates is not None:
        changes["rates"] = _numbers(options.rates, float, "--rates")
    if options.samples is not None:
        changes["samples"] = options.samples
    return Plan(template=options.codec, seed=options.seed, **changes)


def _numbers(text: str, kind: Any, option: str) -> tuple[Any, ...]:
    from commpress.errors import SpecError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{option} needs numbers separated by commas, got {text!r}") from None


def run(options: argparse.Namespace) -> int:
    """Carries it out: 0 done, 1 done and the lower bound was beaten, which means that something is wrong."""
    import json
    import time

    import torch

    from commpress.experiments import PlotError
    from commpress.experiments._mean_plot import plot_points
    from commpress.experiments._mean_runs import drifting, drifting_table, points, points_table

    plan = plan_of(options)
    out = options.out if options.out is not None else Path("reports") / NAME
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Tensors are small here: a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = with_bar(NAME, lambda tell: points(plan, tell))
        records = [point.record() for point in found]
        text = points_table(found)
        if not options.no_drift:
            more = with_bar(
                "sequences", lambda tell: drifting(quick=options.quick, seed=options.seed, on_progress=tell)
            )
            records += more
            text += "\n" + drifting_table(more)
    finally:
        torch.set_num_threads(threads)
    print(text, end="")
    (out / "table.txt").write_text(text)
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        plot_points(found, out / "rounds.png")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    beaten = [point for point in found if point.beaten]
    for point in beaten:
        print(
            f"commpress experiment: {point.codec} at d = {point.d} needed {point.ratio:.3f} +- {point.ratio_se:.3f} of the "
            "least possible rounds: bits are not counted, or the program is wrong",
            file=sys.stderr,
        )
    return EXIT_BEATEN if beaten else 0
