"""The ExactReducer: torch's own ring all-reduce with the interface of the Reducer, for tensors that are better sent as they are."""

from __future__ import annotations

import datetime
import os
import queue
import threading
import time
import weakref
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.collectives._accounting import Report
from commpress.collectives._framing import FramingMeter
from commpress.collectives._own_shard import is_finite
from commpress.collectives._threads import join
from commpress.collectives._torch import make_backend
from commpress.collectives.observer import Observer
from commpress.errors import CommpressError, PeerError, SpecError, StateError

_EXIT_GRACE = 5.0
_CONNECTIONS = 2  # all-reduces under way at once: while one waits for a peer the other moves bytes
_WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@final
class _Job:
    __slots__ = ("buffer", "flat", "future", "observer", "report", "started", "submitted", "wire", "work")

    def __init__(self, flat: torch.Tensor, wire: str, observer: Observer) -> None:
        self.flat = flat
        self.wire = wire
        self.observer = observer
        self.future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self.report = Report(flat.numel(), 1, wire, wire)
        self.submitted = time.perf_counter()
        self.started = 0.0
        self.buffer: torch.Tensor = flat
        self.work: Any = None


@final
class ExactReducer:
    """Means of flat fp32 tensors by torch's all-reduce on a gloo group of its own: exact, or in 16 bits on the wire. Two FIFO threads: one starts, one waits.

    All ranks submit the same tensors in the same order; there is no header that would find out if they do not. The result is the same to the bit on every rank, as every part
    of the ring's sum is made by one rank and passed on.

    Args:
        group: a ProcessGroup, whose ranks take part; its store is used, not its connections. Making an ExactReducer is collective.
        timeout: seconds that any wait for the peers may take.

    Raises:
        PeerError: a rank could not be reached within the timeout.
    """

    def __init__(self, group: Any, *, timeout: float) -> None:
        self.rank, self.world_size = group.rank(), group.size()
        self.timeout = float(timeout)
        self._pid = os.getpid()
        try:
            made = make_backend(group, timeout)
        except RuntimeError as problem:
            raise PeerError(
                f"rank {self.rank} could not reach all {self.world_size} ranks within {timeout:g} s: {_first_line(problem)}"
            ) from problem
        self._lane = _Lane(made, self.rank, self.world_size, self.timeout)
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _shutdown, self._lane, self._pid)

    @property
    def error(self) -> Exception | None:
        """The first failure, or None."""
        return self._lane.error

    def submit(
        self, flat: torch.Tensor, wire: str = "fp32", *, observer: Observer | None = None
    ) -> torch.futures.Future[torch.Tensor]:
        """Starts one all-reduce and returns at once.

        Args:
            flat: 1-D contiguous fp32 CPU tensor; overwritten with the mean. After a failure its content is undefined.
            wire: "fp32", or "bf16" or "fp16": what goes over the links; the mean is taken before the narrowing.
            observer: `prepare` is called before anything is sent, then `complete` or `failed`; the rest is not.

        Returns:
            A future of `flat`, or of a PeerError.

        Raises:
            SpecError: `wire` is none of these. StateError: closed, failed before, or used in a forked process.
        """
        if wire not in _WIRE:
            raise SpecError(f"wire must be of {', '.join(_WIRE)}, got {wire!r}")
        with self._lock:
            if self._closed:
                raise StateError("the reducer is closed")
            if self._pid != os.getpid():
                raise StateError("a reducer does not survive fork: its threads are in the parent")
            if self.error is not None:
                raise StateError(f"an earlier submission failed: {self.error}") from self.error
            job = _Job(flat.detach(), wire, observer or Observer())
            self._lane.jobs.put(job)
        return job.future

    def abort(self, error: Exception) -> None:
        """Breaks the connections: every all-reduce under way, here and on the other ranks, fails soon."""
        self._lane.abort(error)

    def close(self) -> None:
        """Waits for what is in flight (at most twice the timeout), joins the threads and closes the group. Twice does no harm."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and self._finalizer.detach() is not None and self._pid == os.getpid():
            self._lane.shutdown(2 * self.timeout)


@final
class _Lane:
    """The threads, which know nothing of the ExactReducer: a forgotten one is collected."""

    def __init__(self, group: Any, rank: int, size: int, timeout: float) -> None:
        self.error: Exception | None = None
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._under_way: queue.Queue[_Job | None] = queue.Queue(_CONNECTIONS)
        self._group, self._rank, self._size, self._timeout = group, rank, size, timeout
        self._framing = FramingMeter()
        self._aborted = False
        self._threads = [
            threading.Thread(target=work, name=f"commpress-exact-{name}", daemon=True)
            for name, work in (("start", self._start), ("finish", self._finish))
        ]
        for thread in self._threads:
            thread.start()

    def _start(self) -> None:
        with torch.no_grad():
            while (job := self.jobs.get()) is not None:
                if self.error is not None:
                    self._fail(job, StateError(f"an earlier submission failed: {self.error}"))
                    continue
                try:
                    self._begin(job)
                except Exception as problem:
                    self._fail(job, problem)
                    self.abort(problem)
                    continue
                self._under_way.put(job)
        self._under_way.put(None)

    def _begin(self, job: _Job) -> None:
        clock = time.perf_counter
        job.report.world_size = self._size
        job.started = clock()
        job.report.seconds_queue = job.started - job.submitted
        job.observer.prepare(job.flat)
        job.report.seconds_prepare = clock() - job.started
        if self._size == 1:
            return
        job.flat.mul_(1.0 / self._size)
        if job.wire != "fp32":
            job.buffer = job.flat.to(_WIRE[job.wire])
        if job.flat.numel():
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.SUM
            job.work = self._group.allreduce([job.buffer], options)

    def _finish(self) -> None:
        with torch.no_grad():
            while (job := self._under_way.get()) is not None:
                try:
                    self._end(job)
                except Exception as problem:
                    self._fail(job, problem)
                    self.abort(problem)
                    continue
                job.future.set_result(job.flat)

    def _end(self, job: _Job) -> None:
        report, clock = job.report, time.perf_counter
        before = clock()
        if job.work is not None:
            job.work.wait(datetime.timedelta(seconds=self._timeout))
        report.seconds_wait1 = clock() - before
        if job.buffer is not job.flat:
            job.flat.copy_(job.buffer)
        report.nonfinite = job.flat.numel() > 0 and not is_finite(job.flat)
        if self._size > 1:
            nbytes = job.buffer.numel() * job.buffer.element_size()
            half = nbytes * (self._size - 1) // self._size
            report.bytes_payload1, report.bytes_payload2 = half, half
            report.messages = report.messages_received = 2 * (self._size - 1)
            report.bytes_received = 2 * half
            report.mss = self._framing.record(report.bytes_sent, report.messages + report.messages_received)
        report.chunks = 1
        report.seconds_total = clock() - job.started
        job.observer.complete(report)

    def _fail(self, job: _Job, problem: Exception) -> None:
        if not isinstance(problem, CommpressError):
            where = f"exact all-reduce of {job.flat.numel()} coordinates, seen by rank {self._rank}"
            lost = f"a rank is gone, or was silent for {self._timeout:g} s ({_first_line(problem)}): {where}"
            broken = isinstance(problem, RuntimeError)  # gloo's only type of error
            wrapped = PeerError(lost) if broken else StateError(f"{type(problem).__name__}: {problem}: {where}")
            wrapped.__cause__ = problem
            problem = wrapped
        if self.error is None:
            self.error = problem
        try:
            job.observer.failed(problem)
        finally:
            job.future.set_exception(problem)

    def abort(self, error: Exception) -> None:
        """Ends every wait; see :class:`TorchCommunicator`, whose trick this is."""
        if self.error is None:
            self.error = error
        if self._aborted or self._size == 1:
            return
        self._aborted = True
        try:
            trash = torch.empty(1, dtype=torch.uint8)
            self._group.recv([trash], (self._rank + 1) % self._size, 1).wait(datetime.timedelta(milliseconds=1))
        except RuntimeError:
            pass

    def shutdown(self, grace: float) -> None:
        """Lets what is in flight finish for `grace` seconds, then breaks the connections, and joins the threads."""
        self.jobs.put(None)
        join(self._threads, grace, lambda: self.abort(StateError("closed while an all-reduce was under way")))
        self._group = None


def _shutdown(lane: _Lane, pid: int) -> None:
    if pid == os.getpid():
        lane.shutdown(_EXIT_GRACE)


def _first_line(problem: BaseException) -> str:
    text = str(problem)
    return text.splitlines()[0] if text else type(problem).__name__
