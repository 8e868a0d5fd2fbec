"""``commpress pack``: a tensor becomes a frame file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUFFIX = ".cmpr"


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "pack",
        help="encode a tensor into a frame file",
        description="Encodes the tensor of a .pt or .npy file into a self-describing, checksummed frame.",
        epilog="example:\n  commpress pack weights.npy --codec hadamard+lloyd:4 --out weights.cmpr",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tensor", type=Path, help="a .pt or .npy file with one tensor")
    parser.add_argument("--codec", default="hadamard+lloyd:4", metavar="SPEC", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the codec's randomness (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the frame (default: the tensor's name and {SUFFIX})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.cli._tensors import read_tensor
    from commpress.codecs import Key, codec
    from commpress.wire import pack

    x = read_tensor(options.tensor)
    data = pack(x, codec(options.codec), Key(seed=options.seed)).numpy().tobytes()
    out = options.out or options.tensor.with_name(options.tensor.name + SUFFIX)
    out.write_bytes(data)
    numel = x.numel()
    rate = f", {8 * len(data) / numel:.3f} bits per coordinate with the frame" if numel else ""
    print(f"{out}: {len(data):,} bytes for {numel:,} x {str(x.dtype).removeprefix('torch.')}{rate}")
    return 0
