"""The bandwidth experiment: what ways for gradients to travel are worth, by the speed of the links.

Three parts. One bucket: the time of one all-reduce. Steps: that of a whole training step of the main job, all
ways in turn in the same processes. Loss: the main job with each way, whose loss by step does not depend on links; a
step's time at a rate, times steps, is the time at which a loss was reached at that rate.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from commpress.cluster import Cluster, Topology, bits_per_second
from commpress.errors import SpecError
from commpress.experiments._launch import RunError, launch
from commpress.experiments._records import Follower, Run, file_name
from commpress.experiments._ways import codec_and_bits, way

PARTS = ("bucket", "steps", "loss")
BUCKET_WAYS = (
    "fp32",
    "fp16",
    "bf16",
    "powersgd:1",
    "powersgd:4",
    "1bit-adam",
    "uniform:4",
    "hadamard+lloyd:4",
    "hadamard+lloyd:2",
    "hadamard+lloyd:1",
    "topk:0.01",
)
STEP_WAYS = (
    "skip",
    "fp32",
    "fp16",
    "bf16",
    "powersgd:1",
    "powersgd:4",
    "1bit-adam",
    "hadamard+lloyd:4",
    "hadamard+lloyd:2",
    "bits=1",
    "bits=0.25",
    "auto",
)
LOSS_WAYS = ("fp32", "fp16", "powersgd:1", "powersgd:4", "1bit-adam", "hadamard+lloyd:2", "bits=1", "bits=0.25")
_TIMEOUT_SECONDS = 3600.0

Tell = Callable[[float, str], None]
"""Told the share that is done, and what is under way."""


@final
@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        parts: of `PARTS`.
        rates: of the links, as ``1gbit``.
        ranks: of one bucket.
        job_ranks: of steps and of the runs for the loss.
        mib: size of the bucket in MiB of fp32.
        bucket_ways, step_ways, loss_ways: what is compared.
        model: "base" or "large", see `SHAPES`.
        windows_per_rank: sequences per rank and step.
        steps: of a run for the loss.
        budget: seconds of each way at each rate; slow ones take longer, as each is timed once at least.
        most: timed calls of each way at most.
        target: loss that counts as reached, over the final one of fp32.
        seed: of everything.
    """

    parts: tuple[str, ...] = PARTS
    rates: tuple[str, ...] = ("10mbit", "100mbit", "1gbit", "10gbit")
    ranks: tuple[int, ...] = (2, 4)
    job_ranks: int = 4
    mib: float = 25.0
    bucket_ways: tuple[str, ...] = BUCKET_WAYS
    step_ways: tuple[str, ...] = STEP_WAYS
    loss_ways: tuple[str, ...] = LOSS_WAYS
    model: str = "large"
    windows_per_rank: int = 8
    steps: int = 120
    budget: float = 4.0
    most: int = 15
    target: float = 1.02
    seed: int = 0

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise SpecError(f"a part is one of {', '.join(PARTS)}, got {part!r}")
        for rate in self.rates:
            bits_per_second(rate)
        if min(*self.ranks, self.job_ranks, 2) < 2:
            raise SpecError(f"ranks must be at least 2, got {self.ranks} and {self.job_ranks}")
        counts = (self.most, self.windows_per_rank, self.steps)
        if not self.mib > 0 or not self.budget > 0 or not self.target > 0 or min(counts) < 1:
            raise SpecError("mib, budget, most, windows, steps and target must be positive")
        for name in (*self.bucket_ways, *self.step_ways, *self.loss_ways):
            way(name)


QUICK: dict[str, Any] = {
    "rates": ("100mbit", "1gbit"),
    "ranks": (4,),
    "mib": 4.0,
    "bucket_ways": ("fp32", "fp16", "powersgd:4", "uniform:4", "hadamard+lloyd:2"),
    "step_ways": ("skip", "fp32", "fp16", "powersgd:4", "1bit-adam", "hadamard+lloyd:2", "bits=1"),
    "loss_ways": ("fp32", "fp16", "powersgd:4", "1bit-adam", "hadamard+lloyd:2", "bits=1"),
    "model": "base",
    "windows_per_rank": 4,
    "steps": 40,
    "budget": 1.5,
    "most": 7,
}
"""Less than five minutes on two cores: a smaller model, fewer rates and ways, and losses far from the end."""


