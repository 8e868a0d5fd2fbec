"""The command line of `commpress run`, and what of it goes to `commpress.register`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  torchrun --nproc_per_node=2 -m commpress.run --bits 2 train.py --epochs 3
  torchrun --nproc_per_node=2 -m commpress run --codec hadamard+lloyd:4 -m my.training --epochs 3

Options of commpress come before the script; all that follows it is the script's. Standard output and the exit status are
the script's own; what commpress has to say goes to standard error. docs/run.md says how it works.
"""

# Option -> argument of `commpress.register`; those that were not given are left to its own defaults.
_NAMES = (
    "codec",
    "bits",
    "objective",
    "plan",
    "plan_every",
    "plan_floor",
    "gamma",
    "predict",
    "shaping",
    "feedback",
    "seed",
    "telemetry_every",
    "check_every",
    "agreement_every",
    "timeout",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options, the script and its arguments."""
    yes_no = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--codec", metavar="SPEC", help="how gradients travel (default: hadamard+lloyd:2)")
    add("--bits", type=float, metavar="B", help="B bits a coordinate, shared out between the layers by the allocator")
    add("--objective", metavar="NAME", help="of the allocator: unbiased, mse, fisher or weighted")
    add("--plan", type=Path, metavar="FILE", help="a saved plan, which is kept; with --bits")
    add("--plan-every", type=int, metavar="N", help="steps between two plans")
    add("--plan-floor", type=float, metavar="F", help="no layer gets less than this share of --bits")
    add("--gamma", type=float, metavar="G", help="of the objective `weighted`")
    add("--predict", action=yes_no, default=None, help="code layers as differences from the last mean where it pays")
    add("--shaping", type=float, metavar="A", help="exponent of noise shaping: 0, 0.25, 0.5, 0.75 or 1")
    add("--feedback", action=yes_no, default=None, help="error feedback (default: for codecs that are not unbiased)")
    add("--seed", type=int, metavar="N", help="of the codecs' randomness (default 0)")
    add("--telemetry", type=Path, metavar="FILE", help="JSON lines, one a step; a second model's go to FILE with .2")
    add("--telemetry-every", type=int, metavar="N", help="steps between two measurements of distortion")
    add("--check-every", type=int, metavar="N", help="steps between two comparisons of the ranks' parameters")
    add("--agreement-every", type=int, metavar="N", help="steps between two comparisons of the ranks' gradients")
    add("--timeout", type=float, metavar="SECONDS", help="that a wait for another rank may take")
    add("--quiet", action="store_true", help="no summary at the end; warnings and errors are said all the same")
    add("-m", "--module", action="store_true", help="the script is the name of a module, as with python -m")
    add("script", help="what to run")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")


def register_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `commpress.register`: only what was asked for."""
    given = {name: getattr(options, name) for name in _NAMES}
    return {name: value for name, value in given.items() if value is not None}
