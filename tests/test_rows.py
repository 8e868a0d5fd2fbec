"""The two halves of the all-reduce, on in-process ranks: reduce-scatter and all-gather of tensors of one row for each rank."""

from __future__ import annotations

import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from _reducers import Record, World, inputs, outcome

from commpress.codecs import Key, LayeredCodec, codec
from commpress.collectives import rows_codec
from commpress.errors import MismatchError, PeerError, SpecError, StateError, TensorError, WireError

KEY = Key(seed=7, step=3, tensor=1)
SIZES = (0, 1, 513, 4096, 9001)


def scatter(world: World, data: list[torch.Tensor], spec: object, observers: list | None = None, **more) -> list:
    numel = data[0].numel() // world.size
    rows = [torch.full((numel,), torch.nan, dtype=data[0].dtype) for _ in data]
    made = rows_codec(codec(spec) if isinstance(spec, str) else spec, numel, world.size)
    found = observers or [None] * world.size
    futures = [
        reducer.reduce_scatter(row, x, made, KEY, observer=o, **more)
        for reducer, row, x, o in zip(world.reducers, rows, data, found, strict=True)
    ]
    return [outcome(future) for future in futures]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("op", ["mean", "sum"])
def test_lossless_is_the_sum(size, op):
    """To the bit at two ranks, whose sum has one order; the inputs stay as they are."""
    for numel in SIZES:
        data = inputs(size, size * numel, seed=numel)
        kept = [x.clone() for x in data]
        with World(size) as world:
            rows = scatter(world, data, "none", op=op)
        stacked = torch.stack(kept).view(size, size, numel)
        want = stacked.sum(0) if op == "sum" else stacked.sum(0) / size
        for rank, row in enumerate(rows):
            if size <= 2:
                assert torch.equal(row, want[rank])
            torch.testing.assert_close(row, want[rank], rtol=1e-6, atol=1e-6)
            assert torch.equal(data[rank], kept[rank])


@pytest.mark.parametrize(
    "spec", ["uniform:4", "hadamard+lloyd:3", "ecsq:2", "topk:0.1", "mxfp4", "hadamard+bitshift:1"]
)
@pytest.mark.parametrize("chunk", [None, 200])
def test_each_row_is_what_was_encoded_for_it(spec, chunk):
    """Row r is r's own contribution as it is and the decoded ones of the others, in the order r+1, r+2, ...; payloads have the size that the codec says."""
    size, numel = 3, 9001
    data = inputs(size, size * numel)
    records = [Record() for _ in range(size)]
    made = rows_codec(codec(spec), numel, size)
    with World(size, chunk=chunk) as world:
        rows = scatter(world, data, spec, records)
    assert not any(record.report.nonfinite for record in records)  # though rows were poisoned before
    for rank, row in enumerate(rows):
        base = rank * numel
        want = data[rank][base : base + numel] * (1 / size)
        for d in range(1, size):
            src = (rank + d) % size
            pieces = [e[1:3] for e in records[src].events if e[0] == 1 and base <= e[1] < base + numel]
            assert pieces[0][0] == base and pieces[-1][1] == base + numel
            for start, stop in pieces:
                key = KEY.replace(phase=1, sender=src)
                payload = made.encode(data[src][start:stop], key, offset=start, gain=1 / size)
                made.decode(payload, key, out=want[start - base : stop - base], accumulate=True, offset=start)
        torch.testing.assert_close(row, want, rtol=1e-5, atol=1e-6)
        assert not torch.equal(row, torch.stack(data).mean(0)[base : base + numel])  # something was compressed
        report = records[rank].report
        assert report.bytes_payload1 == sum(e[5] for e in records[rank].events if e[0] == 1)
        assert report.bytes_payload2 == 0
        if chunk is None:
            assert report.bytes_payload1 == (size - 1) * codec(spec).payload_nbytes(numel)
            assert report.messages == 3 * (size - 1)  # header, payload, verdict
        else:
            assert report.chunks > 1
        assert not any(e[0] in ("reduced", 2) for e in records[rank].events)


