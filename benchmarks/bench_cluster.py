"""What rate the links of an emulated cluster reach, by burst: one TCP stream from the last rank to rank 0. Needs root and iproute2.

    python benchmarks/bench_cluster.py                                     # the default burst at four rates
    python benchmarks/bench_cluster.py --rates 1gbit --bursts 3kb 6kb 12500 25kb 128kb
    python benchmarks/bench_cluster.py --ranks 4 --nodes 2 --rates 1gbit

`reached` is the rate of frames that arrived, over the one asked for; `CPU s/GB` the time of sender and receiver, with the kernel's work on their behalf;
`frames/segment` how many frames went through the interface as one. The last line is the time to make a cluster.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

PORT = 5001


def receive(seconds: float) -> None:
    """Prints bits per second of TCP's data, without the first quarter of the time, and CPU seconds for each byte."""
    with socket.create_server((os.environ["MASTER_ADDR"], PORT)) as server:
        connection, _ = server.accept()
    buffer = bytearray(1 << 20)
    began = time.monotonic()
    total, first, marked, last = 0, 0.0, 0, 0.0
    while got := connection.recv_into(buffer):
        last = time.monotonic()
        total += got
        if not first and last - began > seconds / 4:
            first, marked = last, total
    print(8 * (total - marked) / (last - first), time.process_time() / total)


def send(seconds: float) -> None:
    """Sends for so long."""
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection((os.environ["MASTER_ADDR"], PORT))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    data, sent = memoryview(bytes(1 << 20)), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sent += connection.send(data)
    connection.close()
    print(0, time.process_time() / sent)


def measure(args: argparse.Namespace, rate: str, burst: str | None) -> str:
    """One line of the table."""
    from commpress.cluster import Cluster, Topology, bits_per_second

    topology = Topology(
        args.ranks,
        rate,
        nodes=args.nodes,
        intra=args.intra if args.nodes > 1 else None,
        burst=burst,
        offload=not args.no_offload,
    )
    script = [sys.executable, "-S", str(pathlib.Path(__file__).resolve())]
    sender = args.ranks - 1
    with Cluster(topology) as cluster, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as out2:
        ends = [
            cluster.start(0, [*script, "--receive", str(args.seconds)], stdout=out),
            cluster.start(sender, [*script, "--send", str(args.seconds)], stdout=out2),
        ]
        assert [end.wait(args.seconds + 60) for end in ends] == [0, 0]
        count = cluster.counters().sent[sender]
        out.seek(0)
        out2.seek(0)
        (goodput, cpu), (_, more) = (map(float, file.read().split()) for file in (out, out2))
    wire = goodput * 1514 / 1448
    return (
        f"{rate:>8} {topology.shapes()[-1].burst:>8} {wire / bits_per_second(rate):>8.4f} {1e9 * (cpu + more):>9.2f} "
        f"{count.frames / count.packets:>14.1f} {count.bytes / count.frame_bytes:>22.4f}"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--intra", default="10gbit")
    parser.add_argument("--rates", nargs="*", default=["10mbit", "100mbit", "1gbit", "10gbit"])
    parser.add_argument("--bursts", nargs="*", default=[None])
    parser.add_argument("--no-offload", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--quick", action="store_true", help="one short stream: does it run?")
    parser.add_argument("--receive", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--send", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.receive or args.send:
        receive(args.receive) if args.receive else send(args.send)
        return 0
    if args.quick:
        args.rates, args.seconds = ["100mbit"], 0.5
    from commpress.cluster import Cluster, Topology
    from commpress.errors import ClusterError

    print(
        f"{'rate':>8} {'burst':>8} {'reached':>8} {'CPU s/GB':>9} {'frames/segment':>14} {'interface/frame bytes':>22}"
    )
    try:
        for rate in args.rates:
            for burst in args.bursts:
                print(measure(args, rate, burst), flush=True)
        times = []
        for _ in range(1 if args.quick else 5):
            began = time.perf_counter()
            with Cluster(Topology(args.ranks, nodes=args.nodes, intra=args.intra if args.nodes > 1 else None)):
                times.append(time.perf_counter() - began)
    except ClusterError as error:
        print(f"bench_cluster: left out: {error}")
        return 0
    print(f"a cluster of {args.ranks} ranks is made in {statistics.median(times):.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
