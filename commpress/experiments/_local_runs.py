"""The local-SGD experiment: what it measures, and its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from commpress.experiments._checks import aligned
from commpress.experiments._launch import launch
from commpress.experiments._local_quadratic import Momentum, SpeedUp, outer_momentum, speed_up
from commpress.experiments._records import Run, file_name

Tell = Callable[[float, str], None]

CODEC = "hadamard+lloyd:4"
FLAT = 0.2
"""Error times M K may spread by so much over 1 to 8 workers."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of the main job against fp32 all-reduce in every step.

    Attributes:
        share: of the bytes that fp32 sends. loss_ratio: final held-out loss over that of fp32.
    """

    name: str
    run: Run
    share: float
    loss_ratio: float

    def record(self) -> dict[str, Any]:
        head, figures = self.run.head, self.run.summary
        return {
            "kind": "training",
            "name": self.name,
            "settings": head["settings"],
            "world_size": head["world_size"],
            "held_out_loss": figures["held_out_loss"],
            "bytes_per_step_and_rank": figures["claimed_bytes_per_step_per_rank"],
            "interface_bytes_per_step_and_rank": figures["interface_bytes_per_step_per_rank"],
            "share_of_fp32": self.share,
            "loss_over_fp32": self.loss_ratio,
        }


def quadratics(*, quick: bool, seed: int, on_progress: Tell | None = None) -> tuple[list[SpeedUp], list[Momentum]]:
    """All measurements on quadratics. `on_progress` gets the share that is done and what is under way."""
    size: dict[str, Any] = {"seed": seed, **({"d": 4096, "steps": 128} if quick else {})}
    points: list[tuple[str, Callable[[], SpeedUp]]] = []

    def add(workers: int, codec: str = CODEC, **options: Any) -> None:
        name = f"{workers} workers, {codec}"
        points.append((name, partial(speed_up, workers, codec, **options, **size)))

    for workers in (1, 2, 4, 8):
        add(workers)
    if not quick:
        for codec in ("none", "hadamard+lloyd:3", "hadamard+lloyd:2", "topk:0.1"):
            add(4, codec)
        add(4, every=1)
        add(4, every=32)
    add(4, parts=4)
    for mode in ("alone", "value"):
        for workers in (8,) if quick else (1, 2, 4, 8):
            if mode == "alone" or workers > 1:
                add(workers, mode=mode)
    rounds = 12 if quick else 30
    momenta = [
        (f"outer momentum {mu:g}", partial(outer_momentum, CODEC, momentum=mu, rate=rate, rounds=rounds))
        for mu, rate in ((0.0, 1.0), (0.9, 0.7))
    ]
    tell = on_progress or (lambda share, what: None)
    total = len(points) + len(momenta)
    measured, moments = [], []
    for i, (name, work) in enumerate(points):
        tell(i / total, name)
        measured.append(work())
    for i, (name, run) in enumerate(momenta):
        tell((len(points) + i) / total, name)
        moments.append(run())
    tell(1.0, "done")
    return measured, moments


def trainings(*, quick: bool, seed: int, out: Path, ranks: int = 2, on_progress: Tell | None = None) -> list[Training]:
    """The main job with fp32 and with local steps, under torchrun. Raises RunError if a rank fails."""
    local = ["--codec", CODEC, "--every"]
    runs: list[tuple[str, list[str]]] = [
        ("fp32 all-reduce", ["--codec", "fp32"]),
        ("every 2, 2 bits", ["--codec", "hadamard+lloyd:2", "--every", "2"]),
        ("every 4", [*local, "4"]),
        ("every 8", [*local, "8"]),
        ("every 8, outer momentum .5", [*local, "8", "--outer-momentum", ".5", "--outer-lr", ".9"]),
        ("every 2, 2 parts", [*local, "2", "--parts", "2"]),
    ]
    if quick:
        runs = runs[:2]
    common = ["--seed", str(seed), *(["--quick"] if quick else [])]
    found: list[Training] = []
    base: Run | None = None
    for i, (name, arguments) in enumerate(runs):

        def follow(record: dict[str, Any], *, i: int = i, name: str = name) -> None:
            if on_progress is not None and record["kind"] == "step":
                steps = 12 if quick else 250
                on_progress((i + record["step"] / steps) / len(runs), name)

        stem = file_name(name.replace(" ", "-")).removesuffix(".jsonl")
        run = launch(
            [*arguments, *common], ranks=ranks, records=out / f"{stem}.jsonl", log=out / f"{stem}.log", on_record=follow
        )
        base = base or run
        claimed, loss = (
            run.summary[key] / base.summary[key] for key in ("claimed_bytes_per_step_per_rank", "held_out_loss")
        )
        found.append(Training(name, run, claimed, loss))
    return found


def spread(points: Sequence[SpeedUp]) -> float:
    """By how much error times M K spreads over the numbers of workers, of LocalSGD with the experiment's own codec, period and parts."""
    products = [
        p.product for p in points if p.mode == "difference" and p.codec == CODEC and p.every == 8 and p.parts == 1
    ]
    return max(products) / min(products) - 1


_MODES = {"difference": "x - x_sync", "value": "x itself (control)", "alone": "nothing (control)"}


def tables(points: Sequence[SpeedUp], momenta: Sequence[Momentum], runs: Sequence[Training]) -> str:
    """Three tables and what their columns mean. Every line ends in a newline."""
    rows: list[tuple[str, ...]] = [
        ("quantised", "codec", "every", "parts", "workers", "bytes / fp32", "error x M K", "predicted")
    ]
    for p in points:
        share = "-" if p.share is None else f"{p.share:.2%}"
        predicted = "-" if p.predicted is None else f"{p.predicted:.3f}"
        every = "-" if p.mode == "alone" else str(p.every)
        rows.append(
            (_MODES[p.mode], p.codec, every, str(p.parts), str(p.workers), share, f"{p.product:.3f}", predicted)
        )
    text = "Linear speed-up: a noisy quadratic, steps 1/t\n" + aligned(rows)
    text += (
        f"\nerror x M K   mean squared error of a coordinate times workers and steps, over sigma^2: 1 is what M K exact samples give.\n"
        f"              From 1 to 8 workers with {CODEC} it spreads by {spread(points):.1%} (goal: {FLAT:.0%})\n"
        "predicted     by the recursion of x_sync's error, with the codec's measured vNMSE\n"
        "bytes / fp32  payloads of a worker against an fp32 ring all-reduce in every step\n"
    )
    marks = sorted({0, len(momenta[0].losses) // 2, len(momenta[0].losses) - 1}) if momenta else []
    rows = [("outer optimiser", *(part for i in marks for part in (f"loss after {i + 1}", "predicted")))]
    for m in momenta:
        rows.append((m.name, *(f"{v:.4g}" for i in marks for v in (m.losses[i], m.predicted[i]))))
    text += "\nOuter momentum: an ill-conditioned quadratic, rounds of 8 steps\n" + aligned(rows)
    if runs:
        rows = [("main job", "held-out loss", "against fp32", "bytes a step", "of fp32")]
        for t in runs:
            figures = t.run.summary
            sent = figures["claimed_bytes_per_step_per_rank"]
            rows.append(
                (
                    t.name,
                    f"{figures['held_out_loss']:.4f}",
                    f"{t.loss_ratio - 1:+.2%}",
                    f"{sent:,.0f}",
                    f"{t.share:.2%}",
                )
            )
        text += (
            f"\nThe main job: four bits unless said otherwise, the same number of steps, {runs[0].run.head['world_size']} ranks\n"
            + aligned(rows)
        )
    return text
