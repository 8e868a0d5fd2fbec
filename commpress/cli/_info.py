"""``commpress info``: what a frame file says about itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "info",
        help="show what a frame file holds",
        description="Checks a frame and shows its header: codec, key, shape, sizes; and what the codec promises about its error.",
        epilog="example:\n  commpress info weights.cmpr",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("frame", type=Path, help="a file that `commpress pack` wrote")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    import dataclasses

    from commpress.codecs import codec as make_codec
    from commpress.wire import parse

    header = parse(options.frame.read_bytes())
    fields = [(field.name, getattr(header, field.name)) for field in dataclasses.fields(header)]
    codec = make_codec(header.spec)
    fields += [("unbiased", codec.unbiased), ("noise", codec.noise)]
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        print(f"{name.ljust(width)}  {value}")
    return 0
