"""What each rank of the emulated cluster does in the bandwidth experiment: times ways for gradients to travel, in turn.

    python -m commpress.experiments._bandwidth_rank '{"part": "bucket", ...}'

Ways take turns, so that a machine that slows down does so for all of them. Every time is that of the slowest rank.
Rank 0 appends a record for each way to the file that the arguments name.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.collectives import close, read_counters
from commpress.experiments._bucket_ways import bucket_way
from commpress.experiments._job import MainJob, process_group
from commpress.experiments._model import SHAPES, ByteGPT, loss_of
from commpress.experiments._records import RunWriter
from commpress.experiments._settings import Settings
from commpress.experiments._text import standard_library
from commpress.experiments._ways import codec_and_bits

_PAUSE_SECONDS = 0.005  # after a barrier: what it sent is out of the queues
_STEPS = 10  # of a run, as the learning rate and 1-bit Adam are told: its exact steps are then among the untimed ones


@final
class Turns:
    """Calls of several ways in turn, each as often as its share of the time allows.

    Args:
        calls: by the way's name.
        prepare, check: called before and after each, untimed.
        warm_up: untimed calls of each way. settled: whether they were enough; until then there are more.
        budget: seconds for each way.
        most: timed calls of each way at most.
    """

    def __init__(
        self,
        calls: dict[str, Callable[[], Any]],
        *,
        warm_up: dict[str, int],
        budget: float,
        most: int,
        prepare: Callable[[], Any] = lambda: None,
        check: Callable[[str], Any] = lambda name: None,
        settled: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self._calls, self._prepare, self._check = calls, prepare, check
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        self.sent: dict[str, list[int]] = {name: [] for name in calls}
        self._interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
        wanted: dict[str, int] = {}
        for name in calls:
            for _ in range(warm_up[name]):
                took = self._one(name)
            while not settled(name):
                took = self._one(name)
            self.seconds[name].clear()
            self.sent[name].clear()
            wanted[name] = max(1, min(most, int(budget / took)))
        names = list(calls)
        for turn in range(max(wanted.values())):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if len(self.seconds[name]) < wanted[name]:
                    self._one(name)

    def _one(self, name: str) -> float:
        self._prepare()
        dist.barrier()
        time.sleep(_PAUSE_SECONDS)
        before = self._count()
        began = time.perf_counter()
        self._calls[name]()
        took = torch.tensor([time.perf_counter() - began])
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        sent = self._count() - before  # by now what this rank handed to its socket last has left the link's queue
        self.seconds[name].append(float(took))
        self.sent[name].append(sent)
        self._check(name)
        return float(took)

    def _count(self) -> int:
        """Bytes that this rank's interface has sent."""
        counters = read_counters()
        return counters[self._interface].nbytes if self._interface in counters else 0


def bucket(arguments: dict[str, Any], writer: RunWriter) -> None:
    """One tensor of the gradient's kind, reduced again and again."""
    numel = int(arguments["numel"])
    gradient = _gradient(numel, dist.get_rank(), int(arguments["seed"]))
    exact = gradient.double()
    dist.all_reduce(exact)
    exact /= dist.get_world_size()
    work = torch.empty_like(gradient)
    nmse: dict[str, float] = {}

    def check(name: str) -> None:
        if name not in nmse:
            nmse[name] = float((work - exact).square().sum() / exact.square().sum())

    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(bucket_way(name, numel), work) for name in arguments["ways"]
    }
    turns = Turns(
        calls,
        warm_up={name: 1 if name in ("fp32", "fp16", "bf16") else 4 for name in calls},
        budget=arguments["budget"],
        most=arguments["most"],
        prepare=lambda: work.copy_(gradient),
        check=check,
    )
    for name in calls:
        writer.write("bucket", way=name, numel=numel, nmse=nmse[name], **_figures(turns, name))


def steps(arguments: dict[str, Any], writer: RunWriter) -> None:
    """Whole training steps of the main job: a model, an optimiser and an exchange for each way."""
    corpus = standard_library(None)
    jobs: dict[str, MainJob] = {}
    for name in arguments["ways"]:
        codec, bits = codec_and_bits(name)
        settings = Settings(
            codec=codec,
            bits=bits,
            steps=_STEPS,
            seed=int(arguments["seed"]),
            shape=SHAPES[arguments["model"]],
            windows_per_rank=int(arguments["windows_per_rank"]),
        )
        jobs[name] = MainJob(settings, writer=RunWriter(None), corpus=corpus)
    turns = Turns(
        {name: job.step for name, job in jobs.items()},
        warm_up={name: job.way.warm_up for name, job in jobs.items()},
        budget=arguments["budget"],
        most=arguments["most"],
        settled=lambda name: jobs[name].way.settled,
    )
    for name, job in jobs.items():
        writer.write("step", way=name, numel=job.numel, **_figures(turns, name))
        job.close()


def _figures(turns: Turns, name: str) -> dict[str, Any]:
    sent = torch.tensor(turns.sent[name], dtype=torch.float64)
    dist.all_reduce(sent)
    sent /= dist.get_world_size()
    return {
        "seconds": turns.seconds[name],
        "median_seconds": float(torch.tensor(turns.seconds[name]).quantile(0.5)),
        "interface_bytes_per_rank": float(sent.quantile(0.5)),
    }


def _gradient(numel: int, rank: int, seed: int) -> torch.Tensor:
    """Of the large model before training, on this rank's data, as often as it takes."""
    torch.manual_seed(seed)
    shape = SHAPES["large"]
    model = ByteGPT(shape)
    windows = standard_library(None).batch(8, shape.context, seed=seed + 1, step=rank)
    loss_of(model, windows).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flat.repeat(-(-numel // len(flat)))[:numel].contiguous()


def main() -> int:
    """Of one rank."""
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with process_group():
        writer = RunWriter(arguments["records"] if dist.get_rank() == 0 else None, append=True)
        {"bucket": bucket, "steps": steps}[arguments["part"]](arguments, writer)
        writer.close()
        close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
