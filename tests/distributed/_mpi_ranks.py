"""What one MPI rank does in a test: `python -m mpi4py _mpi_ranks.py SCENARIO [ARGUMENT]` under mpiexec. An exception ends the whole job; success ends with a line "fine RANK"."""

from __future__ import annotations

import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _stand_ins import Grid
from mpi4py import MPI

import commpress
from commpress import Key, collectives
from commpress.collectives import MpiCommunicator, Reducer
from commpress.errors import MismatchError, PeerError, StateError, TensorError, TopologyError

WORLD = MPI.COMM_WORLD
CODECS = (
    "uniform:4",
    "hadamard+lloyd:2",
    "ecsq:1",
    "topk:0.01",
    "none",
    "lowrank:2",
    "homomorphic:4",
    "modulo:2,rho=0.9",
)
SIZES = (0, 1, 4097, 100_003)


def raised(kind: type[BaseException], call: Callable[[], object]) -> str:
    try:
        call()
    except kind as problem:
        return str(problem)
    raise AssertionError(f"no {kind.__name__}")


def values(numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(1000 * WORLD.rank + numel % 997)).to(dtype)


# ---- results


def results(store: str) -> None:
    """Over MPI and over gloo, on 4, 3 and 2 ranks: the same bits, for every codec, size, operation, dtype and layout. Ends with `finalize`."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=WORLD.rank,
        world_size=WORLD.size,
        timeout=datetime.timedelta(seconds=40),
    )
    checked = 0
    sizes = (4, 3, 2)
    groups = [dist.new_group(list(range(size))) for size in sizes]
    comms = [WORLD.Split(0 if WORLD.rank < size else MPI.UNDEFINED, WORLD.rank) for size in sizes]
    for size, group, comm in zip(sizes, groups, comms, strict=True):
        if WORLD.rank < size:
            checked += compare(comm, group)
            commpress.mpi.close(comm)
            comm.Free()
        else:
            assert comm == MPI.COMM_NULL
            raised(StateError, lambda comm=comm: commpress.mpi.all_reduce(np.ones(3), "none", comm))
    assert checked >= 80 if WORLD.rank < 2 else checked >= 40
    on_nodes()
    dist.barrier()  # MPI's would keep the cores of the others busy
    dist.destroy_process_group()
    collectives.close()  # those over gloo
    finalize()


def on_nodes() -> None:
    """Two levels and lists, over MPI and over gloo: the same bits. Through shared memory, and through MPI's own messages."""
    nodes = [[0, 2], [1, 3]]
    for numel in (0, 4097, 300_001):
        for spec in ("uniform:4", "homomorphic:4", "none"):
            over_gloo, over_mpi = values(numel), values(numel).numpy()
            key = Key(step=numel)
            commpress.all_reduce(over_gloo, spec, key=key, hierarchical=nodes)
            commpress.mpi.all_reduce(over_mpi, spec, key=key, hierarchical=nodes)
            assert np.array_equal(over_gloo.numpy(), over_mpi) and commpress.mpi.last_report().nodes == 2
            assert commpress.mpi.last_report().bytes_node > 0
    channels = [MpiCommunicator(WORLD, timeout=30) for _ in range(2)]
    reducer = Reducer(*channels, timeout=30, nodes=collectives.NodeMap(((0, 2), (1, 3))))
    got = reducer.run(values(300_001), *[commpress.codec("none")] * 2, Key(step=300_001))
    assert np.array_equal(got.numpy(), over_mpi)
    reducer.close()
    arrays = [values(10).numpy(), values(5000).numpy().reshape(50, 100)[:, ::-1], values(7).double().numpy()]
    whole = torch.cat([torch.from_numpy(np.ascontiguousarray(a)).float().view(-1) for a in arrays])
    commpress.all_reduce(whole, "uniform:4", key=Key())
    assert commpress.mpi.all_reduce(arrays, "uniform:4", key=Key()) is arrays
    assert np.array_equal(whole.numpy(), np.concatenate([a.reshape(-1).astype(np.float32) for a in arrays]))
    try:
        commpress.mpi.all_reduce(np.ones(3), "none", hierarchical=[[0, 1], [2]])
    except TopologyError:
        return
    raise AssertionError("no TopologyError")


