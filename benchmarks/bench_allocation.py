"""Milliseconds per plan by number of layers, medians, on one thread.

    python -m benchmarks.bench_allocation [--layers 10 100 1000 10000] [--rounds 20] [--quick]

``gaussian``: `solve`, the closed form. ``hull``: the plan on a codec's hull, a byte being 8 bits. ``payload``: the same with the exact
payload bytes of `hadamard+lloyd`. ``replan``: all that an `Allocator` does every K steps (statistics, plan, comparison), exact bytes. ``once``: what it
does when it is made.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import commpress
from commpress.allocation import LLOYD_MAX, Allocator, solve, solve_on_curve

BITS = 2.0


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure(layers: int, objective: str, rounds: int) -> str:
    """One row of the table."""
    rng = np.random.default_rng(layers)
    dims = rng.integers(1000, 1_000_000, layers)
    sizes = dims.tolist()
    # Values that wander: every plan is another one, as in training.
    many = [10 ** rng.uniform(-6, 0, layers) for _ in range(rounds + 1)]

    codec = commpress.codec(f"hadamard+lloyd:{BITS}")

    def cost(which: np.ndarray, rates: np.ndarray) -> np.ndarray:
        return codec.payload_nbytes_each(rates, dims[which])

    budget = sum(codec.payload_nbytes(size) for size in sizes)

    def make() -> Allocator:
        return Allocator([str(i) for i in range(layers)], sizes, bits=BITS, objective=objective, cost=cost)

    allocator, turn = make(), iter(range(10**9))

    def replan() -> None:
        step = next(turn)
        allocator.observe(step, many[step % len(many)] * dims)
        allocator.replan(step)

    times = [
        milliseconds(lambda: solve(objective, dims, many[0], BITS * dims.sum()), rounds),
        milliseconds(lambda: solve_on_curve(objective, dims, many[0], int(dims.sum() * BITS / 8), LLOYD_MAX), rounds),
        milliseconds(
            lambda: solve_on_curve(objective, dims, many[0], budget, LLOYD_MAX, cost=cost), max(1, rounds // 5)
        ),
        milliseconds(replan, rounds),
        milliseconds(make, max(1, rounds // 5)),
    ]
    return f"{objective:>9} {layers:>7} " + " ".join(f"{t:9.3f}" for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.rounds = [10, 100], 2
    print(f"{'objective':>9} {'layers':>7} {'gaussian':>9} {'hull':>9} {'payload':>9} {'replan':>9} {'once':>9}  ms")
    for objective in ("unbiased", "mse", "fisher"):
        for layers in args.layers:
            print(measure(layers, objective, args.rounds), flush=True)


if __name__ == "__main__":
    main()
