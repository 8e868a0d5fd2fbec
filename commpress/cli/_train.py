"""``commpress train``: one run of the main job, on the ranks that torchrun started."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  torchrun --nproc_per_node=2 -m commpress train --codec fp32
  torchrun --nproc_per_node=2 -m commpress train --codec hadamard+lloyd:2 --records two-bits.jsonl
  torchrun --nproc_per_node=2 -m commpress train --bits 1.5 --telemetry run.jsonl
  torchrun --nproc_per_node=2 -m commpress train --codec hadamard+lloyd:4 --every 8
  torchrun --nproc_per_node=2 -m commpress train --optimizer muon --states float:e8m7
  torchrun --nproc_per_node=2 -m commpress train --checkpoint saved --stop-after 100
  torchrun --nproc_per_node=2 -m commpress train --checkpoint saved --resume

Without torchrun it runs on one rank. The last line of standard output is the run's summary, as JSON.
"""


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run that `demo` has too."""
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default 250; with --quick 12)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights, data order and codecs (default 0)"
    )
    parser.add_argument(
        "--text", metavar="FOLDER", help="train on the .py files of this folder (default: the standard library)"
    )
    parser.add_argument(
        "--interface", metavar="NAME", help="network interface whose bytes count (default: the busiest)"
    )
    parser.add_argument(
        "--model",
        choices=("base", "large"),
        default="base",
        help="2.5 or 10.8 million parameters (default %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model for some seconds: to see that everything works"
    )


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "train",
        help="one run of the main job under torchrun",
        description="Trains a byte-level GPT on the Python standard library's source files, data parallel over the "
        "ranks that torchrun started, and reports held-out loss, bytes and times.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--codec",
        metavar="SPEC",
        help="how gradients travel: a codec, or fp32, fp16, bf16, powersgd:R or 1bit-adam to compare with (default hadamard+lloyd:2, or what suits --bits)",
    )
    parser.add_argument(
        "--bits",
        type=float,
        metavar="B",
        help="B bits a coordinate, shared out between the layers by the allocator; --codec is then the family, without bits",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="P",
        help="local steps, and every P of them a round of averaging (LocalSGD)",
    )
    parser.add_argument(
        "--parts", type=int, default=1, metavar="K", help="with --every: a K-th of the model in each round"
    )
    parser.add_argument(
        "--outer-lr", type=float, default=1.0, metavar="LR", help="with --every: of the outer optimiser"
    )
    parser.add_argument("--outer-momentum", type=float, default=0.0, metavar="M", help="with --every: likewise")
    parser.add_argument(
        "--optimizer", choices=("adamw", "muon"), default="adamw", help="Muon for hidden matrices (default %(default)s)"
    )
    parser.add_argument(
        "--states", metavar="SPEC", help="keep the optimiser's states in this format, float:e8m9 for example"
    )
    add_job_options(parser)
    parser.add_argument("--windows", type=int, metavar="N", help="sequences per rank and step (default 8)")
    parser.add_argument("--curve-points", type=int, metavar="N", help="evaluations on the way (default 10)")
    parser.add_argument("--records", type=Path, metavar="FILE", help="write one JSON object per line here")
    parser.add_argument(
        "--telemetry", type=Path, metavar="FILE", help="write the library's own record of every step here"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="save the run here, one file per rank")
    parser.add_argument(
        "--save-every", type=int, default=0, metavar="N", help="steps between checkpoints (default: at the end)"
    )
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after step N, as if interrupted")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    import json

    import torch
    import torch.distributed as dist

    from commpress.cli._progress import ProgressBar
    from commpress.errors import SpecError
    from commpress.experiments import MainJob, Progress, RunWriter, cores, process_group

    if options.checkpoint is None and (options.resume or options.save_every):
        raise SpecError("--resume and --save-every need --checkpoint FOLDER")
    settings = settings_of(options, options.codec, options.bits)
    torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    with process_group():
        first = dist.get_rank() == 0
        writer = RunWriter(options.records if first else None, append=options.resume)
        bar = (
            ProgressBar(settings.steps, settings.communication, sys.stderr)
            if first and not options.no_progress
            else None
        )

        def show(progress: Progress) -> None:
            if bar is not None:
                bar.update(progress.step, f"loss {progress.loss:.2f}  {1000 * progress.seconds_per_step:.0f} ms/step")

        job = MainJob(settings, writer=writer, telemetry=options.telemetry, on_progress=show)
        if options.resume:
            job.load(options.checkpoint)
        summary = job.run(save=options.checkpoint, save_every=options.save_every, stop_after=options.stop_after)
        if bar is not None:
            bar.close()
        job.close()
        writer.close()
        if first:
            print(json.dumps({"codec": settings.communication, "step": job.steps_done, **summary}), flush=True)
    return 0


def settings_of(options: argparse.Namespace, codec: str | None, bits: float | None = None) -> Any:
    """The `Settings` that the options of `add_job_options`, and of `train` if there, ask for."""
    from commpress.experiments import QUICK, SHAPES, Settings
    from commpress.hooks import default_family

    changes: dict[str, Any] = {"shape": SHAPES[options.model]} | (QUICK if options.quick else {})
    for option, name in (("steps", "steps"), ("windows", "windows_per_rank"), ("curve_points", "curve_points")):
        if getattr(options, option, None) is not None:
            changes[name] = getattr(options, option)
    # The demo, which asks for settings too, has none of these.
    local = ("every", "parts", "outer_lr", "outer_momentum", "optimizer", "states")
    changes |= {name: getattr(options, name) for name in local if hasattr(options, name)}
    return Settings(
        codec=codec or ("hadamard+lloyd:2" if bits is None else default_family(bits)),
        bits=bits,
        seed=options.seed,
        text=options.text,
        interface=options.interface,
        **changes,
    )
