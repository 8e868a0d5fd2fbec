"""What two levels are worth: a hierarchical all-reduce beside a flat one, on emulated nodes.

    python benchmarks/bench_hierarchical.py                             # 2 nodes x 2 ranks, 100 Mbit/s between them; needs root, ip and tc
    python benchmarks/bench_hierarchical.py --nodes 3 --rate 1gbit --codec hadamard+lloyd:2

Both are timed in turn in the same processes; a call's time is that of the slowest rank, and medians are shown. Bytes are those that the nodes' uplinks carried, frames with all headers,
in runs that do one kind of call only. `claimed` is the reports' `wire_bytes` of a node's ranks.
"""

from __future__ import annotations

import argparse
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

WARM_UP = 4


def worker(rank: int, size: int, numel: int, codec: str, rounds: int, modes: list[bool]) -> dict[str, Any]:
    """Runs on every rank; returns times in seconds, and the last report's figures, by mode (hierarchical or not)."""
    import torch
    import torch.distributed as dist

    import commpress
    from commpress import collectives

    x = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
    work = x.clone()
    parsed = commpress.codec(codec)
    times: dict[bool, list[float]] = {mode: [] for mode in modes}
    reports: dict[bool, Any] = {}
    for turn in range(rounds + WARM_UP):
        for mode in modes:
            work.copy_(x)
            dist.barrier()
            time.sleep(0.02)
            start = time.perf_counter()
            commpress.all_reduce(work, parsed, key=commpress.Key(step=turn), hierarchical=mode)
            times[mode].append(time.perf_counter() - start)
            reports[mode] = collectives.last_report()
    return {
        str(mode): {
            "times": times[mode][WARM_UP:],
            "wire": reports[mode].wire_bytes,
            "node": reports[mode].wire_bytes_node,
            "chunks": reports[mode].chunks,
            "seconds": {f: getattr(reports[mode], f) for f in reports[mode].__dataclass_fields__ if f.startswith("seconds")},
        }
        for mode in modes
    }  # fmt: skip


def measure(args: argparse.Namespace, codec: str) -> None:
    """One line of the table."""
    size, numel = args.nodes * args.per_node, int(args.mib * (1 << 18))
    topology = Topology(size, args.rate, nodes=args.nodes, intra=args.intra)

    def run(modes: list[bool], rounds: int) -> tuple[list[Any], float]:
        worker_args = {"numel": numel, "codec": codec, "rounds": rounds, "modes": modes}
        with Cluster(topology) as cluster:
            results = launch(__file__, "worker", size, args=worker_args, timeout=300, cluster=cluster)
            left = cluster.counters().left
        values = [result.ok().value for result in results]
        return values, sum(count.frame_bytes for count in left) / args.nodes / (rounds + WARM_UP)

    counted = {mode: run([mode], args.byte_rounds)[1] for mode in (False, True)}
    values, _ = run([False, True], args.rounds)
    took = {
        mode: statistics.median(max(v[str(mode)]["times"][i] for v in values) for i in range(args.rounds))
        for mode in (False, True)
    }
    claimed = {mode: sum(v[str(mode)]["wire"] for v in values) / args.nodes for mode in (False, True)}
    print(
        f"{codec:>18} {args.nodes}x{args.per_node} {took[False] * 1e3:>8.1f} {took[True] * 1e3:>8.1f} {took[False] / took[True]:>7.2f} "
        f"{counted[False] / 1e6:>9.3f} {counted[True] / 1e6:>9.3f} {counted[True] / counted[False]:>6.3f} {claimed[True] / 1e6:>9.3f}",
        flush=True,
    )
    if args.verbose:
        for mode in ("False", "True"):
            v = values[0][mode]
            print(
                "     hierarchical" if mode == "True" else "     flat",
                "chunks",
                v["chunks"],
                "wire MB of rank 0",
                v["wire"] / 1e6,
                "in node",
                v["node"] / 1e6,
            )
            print("       ", {k.removeprefix("seconds_"): round(1e3 * s, 1) for k, s in v["seconds"].items()})
            print("       ", [round(1e3 * t) for t in v["times"]])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--per-node", type=int, default=2)
    parser.add_argument("--rate", default="100mbit", help="of each node's uplink")
    parser.add_argument("--intra", default="10gbit", help="of each rank's link inside its node")
    parser.add_argument("--codec", nargs="*", default=["uniform:4"])
    parser.add_argument("--mib", type=float, default=25.0, help="size of the tensor in MiB of fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--byte-rounds", type=int, default=4, help="calls of each kind, beside the warm-up, for counting bytes"
    )
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.mib, args.rounds, args.byte_rounds, args.rate = 2.0, 3, 1, "1gbit"
    print(
        f"{'codec':>18} {'':>3} {'flat ms':>8} {'hier. ms':>8} {'faster':>7} {'flat MB':>9} {'hier. MB':>9} {'ratio':>6} {'claimed':>9}"
        "      (MB: one node's uplink, each call)"
    )
    try:
        for codec in args.codec:
            measure(args, codec)
    except ClusterError as error:
        print(f"bench_hierarchical: left out: {error}")
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
