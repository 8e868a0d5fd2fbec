"""The two-phase pipeline as a timetable: what overlaps with what, for one rank among equals."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Final, final

AHEAD: Final = 2
"""Chunks encoded and sent before the first one back is waited for; the rule of the collectives."""

Task = tuple[
    str, float, int
]  # "cpu", seconds, 0; "send1" or "send2", bytes, chunk; "wait1", "wait2" or "wait0", 0, chunk


@final
@dataclasses.dataclass(frozen=True)
class Exchange:
    """One all-reduce, by chunk: seconds of work, bytes that a rank sends.

    Attributes:
        chunks: their number. header: seconds until all headers are there; encoding of the first chunk goes on meanwhile. latency: seconds between a message's last byte leaving and its being read.
        encode, reduce, decode: seconds of work on a chunk: the others' shards, the own one, the others' again. bytes1, bytes2: sent by one rank in each phase.
        link: bytes per second. socket: CPU seconds for a byte. shared: whether both threads and the sockets of a rank compete for one core.
    """

    chunks: int
    header: float
    latency: float
    encode: float
    reduce: float
    decode: float
    bytes1: float
    bytes2: float
    link: float
    socket: float
    shared: bool


def exchange_seconds(one: Exchange) -> float:
    """How long the exchange takes: thread by thread, each resource (the core, the link) serving one task at a time in the order in which they come up.

    Ranks are alike, so what a rank waits for arrives when what it sends itself would have.
    """
    threads: list[Generator[Task, None, None]] = [_phase1(one), _phase2(one)]
    clocks, pending = [0.0, 0.0], [next(thread, None) for thread in threads]
    core, link = 0.0, 0.0
    arrived: dict[tuple[str, int], float] = {}
    while True:
        ready = [i for i in (0, 1) if (task := pending[i]) is not None and _can_go(task, arrived)]
        if not ready:
            return max(clocks)
        i = min(ready, key=lambda k: clocks[k])
        task = pending[i]
        assert task is not None
        kind, amount, chunk = task
        now = clocks[i]
        if kind == "cpu":
            begin = max(now, core) if one.shared else now
            clocks[i] = begin + amount
            core = max(core, clocks[i])
        elif kind.startswith("send"):
            link = max(link, now) + amount / one.link
            done = link
            if one.shared:  # the sockets' threads take their share of the core; whoever sends goes on
                core = max(core, now) + amount * one.socket
                done = max(link, core)
            arrived[(kind.removeprefix("send"), chunk)] = done + one.latency
        elif kind == "give":
            arrived[("0", chunk)] = now
        elif kind == "until":
            clocks[i] = max(now, amount)
        else:
            clocks[i] = max(now, arrived[(kind.removeprefix("wait"), chunk)])
        pending[i] = next(threads[i], None)


def _can_go(task: Task, arrived: dict[tuple[str, int], float]) -> bool:
    kind, _, chunk = task
    return not kind.startswith("wait") or (kind.removeprefix("wait"), chunk) in arrived


def _phase1(one: Exchange) -> Generator[Task, None, None]:
    yield "cpu", one.encode, 0
    yield "until", one.header, 0
    yield "send1", one.bytes1, 0
    sent = 1
    for c in range(one.chunks):
        while sent < min(one.chunks, c + 1 + AHEAD):
            yield "cpu", one.encode, 0
            yield "send1", one.bytes1, sent
            sent += 1
        yield "wait1", 0.0, c
        yield "give", 0.0, c


def _phase2(one: Exchange) -> Generator[Task, None, None]:
    collected = 0
    for c in range(one.chunks):
        yield "wait0", 0.0, c
        yield "cpu", one.reduce, 0
        yield "send2", one.bytes2, c
        if c >= AHEAD - 1:
            yield "wait2", 0.0, collected
            yield "cpu", one.decode, 0
            collected += 1
    while collected < one.chunks:
        yield "wait2", 0.0, collected
        yield "cpu", one.decode, 0
        collected += 1
