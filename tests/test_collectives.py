"""The Reducer on in-process ranks: exact results, order, failures, accounting."""

from __future__ import annotations

import pathlib
import struct
import sys
import threading
import time

import pytest
import torch

from commpress.codecs import Key
from commpress.collectives import FakeWorld, Observer, Reducer, Report, shard_bounds, wire_nbytes
from commpress.errors import CommpressError, MismatchError, PeerError, StateError, TensorError, WireError

sys.path.insert(0, str(pathlib.Path(__file__).parent / "distributed"))
from _stand_ins import Grid, Raw, expected


class World:
    """`size` Reducers on two fake worlds."""

    def __init__(
        self, size: int, timeout: float = 20.0, plans: list[str] | None = None, chunk: int | None = None
    ) -> None:
        self.size = size
        self.worlds = FakeWorld(size), FakeWorld(size)
        self.reducers = [
            Reducer(
                self.worlds[0].communicator(r),
                self.worlds[1].communicator(r),
                timeout=timeout,
                plan=plans[r] if plans else "p",
                chunk_nbytes=chunk,
            )
            for r in range(size)
        ]

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        closers = [threading.Thread(target=reducer.close) for reducer in self.reducers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(30)
            assert not closer.is_alive()
        assert not [t for t in threading.enumerate() if t.name.startswith("commpress-phase")]


class Record(Observer):
    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.report: Report | None = None
        self.error: Exception | None = None

    def prepare(self, flat):
        self.events.append(("prepare", flat.numel()))

    def encoded(self, phase, start, stop, payload, key, gain):
        self.events.append((phase, start, stop, key.sender, gain, payload.numel()))

    def reduced(self, start, stop):
        self.events.append(("reduced", start, stop))

    def complete(self, report):
        self.report = report

    def failed(self, error):
        self.error = error


def inputs(size: int, numel: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator, dtype=dtype) for _ in range(size)]


def outcome(future) -> Exception | torch.Tensor:
    try:
        return future.wait()
    except Exception as problem:
        return problem


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


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("codec", ["codec", "rank 1: 'grid:2'", "ranks 0, 2: 'grid'"]),
        ("phase 2", ["codec of phase 2", "'grid:2'"]),
        ("numel", ["number of elements", "5000", "5001"]),
        ("plan", ["plan", "rank 1: 'another'"]),
        ("step", ["step", "rank 1: 9"]),
        ("op", ["operation", "'sum'"]),
        ("dtype", ["dtype", "float64"]),
        ("tensor", ["tensor (", "rank 1: 9"]),
        ("long codec", ["digest"]),
    ],
)
def test_mismatch_names_the_difference_on_every_rank(what, names):
    long = "x" * 200
    with World(3, plans=["p", "another", "p"] if what == "plan" else None) as world:
        futures, records = [], []
        for rank, reducer in enumerate(world.reducers):
            odd = rank == 1
            name = "grid:2" if what == "codec" and odd else long + str(odd) if what == "long codec" else "grid"
            x = torch.ones(
                5001 if what == "numel" and odd else 5000,
                dtype=torch.float64 if what == "dtype" and odd else torch.float32,
            )
            key = Key(step=9 if what == "step" and odd else 1, tensor=9 if what == "tensor" and odd else 0)
            records.append(Record())
            futures.append(
                reducer.submit(
                    x,
                    Grid(name),
                    Grid("grid:2" if what == "phase 2" and odd else name),
                    key,
                    op="sum" if what == "op" and odd else "mean",
                    observer=records[-1],
                )
            )
        messages = set()
        for rank, future in enumerate(futures):
            problem = outcome(future)
            assert isinstance(problem, MismatchError), problem
            for name in names:
                assert name in str(problem)
            messages.add(str(problem).split(": step")[0])
            assert records[rank].error is problem and records[rank].report is None
            with pytest.raises(StateError, match="an earlier submission failed"):
                world.reducers[rank].submit(torch.ones(5000), Grid(), Grid(), Key())
        assert len(messages) == 1


@pytest.mark.parametrize("field", ["version", "magic", "rank"])
def test_bad_header(field, monkeypatch):
    """Rank 1 sends a header of another version, or bytes that are no header."""
    from commpress.collectives import _header

    write = _header.write

    def sabotaged(header, out):
        write(header, out)
        if header.rank == 1:
            data = out.numpy()
            if field == "version":
                data[8:10] = list(struct.pack("<H", 7))
            elif field == "magic":
                data[0] = 0
            else:
                data[12] = 0

    monkeypatch.setattr(_header, "write", sabotaged)
    with World(2, timeout=5) as world:
        problems = [outcome(f) for f in [r.submit(torch.ones(9), Grid(), Grid(), Key()) for r in world.reducers]]
    if field == "version":
        assert isinstance(problems[0], MismatchError) and "rank 1 speaks header version 7" in str(problems[0])
    else:
        assert isinstance(problems[0], WireError)


def test_library_version_is_compared(monkeypatch):
    from commpress.collectives import _header

    write = _header.write

    def sabotaged(header, out):
        write(_header.dataclasses.replace(header, version="99.0") if header.rank == 1 else header, out)

    monkeypatch.setattr(_header, "write", sabotaged)
    with World(2, timeout=5) as world:
        for future in [r.submit(torch.ones(9), Grid(), Grid(), Key()) for r in world.reducers]:
            problem = outcome(future)
            assert (
                isinstance(problem, MismatchError)
                and "commpress version" in str(problem)
                and "rank 1: '99.0'" in str(problem)
            )


