"""``commpress demo``: the main job with fp32 and with few bits, side by side."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

_DEFAULT_BITS = "4,2,1"
_EXAMPLES = """\
examples:
  commpress demo                                      fp32, then 4, 2 and 1 bits; about three minutes on two cores
  commpress demo --bits 8,3,1.5 --out /tmp/demo
  commpress demo --codecs fp32,fp16,uniform:4,hadamard+lloyd:0.5
  commpress demo --quick                              some seconds

The folder gets a JSONL file and a log for each run, the library's telemetry, table.txt and loss.png.
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    from commpress.cli._train import add_job_options

    parser = commands.add_parser(
        "demo",
        help="train with fp32 and with few bits, and compare",
        description="Trains the same model from the same seed on this machine, first with DDP's fp32 all-reduce, "
        "then with compressed communication, and compares loss, bytes and times.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--bits",
        default=_DEFAULT_BITS,
        metavar="B,B,..",
        help="fp32, and hadamard+lloyd at these rates (default %(default)s)",
    )
    which.add_argument(
        "--codecs",
        metavar="SPEC,..",
        help="exactly these runs: codecs (separate those with options by ';'), or peers: fp32, fp16, bf16, powersgd:R, 1bit-adam",
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("commpress-demo"),
        metavar="FOLDER",
        help="where results go (default %(default)s)",
    )
    add_job_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.cli._main import EXIT_INTERRUPTED, one_line
    from commpress.errors import CommpressError, SpecError
    from commpress.experiments import Run, standard_library

    began = time.monotonic()
    codecs = codecs_of(options)
    if options.ranks < 1:
        raise SpecError(f"--ranks must be at least 1, got {options.ranks}")
    # What would stop a run stops the demo before the first.
    for codec in codecs:
        check(codec, options)
    standard_library(options.text)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("table.txt", "loss.png"):
        (options.out / name).unlink(missing_ok=True)  # of an earlier demo: they must not outlive a failure of this one
    runs: list[Run] = []
    status = 0
    try:
        for i, codec in enumerate(codecs):
            runs.append(_one(codec, f"run {i + 1}/{len(codecs)}  {codec.ljust(max(map(len, codecs)))}", options))
    except KeyboardInterrupt as stopped:
        print(
            f"\ncommpress demo: {str(stopped) or 'interrupted'} during {codec}; finished runs are kept", file=sys.stderr
        )
        status = EXIT_INTERRUPTED
    except CommpressError as error:
        print(f"\ncommpress demo: the run with {codec} failed; finished runs are kept\n{error}", file=sys.stderr)
        status = 1
    if runs:
        _report(runs, options.out, one_line)
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {options.out.resolve()}")
    return status


def codecs_of(options: argparse.Namespace) -> list[str]:
    """The runs that options ask for, in order."""
    from commpress.errors import SpecError

    if options.codecs is None:
        return ["fp32", *(f"hadamard+lloyd:{bits.strip()}" for bits in options.bits.split(","))]
    separator = ";" if ";" in options.codecs else ","
    codecs = [spec.strip() for spec in options.codecs.split(separator) if spec.strip()]
    if not codecs or len(set(codecs)) < len(codecs):
        raise SpecError(f"--codecs needs one or more different specs, got {options.codecs!r}")
    return codecs


def check(codec: str, options: argparse.Namespace) -> None:
    """Raises SpecError if there is no such codec, or a run's settings make no sense."""
    from commpress.cli._train import settings_of
    from commpress.experiments import is_peer

    if not is_peer(codec):
        from commpress.codecs import codec as parse

        parse(codec)
    settings_of(options, codec)


def _one(codec: str, title: str, options: argparse.Namespace) -> Any:
    from commpress.cli._progress import ProgressBar
    from commpress.cli._train import settings_of
    from commpress.experiments import file_name, launch

    steps = settings_of(options, codec).steps
    records = options.out / file_name(codec)
    bar = ProgressBar(steps, title, sys.stderr)

    def show(record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            bar.update(record["step"], f"loss {record['loss_rank0']:.2f}")

    arguments = ["--codec", codec, "--seed", str(options.seed), "--steps", str(steps)]
    arguments += ["--telemetry", str(records.with_suffix(".telemetry.jsonl"))]
    arguments += ["--quick"] if options.quick else []
    for name in ("text", "interface", "model"):
        if getattr(options, name) is not None:
            arguments += [f"--{name}", getattr(options, name)]
    try:
        return launch(arguments, ranks=options.ranks, records=records, log=records.with_suffix(".log"), on_record=show)
    finally:
        bar.close()


def _report(runs: list[Any], out: Path, one_line: Any) -> None:
    from commpress.experiments import PlotError, plot, table

    text = table(runs)
    print("\n" + text, end="")
    (out / "table.txt").write_text(text)
    try:
        plot(runs, out / "loss.png")
        print(f"\nPicture: {(out / 'loss.png').resolve()}")
    except PlotError as error:
        print(f"\nThe picture was left out: {one_line(error)}")
