"""``commpress report``: a page about one run, or several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  commpress report run.jsonl
  commpress report two-bits.jsonl one-bit.jsonl --out compared.html
  commpress report run.jsonl run.telemetry.jsonl      losses and telemetry of one run, in two files

Files are what `telemetry=` of commpress.register, or `--records` and `--telemetry` of commpress train wrote.
The page opens without network; its pictures are written beside it too.
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "report",
        help="a page that shows where a run's bits went",
        description="Writes one HTML page: which layers got the bits, how near to the limit of information theory the "
        "run was, distortion, bytes and loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a run's JSONL records")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default %(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.telemetry import load_runs, write_report

    page, *pictures = write_report(load_runs(options.files), options.out)
    print(f"{page}: {page.stat().st_size:,} bytes; {len(pictures)} pictures beside it")
    return 0
