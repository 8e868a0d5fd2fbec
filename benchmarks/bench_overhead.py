"""What telemetry and the allocator add to a training step of the main job: two ranks on loopback, all ways in turn in the same processes.

    python -m benchmarks.bench_overhead [--rounds 12] [--block 10] [--bits 2]

``fixed`` has one codec for all layers and no telemetry, ``telemetry`` writes its records besides, ``bits`` shares the same bits out between the layers and writes its
records, all with their default settings. Every round trains a block of steps each way, in another order; a step's time is that of the slower rank. Where a model's tensors lie in memory moves its
steps by two percent, either way, for as long as the processes live: so there are six launches, one for each order in which the ways can be set up.
Shown are the mean step over all launches, its ratio to that of ``fixed``, the smallest and the largest ratio of a launch, and the same ratio for the CPU seconds of both ranks.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "distributed"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from _launch import launch

WAYS = ("fixed", "telemetry", "bits")


def worker(rank: int, size: int, rounds: int, block: int, bits: float, folder: str, ways: list[str]) -> dict[str, Any]:
    """Runs on every rank; seconds of every step, and CPU seconds of every block, by way."""
    import torch
    import torch.distributed as dist

    import commpress
    from commpress.experiments._model import ByteGPT, loss_of
    from commpress.experiments._settings import Settings
    from commpress.experiments._text import standard_library

    settings, corpus = Settings(), standard_library(None)
    torch.set_num_threads(1)
    models, optimizers, states = {}, {}, {}
    for way in ways:
        torch.manual_seed(0)
        models[way] = torch.nn.parallel.DistributedDataParallel(ByteGPT(settings.shape))
        optimizers[way] = torch.optim.AdamW(models[way].parameters(), lr=1e-3, fused=True)
        telemetry = None if way == "fixed" else str(pathlib.Path(folder) / f"{way}.jsonl")
        codec = {"bits": bits} if way == "bits" else {"codec": f"hadamard+lloyd:{bits:g}"}
        states[way] = commpress.register(models[way], **codec, telemetry=telemetry)

    def step(way: str, number: int) -> None:
        windows = corpus.batch(settings.windows_per_rank * size, settings.shape.context, seed=1, step=number)
        loss_of(models[way], windows[rank::size]).backward()
        torch.nn.utils.clip_grad_norm_(models[way].parameters(), 1.0)
        optimizers[way].step()
        optimizers[way].zero_grad()

    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:  # the first steps repack buckets and make the first plans
        for number in range(10):
            step(way, number)
    for turn in range(rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            dist.barrier()
            began = time.process_time()
            for number in range(block):
                start = time.perf_counter()
                step(way, 10 + turn * block + number)
                wall[way].append(time.perf_counter() - start)
            cpu[way].append(time.process_time() - began)
    for state in states.values():
        state.close()
    return {"wall": wall, "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=int, default=10, help="steps of each way in a round")
    parser.add_argument("--bits", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    rounds, block = (3, 2) if args.quick else (args.rounds, args.block)
    orders = list(itertools.permutations(WAYS))[: 1 if args.quick else None]
    wall: dict[str, list[float]] = {way: [] for way in WAYS}  # seconds a step, by launch
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for order in orders:
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"rounds": rounds, "block": block, "bits": args.bits, "folder": folder, "ways": list(order)}
            results = [r.ok().value for r in launch(__file__, "worker", 2, args=arguments, timeout=3600)]
        for way in WAYS:
            wall[way].append(statistics.mean(max(t) for t in zip(*(r["wall"][way] for r in results), strict=True)))
            cpu[way].append(sum(sum(r["cpu"][way]) for r in results) / (rounds * block))
    print(f"{'way':>10} {'ms/step':>9} {'ratio':>7} {'least':>7} {'most':>7} {'CPU ms':>8} {'ratio':>7}")
    for way in WAYS:
        each = [a / b for a, b in zip(wall[way], wall["fixed"], strict=True)]
        ratios = [sum(of[way]) / sum(of["fixed"]) for of in (wall, cpu)]
        print(
            f"{way:>10} {1e3 * statistics.mean(wall[way]):9.2f} {ratios[0]:7.3f} {min(each):7.3f} {max(each):7.3f} "
            f"{1e3 * statistics.mean(cpu[way]):8.2f} {ratios[1]:7.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
