"""How near the cost model comes: all-reduces of one bucket, predicted from the probe and measured after it in the same processes.

    python benchmarks/bench_cost_model.py                                  # loopback and four rates, 2 and 4 ranks: minutes
    python benchmarks/bench_cost_model.py --rates loopback 1gbit --ranks 4
    python benchmarks/bench_cost_model.py --json points.jsonl              # one line for each cluster, with the calibration

Rates other than loopback need root and iproute2. Every round runs all ways in turn; a call's time is that of the slowest rank, and the median over the rounds is compared with
the prediction. `error` is predicted over measured, less one. Points predicted to take longer than `--limit` seconds in all are left out, and listed.
"""

from __future__ import annotations

import argparse
import json
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

CODECS = (
    "none",
    "uniform:4",
    "hadamard+lloyd:4",
    "hadamard+lloyd:2",
    "hadamard+lloyd:1",
    "hadamard+bitshift:0.5,length=8",
    "ecsq:1",
    "topk:0.01",
)
DTYPES = ("fp32", "fp16")


def worker(rank: int, size: int, mib: list[float], codecs: list[str], rounds: int, limit: float) -> str:
    """Runs on every rank. JSON of the calibration and, for each size and way, predicted seconds and measured ones."""
    import torch
    import torch.distributed as dist

    import commpress
    from commpress import collectives

    calibration = collectives.probe(codecs, torch_dtypes=DTYPES)
    parsed = {spec: commpress.codec(spec) for spec in calibration.codecs}
    points = []
    for one in mib:
        numel = int(one * (1 << 18))
        x = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
        work = {name: x.to(getattr(torch, {"fp32": "float32", "fp16": "float16"}[name])) for name in DTYPES}
        work["codec"] = x.clone()
        predicted = {way: calibration.predict(way, numel) for way in calibration.candidates}
        ways = [way for way in predicted if 3 * predicted[way] < limit]
        found: dict[str, list[float]] = {way: [] for way in ways}
        repetitions = max(2, min(rounds, int(limit / max(predicted[way] for way in ways)))) if ways else 0
        for turn in range(-2, repetitions):
            for way in ways:
                if turn < 0 and predicted[way] > 1:
                    continue
                tensor = work.get(way, work["codec"])
                tensor.copy_(x)
                dist.barrier()
                start = time.perf_counter()
                if way in DTYPES:
                    dist.all_reduce(tensor)
                else:
                    commpress.all_reduce(tensor, parsed[way], key=commpress.Key(step=turn + 2))
                if turn >= 0:
                    found[way].append(time.perf_counter() - start)
        points.append((one, predicted, found))
    return json.dumps({"calibration": calibration.to_dict(), "points": points})


def measure(args: argparse.Namespace, rate: str, ranks: int) -> list[dict[str, Any]]:
    """The points of one cluster."""
    arguments = {"mib": args.mib, "codecs": args.codec, "rounds": args.rounds, "limit": args.limit}
    if rate == "loopback":
        results = launch(__file__, "worker", ranks, args=arguments, timeout=600)
    else:
        with Cluster(Topology(ranks, rate)) as cluster:
            results = launch(__file__, "worker", ranks, args=arguments, timeout=600, cluster=cluster)
    said = [json.loads(result.ok().value) for result in results]
    if args.json:
        with open(args.json, "a") as file:
            print(json.dumps({"rate": rate, "ranks": ranks, "said": said}), file=file)
    points = []
    for which, (mib, predicted, _) in enumerate(said[0]["points"]):
        for way in predicted:
            samples = [one["points"][which][2].get(way, []) for one in said]
            seconds = statistics.median(max(turn) for turn in zip(*samples, strict=True)) if samples[0] else None
            points.append(
                {"rate": rate, "ranks": ranks, "mib": mib, "way": way, "predicted": predicted[way], "measured": seconds}
            )
    assert said[0]["calibration"] == said[-1]["calibration"], "the ranks disagree"
    print(f"# {rate}, {ranks} ranks: probed in {said[0]['calibration']['seconds']:.2f} s", flush=True)
    return points


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="*", default=["loopback", "10gbit", "1gbit", "100mbit", "10mbit"])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--mib", type=float, nargs="*", default=[1.0, 25.0], help="sizes in MiB of fp32")
    parser.add_argument("--codec", nargs="*", default=list(CODECS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=6.0, help="seconds for all rounds of a point")
    parser.add_argument("--json", help="append calibrations and times to this file")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.rates, args.ranks, args.mib, args.rounds = ["loopback"], [2], [0.25], 3
        args.codec = ["uniform:4", "hadamard+lloyd:2"]
    points = []
    for rate in args.rates:
        for ranks in args.ranks:
            try:
                points += measure(args, rate, ranks)
            except ClusterError as error:
                print(f"bench_cost_model: {rate} left out: {error}")
    print(f"{'rate':>9} {'ranks':>5} {'MiB':>6} {'way':>32} {'predicted ms':>13} {'measured ms':>12} {'error':>7}")
    errors = []
    for point in points:
        line = f"{point['rate']:>9} {point['ranks']:>5} {point['mib']:>6g} {point['way']:>32} {1e3 * point['predicted']:>13.2f}"
        if point["measured"] is None:
            print(f"{line} {'left out':>12}")
            continue
        errors.append(point["predicted"] / point["measured"] - 1)
        print(f"{line} {1e3 * point['measured']:>12.2f} {errors[-1]:>+7.1%}")
    if errors:
        size = sorted(map(abs, errors))
        print(f"{len(size)} points: median error {statistics.median(size):.1%}, worst {size[-1]:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
