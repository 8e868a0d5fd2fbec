"""Reducers on in-process ranks, and what their tests give them and see of them."""

from __future__ import annotations

import pathlib
import sys
import threading

import torch

from commpress.collectives import FakeWorld, Observer, Reducer, Report

sys.path.insert(0, str(pathlib.Path(__file__).parent / "distributed"))
from _stand_ins import Grid, Raw, expected

__all__ = ["Grid", "Raw", "Record", "World", "expected", "inputs", "outcome"]


class World:
    """`size` Reducers on two fake worlds."""

    def __init__(
        self, size: int, timeout: float = 20.0, plans: list[str] | None = None, chunk: int | None = None
    ) -> None:
        self.size = size
        self._threads_before = set(threading.enumerate())
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
        left = set(threading.enumerate()) - self._threads_before
        assert not [t for t in left if t.name.startswith("commpress-phase")]


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
