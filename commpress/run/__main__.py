"""``python -m commpress.run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from commpress.errors import SpecError
from commpress.run import EPILOG, add_arguments, execute


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; the exit status is the script's own, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m commpress.run",
        description="Runs a training script and compresses the gradients of its DistributedDataParallel models.",
        epilog=EPILOG.replace("commpress run", "python -m commpress.run"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    try:
        return execute(parser.parse_args(arguments))
    except SpecError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    sys.exit(main())
