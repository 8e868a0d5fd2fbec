"""``commpress bench codecs``: every codec on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from commpress.cli._bounds import size
from commpress.cli._progress import ProgressBar
from commpress.errors import SpecError

_INPUTS = ("gaussian", "laplace", "student", "gradient")
_EXAMPLES = """\
examples:
  commpress bench codecs
  commpress bench codecs --inputs gradient --rate 100mbit --ranks 4
  commpress bench codecs uniform:4 hadamard+lloyd:2 topk:0.01 --plot ""
"""
_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def link_rate(text: str) -> float:
    """Bytes per second from text such as 1gbit or 100mbit (an argparse type)."""
    for unit, factor in _RATES.items():
        if text.lower().endswith(unit):
            try:
                value = float(text[: -len(unit)]) * factor / 8
            except ValueError:
                break
            if 0 < value < 1e15:
                return value
    raise argparse.ArgumentTypeError(f"not a rate: {text!r}; write 1gbit, 100mbit or 500kbit")


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "bench",
        help="measure every codec on this machine",
        description="Measures codecs: exact bits, information captured, error, bias, and the speed of one thread beside "
        "tensor.copy_; on Gaussian, Laplace and Student-t input and on a real gradient of the main job.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["codecs"])
    parser.add_argument(
        "specs", nargs="*", metavar="CODEC", help="specs to measure (default: a choice of every family)"
    )
    parser.add_argument("--inputs", nargs="+", choices=_INPUTS, default=list(_INPUTS), help="(default: all)")
    parser.add_argument(
        "--numel", type=size, default=1 << 20, metavar="N", help="coordinates of made inputs (default 2^20)"
    )
    parser.add_argument(
        "--rate", type=link_rate, default=125e6, metavar="R", help="link for the Pareto front (default 1gbit)"
    )
    parser.add_argument(
        "--ranks", type=int, default=4, metavar="N", help="ranks for the Pareto front (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the inputs (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("codecs.jsonl"), metavar="FILE", help="records (default %(default)s)"
    )
    parser.add_argument(
        "--plot", default="codecs.png", metavar="FILE", help="picture; '' for none (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs and few repetitions: does it run?")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    import torch

    from commpress.codecs import codec
    from commpress.experiments._codec_map import SPECS, Measured, measure, pareto, sources
    from commpress.experiments._codec_map_plot import plot_map

    if options.ranks < 2:
        raise SpecError(f"--ranks must be at least 2, got {options.ranks}")
    specs = [str(codec(spec)) for spec in options.specs or SPECS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: list[Measured] = []
    bar = ProgressBar(len(specs) * len(options.inputs), "codecs", sys.stderr)
    try:
        with options.out.open("w") as file:
            numel, repeat = (1 << 14, {"keys": 2, "rounds": 1}) if options.quick else (options.numel, {})
            for name, x in sources(options.inputs, numel, options.seed):
                for spec in specs:
                    found.append(measure(spec, name, x[:numel] if options.quick else x, **repeat))
                    file.write(json.dumps(dataclasses.asdict(found[-1])) + "\n")
                    bar.update(len(found), f"{name} {spec}")
    finally:
        bar.close()
        torch.set_num_threads(threads)
    for name in options.inputs:
        here = [m for m in found if m.source == name]
        best = {m.spec for m in pareto(here, options.rate, options.ranks)}
        print(f"\n{name}, {here[0].numel:,} coordinates; * on the Pareto front of error and time")
        print(
            f"{'codec':>26} {'bits':>8} {'G':>8} {'eta':>7} {'vNMSE':>10} {'bias':>6} {'encode':>7} {'decode':>7}  GB/s, copy_ {here[0].copy / 1e9:.1f}"
        )
        for m in here:
            print(
                f"{m.spec:>26} {m.bits:8.4f} {m.captured:8.5f} {m.eta:7.4f} {m.vnmse:10.3e} {m.bias:6.2f} "
                f"{m.encode / 1e9:7.2f} {m.decode / 1e9:7.2f} {'*' if m.spec in best else ''}"
            )
    print(f"\nrecords: {options.out}")
    if options.plot:
        plot_map(found, Path(options.plot), link=options.rate, ranks=options.ranks)
        print(f"picture: {options.plot}")
    return 0
