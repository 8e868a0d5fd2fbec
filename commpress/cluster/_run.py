"""One command on all ranks: output, failures, time limits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, final

from commpress.errors import ClusterError

if TYPE_CHECKING:
    from commpress.cluster._handle import Keeper

_LOOK_SECONDS = 0.1
_CHUNK = 1 << 16


class _Process(Protocol):
    pid: int

    def poll(self) -> int | None: ...


@final
@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended on all ranks.

    Attributes:
        statuses: each rank's exit status, negative for the signal that ended it.
        seconds: from the first start to the last exit.
        failed: the rank that failed first, by itself; None: none did.
        timed_out: the time limit came first.
    """

    statuses: tuple[int, ...]
    seconds: float
    failed: int | None
    timed_out: bool

    @property
    def ok(self) -> bool:
        """All ranks ended by themselves with status 0."""
        return self.failed is None and not self.timed_out

    def in_words(self) -> str:
        """What went wrong, or that nothing did."""
        if self.failed is not None:
            return f"rank {self.failed} failed: {status_in_words(self.statuses[self.failed])}"
        return "the time limit was reached" if self.timed_out else "all ranks are done"


def status_in_words(status: int) -> str:
    """An exit status, or the name of the signal that a negative one stands for."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def run(
    start: Callable[[int, int | None, int | None], _Process],
    keeper: Keeper,
    ranks: int,
    *,
    timeout: float | None,
    grace: float,
    on_output: Callable[[int, str, bytes], None] | None,
    on_event: Callable[[dict[str, Any]], None] | None,
) -> Outcome:
    """See `Cluster.run`."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as files:
        selector.register(keeper.fileno(), selectors.EVENT_READ)
        job = _Job(keeper, selector, files, on_output, on_event)
        try:
            for rank in range(ranks):
                job.start(rank, start)
            deadline = None if timeout is None else job.began + timeout
            while job.running and job.failed is None:
                if deadline is not None and time.monotonic() > deadline:
                    job.timed_out = True
                    break
                job.look(_LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline - time.monotonic()))
        finally:
            # After Ctrl-C too. A second one ends this as well, and closing the cluster kills what is left.
            job.stop(grace)
        if job.running:
            raise ClusterError(f"ranks {sorted(job.running)} did not end, not even by SIGKILL")
        job.drain()
        seconds = max(job.ended) - job.began
    return Outcome(tuple(job.statuses[rank] for rank in range(ranks)), seconds, job.failed, job.timed_out)


@final
class _Job:
    def __init__(
        self,
        keeper: Keeper,
        selector: selectors.BaseSelector,
        files: contextlib.ExitStack,
        on_output: Callable[[int, str, bytes], None] | None,
        on_event: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._keeper, self._selector, self._files = keeper, selector, files
        self._on_output, self._on_event = on_output, on_event
        self.began = time.monotonic()
        self.running: dict[int, _Process] = {}
        self.statuses: dict[int, int] = {}
        self.ended: list[float] = []
        self.failed: int | None = None
        self.timed_out = False

    def start(self, rank: int, start: Callable[[int, int | None, int | None], _Process]) -> None:
        if self._on_output is None:
            self.running[rank] = start(rank, None, None)
        else:
            ends = []
            with contextlib.ExitStack() as theirs:
                for stream in ("stdout", "stderr"):
                    mine, other = os.pipe()
                    theirs.callback(os.close, other)
                    self._files.callback(os.close, mine)
                    os.set_blocking(mine, False)
                    self._selector.register(mine, selectors.EVENT_READ, (rank, stream))
                    ends.append(other)
                self.running[rank] = start(rank, ends[0], ends[1])
        self._tell(kind="start", rank=rank, pid=self.running[rank].pid)

    def look(self, seconds: float) -> None:
        """Waits for output or an exit, at most so long, and deals with it."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.data is not None:
                self._pass_on(key)
        for rank, process in list(self.running.items()):
            status = process.poll()
            if status is not None:
                del self.running[rank]
                self.statuses[rank] = status
                self.ended.append(time.monotonic())
                if status != 0 and self.failed is None and not self.timed_out:
                    self.failed = rank
                self._tell(kind="exit", rank=rank, status=status, seconds=self.ended[-1] - self.began)

    def stop(self, grace: float) -> None:
        """Ends all ranks that run."""
        if not self.running:
            return
        if self.failed is None:
            self.timed_out = True  # what ends from here on has not failed by itself
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 60.0)):
            pids = [process.pid for process in self.running.values()]
            self._keeper.ask("signal", pids=pids, signal=int(number))
            deadline = time.monotonic() + seconds
            while self.running and time.monotonic() < deadline:
                self.look(_LOOK_SECONDS)

    def drain(self) -> None:
        """Passes on what is in the pipes still. Does not wait for descendants that hold them open."""
        while ready := [key for key, _ in self._selector.select(0) if key.data is not None]:
            for key in ready:
                self._pass_on(key)

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(key.fd, _CHUNK)
            if not data:
                self._selector.unregister(key.fd)
        if self._on_output is not None:
            rank, stream = key.data
            self._on_output(rank, stream, data)

    def _tell(self, **event: Any) -> None:
        if self._on_event is not None:
            self._on_event(event)
