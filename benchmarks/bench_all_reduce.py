"""How fast `commpress.all_reduce` is beside `dist.all_reduce` in fp32, on loopback and on shaped links.

    python benchmarks/bench_all_reduce.py                        # loopback, 2 and 4 ranks
    python benchmarks/bench_all_reduce.py --rate 1gbit           # an emulated cluster; needs root, ip and tc

Both are timed in turn in the same processes; a call's time is that of the slowest rank, and medians are shown. `wire` is the time that the bytes need on the link alone,
`x wire` the measured time in units of it. `claimed` is the report's `wire_bytes`, `counted` what the interface counted; both per call and rank.
An interface counts one set of headers for each segment that TCP hands it, up to 4 % less than frames have; with `--no-offload` every frame is handed over by itself, which costs CPU time.
The report learns which of the two it is from the interface's packet counter.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "distributed"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from _launch import launch

from commpress.cluster import Cluster, Topology, bits_per_second
from commpress.errors import ClusterError


def worker(rank: int, size: int, numel: int, codec: str, rounds: int) -> dict[str, Any]:
    """Runs on every rank; returns times in seconds."""
    import torch
    import torch.distributed as dist

    import commpress
    from commpress import collectives

    interface = os.environ["GLOO_SOCKET_IFNAME"]

    def sent() -> int:
        return int(pathlib.Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())

    x = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
    work = x.clone()
    parsed = commpress.codec(codec)
    plain, ours, counted, reports = [], [], [], []
    for turn in range(rounds + 4):
        work.copy_(x)
        dist.barrier()
        time.sleep(0.02)
        start = time.perf_counter()
        dist.all_reduce(work)
        plain.append(time.perf_counter() - start)
        work.copy_(x)
        dist.barrier()
        time.sleep(0.02)
        before = sent()
        start = time.perf_counter()
        commpress.all_reduce(work, parsed, key=commpress.Key(step=turn))
        ours.append(time.perf_counter() - start)
        time.sleep(0.02)
        counted.append(sent() - before)
        reports.append(collectives.last_report())
    last = reports[-1]
    return {
        "plain": plain[4:],
        "ours": ours[4:],
        "counted": counted[4:],
        "claimed": last.wire_bytes,
        "payload": last.bytes_payload1 + last.bytes_payload2,
        "header": last.bytes_header,
        "messages": last.messages,
        "received": last.bytes_received,
        "chunks": [r.chunks for r in reports],
        "link": [int(r.link_bytes_per_second / 1e6) for r in reports],
        "seconds": {
            f: statistics.median(getattr(r, f) for r in reports[4:])
            for f in last.__dataclass_fields__
            if f.startswith("seconds")
        },
    }


def measure(size: int, args: argparse.Namespace, codec: str) -> None:
    """One line of the table."""
    numel = int(args.mib * (1 << 18))
    worker_args = {"numel": numel, "codec": codec, "rounds": args.rounds}
    if args.rate:
        with Cluster(Topology(size, args.rate, burst=args.burst, offload=not args.no_offload)) as cluster:
            results = launch(__file__, "worker", size, args=worker_args, timeout=300, cluster=cluster)
    else:
        results = launch(__file__, "worker", size, args=worker_args, timeout=300)
    values = [r.ok().value for r in results]
    plain = statistics.median(max(v["plain"][i] for v in values) for i in range(args.rounds))
    ours = statistics.median(max(v["ours"][i] for v in values) for i in range(args.rounds))
    counted = statistics.median(values[0]["counted"])
    line = f"{codec:>18} {size:>5} {plain * 1e3:>9.1f} {ours * 1e3:>9.1f} {plain / ours:>7.2f}"
    if args.rate:
        wire = max(v["claimed"] for v in values) / (bits_per_second(args.rate) / 8)
        line += f" {wire * 1e3:>8.1f} {ours / wire:>7.2f} {values[0]['claimed']:>10} {counted:>10.0f} {values[0]['claimed'] / counted:>7.3f}"
    print(line, flush=True)
    if args.verbose:
        v = values[0]
        print("    ", {k: round(1e3 * s, 2) for k, s in v["seconds"].items()})
        print(
            "    ",
            "chunks",
            v["chunks"],
            "MB/s",
            v["link"],
            "messages",
            v["messages"],
            "payload",
            v["payload"],
            "header",
            v["header"],
        )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--codec", nargs="*", default=["uniform:4"])
    parser.add_argument("--mib", type=float, default=25.0, help="size of the tensor in MiB of fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rate", help="shape links to this rate, such as 1gbit")
    parser.add_argument("--burst", help="bytes that may pass a link at once (default: what its rate needs)")
    parser.add_argument("--no-offload", action="store_true", help="hand frames to the interface one by one")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.mib, args.rounds, args.ranks = 2.0, 3, [2]
    header = f"{'codec':>18} {'ranks':>5} {'fp32 ms':>9} {'ours ms':>9} {'x fp32':>7}"
    print(header + (f" {'wire ms':>8} {'x wire':>7} {'claimed':>10} {'counted':>10} {'ratio':>7}" if args.rate else ""))
    try:
        for codec in args.codec:
            for size in args.ranks:
                measure(size, args, codec)
    except ClusterError as error:
        print(f"bench_all_reduce: no shaped links here: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
