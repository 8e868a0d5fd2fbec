"""An all-reduce with a codec, as a trial: between two threads of this process over loopback sockets, and between the ranks of a group."""

from __future__ import annotations

import concurrent.futures
import datetime
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from commpress.codecs import Key, codec
from commpress.collectives import Reducer, TorchCommunicator, all_reduce
from commpress.doctor._check import Check, fail, ok
from commpress.errors import CommpressError

CODEC = "hadamard+lloyd:4"
NUMEL = 1 << 20
_MOST_ERROR = 0.05  # squared error over energy of the mean: 4 bits leave about .01 on each rank
_LOOPBACK_REMEDY = "look for a firewall on the loopback or chosen interface, and at GLOO_SOCKET_IFNAME; `ip addr show lo` must say UP and 127.0.0.1"
_GROUP_REMEDY = (
    "ranks must reach each other on every port: open the firewall between the machines, and name the interface that connects them "
    "with GLOO_SOCKET_IFNAME on each"
)


def tensor_of(rank: int, numel: int = NUMEL) -> torch.Tensor:
    """What rank `rank` contributes: fp32, known to all."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank))


def judge(results: list[torch.Tensor], numel: int = NUMEL) -> str | None:
    """What is wrong with the results of all ranks, or None."""
    n = len(results)
    exact = torch.stack([tensor_of(rank, numel) for rank in range(n)]).mean(0)
    for rank, result in enumerate(results):
        if not torch.equal(result, results[0]):
            return f"rank {rank}'s result differs from rank 0's"
    error = float((results[0] - exact).square().sum() / exact.square().sum())
    if not error < _MOST_ERROR:
        return f"its squared error is {error:.3g} of the energy; {_MOST_ERROR} is the most to be expected"
    if n > 1 and error == 0.0:
        return "it came out exact: nothing was compressed"
    return None


def loopback_check(*, timeout: float = 30.0, trial: Callable[[float], list[torch.Tensor]] | None = None) -> Check:
    """Two ranks in this process, connected by gloo as gloo is set up here. `trial`: what to run in place of that."""
    try:
        began = time.perf_counter()
        results = (trial or _two_threads)(timeout)
        took = time.perf_counter() - began
    except (CommpressError, RuntimeError, OSError, concurrent.futures.TimeoutError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return fail("loopback", f"two ranks in this process cannot talk: {first}", _LOOPBACK_REMEDY)
    wrong = judge(results, results[0].numel())
    if wrong is not None:
        return fail(
            "loopback",
            f"all-reduce with {CODEC}: {wrong}",
            "build the extension anew (`make clean all`), and report this",
        )
    return ok(
        "loopback",
        f"{results[0].numel():,} coordinates with {CODEC} on two ranks: right, {1000 * took:.0f} ms with connecting",
    )


def _two_threads(timeout: float) -> list[torch.Tensor]:
    store = dist.HashStore()
    wait = datetime.timedelta(seconds=timeout)

    def rank(number: int) -> torch.Tensor:
        pair = [
            TorchCommunicator(dist.ProcessGroupGloo(dist.PrefixStore(str(i), store), number, 2, wait)) for i in (1, 2)
        ]
        reducer = Reducer(pair[0], pair[1], timeout=timeout, plan="doctor")
        try:
            flat, one = tensor_of(number), codec(CODEC)
            return reducer.submit(flat, one, one, Key(), op="mean").wait()
        finally:
            reducer.close()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [future.result(timeout) for future in [pool.submit(rank, i) for i in range(2)]]


def exchange_check(group: Any = None, *, reduce: Callable[[torch.Tensor], Any] | None = None) -> Check:
    """An all-reduce between the ranks of `group`, and the same in fp32. Collective; every rank gets the same verdict.

    Args:
        reduce: in place of :func:`commpress.all_reduce`.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    wrong, times = None, [0.0, 0.0]
    try:
        compress = reduce or (lambda tensor: all_reduce(tensor, CODEC, group=group))
        compress(tensor_of(rank))  # makes the connections
        result = tensor_of(rank)
        for i, one in enumerate((compress, lambda tensor: dist.all_reduce(tensor, group=group))):
            dist.barrier(group)
            began = time.perf_counter()
            one(result if i == 0 else tensor_of(rank))
            times[i] = time.perf_counter() - began
        others = [torch.empty_like(result) for _ in range(size)]
        dist.all_gather(others, result, group=group)
        wrong = judge(others)
    except (CommpressError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return fail("all-reduce", f"{type(error).__name__} on rank {rank}: {first}", _GROUP_REMEDY)
    if wrong is not None:
        remedy = "see `versions` above: all ranks need the same build of commpress. If they have it, report this"
        return fail("all-reduce", f"{NUMEL:,} coordinates with {CODEC} on {size} ranks: {wrong}", remedy)
    compressed, plain = (1000 * t for t in times)
    return ok(
        "all-reduce",
        f"{NUMEL:,} coordinates on {size} ranks: right; {compressed:.0f} ms with {CODEC}, {plain:.0f} ms in fp32",
    )
