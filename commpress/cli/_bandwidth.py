"""``commpress experiment bandwidth``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from commpress.cli._progress import with_bar

NAME = "bandwidth"
SUMMARY = (
    "what compression is worth by the speed of the links: fp32, 16 bits, PowerSGD, 1-bit Adam and codecs, "
    "for one bucket, for training steps, and until a loss is reached"
)

_EXAMPLES = """\
examples:
  commpress experiment bandwidth --quick                      less than five minutes
  commpress experiment bandwidth --out reports/bandwidth      everything: about an hour, 15 GB of memory
  commpress experiment bandwidth --parts bucket --rates 50mbit,200mbit --ways fp32,fp16,uniform:4
  commpress experiment bandwidth --parts steps,loss --rates 100mbit --ways "fp32;fp16;bits=1;topk:0.01,values=4"
"""


def add_to(experiments: Any) -> None:
    """Adds the experiment."""
    parser = experiments.add_parser(
        NAME,
        help=SUMMARY,
        description=f"Measures {SUMMARY}. It makes emulated clusters, so it needs Linux and root (`commpress cluster --check`), and "
        "writes table.txt, results.jsonl, bandwidth.png, and a log for each part.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports") / NAME, metavar="FOLDER", help="default %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer rates and ways")
    parser.add_argument("--parts", metavar="PART,...", help="bucket, steps, loss (default all)")
    parser.add_argument("--rates", metavar="RATE,...", help="of the links (default 10mbit,100mbit,1gbit,10gbit)")
    parser.add_argument("--ranks", metavar="N,...", help="ranks that share one bucket (default 2,4)")
    parser.add_argument("--job-ranks", type=int, metavar="N", help="ranks of the training steps (default 4)")
    parser.add_argument(
        "--ways",
        metavar="WAY,...",
        help="instead of the default ones: codecs, bits=B, auto, fp32, fp16, bf16, powersgd:R, 1bit-adam (separate those with "
        "options by ';')",
    )
    parser.add_argument("--mib", type=float, metavar="M", help="size of the one bucket in MiB of fp32 (default 25)")
    parser.add_argument("--model", choices=("base", "large"), help="2.5 or 10.8 million parameters (default large)")
    parser.add_argument("--windows", type=int, metavar="N", help="sequences per rank and step (default 8, quick 4)")
    parser.add_argument("--steps", type=int, metavar="N", help="of the runs for the loss (default 120)")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of timing for each way and rate (default 4)")
    parser.add_argument("--target", type=float, metavar="F", help="loss to reach, over fp32's last (default 1.02)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything (default 0)")
    parser.set_defaults(run=run)


def sweep_of(options: argparse.Namespace) -> Any:
    """The `Sweep` that options ask for.

    Raises:
        SpecError: they make no sense.
    """
    from commpress.errors import SpecError
    from commpress.experiments._bandwidth import QUICK, Sweep

    changes: dict[str, Any] = dict(QUICK) if options.quick else {}
    for name in ("parts", "rates"):
        if getattr(options, name) is not None:
            changes[name] = tuple(part.strip() for part in getattr(options, name).split(","))
    if options.ranks is not None:
        try:
            changes["ranks"] = tuple(int(part) for part in options.ranks.split(","))
        except ValueError:
            raise SpecError(f"--ranks needs numbers separated by commas, got {options.ranks!r}") from None
    for name in ("job_ranks", "mib", "model", "windows", "steps", "budget", "target"):
        if getattr(options, name) is not None:
            changes["windows_per_rank" if name == "windows" else name] = getattr(options, name)
    if options.ways is not None:
        changes |= _ways(options.ways)
    return Sweep(seed=options.seed, **changes)


def _ways(text: str) -> dict[str, tuple[str, ...]]:
    names = [name.strip() for name in text.split(";" if ";" in text else ",") if name.strip()]
    one_tensor = tuple(n for n in names if "bits=" not in n and n not in ("auto", "skip"))
    trained = tuple(n for n in names if n != "skip")
    return {"bucket_ways": one_tensor, "step_ways": ("skip", *trained), "loss_ways": trained}


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    import time

    from commpress.experiments import PlotError
    from commpress.experiments._bandwidth import measure
    from commpress.experiments._bandwidth_plot import plot_results
    from commpress.experiments._bandwidth_table import tables

    began = time.monotonic()
    sweep = sweep_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results = with_bar(NAME, lambda tell: measure(sweep, options.out, tell))
    text = tables(results)
    print("\n" + text, end="")
    (options.out / "table.txt").write_text(text)
    try:
        plot_results(results, options.out / "bandwidth.png")
        print(f"\nPicture: {(options.out / 'bandwidth.png').resolve()}")
    except PlotError as error:
        print(f"\nThe picture was left out: {error}")
    print(f"\n{time.monotonic() - began:.0f} s in all. Results: {options.out.resolve()}")
    return 0