def test_rows_share_no_coins():
    """Equal rows are encoded to different bytes; a negative control without rows gives equal ones."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    made = rows_codec(codec("uniform:2"), 4096, 2)
    first, second = (made.encode(x, KEY, offset=offset) for offset in (0, 4096))
    assert not torch.equal(first, second)
    assert torch.equal(codec("uniform:2").encode(x, KEY), codec("uniform:2").encode(x, KEY))


@pytest.mark.parametrize("size", [2, 3])
def test_a_gain_scales_every_contribution(size):
    data = inputs(size, size * 700)
    with World(size) as world:
        rows = scatter(world, data, "none", op="sum", gain=0.25)
    want = torch.stack(data).view(size, size, 700).sum(0) * 0.25
    for rank, row in enumerate(rows):
        torch.testing.assert_close(row, want[rank], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sender", [0, 2])
@pytest.mark.parametrize(("chunk", "place"), [(None, 5000), (200, 100), (200, 9000)])
def test_a_nonfinite_value_arrives_where_it_belongs(value, sender, chunk, place):
    """In rank 2's row, whoever has it and in whichever chunk; all ranks know, and the rows of the others are as ever."""
    size, numel = 3, 9001
    data = inputs(size, size * numel)
    clean = [x.clone() for x in data]
    data[sender][2 * numel + place] = value
    records = [Record() for _ in range(size)]
    with World(size, chunk=chunk) as world:
        rows = scatter(world, data, "uniform:4", records)
        again = scatter(world, clean, "uniform:4", [Record() for _ in range(size)])
    assert not torch.isfinite(rows[2][place])
    wrong = (~torch.isfinite(rows[2])).nonzero().flatten()
    assert int(wrong.min()) >= place // 512 * 512 and int(wrong.max()) < place // 512 * 512 + 512
    assert torch.equal(rows[0], again[0]) and torch.equal(rows[1], again[1])
    assert all(record.report.nonfinite for record in records)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("spec", ["none", "uniform:8"])
def test_all_gather(size, spec):
    """All ranks have the same bits, each row within a quantum of its owner's."""
    for numel in SIZES:
        data = inputs(size, numel)
        with World(size) as world:
            flats = []
            for rank, x in enumerate(data):
                flats.append(torch.full((size * numel,), torch.nan))
                flats[-1][rank * numel : (rank + 1) * numel] = x
            made = rows_codec(codec(spec), numel, size)
            futures = [r.all_gather(f, made, KEY) for r, f in zip(world.reducers, flats, strict=True)]
            got = [outcome(future) for future in futures]
        for flat in got:
            assert torch.equal(flat, got[0])
            for rank, x in enumerate(data):
                row = flat[rank * numel : (rank + 1) * numel]
                if spec == "none" or size == 1:
                    assert torch.equal(row, x)
                elif numel:
                    assert float((row - x).abs().max()) <= 2 * float(x.abs().max()) / 255 * 1.01
                    assert numel == 1 or not torch.equal(row, x)


def test_both_share_a_reducer_with_all_reduces():
    """In any order, as long as it is the same on all ranks, and without waiting in between."""
    size, numel = 3, 5000
    data = inputs(size, size * numel)
    made = rows_codec(codec("none"), numel, size)
    with World(size) as world:
        futures = []
        for reducer, x in zip(world.reducers, data, strict=True):
            row, flat, whole = torch.zeros(numel), x.clone(), x.clone()
            one = reducer.reduce_scatter(row, x, made, KEY)
            two = reducer.all_gather(flat, made, KEY)
            futures.append((one, two, reducer.submit(whole, codec("none"), codec("none"), KEY)))
        done = [[outcome(f) for f in three] for three in futures]
    mean = torch.stack(data).mean(0)
    for rank, (row, flat, whole) in enumerate(done):
        torch.testing.assert_close(row, mean[rank * numel : (rank + 1) * numel], rtol=1e-5, atol=1e-6)
        assert torch.equal(flat, torch.cat([x[r * numel : (r + 1) * numel] for r, x in enumerate(data)]))
        torch.testing.assert_close(whole, mean, rtol=1e-5, atol=1e-6)


def test_calls_that_differ_are_named_on_every_rank():
    made = rows_codec(codec("uniform:4"), 100, 2)
    for other in ("op", "gain", "codec", "kind"):
        with World(2) as world:
            a, b = world.reducers
            first = a.reduce_scatter(torch.zeros(100), torch.zeros(200), made, KEY, op="sum")
            if other == "op":
                second = b.reduce_scatter(torch.zeros(100), torch.zeros(200), made, KEY)
            elif other == "gain":
                second = b.reduce_scatter(torch.zeros(100), torch.zeros(200), made, KEY, op="sum", gain=0.5)
            elif other == "codec":
                third = rows_codec(codec("uniform:5"), 100, 2)
                second = b.reduce_scatter(torch.zeros(100), torch.zeros(200), third, KEY, op="sum")
            else:
                second = b.submit(torch.zeros(200), codec("uniform:4"), codec("uniform:4"), KEY, op="sum")
            errors = [outcome(first), outcome(second)]
        word = {"op": "operation", "gain": "gain 0.5", "codec": "codec", "kind": "reduce-scatter sum"}[other]
        for error in errors:
            assert isinstance(error, MismatchError) and word in str(error), (other, error)


