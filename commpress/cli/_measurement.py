"""What the commands of experiments that end in checks have in common: a folder of results, a table, a picture, an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from commpress.cli._progress import with_bar

EXIT_FAILED = 1

Tell = Callable[[float, str], None]


class Found(Protocol):
    """What such an experiment found."""

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""

    def table(self) -> str:
        """Text for people, every line with its newline."""

    def checks(self) -> Sequence[Any]:
        """`commpress.experiments._checks.Check` of what must hold."""


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that all of them have."""
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where results go (default reports/{name})")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller measurements: less than a minute")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data and codecs (default 0)")


def measure(
    name: str,
    options: argparse.Namespace,
    work: Callable[[Tell], Found],
    plot: Callable[[Any, Path], None],
    picture: str,
) -> int:
    """Carries an experiment out on one thread.

    Args:
        name: of the experiment.
        options: of `add_common`.
        work: measures; tells the share that is done and what is under way.
        plot: draws what was found to a file. picture: that file's name.

    Returns:
        0, or `EXIT_FAILED` where a check failed.
    """
    import json
    import time

    import torch

    from commpress.errors import SpecError
    from commpress.experiments import PlotError
    from commpress.experiments._checks import checks_table

    if not 0 <= options.seed < 1 << 63:
        raise SpecError(f"--seed must be in [0, 2^63), got {options.seed}")
    out = options.out if options.out is not None else Path("reports") / name
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Tensors are small here: a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = with_bar(name, work)
    finally:
        torch.set_num_threads(threads)
    checks = found.checks()
    text = found.table() + "\nWhat must hold\n" + checks_table(checks)
    print(text, end="")
    (out / "table.txt").write_text(text)
    records = [*found.records(), *(check.record() for check in checks)]
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        plot(found, out / picture)
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {out.resolve()}")
    failed = [check for check in checks if not check.passed]
    for check in failed:
        print(f"commpress experiment: {name}: {check.what}: {check.measured:.4g}", file=sys.stderr)
    return EXIT_FAILED if failed else 0
