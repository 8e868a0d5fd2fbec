"""Codes added on the way, on in-process ranks: the exact result, every byte, non-finite inputs, and what happens when something fails."""

from __future__ import annotations

import pytest
import torch
from _homomorphic import mean_of
from _reducers import Grid, Record, World, inputs, outcome

import commpress
from commpress.codecs import Key
from commpress.codecs._homomorphic import HomomorphicCodec
from commpress.collectives import Observer, shard_bounds
from commpress.collectives._message import VERDICT_NBYTES
from commpress.errors import MismatchError, PeerError, SpecError, StateError, WireError

HEADER = 512


def run(world: World, codecs, data, keys, op="mean", observers=None) -> list[list]:
    """Results [rank][submission] of all submissions in flight together."""
    futures = []
    for rank, reducer in enumerate(world.reducers):
        codec = codecs[rank] if isinstance(codecs, list) else codecs
        futures.append(
            [
                reducer.submit(
                    x[rank].clone(), codec, codec, key, op=op, observer=observers[rank][i] if observers else None
                )
                for i, (x, key) in enumerate(zip(data, keys, strict=True))
            ]
        )
    return [[outcome(f) for f in of_rank] for of_rank in futures]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("op", ["mean", "sum"])
def test_exact_result_on_every_rank(size, op):
    codec = commpress.codec("homomorphic:3")
    numels = [0, 1, 4095, 4096, 4097, 2 * 4096 * size, 100_003]
    keys = [Key(seed=5, step=i, tensor=3) for i in range(len(numels))]
    data = [inputs(size, numel, seed=i) for i, numel in enumerate(numels)]
    with World(size, chunk=5_000) as world:
        results = run(world, codec, data, keys, op)
    for i, x in enumerate(data):
        want = x[0] if size == 1 else mean_of(codec, x, keys[i].replace(phase=1), op=op)[0]
        for rank in range(size):
            assert torch.equal(results[rank][i], want), (numels[i], rank)
        if size > 1 and numels[i] > 4096:
            exact = torch.stack(x).mean(0) if op == "mean" else torch.stack(x).sum(0)
            assert not torch.allclose(want, exact, atol=1e-3)  # something was quantised


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_report_counts_what_is_sent(size):
    codec, numel, key = commpress.codec("homomorphic:4,block=1024"), 77_777, Key(step=2)
    records = [[Record()] for _ in range(size)]
    with World(size, chunk=9_000) as world:
        run(world, codec, [inputs(size, numel)], [key], observers=records)
        for rank, (record,) in enumerate(records):
            report = record.report
            start, stop = shard_bounds(numel, size, rank)
            own, others = stop - start, size - 1
            scales = codec.scales_nbytes(numel) - codec.scales_nbytes(own) + others * codec.scales_nbytes(own)
            assert report.bytes_payload1 == codec.codes_nbytes(numel) - codec.codes_nbytes(own) + scales
            assert report.bytes_payload2 == others * codec.sums_nbytes(own, size)
            messages = others * (1 + 2 + 2 * report.chunks)
            assert report.messages == messages
            assert report.bytes_header == others * HEADER + (messages - others) * VERDICT_NBYTES
            assert report.bytes_sent == sum(w.nbytes_sent[rank] for w in world.worlds)
            assert report.messages == sum(w.messages_sent[rank] for w in world.worlds)
    # b bits, and b + ceil(log2 n) bits.
    assert codec.sums_nbytes(4096, size) * 8 == 4096 * (4 + (size - 1).bit_length())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 33_333])
def test_what_is_not_finite_reaches_every_rank(bad, where):
    size, codec, key = 3, commpress.codec("homomorphic:2"), Key(step=1)
    data = inputs(size, 50_000)
    data[1][where] = bad
    records = [[Record()] for _ in range(size)]
    with World(size, chunk=4_000) as world:
        results = run(world, codec, [data], [key], observers=records)
    start = where // 512 * 512
    for (result,), (record,) in zip(results, records, strict=True):
        assert record.report.nonfinite
        assert torch.isnan(result[start : start + 512]).all()
        assert torch.isfinite(torch.cat([result[:start], result[start + 512 :]])).all()
    data[1][where] = 1.0
    records = [[Record()] for _ in range(size)]
    with World(size) as world:
        run(world, codec, [data], [key], observers=records)
    assert not any(record.report.nonfinite for (record,) in records)


def test_extreme_magnitudes_stay_finite():
    codec, size = commpress.codec("homomorphic:4"), 3
    most = torch.finfo(torch.float32).max
    data = [torch.full((5000,), v) for v in (most, most, -most)]
    data[0][4096:], data[1][4096:], data[2][4096:] = 3e-45, -1e-40, 0
    with World(size) as world:
        results = run(world, codec, [data], [Key()])
    assert all(torch.isfinite(r).all() and torch.equal(r, results[0][0]) for (r,) in results)
    assert (results[0][0][:4096] / most - 1 / 3).abs().max() < 1 / 8
    assert results[0][0][4096:].abs().max() < 1e-39


def test_ranks_of_one_kind_and_another_disagree():
    with World(2) as world:
        results = run(
            world, [commpress.codec("homomorphic:4"), commpress.codec("uniform:4")], [inputs(2, 5000)], [Key()]
        )
    assert all(isinstance(r, MismatchError) and "homomorphic:4" in str(r) for (r,) in results)


