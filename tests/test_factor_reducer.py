"""The FactorReducer on in-process ranks: many passages in flight, some with power iterations, at odds in time, and what a failure leaves behind."""

import random
import threading
import time

import pytest
import torch
from _reducers import World

import commpress
from commpress.collectives import FactorPlan, FactorReducer, MatrixShape, Passage, PassageObserver
from commpress.errors import CommpressError, StateError
from commpress.lowrank import Tracker

SHAPES = [MatrixShape(5, 30, 40), MatrixShape(1300, 25, 20)]
NUMEL = 2000


class Watcher(PassageObserver):
    def __init__(self, used=(True, True), delay=0.0, fault=None):
        self.used, self.delay, self.fault = used, delay, fault
        self.report = self.error = None

    def prepare(self):
        time.sleep(self.delay)
        if self.fault is not None:
            raise RuntimeError(self.fault)
        return self.used

    def complete(self, report):
        self.report = report

    def failed(self, error):
        self.error = error


def gradient(rank, index, step=0):
    g = torch.Generator().manual_seed(1000 * index + 10 * step + rank)
    return torch.randn(NUMEL, generator=g)


class Pair:
    """FactorReducers on `size` ranks that are threads."""

    def __init__(self, size, **options):
        self.left, self.right = World(size, **options), World(size, **options)
        self.reducers = [FactorReducer(a, b) for a, b in zip(self.left.reducers, self.right.reducers, strict=True)]

    def __enter__(self):
        self.left.__enter__(), self.right.__enter__()
        return self.reducers

    def __exit__(self, *_):
        closers = [threading.Thread(target=reducer.close) for reducer in self.reducers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(30)
            assert not closer.is_alive()


def passage(reducer, index, trackers, codec, watcher, step=0, left_out=False):
    work = gradient(reducer.rank, index, step)
    return Passage(
        FactorPlan(NUMEL, SHAPES, codec),
        trackers,
        work,
        torch.empty(NUMEL) if left_out else work,
        commpress.Key(step=step, tensor=index),
        op="mean",
        world_size=reducer.world_size,
        left_out=left_out,
        observer=watcher,
    )


def on_all(reducers, work):
    found = [None] * len(reducers)

    def run(reducer):
        try:
            found[reducer.rank] = work(reducer)
        except Exception as problem:
            found[reducer.rank] = problem

    threads = [threading.Thread(target=run, args=(reducer,)) for reducer in reducers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("factors", ["none", "hadamard+lloyd:4"])
def test_any_number_in_flight_with_ranks_at_odds_in_time(size, factors):
    codec = commpress.codec(f"lowrank:3,factors={factors}")
    count, steps = 7, 3

    def work(reducer):
        chance = random.Random(reducer.rank)
        trackers = [[Tracker(s.rows, s.columns, 3) for s in SHAPES] for _ in range(count)]
        results, lefts, turned = [], [], 0
        for step in range(steps):
            for index in (2, 5):  # these begin with power iterations, in every step; others overtake them nowhere
                trackers[index][index % 2].lost = True
            watchers = [Watcher(delay=chance.random() * 0.01) for _ in range(count)]
            passages = []
            for i in range(count):
                passages.append(passage(reducer, i, trackers[i], codec, watchers[i], step, left_out=True))
                time.sleep(chance.random() * 0.01)
                reducer.submit(passages[-1])
            for p, watcher in zip(passages, watchers, strict=True):
                p.future.wait()
                assert watcher.error is None and watcher.report is not None
                turned += len(p.reports) > 2
                results.append(p.out.clone() if size > 1 else None)
                lefts.append((p._work.clone(), [r.numel() for r in p.plan.final().rights]))
            if size > 1:
                for p in passages:
                    p.update_trackers()
        return results, lefts, turned

    with Pair(size) as reducers:
        found = on_all(reducers, work)
        for one in found:
            assert not isinstance(one, Exception), one
    if size == 1:
        return
    for one in found:
        assert one[2] == count + 2 * (steps - 1), "power iterations were to happen"
        assert all(torch.equal(a, b) for a, b in zip(one[0], found[0][0], strict=True))
    for place, out in enumerate(found[0][0]):
        step, index = divmod(place, count)
        mean = sum(gradient(r, index, step) for r in range(size)) / size
        owed = sum(one[1][place][0] for one in found) / size
        assert float((out + owed - mean).abs().max()) < 1e-5, "everything arrives or is owed"
        assert float(owed.abs().max()) > 0.1
        for start, stop in FactorPlan(NUMEL, SHAPES, codec).exact:
            assert float((out - mean)[start:stop].abs().max()) < 1e-6


def test_the_sum_is_the_mean_times_the_ranks():
    codec = commpress.codec("lowrank:3,factors=none")

    def work(reducer):
        outs = []
        for op in ("mean", "sum"):
            trackers = [Tracker(s.rows, s.columns, 3) for s in SHAPES]
            p = passage(reducer, 0, trackers, codec, Watcher())
            p.op = op
            reducer.submit(p).wait()
            outs += [p.out, torch.tensor([f or 0.0 for f in p.update_trackers()])]
        return outs

    with Pair(2) as reducers:
        for mean, fidelity, total, other in on_all(reducers, work):
            assert float((2 * mean - total).abs().max()) < 1e-4
            assert torch.allclose(fidelity, other, rtol=1e-4) and bool((fidelity > 0.1).all())


@pytest.mark.parametrize("cold", [True, False])
def test_a_failure_ends_every_passage_on_every_rank(cold):
    codec = commpress.codec("lowrank:3")

    def work(reducer):
        trackers = [Tracker(s.rows, s.columns, 3) for s in SHAPES]
        for tracker in trackers:
            tracker.lost = cold
        watchers = [Watcher(fault="on purpose" if (reducer.rank, i) == (1, 2) else None) for i in range(6)]
        futures, ends = [], []
        for i, watcher in enumerate(watchers):
            try:
                futures.append(reducer.submit(passage(reducer, i, trackers, codec, watcher)))
            except StateError:
                break
        for future in futures:
            try:
                future.wait()
                ends.append("ok")
            except CommpressError as problem:
                ends.append(str(problem))
        with pytest.raises(StateError, match="earlier submission failed"):
            reducer.submit(passage(reducer, 9, trackers, codec, Watcher()))
        return ends, sum(w.error is not None for w in watchers[: len(futures)])

    with Pair(3, timeout=5.0) as reducers:
        for found in on_all(reducers, work):
            assert not isinstance(found, Exception), found
            ends, told = found
            assert ends[:2] == ["ok", "ok"] and "ok" not in ends[2:] and len(ends) > 2
            assert "on purpose" in ends[2]
            assert told == len(ends) - 2


def test_a_rank_that_dies_ends_the_others():
    codec = commpress.codec("lowrank:3")
    pair = Pair(3, timeout=5.0)

    def work(reducer):
        trackers = [Tracker(s.rows, s.columns, 3) for s in SHAPES]
        if reducer.rank == 1:
            for world in (*pair.left.worlds, *pair.right.worlds):
                world.kill(1)
            return "dead"
        try:
            reducer.submit(passage(reducer, 0, trackers, codec, Watcher())).wait()
        except CommpressError as problem:
            return str(problem)
        return "no error"

    with pair as reducers:
        found = on_all(reducers, work)
        assert found[1] == "dead" and "no error" not in found
        assert any("rank 1" in text for text in (found[0], found[2])), found


def test_nan_in_one_matrix_leaves_the_other_alone():
    codec = commpress.codec("lowrank:3")

    def work(reducer):
        p = passage(reducer, 0, [Tracker(s.rows, s.columns, 3) for s in SHAPES], codec, watcher := Watcher())
        if reducer.rank == 1:
            p._work[SHAPES[0].start + 7] = float("nan")
        reducer.submit(p).wait()
        return p.out, watcher.report.nonfinite

    with Pair(2) as reducers:
        for out, nonfinite in on_all(reducers, work):
            bad = slice(SHAPES[0].start, SHAPES[0].stop)
            assert nonfinite and not bool(torch.isfinite(out[bad]).any())
            rest = out.clone()
            rest[bad] = 0
            assert bool(torch.isfinite(rest).all()) and float(rest[SHAPES[1].start : SHAPES[1].stop].abs().max()) > 0.1
