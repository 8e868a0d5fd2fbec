"""Parses the command line, runs a subcommand, and turns errors into one readable line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from commpress._version import __version__
from commpress.cli import (
    _bench,
    _bounds,
    _cluster,
    _demo,
    _doctor,
    _experiment,
    _info,
    _pack,
    _plan,
    _report,
    _run,
    _train,
    _unpack,
    _watch,
)
from commpress.errors import CommpressError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_STARTS_RANKS = ("demo", "experiment")

_EXAMPLES = """\
examples:
  commpress demo                                  train with fp32, 4, 2 and 1 bits on this machine and compare
  torchrun --nproc_per_node=2 -m commpress train --codec hadamard+lloyd:2
  commpress pack weights.npy --codec hadamard+lloyd:4
  commpress info weights.npy.cmpr
  commpress bench codecs
  commpress unpack weights.npy.cmpr --out restored.npy
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="commpress",
        description="Compressed communication for PyTorch distributed training.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"commpress {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for module in (
        _demo,
        _train,
        _pack,
        _unpack,
        _info,
        _experiment,
        _report,
        _watch,
        _bounds,
        _bench,
        _cluster,
        _run,
        _doctor,
        _plan,
    ):
        module.add_to(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0: done. 1: a run of the demo failed. 2: wrong usage, or an error with one line on standard error. 130: interrupted.
    """
    options = parser().parse_args(arguments)
    name = f"commpress {options.command}"
    try:
        with _terminable(options.command in _STARTS_RANKS):
            return options.run(options)
    except KeyboardInterrupt as stopped:
        print(f"\n{name}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing is wrong, but Python must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (CommpressError, OSError) as error:
        where = f"rank {os.environ['RANK']}: " if options.command == "train" and "RANK" in os.environ else ""
        print(f"{name}: {where}{type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_ERROR


@contextlib.contextmanager
def _terminable(wanted: bool) -> Iterator[None]:
    """SIGTERM as Ctrl-C: ranks that were started are ended in order, what is finished is kept."""
    if not wanted:
        yield
        return

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