@pytest.mark.parametrize("sabotage", ["encode:1", "decode:1", "encode:2", "corrupt:1", "corrupt:2", "decode:2"])
@pytest.mark.parametrize("numel", [3, 60_000])
def test_one_rank_fails_locally_and_all_learn_of_it(sabotage, numel):
    """Submission 1 of rank 1 fails in its codec. Every rank must raise, name rank 1 where it was told, and refuse further use."""
    size = 3
    if numel == 3 and sabotage in ("encode:2", "decode:1", "corrupt:2"):
        numel = 12_288  # rank 1 must own a shard to get there
    with World(size, timeout=10, chunk=20_000) as world:
        data = inputs(size, numel)
        all_futures = []
        for rank, reducer in enumerate(world.reducers):
            codec = Grid(sabotage=sabotage, at=1) if rank == 1 else Grid()
            all_futures.append([reducer.submit(data[rank].clone(), codec, codec, Key(step=s)) for s in range(3)])
        results = [[outcome(f) for f in futures] for futures in all_futures]
        want, _ = expected(data, Grid(), Grid(), Key(step=0))
        for rank in range(size):
            assert torch.equal(results[rank][0], want)
            later = results[rank][2]
            assert isinstance(later, CommpressError), later
            problem = results[rank][1]
            if sabotage == "decode:2" and rank != 1:
                # rank 1 may have said before that all was well: then the others hear of it in the next submission
                first = later if isinstance(problem, torch.Tensor) else problem
                assert isinstance(first, PeerError) and "rank 1 failed" in str(first) and "sabotaged" in str(first)
            elif sabotage.startswith("corrupt"):
                assert isinstance(problem, (WireError, PeerError)) and "bad marker" in str(problem)
            elif rank == 1:
                assert isinstance(problem, StateError) and "sabotaged" in str(problem)
            else:
                assert (
                    isinstance(problem, PeerError) and "rank 1 failed" in str(problem) and "sabotaged" in str(problem)
                ), problem
                assert "step 1" in str(problem)
            with pytest.raises(StateError):
                world.reducers[rank].submit(torch.ones(5), Grid(), Grid(), Key())


@pytest.mark.parametrize("method", ["prepare", "encoded", "reduced", "complete"])
def test_observer_that_raises(method):
    class Bad(Observer):
        pass

    def boom(self, *args):
        raise ZeroDivisionError("observer trouble")

    setattr(Bad, method, boom)
    with World(2, timeout=10) as world:
        futures = [
            [
                r.submit(torch.ones(20_000), Grid(), Grid(), Key(step=s), observer=Bad() if i == 1 and s == 0 else None)
                for s in range(2)
            ]
            for i, r in enumerate(world.reducers)
        ]
        results = [[outcome(f) for f in fs] for fs in futures]
    assert isinstance(results[1][0], StateError) and "observer trouble" in str(results[1][0])
    assert isinstance(results[0][0], torch.Tensor if method == "complete" else PeerError)
    assert isinstance(results[0][1], (PeerError, StateError)) and "observer trouble" in str(results[0][1])


def test_a_silent_rank_is_named_within_the_timeout():
    with World(3, timeout=0.7) as world:
        futures = [world.reducers[r].submit(torch.ones(20_000), Grid(), Grid(), Key(step=17, tensor=4)) for r in (0, 2)]
        for future in futures:
            problem = outcome(future)
            assert isinstance(problem, PeerError) and "rank" in str(problem) and "step 17, tensor 4" in str(problem)
        assert any("rank 1 was silent for 0.7 s" in str(outcome(f)) for f in futures)


def test_a_rank_that_dies_in_the_middle():
    """Rank 2's phase 1 is cut off after its headers and some chunks."""
    size = 3
    with World(size, timeout=10, chunk=9_000) as world:
        fired = threading.Event()

        class Kill(Observer):
            def encoded(self, phase, start, stop, payload, key, gain):
                if phase == 1 and not fired.is_set() and start >= 8 * 4096:
                    fired.set()
                    for w in world.worlds:
                        w.kill(2)

        futures = [
            r.submit(torch.ones(60 * 4096), Grid(), Grid(), Key(step=3), observer=Kill() if i == 2 else None)
            for i, r in enumerate(world.reducers)
        ]
        problems = [outcome(f) for f in futures]
        assert fired.is_set()
        assert all(isinstance(p, PeerError) and "step 3" in str(p) for p in problems), problems
        assert any("rank 2 is gone" in str(p) for p in problems[:2])


def test_arguments_are_checked():
    with World(1) as world:
        reducer = world.reducers[0]
        for bad in (
            torch.ones(4, dtype=torch.float16),
            torch.ones(2, 2),
            torch.ones(8)[::2],
            torch.ones(4, dtype=torch.int32),
        ):
            with pytest.raises(TensorError):
                reducer.submit(bad, Grid(), Grid(), Key())
        with pytest.raises(TensorError, match="CUDA kernels come later"):
            reducer.submit(torch.ones(4, device="meta"), Grid(), Grid(), Key())
        with pytest.raises(TensorError, match="op must be"):
            reducer.submit(torch.ones(4), Grid(), Grid(), Key(), op="max")
        reducer.close()
        with pytest.raises(StateError, match="closed"):
            reducer.submit(torch.ones(4), Grid(), Grid(), Key())


def test_a_forgotten_reducer_ends_its_threads():
    world = FakeWorld(1), FakeWorld(1)
    reducer = Reducer(world[0].communicator(0), world[1].communicator(0), timeout=5)
    reducer.submit(torch.ones(4), Grid(), Grid(), Key()).wait()
    assert len([t for t in threading.enumerate() if t.name.startswith("commpress-phase")]) == 2
    del reducer
    deadline = time.monotonic() + 10
    while [t for t in threading.enumerate() if t.name.startswith("commpress-phase")]:
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