def test_arguments_are_checked():
    four, eight = commpress.codec("homomorphic:4"), commpress.codec("homomorphic:8")
    with World(1) as world:
        with pytest.raises(SpecError, match="share"):
            world.reducers[0].submit(torch.ones(4), four, eight, Key())
        with pytest.raises(SpecError, match="share"):
            world.reducers[0].submit(torch.ones(4), Grid(), four, Key())
        modulo = commpress.codec("modulo:2,rho=0.9")
        with pytest.raises(SpecError, match="phase 2"):
            world.reducers[0].submit(torch.ones(4), modulo, modulo, Key())


class Faulty(HomomorphicCodec):
    """Fails in one method, from step 1 on (scales know no step: from the second call on)."""

    def __init__(self, method: str) -> None:
        super().__init__(4)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "calls", {})

    def _called(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        if method == self.method and self.calls[method] > (4 if method == "encode_codes" else 1):
            raise ArithmeticError("sabotaged")

    def agree(self, *args):
        self._called("agree")
        super().agree(*args)

    def finite(self, *args):
        self._called("finite")
        return super().finite(*args)

    def encode_codes(self, *args, **options):
        self._called("encode_codes")
        super().encode_codes(*args, **options)

    def add_codes(self, *args, **options):
        self._called("add_codes")
        super().add_codes(*args, **options)


@pytest.mark.parametrize("method", ["agree", "finite", "encode_codes", "add_codes"])
def test_one_rank_fails_locally_and_all_learn_of_it(method):
    size, codec = 3, commpress.codec("homomorphic:4")
    data = [inputs(size, 30_000, seed=s) for s in range(3)]
    codecs = [codec, Faulty(method), codec]
    with World(size, timeout=10) as world:
        results = run(world, codecs, data, [Key(step=s) for s in range(3)])
    want = mean_of(codec, data[0], Key(step=0, phase=1))[0]
    for rank in range(size):
        assert torch.equal(results[rank][0], want)
        problem = results[rank][1]
        if rank == 1:
            assert isinstance(problem, StateError) and "sabotaged" in str(problem)
        else:
            assert isinstance(problem, PeerError) and "rank 1 failed" in str(problem) and "sabotaged" in str(problem)
        assert isinstance(results[rank][2], (PeerError, StateError))


@pytest.mark.parametrize("method", ["prepare", "encoded", "sent_exactly"])
def test_observer_that_raises(method):
    class Bad(Observer):
        pass

    class Follows(Observer):
        @property
        def follows_reduction(self):
            return True

    def boom(self, *args):
        raise ZeroDivisionError("observer trouble")

    setattr(Bad, method, boom)
    Bad.follows_reduction = property(lambda self: True)
    observers = [[Follows(), None], [Bad(), None]]
    with World(2, timeout=10) as world:
        data = [inputs(2, 20_000) for _ in range(2)]
        results = run(world, commpress.codec("homomorphic:4"), data, [Key(), Key(step=1)], observers=observers)
    assert isinstance(results[1][0], StateError) and "observer trouble" in str(results[1][0])
    assert isinstance(results[0][0], PeerError)
    assert isinstance(results[0][1], (PeerError, StateError)) and "observer trouble" in str(results[0][1])


def test_corrupt_scales_are_an_error_everywhere():
    class Lies(HomomorphicCodec):
        def own_scales(self, x, out):
            super().own_scales(x, out)
            if out.numel() > 50:  # of the whole tensor: what is sent
                out[1::2] = 0x80

    honest = commpress.codec("homomorphic:4")
    with World(2, timeout=10) as world:
        results = run(world, [Lies(4), honest], [inputs(2, 40_000)], [Key()])
    assert all(isinstance(r, (WireError, PeerError)) and "scale" in str(r) for (r,) in results)


def test_the_observer_sees_what_the_others_see():
    size, numel, codec, key = 3, 21 * 4096 + 5, commpress.codec("homomorphic:2"), Key(step=2)
    data = inputs(size, numel)
    seen = [{"values": torch.zeros(numel, dtype=torch.float64), "count": torch.zeros(numel)} for _ in range(size)]
    exact: list[list] = [[] for _ in range(size)]

    class Look(Observer):
        def __init__(self, rank):
            self.rank = rank

        def encoded(self, phase, start, stop, payload, key, gain):
            assert phase == 1 and gain == 1.0 and key == Key(step=2, sender=self.rank, phase=1)
            out = codec.decode(payload, key, out=torch.empty(stop - start), offset=start)
            seen[self.rank]["values"][start:stop] = out.double()
            seen[self.rank]["count"][start:stop] += 1

        def sent_exactly(self, start, stop):
            exact[self.rank].append((start, stop))

        def reduced(self, start, stop):
            raise AssertionError("there is nothing to change in sums of codes")

    with World(size, chunk=9_000) as world:
        results = run(world, codec, [data], [key], observers=[[Look(r)] for r in range(size)])
    for rank in range(size):
        assert (seen[rank]["count"] == 1).all()
        own = shard_bounds(numel, size, rank)
        assert exact[rank][0][0] == own[0] and exact[rank][-1][1] == own[1]
    mean = sum(s["values"] for s in seen) / size
    assert torch.allclose(results[0][0].double(), mean, atol=1e-5)
