"""``commpress unpack``: a frame file becomes a tensor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from commpress.cli._pack import SUFFIX


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "unpack",
        help="decode a frame file into a tensor",
        description="Checks a frame and decodes it into a .pt or .npy file.",
        epilog="example:\n  commpress unpack weights.cmpr --out restored.npy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("frame", type=Path, help=f"a file that `commpress pack` wrote ({SUFFIX})")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a .pt or .npy file (default: the frame's name and .pt)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.cli._tensors import write_tensor
    from commpress.wire import unpack

    x = unpack(options.frame.read_bytes())
    out = options.out or options.frame.with_name(options.frame.name.removesuffix(SUFFIX) + ".pt")
    write_tensor(out, x)
    print(f"{out}: {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}")
    return 0
