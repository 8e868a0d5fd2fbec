"""Training steps with codec="auto" beside every fixed choice and torch's own hooks: 4 ranks, the main job's model, all ways in turn in the same processes.

    python benchmarks/bench_auto.py --rate 1gbit          # an emulated cluster; needs root and iproute2
    python benchmarks/bench_auto.py                       # loopback
    python benchmarks/bench_auto.py --rate 100mbit --bits 1.0 --rounds 8

``alone`` is the same step without any exchange (no_sync), ``fp32`` is DDP without a hook, ``bf16`` and ``fp16`` are torch's hooks, ``auto`` and ``auto 1`` (with ``--bits 1``) the cost model's and
the trial steps' choice, made before anything is timed. A step's time is that of the slowest rank. Shown are medians, and each way's step over auto's in the same round: the median, and an interval
that holds it with 95 % (ranks of a binomial). Ways whose first steps take more than three times the fastest one's are timed in those only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "distributed"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from _launch import launch

from commpress.cluster import Cluster, Topology
from commpress.errors import ClusterError

FIXED = ("fp32", "bf16", "fp16", "hadamard+lloyd:4", "uniform:4", "hadamard+lloyd:2")


def worker(rank: int, size: int, ways: list[str], rounds: int, seconds: float, model: str) -> str:
    """Runs on every rank. JSON: seconds of every step by way, and what auto chose."""
    import torch
    import torch.distributed as dist

    import commpress
    from commpress.experiments._model import SHAPES, ByteGPT, loss_of
    from commpress.experiments._settings import Settings
    from commpress.experiments._text import standard_library
    from commpress.experiments._ways import way as peer

    began = time.perf_counter()
    settings, corpus = Settings(shape=SHAPES[model]), standard_library(None)
    torch.set_num_threads(1)
    models, optimizers, states, numbers = {}, {}, {}, dict.fromkeys(ways, 0)
    for way in ways:
        torch.manual_seed(0)
        models[way] = torch.nn.parallel.DistributedDataParallel(ByteGPT(settings.shape))
        optimizers[way] = torch.optim.SGD(models[way].parameters(), lr=1e-3)
        if way in ("bf16", "fp16"):
            peer(way).connect(models[way], seed=0, telemetry=None)
        elif way.startswith("auto"):
            bits = {"bits": float(way.split()[1])} if " " in way else {}
            states[way] = commpress.register(models[way], "auto", **bits)
        elif way not in ("fp32", "alone"):
            states[way] = commpress.register(models[way], way, shaping=0.0)

    def step(way: str) -> float:
        windows = corpus.batch(settings.windows_per_rank * size, settings.shape.context, seed=1, step=numbers[way])
        numbers[way] += 1
        dist.barrier()
        start = time.perf_counter()
        with models[way].no_sync() if way == "alone" else contextlib.nullcontext():
            loss_of(models[way], windows[rank::size]).backward()
        optimizers[way].step()
        optimizers[way].zero_grad()
        gone = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(gone, op=dist.ReduceOp.MAX)
        return float(gone)

    found: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    for way in ways:
        if way.startswith("auto"):
            steps = [step(way)]
            while states[way].auto.decided == "model" and len(steps) < 9 or states[way].auto.decided == "trial":
                steps.append(step(way))
            spent[way] = steps
            found[way] = [step(way)]
    for way in ways:
        if way not in found:
            found[way] = [step(way)]
            if found[way][0] < 4 * min(v[0] for v in found.values()):
                found[way] = [step(way) for _ in range(7 if way in states else 2)][-1:]
    fastest = min(v[-1] for way, v in found.items() if way != "alone")
    timed = [way for way in ways if found[way][-1] <= 3 * fastest]
    times: dict[str, list[float]] = {way: [] for way in timed}
    for turn in range(rounds):
        for way in timed[turn % len(timed) :] + timed[: turn % len(timed)]:
            times[way].append(step(way))
        stop = torch.tensor(float(time.perf_counter() - began > seconds))
        dist.all_reduce(stop)
        if stop and turn >= 2:
            break
    times |= {way: found[way][-1:] for way in ways if way not in timed}
    chosen = {}
    for way, state in states.items():
        if way.startswith("auto"):
            auto = state.auto
            chosen[way] = {
                "name": auto.name,
                "decided": auto.decided,
                "step_seconds": auto.step_seconds,
                "ways": [bucket.way for bucket in auto.buckets],
                "probe": state._exchange._auto.chooser.calibration.seconds,
                "trials": sum(spent[way]),
                "trial_steps": len(spent[way]),
            }
        state.close()
    return json.dumps({"times": times, "chosen": chosen})


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median, with at least 95 % where there are 6 values or more (else the extremes)."""
    ordered, n = sorted(values), len(values)
    tail, k = 0.5**n, 0
    while k + 1 < n / 2 and tail + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return ordered[k], ordered[n - 1 - k]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", help="shape links to this rate, such as 1gbit")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--bits", type=float, nargs="*", default=[], help="also auto with these budgets")
    parser.add_argument("--ways", nargs="*", default=list(FIXED), help="fixed choices")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=70.0, help="no round begins after so many")
    parser.add_argument("--model", choices=("base", "large"), default="large", help="2.5 or 10.8 million parameters")
    parser.add_argument("--quick", action="store_true", help="few: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.ranks, args.rounds, args.ways, args.model = 2, 2, ["fp32"], "base"
    ways = ["auto", *(f"auto {bits:g}" for bits in args.bits), "alone", *args.ways]
    arguments: dict[str, Any] = {"ways": ways, "rounds": args.rounds, "seconds": args.seconds, "model": args.model}
    if args.rate:
        try:
            with Cluster(Topology(args.ranks, args.rate)) as cluster:
                results = launch(__file__, "worker", args.ranks, args=arguments, timeout=900, cluster=cluster)
        except ClusterError as error:
            print(f"bench_auto: no shaped links here: {error}")
            return 1
    else:
        results = launch(__file__, "worker", args.ranks, args=arguments, timeout=900)
    said = json.loads(results[0].ok().value)
    for way, chosen in said["chosen"].items():
        steps = ", ".join(f"{plan} {1e3 * seconds:.0f} ms" for plan, seconds in chosen["step_seconds"].items())
        print(
            f"{way}: {', '.join(dict.fromkeys(chosen['ways']))}, by {chosen['decided']} ({steps or 'no trials'}); probe "
            f"{chosen['probe']:.2f} s, {chosen['trial_steps']} steps in {chosen['trials']:.1f} s until then"
        )
    times = said["times"]
    print(f"{'way':>18} {'ms/step':>9} {'over auto':>10} {'95 % interval':>16} {'steps':>6}")
    for way in ways:
        line = f"{way:>18} {1e3 * statistics.median(times[way]):>9.1f}"
        if len(times[way]) == len(times["auto"]) > 1:
            ratios = [a / b for a, b in zip(times[way], times["auto"], strict=True)]
            low, high = interval(ratios)
            line += f" {statistics.median(ratios):>10.3f} {low:>8.3f}-{high:.3f}"
        else:
            line += f" {times[way][0] / statistics.median(times['auto']):>10.1f} {'':>16}"
        print(f"{line} {len(times[way]):>6}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
