"""Two-level all-reduces and lists of tensors between real processes over gloo."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import need_cluster
from _launch import launch
from _stand_ins import Grid

import commpress
from commpress import collectives
from commpress.cluster import Cluster, Topology
from commpress.codecs import Key
from commpress.errors import CommpressError, MismatchError, SpecError, TensorError, TopologyError

SIZES = (0, 1, 4095, 4097, 100_001)


def data(size: int, numel: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator) for _ in range(size)]


def as_torchrun(rank: int, per_node: int) -> None:
    node, local = divmod(rank, per_node)
    os.environ |= {"GROUP_RANK": str(node), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(per_node)}


def results_worker(rank: int, size: int, per_node: int) -> dict:
    as_torchrun(rank, per_node)
    nodes = [list(range(n, n + per_node)) for n in range(0, size, per_node)]
    found: dict = {"bits": [], "nodes": []}
    for step, numel in enumerate(SIZES):
        inputs = data(size, numel, step)
        for op in ("mean", "sum"):
            exact = torch.stack(inputs).sum(0) / (size if op == "mean" else 1)
            results = []
            for hierarchical in (None, nodes):
                tensor = inputs[rank].clone()
                assert (
                    commpress.all_reduce(tensor, "uniform:8", op=op, key=Key(step=step), hierarchical=hierarchical)
                    is tensor
                )
                results.append(tensor)
                found["nodes"].append(collectives.last_report().nodes)
            assert torch.equal(*results) or 1 < per_node == size  # on one node they are flat, and exact
            assert torch.allclose(results[0], exact, atol=0.2)
            found["bits"].append(results[0])
            tensor = inputs[rank].clone()
            commpress.all_reduce(tensor, "none", op=op, key=Key(step=step), hierarchical=True)
            assert torch.allclose(tensor, exact, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tensor = data(size, 30_000, 5)[rank].to(dtype).view(3, -1)
        commpress.all_reduce(tensor, "uniform:4", key=Key(step=9))
        assert tensor.dtype == dtype and tensor.shape == (3, 10_000)
        found["bits"].append(tensor)
    tensor = torch.ones(20_000)
    tensor[77] = float("nan") if rank == size - 1 else 1.0
    commpress.all_reduce(tensor, "uniform:4", key=Key())
    assert tensor[77].isnan() and collectives.last_report().nonfinite
    futures = [commpress.all_reduce(torch.full((5000,), 1.0 * rank), "none", async_op=True) for _ in range(5)]
    for future in futures:
        assert (future.wait() == (size - 1) / 2).all()
    try:
        commpress.all_reduce(torch.ones(8, 8), "lowrank:2", hierarchical=True)
    except SpecError:
        found["refused"] = True
    collectives.close()
    return found


@pytest.mark.parametrize(("size", "per_node"), [(4, 2), (2, 1), (4, 4), (6, 2)])
def test_results(size, per_node):
    values = [r.ok().value for r in launch(__file__, "results_worker", size, args={"per_node": per_node}, timeout=120)]
    two_levels = size > per_node > 1
    for value in values:
        assert value["refused"] and all(
            torch.equal(a, b) for a, b in zip(value["bits"], values[0]["bits"], strict=True)
        )
        assert set(value["nodes"]) == ({size // per_node} if two_levels else {1})


def subgroup_worker(rank: int, size: int) -> list[int]:
    """Groups that take some ranks of each node: two of each, one of each, and all of one node."""
    as_torchrun(rank, 3)
    found = []
    for ranks in ([5, 0, 1, 4], [2, 3], [3, 4, 5]):
        group = dist.new_group(ranks)
        if rank in ranks:
            tensor = torch.full((20_000,), float(rank))
            commpress.all_reduce(tensor, "none", group=group)
            assert torch.allclose(tensor, torch.tensor(sum(ranks) / len(ranks)))
            found.append(collectives.last_report(group).nodes)
            collectives.close(group)
    return found


def test_groups_of_some_ranks():
    values = [r.ok().value for r in launch(__file__, "subgroup_worker", 6, timeout=120)]
    assert values == [[2], [2], [1], [1, 1], [2, 1], [2, 1]]


# ---- what is wrong


def wrong_worker(rank: int, size: int, what: str) -> str:
    as_torchrun(rank, 2)
    hierarchical: object = True
    if what == "another launcher's word" and rank == 3:
        os.environ["LOCAL_WORLD_SIZE"] = "3"
    elif what == "another wish" and rank == 3:
        hierarchical = None
    elif what == "another list":
        hierarchical = [[0, 1], [2, 3]] if rank < 3 else [[0, 2], [1, 3]]
    elif what == "uneven":
        os.environ["GROUP_RANK"] = "1" if rank == 3 else "0"
        os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(rank % 3), "1" if rank == 3 else "3"
    try:
        commpress.all_reduce(torch.ones(5000), "uniform:4", hierarchical=hierarchical)
    except (MismatchError, TopologyError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("another launcher's word", "TopologyError", "different LOCAL_WORLD_SIZE: [2, 3]"),
        ("another wish", "MismatchError", "ranks disagree on hierarchical"),
        ("another list", "MismatchError", "ranks disagree on hierarchical"),
        ("uneven", "TopologyError", "the nodes have 3, 1 ranks"),
    ],
)
def test_a_disagreeing_topology_is_an_error_on_all_ranks(what, error, text):
    for result in launch(__file__, "wrong_worker", 4, args={"what": what}, timeout=60):
        value = result.ok().value
        assert value.startswith(error) and text in value


def killed_worker(rank: int, size: int, moment: str) -> dict:
    as_torchrun(rank, 2)
    tensor = torch.ones(2_000_000)
    commpress.all_reduce(tensor, "uniform:4")
    assert collectives.last_report().nodes == 2
    if rank == 1 and moment == "between calls":
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        for step in range(200):
            if rank == 1 and step == 5:
                commpress.all_reduce(tensor, "uniform:4", key=Key(step=step), async_op=True)
                time.sleep(0.002)
                os.kill(os.getpid(), signal.SIGKILL)
            commpress.all_reduce(tensor, "uniform:4", key=Key(step=step))
    except CommpressError as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": "none"}


@pytest.mark.parametrize("moment", ["between calls", "in a call"])
def test_a_killed_rank_is_an_error_on_all_nodes(moment):
    results = launch(
        __file__, "killed_worker", 4, args={"moment": moment}, timeout=100, group_timeout=60, destroy=False
    )
    assert results[1].returncode == -signal.SIGKILL  # the fault fired
    for rank in (0, 2, 3):
        value = results[rank].ok().value
        assert value["error"] == "PeerError", value
        assert value["seconds"] < 55, value


# ---- lists


def list_worker(rank: int, size: int) -> int:
    shapes = ((3, 5), (), (4097,), (0,), (2, 3, 7))
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.complex64)
    inputs = [
        [torch.randn(shape, generator=torch.Generator().manual_seed(10 * r + i), dtype=torch.complex64 if d.is_complex else torch.float32).to(d)
         for i, (shape, d) in enumerate(zip(shapes, dtypes, strict=True))]
        for r in range(size)
    ]  # fmt: skip

    def flat(tensors):
        return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).reshape(-1).float() for t in tensors])

    checked = 0
    for codec in (Grid(), "uniform:4", "none"):
        whole = flat(inputs[rank])
        commpress.all_reduce(whole, codec, key=Key(step=1))
        tensors = [t.clone() for t in inputs[rank]]
        tensors[0] = tensors[0].t().contiguous().t()  # strides
        before = collectives.last_report()
        assert commpress.all_reduce(tensors, codec, key=Key(step=1)) is tensors
        report = collectives.last_report()
        assert report.messages == before.messages and report.bytes_sent == before.bytes_sent or codec == "none"
        start = 0
        for tensor, source in zip(tensors, inputs[rank], strict=True):
            assert tensor.dtype == source.dtype and tensor.shape == source.shape
            n = tensor.numel() * (2 if tensor.is_complex() else 1)
            got = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
            want = whole[start : start + n].to(got.dtype)
            assert torch.equal(got, want) if codec != "none" else torch.allclose(got, want, atol=1e-6)
            start += n
            checked += 1
    exact = torch.stack([flat(one) for one in inputs]).mean(0)
    assert torch.allclose(whole, exact, atol=1e-6)
    future = commpress.all_reduce((torch.ones(3), torch.zeros(2, 2)), "none", async_op=True)
    assert [t.tolist() for t in future.wait()] == [[1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]]]
    matrices = [torch.ones(40, 30) * (rank + 1), torch.arange(5.0)]
    commpress.all_reduce(matrices, "lowrank:1", key=Key())
    # Factors are rounded to 16 bits; as one tensor the matrix gives the same.
    alone = torch.ones(40, 30) * (rank + 1)
    commpress.all_reduce(alone, "lowrank:1", key=Key())
    assert torch.allclose(matrices[0], torch.full((40, 30), (size + 1) / 2), rtol=2**-8)
    assert torch.allclose(matrices[0], alone, rtol=2**-8)
    assert torch.allclose(matrices[1], torch.arange(5.0))
    for bad in (
        [],
        [torch.ones(3), 1.0],
        [torch.ones(3), torch.ones(3, dtype=torch.int32)],
        {"a": torch.ones(3)},
        "x",
        None,
    ):
        try:
            commpress.all_reduce(bad, "none")
        except TensorError:
            checked += 1
    return checked


def test_a_list_is_one_exchange_of_the_concatenation():
    assert [r.ok().value for r in launch(__file__, "list_worker", 3, timeout=90)] == [21, 21, 21]


def list_mismatch_worker(rank: int, size: int) -> str:
    try:
        commpress.all_reduce([torch.ones(2 + rank), torch.ones(3 - rank)], "none")
    except MismatchError as error:
        return str(error)
    return "nothing"


def test_lists_cut_otherwise_are_told():
    for result in launch(__file__, "list_mismatch_worker", 2, timeout=60):
        assert "tensors of 2, 3 elements" in result.ok().value


# ---- bytes


def wire_worker(rank: int, size: int, hierarchical: bool | None) -> dict:
    tensor = torch.randn(1_000_000, generator=torch.Generator().manual_seed(rank))
    for _ in range(3):
        commpress.all_reduce(tensor, "uniform:4", hierarchical=hierarchical)
    dist.barrier()
    if rank == 0:
        print("ready", flush=True)
    report = collectives.last_report()
    return {
        "sent": report.bytes_sent,
        "wire": report.wire_bytes,
        "node": report.wire_bytes_node,
        "nodes": report.nodes,
        "result": tensor,
    }


def test_bytes_between_nodes():
    """Counted at the nodes' links: half of a flat exchange's, as claimed; and the launcher's word is enough to choose two levels."""
    need_cluster()
    counted, claimed, results = {}, {}, {}
    with Cluster(Topology(ranks=4, nodes=2, rate="1gbit", intra="10gbit")) as cluster:
        for hierarchical in (False, None):
            before = cluster.counters()
            ranks = launch(
                __file__, "wire_worker", 4, args={"hierarchical": hierarchical}, timeout=100, cluster=cluster,
            )  # fmt: skip
            traffic = cluster.counters() - before
            values = [r.ok().value for r in ranks]
            counted[hierarchical] = sum(count.frame_bytes for count in traffic.left)
            claimed[hierarchical] = 3 * sum(value["wire"] for value in values)
            results[hierarchical] = values
    assert [value["nodes"] for value in results[None]] == [2] * 4 and [v["nodes"] for v in results[False]] == [1] * 4
    assert all(torch.equal(value["result"], results[None][0]["result"]) for value in results[None])
    # Starting a group costs bytes too, the same ones both times.
    assert counted[None] <= 0.54 * counted[False], counted
    assert claimed[None] == pytest.approx(counted[None], rel=0.08), (claimed, counted)
    assert all(value["node"] > 4_000_000 for value in results[None])
