"""The Reducer on in-process ranks: exact results, order, observers, threads, accounting."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from _reducers import Grid, Raw, Record, World, expected, inputs, outcome

from commpress.codecs import Key
from commpress.collectives import FakeWorld, Observer, Reducer, shard_bounds, wire_nbytes


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("op", ["mean", "sum"])
def test_exact_result_on_every_rank(size, op):
    with World(size, chunk=20_000) as world:
        for step, numel in enumerate([0, 1, 4095, 4096, 4097, 2 * 4096 * size, 100_003]):
            data = inputs(size, numel, seed=step)
            key = Key(seed=5, step=step, tensor=3)
            want = data[0].clone() if size == 1 else expected(data, Grid(), Grid("other", 1 / 32), key, op)[0]
            records = [Record() for _ in range(size)]
            flats = [x.clone() for x in data]
            futures = [
                r.submit(x, Grid(), Grid("other", 1 / 32), key, op=op, observer=o)
                for r, x, o in zip(world.reducers, flats, records, strict=True)
            ]
            for rank, future in enumerate(futures):
                got = future.wait()
                assert got.data_ptr() == flats[rank].data_ptr()
                assert torch.equal(got, want), (size, op, numel, rank)
                report = records[rank].report
                assert (
                    report is not None and report.numel == numel and report.world_size == size and not report.nonfinite
                )
            if size > 1 and numel > 4096:
                assert not torch.equal(
                    want, torch.stack(data).mean(0) if op == "mean" else torch.stack(data).sum(0)
                )  # something was quantised


@pytest.mark.parametrize("chunk", [1, 9_000, 1 << 30])
def test_chunks_do_not_change_bits(chunk):
    size, numel, key = 3, 40 * 4096 + 77, Key(step=4)
    data = inputs(size, numel)
    want, _ = expected(data, Grid(), Grid(), key)
    with World(size, chunk=chunk) as world:
        records = [Record() for _ in range(size)]
        futures = [
            r.submit(x.clone(), Grid(), Grid(), key, observer=o)
            for r, x, o in zip(world.reducers, data, records, strict=True)
        ]
        for future in futures:
            assert torch.equal(future.wait(), want)
        chunks = {o.report.chunks for o in records}
        assert chunks == {{1: 14, 9_000: 13, 1 << 30: 1}[chunk]}


def test_another_order_of_summation_would_show():
    """Negative control: the exact comparison notices a different order, another key, another shard split."""
    size, numel, key = 3, 3 * 4096, Key(step=4)
    data = inputs(size, numel)
    want, _ = expected(data, Grid(), Grid(), key)
    assert not torch.equal(want, expected(data[::-1], Grid(), Grid(), key)[0])
    assert not torch.equal(want, expected(data, Grid(), Grid(), Key(step=5))[0])
    with World(size) as world:
        flat = [x.clone() for x in data]
        for future in [r.submit(x, Grid(), Grid(), Key(step=5)) for r, x in zip(world.reducers, flat, strict=True)]:
            assert not torch.equal(future.wait(), want)


def test_fp64_without_loss():
    data = inputs(3, 10_000, dtype=torch.float64)
    key = Key()
    want, _ = expected(data, Raw(), Raw(), key, "sum")
    with World(3) as world:
        for future in [
            r.submit(x.clone(), Raw(), Raw(), key, op="sum") for r, x in zip(world.reducers, data, strict=True)
        ]:
            got = future.wait()
            assert torch.equal(got, want) and torch.allclose(got, torch.stack(data).sum(0), rtol=1e-15, atol=1e-15)


def test_many_in_flight_from_ranks_at_different_speeds():
    size, count = 4, 12
    data = [inputs(size, 30_000 + 4096 * i, seed=i) for i in range(count)]
    want = [expected(data[i], Grid(), Grid(), Key(step=1, tensor=i))[0] for i in range(count)]
    with World(size, chunk=16_000) as world:
        results: dict[int, list] = {}

        def rank_body(rank: int) -> None:
            futures = []
            for i in range(count):
                time.sleep(0.003 * ((rank * 7 + i * 3) % 5))
                futures.append(
                    world.reducers[rank].submit(data[i][rank].clone(), Grid(), Grid(), Key(step=1, tensor=i))
                )
            results[rank] = [outcome(f) for f in futures]

        threads = [threading.Thread(target=rank_body, args=(r,)) for r in range(size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
            assert not t.is_alive()
        for rank in range(size):
            for i in range(count):
                assert torch.equal(results[rank][i], want[i])


def test_observer_sees_everything_once():
    size, numel = 3, 21 * 4096 + 5
    data, key = inputs(size, numel), Key(step=2)
    _, reduced = expected(data, Grid(), Grid(), key)
    seen: dict[int, dict] = {r: {"values": {}, "reduced": []} for r in range(size)}

    class Check(Record):
        def __init__(self, rank, flat):
            super().__init__()
            self.rank, self.flat = rank, flat

        def encoded(self, phase, start, stop, payload, key, gain):
            super().encoded(phase, start, stop, payload, key, gain)
            assert key.phase == phase and key.sender == self.rank
            again = Grid().encode(self.flat[start:stop], key, offset=start, gain=gain)
            assert torch.equal(again, payload)

        def reduced(self, start, stop):
            super().reduced(start, stop)
            seen[self.rank]["reduced"].append((start, self.flat[start:stop].clone()))

    with World(size, chunk=20_000) as world:
        flats = [x.clone() for x in data]
        checks = [Check(r, flats[r]) for r in range(size)]
        for future in [
            r.submit(x, Grid(), Grid(), key, observer=o) for r, x, o in zip(world.reducers, flats, checks, strict=True)
        ]:
            future.wait()
    for rank, check in enumerate(checks):
        own = shard_bounds(numel, size, rank)
        assert check.events[0] == ("prepare", numel)
        for phase, gain in ((1, 1 / size), (2, 1.0)):
            ranges = sorted((e[1], e[2]) for e in check.events if e[0] == phase)
            assert all(e[4] == gain for e in check.events if e[0] == phase)
            covered = torch.zeros(numel, dtype=torch.int64)
            for start, stop in ranges:
                assert start % 4096 == 0
                covered[start:stop] += 1
            inside = torch.zeros(numel, dtype=torch.bool)
            inside[own[0] : own[1]] = True
            assert torch.equal(covered, (inside if phase == 2 else ~inside).long())
        assert torch.equal(
            torch.cat([part for _, part in sorted(seen[rank]["reduced"], key=lambda e: e[0])]), reduced[rank]
        )


def test_prepare_and_reduced_may_change_values():
    class AddOne(Observer):
        def __init__(self, flat):
            self.flat = flat

        def prepare(self, flat):
            flat += 1

        def reduced(self, start, stop):
            self.flat[start:stop] += 2

    with World(2) as world:
        flats = [torch.zeros(8192) for _ in range(2)]
        for future in [
            r.submit(x, Raw(), Raw(), Key(), observer=AddOne(x)) for r, x in zip(world.reducers, flats, strict=True)
        ]:
            assert torch.equal(future.wait(), torch.full((8192,), 3.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_reaches_every_rank_and_the_next_call_is_clean(bad):
    data = inputs(3, 50_000)
    for position in (0, 20_000, 49_999):
        with World(3, chunk=20_000) as world:
            for step, poison in enumerate([True, False]):
                flats = [x.clone() for x in data]
                if poison:
                    flats[1][position] = bad
                records = [Record() for _ in range(3)]
                futures = [
                    r.submit(x, Grid(), Grid(), Key(step=step), observer=o)
                    for r, x, o in zip(world.reducers, flats, records, strict=True)
                ]
                results = [f.wait() for f in futures]
                for result, record in zip(results, records, strict=True):
                    assert bool(torch.isfinite(result[position])) is not poison
                    assert record.report.nonfinite is poison
                    assert torch.equal(result.view(torch.int32), results[0].view(torch.int32))


def test_a_forgotten_reducer_ends_its_threads():
    before = set(threading.enumerate())
    world = FakeWorld(1), FakeWorld(1)
    reducer = Reducer(world[0].communicator(0), world[1].communicator(0), timeout=5)
    reducer.submit(torch.ones(4), Grid(), Grid(), Key()).wait()
    own = {t for t in threading.enumerate() if t.name.startswith("commpress-phase")} - before
    assert len(own) == 2
    del reducer
    deadline = time.monotonic() + 10
    while any(t.is_alive() for t in own):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_allocated_after_warm_up(monkeypatch):
    from commpress.collectives import _layout

    made = []
    init = _layout.Layout.__init__
    monkeypatch.setattr(_layout.Layout, "__init__", lambda self, *a: (made.append(a), init(self, *a))[1])
    with World(2, chunk=20_000) as world:
        counts = []
        for step in range(6):
            futures = [r.submit(torch.ones(60_000), Grid(), Grid(), Key(step=step)) for r in world.reducers]
            for future in futures:
                future.wait()
            counts.append(len(made))
    assert counts[0] == 2 and counts[-1] == 2  # one per rank, then none


def test_reported_bytes_are_those_sent():
    size, numel = 4, 30 * 4096 + 9
    with World(size, chunk=20_000) as world:
        records = [Record() for _ in range(size)]
        for future in [
            r.submit(torch.randn(numel), Grid(), Grid(), Key(), observer=o)
            for r, o in zip(world.reducers, records, strict=True)
        ]:
            future.wait()
        for rank, record in enumerate(records):
            report, codec = record.report, Grid()
            own = shard_bounds(numel, size, rank)
            mine = codec.payload_nbytes(own[1] - own[0])
            assert report.bytes_payload1 == codec.payload_nbytes(numel) - mine
            assert report.bytes_payload2 == (size - 1) * mine
            assert report.bytes_sent == sum(w.nbytes_sent[rank] for w in world.worlds)
            assert report.messages == sum(w.messages_sent[rank] for w in world.worlds)
            assert 0 < report.bytes_header < 0.1 * report.bytes_sent
        assert sum(r.report.bytes_received for r in records) == sum(r.report.bytes_sent for r in records)
        assert sum(r.report.messages_received for r in records) == sum(r.report.messages for r in records)


def test_wire_bytes_formula():
    assert wire_nbytes(0, 0) == 0
    # one message of 1400 bytes: a notice (48 + 66) and one frame of 48 + 1400 bytes
    assert wire_nbytes(1400, 1) == 48 + 66 + 48 + 1400 + 66
    assert wire_nbytes(1401, 1) == wire_nbytes(1400, 1) + 1 + 66
    # a received message costs a notice, and a bare acknowledgement for every twentieth full frame
    assert wire_nbytes(0, 0, 144_800, 1) == 48 + 66 + 5 * 66


def test_shards_are_block_aligned_and_complete():
    for numel in (0, 1, 4096, 4097, 10 * 4096, 123_457):
        for size in (1, 2, 3, 5, 7):
            bounds = [shard_bounds(numel, size, r) for r in range(size)]
            assert bounds[0][0] == 0 and bounds[-1][1] == numel
            assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
            assert all(start % 4096 == 0 or start == numel for start, _ in bounds)
