"""Two-level all-reduces on in-process ranks: exact inside a node, compressed between nodes."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
import torch
from _reducers import Grid, Raw, Record, inputs, outcome

import commpress
from commpress.codecs import Key
from commpress.collectives import FakeWorld, NodeMap, Observer, Reducer
from commpress.errors import CommpressError, MismatchError, PeerError, StateError

BLOCK = 4096


def nodes_of(nodes: int, per_node: int) -> NodeMap:
    """Ranks in the order of the nodes."""
    return NodeMap(tuple(tuple(range(n * per_node, (n + 1) * per_node)) for n in range(nodes)))


class Nodes:
    """Hierarchical Reducers on two fake worlds."""

    def __init__(
        self, nodes: NodeMap, timeout: float = 30.0, chunk: int | None = None, plans=None, shared=True
    ) -> None:
        nodes = dataclasses.replace(nodes, shared=shared)
        self.nodes, self.size = nodes, nodes.size
        self.worlds = FakeWorld(self.size), FakeWorld(self.size)
        self.reducers = [
            Reducer(
                self.worlds[0].communicator(r),
                self.worlds[1].communicator(r),
                timeout=timeout,
                plan=plans[r] if plans else "p",
                chunk_nbytes=chunk,
                nodes=nodes,
            )
            for r in range(self.size)
        ]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        closers = [threading.Thread(target=reducer.close) for reducer in self.reducers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(60)
            assert not closer.is_alive()

    def submit(self, data, codec1, codec2, key, op="mean", observers=None):
        observers = observers or [None] * self.size
        return [
            r.submit(x, codec1, codec2, key, op=op, observer=o)
            for r, x, o in zip(self.reducers, data, observers, strict=True)
        ]


def cut(start: int, stop: int, parts: int) -> list[int]:
    blocks = -(-(stop - start) // BLOCK)
    return [min(start + part * blocks // parts * BLOCK, stop) for part in range(parts + 1)]


def expected_on_nodes(data, nodes: NodeMap, codec1, codec2, key, op="mean") -> torch.Tensor:
    """The documented result, in one process: sums of each node, then the two phases between nodes, part by part."""
    world, count, numel = nodes.size, len(nodes.nodes), data[0].numel()
    gain = 1.0 / world if op == "mean" else 1.0
    result = torch.full_like(data[0], float("nan"))
    for local, (low, high) in enumerate(itertools.pairwise(cut(0, numel, nodes.per_node))):
        sums = []
        for node in nodes.nodes:
            total = data[node[local]][low:high].clone()
            for d in range(1, nodes.per_node):
                total += data[node[(local + d) % nodes.per_node]][low:high]
            sums.append(total)
        if count == 1:
            result[low:high] = sums[0] * torch.tensor(gain, dtype=sums[0].dtype)
            continue
        for owner, (start, stop) in enumerate(itertools.pairwise(cut(low, high, count))):
            if start == stop:
                continue
            piece = slice(start - low, stop - low)
            total = sums[owner][piece].clone()
            for d in range(1, count):
                sender = (owner + d) % count
                k = key.replace(phase=1, sender=sender)
                payload = codec1.encode(sums[sender][piece].clone(), k, offset=start, gain=gain)
                codec1.decode(payload, k, out=total, accumulate=True, offset=start, beta=gain if d == 1 else 1.0)
            k = key.replace(phase=2, sender=owner)
            codec2.decode(codec2.encode(total, k, offset=start), k, out=result[start:stop], offset=start)
    return result


SHAPES = [(2, 2), (2, 1), (1, 4), (3, 2), (2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["mean", "sum"])
@pytest.mark.parametrize("shared", [True, False])
def test_exact_result_on_every_rank(shape, op, shared):
    nodes = nodes_of(*shape)
    with Nodes(nodes, chunk=20_000, shared=shared) as world:
        for step, numel in enumerate([0, 1, 4095, 4096, 4097, 2 * BLOCK * nodes.size, 100_003]):
            data, key = inputs(nodes.size, numel, seed=step), Key(seed=5, step=step, tensor=3)
            other = Grid("other", 1 / 32)
            want = expected_on_nodes(data, nodes, Grid(), other, key, op)
            records = [Record() for _ in data]
            flats = [x.clone() for x in data]
            for rank, future in enumerate(world.submit(flats, Grid(), other, key, op, records)):
                assert torch.equal(future.wait(), want), (shape, op, numel, rank)
                report = records[rank].report
                assert report is not None and report.numel == numel and report.world_size == nodes.size
                assert not report.nonfinite and report.nodes == shape[0]
            exact = torch.stack(data).sum(0) / (nodes.size if op == "mean" else 1)
            if numel > BLOCK and shape[0] > 1:
                assert not torch.allclose(want, exact, atol=1e-4)  # something was quantised
            if shape[0] == 1:
                assert torch.allclose(want, exact, atol=1e-5)


def test_ranks_need_not_follow_the_nodes():
    nodes = NodeMap(((3, 0), (1, 5), (4, 2)))
    data, key = inputs(6, 50_001), Key(step=3)
    want = expected_on_nodes(data, nodes, Grid(), Grid(), key)
    assert not torch.equal(want, expected_on_nodes(data, nodes_of(3, 2), Grid(), Grid(), key))
    with Nodes(nodes, chunk=9_000) as world:
        for future in world.submit([x.clone() for x in data], Grid(), Grid(), key):
            assert torch.equal(future.wait(), want)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chunk", [1, 9_000, 1 << 30])
def test_chunks_do_not_change_bits(chunk, shared):
    nodes = nodes_of(3, 2)
    data, key = inputs(6, 80 * BLOCK + 77), Key(step=4)
    want = expected_on_nodes(data, nodes, Grid(), Grid(), key)
    with Nodes(nodes, chunk=chunk, shared=shared) as world:
        records = [Record() for _ in data]
        for future in world.submit([x.clone() for x in data], Grid(), Grid(), key, observers=records):
            assert torch.equal(future.wait(), want)
        assert len({o.report.chunks for o in records}) == 1
        assert (records[0].report.chunks > 1) == (chunk < 1 << 30)


def test_without_loss_it_is_the_exact_mean_in_fp32_and_fp64():
    nodes = nodes_of(3, 2)
    with Nodes(nodes) as world:
        for step, dtype in enumerate([torch.float32, torch.float64]):
            data = [torch.randint(-8, 8, (30_011,), dtype=dtype) * 6 for _ in range(6)]
            want = torch.stack(data).sum(0) / 6
            for future in world.submit([x.clone() for x in data], Raw(), Raw(), Key(step=step)):
                assert torch.allclose(future.wait(), want, rtol=1e-6 if dtype == torch.float32 else 1e-15)
            for future in world.submit([x.clone() for x in data], Raw(), Raw(), Key(step=step), "sum"):
                assert torch.equal(future.wait(), want * 6)


SPECS = ["none", "uniform:4", "hadamard+lloyd:2", "ecsq:1", "topk:0.1", "homomorphic:4", "sign", "modulo:3,rho=0.9"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(2, 2), (3, 2)], ids=str)
def test_every_family(spec, shape):
    """All ranks end with the same bits, near the mean."""
    codec = commpress.codec(spec)
    second = getattr(codec, "of_second_phase", codec)
    nodes, numel, key = nodes_of(*shape), 60_001, Key(step=1)
    common = torch.randn(numel, generator=torch.Generator().manual_seed(9))
    data = [common + 0.3 * x for x in inputs(nodes.size, numel)]
    mean = torch.stack(data).mean(0)
    with Nodes(nodes, chunk=4_000) as world:
        results = [f.wait() for f in world.submit([x.clone() for x in data], codec, second, key)]
    for result in results[1:]:
        assert torch.equal(result, results[0])
    error = float((results[0] - mean).square().sum() / mean.square().sum())
    limit = {"none": 1e-12, "uniform:4": 0.07, "hadamard+lloyd:2": 0.3, "ecsq:1": 0.8, "topk:0.1": 1.0, "sign": 1.5}
    assert error <= limit.get(spec, 0.2), error
    assert (error > 1e-9) == (spec != "none")  # something was quantised
    if spec == "uniform:4" and shape == (3, 2):
        assert torch.equal(results[0], expected_on_nodes(data, nodes, codec, codec, key))


def test_no_two_parts_share_randomness():
    """Every rank has the same values everywhere; a dither that came again in another part would show."""
    nodes, numel = nodes_of(2, 2), 16 * BLOCK
    with Nodes(nodes) as world:
        data = [torch.full((numel,), 0.3) for _ in range(4)]
        codec = Grid(step=1 / 4)
        result = world.submit(data, codec, codec, Key())[0].wait()
        for reducer in world.reducers:  # let all of them end
            reducer.submit(torch.zeros(0), codec, codec, Key())
    shards = result.view(4, -1)
    for a, b in itertools.combinations(range(4), 2):
        assert not torch.equal(shards[a], shards[b])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_reaches_all(value):
    nodes, numel = nodes_of(2, 2), 40_000
    with Nodes(nodes, chunk=9_000) as world:
        data = inputs(4, numel)
        data[3][123] = value
        records = [Record() for _ in data]
        for future, record in zip(world.submit(data, Grid(), Grid(), Key(), observers=records), records, strict=True):
            result = future.wait()
            assert not torch.isfinite(result[123]) and torch.isfinite(result[200:]).all()
            assert record.report.nonfinite


def test_observers_see_their_part_alone():
    nodes, numel = nodes_of(2, 3), 60 * BLOCK + 5
    data, key = inputs(6, numel), Key(step=2)
    with Nodes(nodes, chunk=9_000) as world:
        records = [Record() for _ in data]
        for future in world.submit([x.clone() for x in data], Grid(), Grid(), key, observers=records):
            future.wait()
        for rank, (reducer, record) in enumerate(zip(world.reducers, records, strict=True)):
            low, high = reducer.part(numel, Grid())
            start, stop = reducer.shard(numel, Grid())
            assert low <= start < stop <= high and (low, high) == tuple(cut(0, numel, 3)[rank % 3 : rank % 3 + 2])
            assert record.events[0] == ("prepare", numel)
            first = sorted(e[1:3] for e in record.events if e[0] == 1)
            second = sorted(e[1:3] for e in record.events if e[0] == 2)
            assert sum(b - a for a, b in first) == high - low - (stop - start)
            assert all(low <= a and b <= high and (b <= start or a >= stop) for a, b in first)
            assert second[0][0] == start and second[-1][1] == stop and sum(b - a for a, b in second) == stop - start
            assert {e[4] for e in record.events if e[0] == 1} == {1 / 6}


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_claimed_is_what_went_through_the_channels(shared):
    """And through memory: half of the tensor there, and half of it back."""
    nodes, numel = nodes_of(2, 2), 300_000
    with Nodes(nodes, chunk=50_000, shared=shared) as world:
        records = [Record() for _ in range(4)]
        for future in world.submit(inputs(4, numel), Grid(), Grid(), Key(), observers=records):
            future.wait()
        for rank, record in enumerate(records):
            report = record.report
            sent = sum(w.nbytes_sent[rank] for w in world.worlds)
            values = 4 * numel
            assert report.bytes_sent + report.bytes_node == sent + values * shared
            assert report.messages + report.messages_node == sum(w.messages_sent[rank] for w in world.worlds)
            assert 0 <= report.bytes_node - values - 512 - 2 * 128 <= 100  # names and tokens
            assert report.bytes_node_received == records[rank ^ 1].report.bytes_node
            assert report.messages_node_received == records[rank ^ 1].report.messages_node
            assert report.bytes_received == records[rank ^ 2].report.bytes_sent
            assert report.wire_bytes > report.bytes_sent and report.wire_bytes_node > report.bytes_node
            assert report.bytes_payload1 + report.bytes_payload2 == pytest.approx(2 * numel / 2, rel=0.05)


def test_many_in_flight():
    nodes, count = nodes_of(2, 2), 10
    data = [inputs(4, 30_000 + BLOCK * i, seed=i) for i in range(count)]
    with Nodes(nodes, chunk=9_000) as world:
        futures = [world.submit([x.clone() for x in data[i]], Grid(), Grid(), Key(tensor=i)) for i in range(count)]
        for i in range(count):
            want = expected_on_nodes(data[i], nodes, Grid(), Grid(), Key(tensor=i))
            for future in futures[i]:
                assert torch.equal(future.wait(), want)


def test_on_the_callers_thread():
    nodes, data = nodes_of(2, 2), inputs(4, 5_000)
    results: dict[int, torch.Tensor] = {}
    with Nodes(nodes) as world:

        def body(rank: int) -> None:
            for step in range(3):
                results[rank] = world.reducers[rank].run(data[rank].clone(), Grid(), Grid(), Key(step=step))

        threads = [threading.Thread(target=body, args=(r,)) for r in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    want = expected_on_nodes(data, nodes, Grid(), Grid(), Key(step=2))
    assert len(results) == 4 and all(torch.equal(result, want) for result in results.values())


# ---- failures


@pytest.mark.parametrize("odd", [{1}, {2, 3}, {0, 3}], ids=str)
@pytest.mark.parametrize("what", ["codec", "numel", "plan"])
def test_a_mismatch_is_named_on_every_rank(odd, what):
    """Inside one node, between nodes, and both."""
    nodes = nodes_of(3, 2)
    plans = ["other" if what == "plan" and r in odd else "p" for r in range(6)]
    with Nodes(nodes, plans=plans, timeout=20) as world:
        futures = [
            reducer.submit(
                torch.ones(5001 if what == "numel" and r in odd else 5000),
                *[Grid("grid:2" if what == "codec" and r in odd else "grid")] * 2,
                Key(step=1),
            )
            for r, reducer in enumerate(world.reducers)
        ]
        name = {"codec": "codec", "numel": "number of elements", "plan": "plan"}[what]
        for future in futures:
            problem = outcome(future)
            assert isinstance(problem, MismatchError), problem
            assert f"ranks disagree on {name}" in str(problem)
        for reducer in world.reducers:
            with pytest.raises(StateError, match="an earlier submission failed"):
                reducer.submit(torch.ones(5000), Grid(), Grid(), Key())


@pytest.mark.parametrize(
    "sabotage", ["prepare", "encode:1", "decode:1", "encode:2", "corrupt:1", "decode:2", "complete"]
)
@pytest.mark.parametrize(("numel", "shared"), [(30_000, True), (200_000, True), (200_000, False)])
def test_one_rank_fails_and_all_learn_of_it(sabotage, numel, shared):
    class Failing(Observer):
        def prepare(self, flat):
            if sabotage == "prepare":
                raise ArithmeticError("sabotaged")

        def complete(self, report):
            if sabotage == "complete":
                raise ArithmeticError("sabotaged")

    nodes = nodes_of(2, 2)
    with Nodes(nodes, chunk=20_000, timeout=20, shared=shared) as world:
        data = inputs(4, numel)
        results = []
        for rank, reducer in enumerate(world.reducers):
            codec = Grid(sabotage=sabotage, at=1) if rank == 1 else Grid()
            futures = []
            for step in range(3):
                observer = Failing() if rank == 1 and step == 1 else None
                try:
                    futures.append(reducer.submit(data[rank].clone(), codec, codec, Key(step=step), observer=observer))
                except StateError as problem:
                    futures.append(problem)
            results.append(futures)
        want = expected_on_nodes(data, nodes, Grid(), Grid(), Key(step=0))
        for rank, futures in enumerate(results):
            found = [f if isinstance(f, Exception) else outcome(f) for f in futures]
            assert torch.equal(found[0], want)
            assert isinstance(found[2], CommpressError), (rank, found[2])
            first = found[2] if isinstance(found[1], torch.Tensor) else found[1]
            if sabotage not in ("complete", "decode:2"):  # these come after the last word to other nodes
                assert isinstance(found[1], CommpressError), (rank, found[1])
            if rank == 1:
                assert "sabotaged" in str(first) or "bad marker" in str(first)
            elif sabotage == "corrupt:1":
                assert isinstance(first, (PeerError, CommpressError)) and "bad marker" in str(first)
            else:
                assert isinstance(first, PeerError) and "sabotaged" in str(first), (rank, first)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rank_that_dies_ends_all_nodes(moment):
    nodes = nodes_of(3, 2)
    with Nodes(nodes, timeout=3) as world:
        data = inputs(6, 100_000)
        if moment == "after":
            for future in world.submit([x.clone() for x in data], Grid(), Grid(), Key()):
                future.wait()
        for channel in world.worlds:
            channel.kill(4)
        for rank, reducer in enumerate(world.reducers):
            if rank != 4:
                problem = outcome(reducer.submit(data[rank].clone(), Grid(), Grid(), Key(step=1)))
                assert isinstance(problem, (PeerError, StateError)), problem
                assert "seen by rank" in str(problem)


def test_a_rank_that_is_silent_ends_all_nodes():
    nodes = nodes_of(2, 2)
    with Nodes(nodes, timeout=1) as world:
        futures = [world.reducers[r].submit(torch.ones(50_000), Grid(), Grid(), Key()) for r in (0, 2, 3)]
        problems = [outcome(f) for f in futures]
        assert all(isinstance(p, PeerError) for p in problems), problems
        assert "rank 1 was silent" in str(problems[0])