def finalize() -> None:
    """MPI_Finalize by hand, with everything still open."""
    array = np.full(50_000, float(WORLD.rank), np.float32)
    commpress.mpi.all_reduce(array, "hadamard+lloyd:2")
    assert [t for t in threading.enumerate() if t.name.startswith("commpress-phase")]
    MPI.Finalize()
    assert not [t for t in threading.enumerate() if t.name.startswith("commpress-phase")]
    raised(StateError, lambda: commpress.mpi.all_reduce(array, "none"))


def compare(comm: MPI.Intracomm, group: object) -> int:
    checked = 0

    def check(tensor: torch.Tensor, spec: object, op: str, *, as_array: bool) -> None:
        """`tensor` over both, and the memory around it."""
        nonlocal checked
        checked += 1
        key = Key(seed=7, step=checked, tensor=3)
        over_gloo = tensor.clone()
        commpress.all_reduce(over_gloo, spec, op=op, group=group, key=key)
        before = tensor.clone()
        given = tensor.numpy() if as_array else tensor
        assert commpress.mpi.all_reduce(given, spec, comm, op=op, key=key) is given
        assert tensor.dtype == over_gloo.dtype and bytes_of(tensor) == bytes_of(over_gloo), (
            str(spec),
            op,
            tensor.shape,
        )
        if tensor.numel() > 1:
            assert not torch.equal(tensor, before), "nothing was reduced"
        root = comm.bcast(bytes_of(tensor) if comm.rank == 0 else None)
        assert root == bytes_of(tensor), "ranks differ"

    ops = ("mean", "sum")
    for i, spec in enumerate(CODECS):
        for j, numel in enumerate(SIZES if comm.size == 4 or i < 3 else SIZES[1:3]):
            check(values(numel), spec, ops[(i + j) % 2], as_array=(i // 2 + j) % 2 == 0)
    check(values(90_000).view(300, 300), "lowrank:2", "mean", as_array=True)
    for dtype in (torch.float16, torch.float64, torch.complex64, torch.complex128):
        check(values(10_001, dtype), "hadamard+lloyd:2", "mean", as_array=True)
        check(values(10_001, dtype), "none", "sum", as_array=False)
    check(values(10_001, torch.bfloat16), "uniform:4", "mean", as_array=False)
    check(values(1).view(()), "none", "sum", as_array=True)  # no dimensions
    check(values(120_000).view(300, 400).t(), "uniform:4", "mean", as_array=True)
    base = torch.full((100, 101), float("nan"))
    base[:, ::2] = comm.rank + 1.0
    check(base[:, ::2], "uniform:4", "sum", as_array=True)
    assert base[:, 1::2].isnan().all() and not base[:, ::2].isnan().any(), "wrote beside the view"
    # a negative stride, which torch does not have
    straight, backwards = values(5_000).numpy(), values(5_000).numpy()[::-1].copy()[::-1]
    assert backwards.strides[0] < 0
    for array in (straight, backwards):
        commpress.mpi.all_reduce(array, "uniform:4", comm, key=Key(step=999))
    assert straight.tobytes() == backwards.tobytes()
    # without a key both count their calls
    mine, other = values(9_000), values(9_000)
    for group_call in range(2):
        commpress.mpi.all_reduce(mine, "hadamard+lloyd:2", comm)
        commpress.all_reduce(other, "hadamard+lloyd:2", group=group)
        assert bytes_of(mine) == bytes_of(other), group_call
    report = commpress.mpi.last_report(comm)
    assert report is not None and report.world_size == comm.size and report.bytes_payload1 > 0
    return checked


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


# ---- failures and ends


def faults(nothing: str) -> None:
    rank, size = WORLD.rank, WORLD.size
    odd = rank == 1
    # refused here, before anything is sent
    for bad in (
        np.ones(4, np.int32),
        np.ones(4, bool),
        np.ones(4, ">f4"),
        np.ones(4, np.longdouble),
        np.broadcast_to(np.float32(1), (4,)),
        np.ma.masked_array(np.ones(4)),
        [1.0, 2.0],
        np.float32(1.0),
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, device="meta"),
    ):
        raised(TensorError, lambda bad=bad: commpress.mpi.all_reduce(bad, "none"))
    raised(TensorError, lambda: commpress.mpi.all_reduce(np.ones(4), "none", op="max"))
    raised(StateError, lambda: commpress.mpi.all_reduce(np.ones(4), "none", MPI.COMM_NULL))
    raised(StateError, lambda: commpress.mpi.all_reduce(np.ones(4), "none", "world"))
    commpress.mpi.close()  # of what was never used
    assert commpress.mpi.last_report() is None

    # two communicators that overlap, in turns
    pairs = WORLD.Split(rank // 2, rank)
    for step in range(4):
        for comm in (WORLD, pairs):
            array = np.full(5_000, float(rank), np.float32)
            commpress.mpi.all_reduce(array, "none", comm, key=Key(step=step))
            assert np.allclose(array, np.mean(comm.allgather(rank)))
    threads = threading.active_count()
    commpress.mpi.close(pairs)
    assert threading.active_count() == threads - 2
    commpress.mpi.close(pairs)

    # another codec on one rank, by name on all; then nothing works until everybody has closed it
    array = np.ones(20_000, np.float32)
    text = raised(
        MismatchError, lambda: commpress.mpi.all_reduce(array, "uniform:4" if odd else "uniform:3", key=Key())
    )
    assert "uniform:4" in text and "uniform:3" in text and "rank" in text, text
    raised(StateError, lambda: commpress.mpi.all_reduce(array, "none", key=Key()))
    commpress.mpi.close()
    text = raised(MismatchError, lambda: commpress.mpi.all_reduce(array[odd:], "none", key=Key()))
    assert "19999" in text, text
    commpress.mpi.close()

    # a codec that fails on one rank, a rank that gives up, a rank that is silent
    text = raised(
        StateError if odd else PeerError,
        lambda: commpress.mpi.all_reduce(array, Grid(sabotage="encode:1" if odd else ""), key=Key()),
    )
    assert "sabotage" in text or "encode" in text, text
    commpress.mpi.close()
    commpress.mpi.all_reduce(array, "none", op="sum", timeout=60)
    began = time.monotonic()
    if odd:
        commpress.mpi.close()
    else:
        text = raised(PeerError, lambda: commpress.mpi.all_reduce(np.ones(3_000_000, np.float32), "none"))
        assert "is gone" in text, text
        assert time.monotonic() - began < 30, "waited for its timeout"
        commpress.mpi.close()
    WORLD.Barrier()
    if odd:
        time.sleep(1.5)
    else:
        text = raised(PeerError, lambda: commpress.mpi.all_reduce(array, "none", timeout=0.5))
        assert "0.5 s" in text, text
    WORLD.Barrier()
    if odd:
        MpiCommunicator(
            WORLD, timeout=20
        )  # meets what the others have begun: Open MPI makes no other communicator before that

    # a communicator that is freed takes its own along, and its number may come again
    for _ in range(3):
        twin = pairs.Dup()
        threads = threading.active_count()
        array = np.full(10, rank, np.float64)
        commpress.mpi.all_reduce(array, "none", twin)
        twin.Free()
        assert threading.active_count() == threads
        raised(StateError, lambda twin=twin, array=array: commpress.mpi.all_reduce(array, "none", twin))
        raised(StateError, lambda twin=twin: commpress.mpi.close(twin))
    assert size == 3


def channels(nothing: str) -> None:
    """The channel itself: pieces, order, sizes that do not meet, abort, and messages that nobody received."""
    rank, peer = WORLD.rank, 1 - WORLD.rank
    channel = MpiCommunicator(WORLD, timeout=30, most_nbytes=1000)
    for round_, numel in enumerate((0, 1, 999, 1000, 1001, 123_456)):
        data = torch.arange(numel).remainder(251 - rank).to(torch.uint8)
        got = torch.full((numel,), 255, dtype=torch.uint8)
        first, second = (channel.isend, channel.irecv) if round_ % 2 else (channel.irecv, channel.isend)
        handles = [first(data if round_ % 2 else got, peer), second(got if round_ % 2 else data, peer)]
        for handle in handles:
            handle.wait(20)
            handle.wait(20)
        assert torch.equal(got, torch.arange(numel).remainder(251 - peer).to(torch.uint8)), numel
    raised(TensorError, lambda: channel.isend(torch.ones(4), peer))
    began = time.monotonic()
    handle = channel.irecv(torch.empty(8, dtype=torch.uint8), peer)
    text = raised(PeerError, lambda: handle.wait(0.2))
    assert "0.2 s" in text and time.monotonic() - began < 10
    WORLD.Barrier()
    if rank == 0:
        # nobody receives these pieces
        lost = channel.isend(torch.zeros(20_000, dtype=torch.uint8), peer)
        waiter = threading.Timer(0.2, channel.abort)
        waiter.start()
        raised(PeerError, lambda: channel.irecv(torch.empty(9, dtype=torch.uint8), peer).wait(60))
        waiter.join()
        raised(PeerError, lambda: channel.isend(torch.zeros(1, dtype=torch.uint8), peer))
        assert lost is not None
    else:
        text = raised(PeerError, lambda: channel.irecv(torch.empty(1, dtype=torch.uint8), 0).wait(60))
    channel.abort()
    channel.close()
    channel.close()
    raised(PeerError, lambda: channel.irecv(torch.zeros(1, dtype=torch.uint8), peer))

    # a large message that nobody receives: its sender closes nevertheless, and nothing of it turns up in the next channel
    for _ in range(3):
        channel = MpiCommunicator(WORLD, timeout=30)
        if rank == 0:
            channel.isend(torch.full((3_000_000,), 9, dtype=torch.uint8), peer)
            channel.isend(torch.full((3,), 9, dtype=torch.uint8), peer)
        began = time.monotonic()
        channel.close()
        assert time.monotonic() - began < 4, "lingered"
    # an exchange in pieces is the exchange
    pieces = Reducer(*(MpiCommunicator(WORLD, most_nbytes=777) for _ in range(2)), timeout=30)
    codec, mine, other = commpress.codec("hadamard+lloyd:2"), values(50_000), values(50_000)
    for step in range(3):
        futures = [pieces.submit(mine, codec, codec, Key(step=step))]
        commpress.mpi.all_reduce(other, codec, key=Key(step=step))
        futures[0].wait()
        assert bytes_of(mine) == bytes_of(other)
    pieces.close()
    for most in (0, 1 << 31):
        raised(StateError, lambda most=most: MpiCommunicator(WORLD, most_nbytes=most))
    text = raised(PeerError, lambda: MpiCommunicator(WORLD, timeout=0.3)) if rank == 0 else "0.3 s"
    assert "0.3 s" in text
    WORLD.Barrier()
    if rank == 1:
        MpiCommunicator(WORLD, timeout=10)  # meets what rank 0 has begun


def thread_level(level: str) -> None:
    assert MPI.Query_thread() == {"serialized": MPI.THREAD_SERIALIZED}[level]
    text = raised(StateError, lambda: commpress.mpi.all_reduce(np.ones(5), "none"))
    assert "thread_level" in text and "multiple" in text, text
    array = np.full(5, 3.0)
    assert commpress.mpi.all_reduce(array, "none", MPI.COMM_SELF) is array and (array == 3).all()


def ends(how: str) -> None:
    array = np.full(50_000, float(WORLD.rank), np.float32)
    for _ in range(2):
        commpress.mpi.all_reduce(array, "hadamard+lloyd:2")
    if how == "raise":
        if WORLD.rank == 1:
            raise ArithmeticError("user code failed")
        raised(PeerError, lambda: commpress.mpi.all_reduce(array, "none"))
    if how == "kill" and WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill":
        commpress.mpi.all_reduce(array, "none")


if __name__ == "__main__":
    torch.set_num_threads(1)
    number = WORLD.rank
    globals()[sys.argv[1]](sys.argv[2])
    print(f"fine {number}", flush=True)