@final
@dataclasses.dataclass(frozen=True)
class Results:
    """What was found.

    Attributes:
        bucket, steps: a record for each way, number of ranks and rate: ``way``, ``ranks``, ``rate``, ``seconds`` (of every call, the
            slowest rank's), ``median_seconds``, ``interface_bytes_per_rank``, and ``nmse`` of one bucket.
        runs: of the main job, by way.
    """

    sweep: Sweep
    bucket: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    runs: dict[str, Run]


def measure(sweep: Sweep, out: Path, tell: Tell) -> Results:
    """Carries the sweep out; ``results.jsonl`` in `out` gets every record as soon as it is there.

    Raises:
        ClusterError: this machine makes no emulated cluster, or the user is not root.
        RunError: a rank failed.
    """
    file = out / "results.jsonl"
    file.write_text(json.dumps({"kind": "sweep", **dataclasses.asdict(sweep)}) + "\n")
    found: dict[str, list[dict[str, Any]]] = {"bucket": [], "steps": []}
    todo = [("bucket", ranks, rate) for ranks in sweep.ranks for rate in sweep.rates if "bucket" in sweep.parts]
    todo += [("steps", sweep.job_ranks, rate) for rate in sweep.rates if "steps" in sweep.parts]
    losses = [name for name in sweep.loss_ways if "loss" in sweep.parts]
    total = len(todo) + len(losses)
    for done, (part, ranks, rate) in enumerate(todo):
        tell(done / total, f"{part}, {ranks} ranks, {rate}")
        found[part] += _in_cluster(sweep, part, ranks, rate, out, file)
    runs = {}
    for done, name in enumerate(losses, start=len(todo)):
        runs[name] = _run(sweep, name, out, _part_of(tell, done, total, f"loss, {name}"))
    tell(1.0, "done")
    return Results(sweep, found["bucket"], found["steps"], runs)


def _part_of(tell: Tell, done: int, total: int, note: str) -> Callable[[float], None]:
    return lambda share: tell((done + share) / total, note)


def _in_cluster(sweep: Sweep, part: str, ranks: int, rate: str, out: Path, file: Path) -> list[dict[str, Any]]:
    """One part at one rate, in processes and links of their own."""
    records = out / "part.jsonl"
    records.unlink(missing_ok=True)
    arguments: dict[str, Any] = {
        "part": part,
        "records": str(records.resolve()),
        "seed": sweep.seed,
        "budget": sweep.budget,
        "most": sweep.most,
        "ways": list(sweep.bucket_ways if part == "bucket" else sweep.step_ways),
        "numel": round(sweep.mib * (1 << 18)),
        "model": sweep.model,
        "windows_per_rank": sweep.windows_per_rank,
    }
    command = [sys.executable, "-m", "commpress.experiments._bandwidth_rank", json.dumps(arguments)]
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    log = out / f"{part}-{ranks}-{rate}.log"

    def write(rank: int, stream: str, text: bytes) -> None:
        words.write(text)

    with open(log, "wb") as words, Cluster(Topology(ranks, rate)) as cluster:
        shaped = cluster.record()["topology"]
        outcome = cluster.run(
            command,
            env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            timeout=_TIMEOUT_SECONDS,
            on_output=write,
        )
    if not outcome.ok:
        raise RunError(f"{part} with {ranks} ranks at {rate}: {outcome.in_words()}; what the ranks said is in {log}")
    found = [{**record, "ranks": ranks, "rate": rate} for record in Follower(records).new()]
    records.unlink(missing_ok=True)
    with open(file, "a", encoding="utf-8") as results:
        results.writelines(json.dumps({**record, "cluster": shaped}) + "\n" for record in found)
    return found


def _run(sweep: Sweep, name: str, out: Path, tell: Callable[[float], None]) -> Run:
    """The main job with one way, on loopback."""
    codec, bits = codec_and_bits(name)
    arguments = ["--codec", codec, "--seed", str(sweep.seed), "--steps", str(sweep.steps), "--model", sweep.model]
    arguments += ["--curve-points", "25", "--windows", str(sweep.windows_per_rank)]
    arguments += [] if bits is None else ["--bits", f"{bits:g}"]

    def show(record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            tell(record["step"] / sweep.steps)

    records = out / file_name(name)
    return launch(arguments, ranks=sweep.job_ranks, records=records, log=records.with_suffix(".log"), on_record=show)