class Breaks(Record):
    """Fails in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.fired = where, False

    def _maybe(self, here: str) -> None:
        if here == self.where:
            self.fired = True
            raise RuntimeError(f"broken in {here}")

    def prepare(self, flat):
        self._maybe("prepare")

    def encoded(self, *args):
        self._maybe("encoded")

    def complete(self, report):
        self._maybe("complete")
        super().complete(report)


@pytest.mark.parametrize("where", ["prepare", "encoded"])
def test_a_failure_on_one_rank_raises_on_all(where):
    size, numel = 3, 9001
    records: list[Record] = [Record(), Breaks(where), Record()]
    with World(size) as world:
        errors = scatter(world, inputs(size, size * numel), "uniform:4", records)
        assert records[1].fired
        for rank, error in enumerate(errors):
            assert isinstance(error, StateError if rank == 1 else PeerError) and f"broken in {where}" in str(error)
            assert records[rank].error is error and records[rank].report is None
            with pytest.raises(StateError):
                world.reducers[rank].reduce_scatter(
                    torch.zeros(1), torch.zeros(3), rows_codec(codec("none"), 1, 3), KEY
                )


def test_a_payload_that_cannot_be_decoded_raises_on_all():
    """The rank that found it says so in its verdict: nobody goes on with a row that another one has not."""
    size, numel = 3, 5000
    fired = []

    class Corrupt(Record):
        def encoded(self, phase, start, stop, payload, key, gain):
            if key.sender == 0 and start == numel:  # for rank 1
                payload[:4] = torch.tensor([1, 0, 255, 255], dtype=torch.uint8)  # a scale that is NaN
                fired.append(True)

    records = [Corrupt() for _ in range(size)]
    with World(size) as world:
        errors = scatter(world, inputs(size, size * numel), "hadamard+lloyd:3", records)
    assert fired
    assert isinstance(errors[1], WireError), errors[1]
    assert isinstance(errors[0], PeerError) and isinstance(errors[2], PeerError) and "rank 1" in str(errors[2])


def test_a_rank_that_dies_ends_the_wait():
    with World(3, timeout=20.0) as world:
        made = rows_codec(codec("uniform:4"), 100, 3)
        futures = [world.reducers[r].reduce_scatter(torch.zeros(100), torch.zeros(300), made, KEY) for r in (0, 2)]
        for channel in world.worlds:
            channel.kill(1)
        for future in futures:
            assert isinstance(outcome(future), PeerError)


def test_what_is_refused():
    with World(2) as world:
        reducer, made = world.reducers[0], rows_codec(codec("none"), 10, 2)
        for row, flat, op, gain in (
            (torch.zeros(9), torch.zeros(20), "mean", None),
            (torch.zeros(10, dtype=torch.float64), torch.zeros(20), "mean", None),
            (torch.zeros(10), torch.zeros(20), "max", None),
            (torch.zeros(10), torch.zeros(20), "mean", 0.5),
            (torch.zeros(10), torch.zeros(20, dtype=torch.bfloat16), "sum", None),
        ):
            with pytest.raises(TensorError):
                reducer.reduce_scatter(row, flat, made, KEY, op=op, gain=gain)
        with pytest.raises(TensorError):
            reducer.all_gather(torch.zeros(21), made, KEY)
        for spec in ("homomorphic:4", "modulo:2,rho=0.9", "lowrank:2"):
            with pytest.raises(SpecError):
                reducer.reduce_scatter(torch.zeros(10), torch.zeros(20), codec(spec), KEY)
            with pytest.raises(SpecError):
                reducer.all_gather(torch.zeros(20), codec(spec), KEY)


def test_rows_of_a_plan_do_not_run_into_each_other():
    """A layer sent exactly at a row's end and one at the next row's beginning are two, so that payloads may begin between them."""
    layers = [(700, codec("none")), (5000, codec("uniform:3")), (33, codec("none"))]
    made = LayeredCodec(layers, rows=3)
    row = sum(n for n, _ in layers)
    assert made.numel == 3 * row
    x = torch.randn(3 * row, generator=torch.Generator().manual_seed(2))
    whole = made.encode(x, KEY)
    parts = [made.encode(x[r * row : (r + 1) * row], KEY, offset=r * row) for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    y = torch.full_like(x, torch.nan)
    made.decode(whole, KEY, out=y)
    assert torch.equal(y.view(3, row)[:, :700], x.view(3, row)[:, :700])
    assert torch.equal(y.view(3, row)[:, -33:], x.view(3, row)[:, -33:])
    assert LayeredCodec(layers, rows=1) == LayeredCodec(layers) != made


def test_the_error_is_the_codecs_own():
    """Two of three contributions are coded: neither less error than `uniform:4` makes (exact, or rounded to nearest: half of it) nor more (zeros, a wrong sign)."""
    size, numel = 3, 40_000
    data = [torch.randn(size * numel, generator=torch.Generator().manual_seed(50 + r)) for r in range(size)]
    exact = torch.stack(data).double().mean(0).view(size, numel)
    with World(size) as world:
        rows = scatter(world, data, "uniform:4")
    for rank, row in enumerate(rows):
        others = sum(float(data[r].view(size, numel)[rank].double().square().sum()) for r in range(size) if r != rank)
        error = float((row.double() - exact[rank]).square().sum()) * size**2 / others
        assert 0.8 < error / 0.0365 < 1.2
