"""``commpress run``: a training script with its DDP models compressed. `commpress.run` is all of it."""

from __future__ import annotations

import argparse
from typing import Any

from commpress.run import EPILOG, add_arguments, execute


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a training script, its DDP models compressed",
        description="Runs a training script and compresses the gradients of its DistributedDataParallel models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.set_defaults(run=execute)
