"""``commpress experiment mean-estimation``."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.cli._measurement import Results, add_parser, one_thread
from commpress.cli._progress import with_bar

NAME = "mean-estimation"
SUMMARY = (
    "rounds to estimate a Gaussian mean from B bits a round, against the lower bound; "
    "correlated and drifting means with memoryless and predictive encoders"
)
_EXAMPLES = "  commpress experiment mean-estimation --codec lloyd:R --dims 256,4096 --rates 1,2,4\n"


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = add_parser(
        experiments, NAME, SUMMARY, run, takes="8 minutes on one idle core", picture="rounds.png", examples=_EXAMPLES
    )
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
    from commpress.experiments._mean_plot import plot_points
    from commpress.experiments._mean_runs import drifting, drifting_table, points, points_table

    plan = plan_of(options)
    results = Results(NAME, options)
    with one_thread():
        found = with_bar(NAME, lambda tell: points(plan, tell))
        records = [point.record() for point in found]
        text = points_table(found)
        if not options.no_drift:
            more = with_bar(
                "sequences", lambda tell: drifting(quick=options.quick, seed=options.seed, on_progress=tell)
            )
            records += more
            text += "\n" + drifting_table(more)
    beaten = [
        f"{point.codec} at d = {point.d} needed {point.ratio:.3f} +- {point.ratio_se:.3f} of the least possible rounds: "
        "bits are not counted, or the program is wrong"
        for point in found
        if point.beaten
    ]
    return results.conclude(text, records, lambda path: plot_points(found, path), beaten, picture="rounds.png")
