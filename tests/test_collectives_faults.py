"""The Reducer on in-process ranks when something is wrong: every rank learns of it, and the error names it."""

from __future__ import annotations

import struct
import threading

import pytest
import torch
from _reducers import Grid, Record, World, expected, inputs, outcome

from commpress.codecs import Key
from commpress.collectives import Observer
from commpress.errors import CommpressError, MismatchError, PeerError, StateError, TensorError, WireError


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
        with pytest.raises(TensorError, match="must be on the CPU"):
            reducer.submit(torch.ones(4, device="meta"), Grid(), Grid(), Key())
        with pytest.raises(TensorError, match="op must be"):
            reducer.submit(torch.ones(4), Grid(), Grid(), Key(), op="max")
        reducer.close()
        with pytest.raises(StateError, match="closed"):
            reducer.submit(torch.ones(4), Grid(), Grid(), Key())
