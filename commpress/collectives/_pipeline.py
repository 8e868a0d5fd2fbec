"""The two-phase pipeline: two FIFO threads, one for each phase and its channel. See the package's text for what callers see.

A submission that somebody waits for anyway, with nothing else in flight and one message per peer, has nothing to overlap: it runs on the caller's thread, which saves
the hand-overs. Order and bytes on both channels are the same, so ranks may differ in this.

A failure on one rank alone (a codec or an observer raised) keeps the exchange in step: the rank goes on sending messages of the agreed sizes whose verdict prefix says that
it failed, and every rank learns of it at the latest from the last phase-2 message. A broken or silent connection ends both channels at once, which tells the peers.

With nodes there are two levels (`Levels`, `InNode`): each chunk is added up inside the node before phase 1 encodes it, exchanged with the ranks of the same local rank on the other
nodes, and given back inside the node when phase 2 is through with it; the chunks behind it are on the wire meanwhile. Both levels share the two channels.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.collectives._agreement import Agreement
from commpress.collectives._framing import FramingMeter
from commpress.collectives._greeting import AgreedError
from commpress.collectives._job import Job
from commpress.collectives._layout import Layout, Pool
from commpress.collectives._levels import Levels
from commpress.collectives._line import Line
from commpress.collectives._link import LinkMeter
from commpress.collectives._message import Message
from commpress.collectives._own_shard import OwnShard, way_of
from commpress.collectives._threads import join
from commpress.collectives.communicator import Communicator, Handle
from commpress.errors import CommpressError, PeerError, StateError

if TYPE_CHECKING:
    from commpress.collectives.nodes import NodeMap

_AHEAD = 2  # chunks encoded and sent before the first one back is waited for


@final
class Pipeline:
    """State and threads of one Reducer.

    Attributes:
        levels: whom this rank exchanges what with; name, world, rank, size: see there.
    """

    def __init__(
        self,
        comm1: Communicator,
        comm2: Communicator,
        timeout: float,
        chunk: int | None,
        nodes: NodeMap | None,
    ) -> None:
        self.levels = levels = Levels(comm1, comm2, timeout, nodes)
        self.name, self.world, self.rank, self.size = levels.name, levels.world, levels.rank, levels.size
        self._line1, self._line2, self._greeting = levels.line1, levels.line2, levels.greeting
        self.error: Exception | None = None
        self._chunk = chunk
        self._meter = LinkMeter()
        self._framing = FramingMeter(loopback=nodes is None)
        self._layouts: Pool[Layout] = Pool()
        self._broken = False
        self._phases_ahead = 0  # that the threads have been given and have not ended
        self._lock = threading.Lock()
        self._jobs1: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs2: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._wake: Any = object()
        self._threads = [
            threading.Thread(target=self._work, args=(jobs, phase), name=f"commpress-phase{number}", daemon=True)
            for number, jobs, phase in ((1, self._jobs1, self._phase1), (2, self._jobs2, self._phase2))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""
        self._hand_over(job, self._jobs1)

    def run(self, job: Job) -> None:
        """Like `submit`, but may do the work itself; the caller lets nobody else submit meanwhile."""
        job.here = self._phases_ahead == 0 and self.levels.chunks(job, self._chunk) == 1
        if not job.here:
            self._hand_over(job, self._jobs1)
            return
        with torch.no_grad():
            try:
                self._step(job, self._phase1)
                if not job.future.done():
                    self._step(job, self._phase2)
            except BaseException:  # Ctrl-C in the middle of an exchange: nobody knows what arrived
                self._break()
                self._fail(job, StateError(f"interrupted: {job.where(self.name)}"))
                raise

    def _hand_over(self, job: Job, jobs: queue.SimpleQueue[Job | None]) -> None:
        with self._lock:
            self._phases_ahead += 1
        jobs.put(job)

    def shutdown(self, grace: float) -> None:
        """Lets what is in flight finish for `grace` seconds, then breaks the channels, and joins the threads. May be called again."""
        self._jobs1.put(None)
        join(self._threads, grace, self._break)
        self.levels.close()

    def _work(self, jobs: queue.SimpleQueue[Job | None], phase: Any) -> None:
        with torch.no_grad():
            while True:
                job = jobs.get()
                if job is self._wake:
                    self._farewell()
                    continue
                if job is None:
                    if jobs is self._jobs1:
                        self._jobs2.put(None)
                    return
                self._step(job, phase)
                with self._lock:
                    self._phases_ahead -= 1
                del job

    def _step(self, job: Job, phase: Any) -> None:
        """One phase of a job, whatever comes of it."""
        try:
            phase(job)
        except AgreedError as agreed:
            self._fail(job, agreed.problem)
        except Exception as problem:
            self._break()  # out of step with the peers: nothing that follows could be understood
            self._fail(job, problem)
            job.tokens.put(False)

    # ---- failures

    def _fail(self, job: Job, problem: Exception) -> None:
        """Ends `job` with an error, and the reducer with it."""
        if not isinstance(problem, CommpressError):
            wrapped = StateError(f"{type(problem).__name__}: {problem}: {job.where(self.name)}")
            wrapped.__cause__ = problem
            problem = wrapped
        with self._lock:
            if self.error is None:
                self.error = problem
        if not job.future.done():
            try:
                job.observer.failed(problem)
            finally:
                job.future.set_exception(problem)

    def _note_earlier(self, job: Job) -> None:
        if self.error is not None:
            job.note(StateError(f"an earlier submission failed: {self.error}"))

    def _break(self) -> None:
        with self._lock:
            broken, self._broken = self._broken, True
        if not broken:
            self.levels.abort()

    def _farewell(self) -> None:
        if not self._broken:
            self.levels.farewell(str(self.error))

    # ---- phase 1

    def _phase1(self, job: Job) -> None:
        if self.error is not None:
            self._farewell()
            raise AgreedError(StateError(f"an earlier submission failed: {self.error}"))
        clock = time.perf_counter
        report, line = job.report, self._line1
        start = clock()
        report.seconds_queue = start - job.submitted
        self.levels.begin(job)
        if self.world == 1:
            job.observer.prepare(job.flat)
            self._next(job)
            return
        self._greeting.send(job, self._meter.quantised())
        before = clock()
        try:
            job.observer.prepare(job.flat)
        except Exception as problem:
            job.note(problem)
        report.seconds_prepare = clock() - before
        chunks = report.chunks = self.levels.chunks(job, self._chunk)
        if self.levels.node is not None:
            self._note_earlier(job)
            self.levels.node.open(job, chunks)
        if self.size == 1:
            self._only_node(job)
            return
        key = self._layout_key(job, chunks)
        layout = job.layout = self._layouts.take(key, lambda: Layout(*key))
        way = way_of(job)
        if layout.agreement is None:
            self._encode1(job, 0, way)
        else:
            for c in range(chunks):
                self.levels.arrive(job, c)
            self._own_scales(job, layout.agreement)
        before = clock()
        self.levels.match(job)
        job.link_start = clock()
        report.seconds_header += job.link_start - before

        if layout.agreement is not None:
            layout.agreement.exchange(job, line)
            report.seconds_wait1 += clock() - job.link_start
            self._encode1(job, 0, way)
        receives = [line.receive(job, messages, layout.sources) for messages in layout.recv1]
        self._send1(job, 0)
        job.received2 = [self._line2.receive(job, messages, layout.owners) for messages in layout.recv2]
        self._next(job)
        sent = 1
        for c in range(chunks):
            while sent < min(chunks, c + 1 + _AHEAD):
                self._encode1(job, sent, way)
                self._send1(job, sent)
                sent += 1
            self._gather(job, c, receives[c], way)
            job.tokens.put(True)
        if not job.here:  # else nothing is gained by waiting before the own shard is on its way
            report.seconds_wait1 += self._wait_all(job, line, job.sent1)

    def _only_node(self, job: Job) -> None:
        """Phase 1 where all ranks are on one node: nothing is encoded."""
        self.levels.arrive(job, 0)
        if job.op == "mean":
            job.flat[slice(*job.part)].mul_(job.gain)
        self._next(job)

    def _layout_key(self, job: Job, chunks: int) -> tuple[Any, ...]:
        return *job.part, job.flat.dtype, job.codec1, job.codec2, self.rank, self.size, chunks

    def _next(self, job: Job) -> None:
        if not job.here:
            self._hand_over(job, self._jobs2)

    def _own_scales(self, job: Job, agreement: Agreement) -> None:
        before = time.perf_counter()
        try:
            if job.error is None:
                job.codec1.own_scales(job.flat[agreement.start : agreement.stop], agreement.own)
        except Exception as problem:
            job.note(problem)
        job.report.seconds_encode1 += time.perf_counter() - before

    def _encode1(self, job: Job, c: int, way: OwnShard) -> None:
        if job.layout is not None and job.layout.agreement is None:
            self.levels.arrive(job, c)
        before = time.perf_counter()
        self._note_earlier(job)
        way.encode(job, c, self.rank)
        job.report.seconds_encode1 += time.perf_counter() - before

    def _send1(self, job: Job, c: int) -> None:
        assert job.layout is not None
        for message, peer in zip(job.layout.send1[c], job.layout.targets, strict=True):
            if message is not None:
                job.write_verdict(message, self.name)
                job.sent1.append((peer, self._line1.isend(job, message.data, peer)))
                job.report.bytes_payload1 += message.nbytes_payload
                self._count(job, message)

    def _gather(self, job: Job, c: int, receives: list[Handle | None], way: OwnShard) -> None:
        """Waits for what the other ranks sent of chunk c of the own shard, in the order of summation: owner+1, owner+2, ..."""
        layout, clock = job.layout, time.perf_counter
        assert layout is not None
        first = True
        for message, src, handle in zip(layout.recv1[c], layout.sources, receives, strict=True):
            if message is None or handle is None:
                continue
            before = clock()
            self._line1.wait(job, src, handle)
            after = clock()
            job.report.seconds_wait1 += after - before
            job.read_verdict(message)
            way.add(job, message, src, first=first)
            job.report.seconds_decode1 += clock() - after
            first = False

    # ---- phase 2

    def _phase2(self, job: Job) -> None:
        report, layout, clock = job.report, job.layout, time.perf_counter
        if self.size == 1:
            if job.row is not None:
                torch.mul(job.flat, job.gain, out=job.row)
            job.nonfinite = not bool(torch.isfinite(job.flat[slice(*job.part)]).all())
            if self.world > 1:
                self.levels.leave(job, 0)
                self._end_levels(job)
            report.nonfinite = job.nonfinite
            self._finish(job)
            return
        assert layout is not None
        way = way_of(job)
        sends: list[tuple[int, Handle]] = []
        for c in range(layout.chunks):
            before = clock()
            if not job.tokens.get():
                return  # phase 1 has reported the failure
            after = clock()
            report.seconds_wait2 += after - before
            message = layout.send2[c][0]
            if message is not None:
                # Earlier jobs are through phase 2: once one has failed, every later one fails, on all ranks.
                self._note_earlier(job)
                way.publish(job, c, message, self.rank)
                job.write_verdict(message, self.name)
                report.seconds_encode2 += clock() - after
                for peer in layout.targets:
                    sends.append((peer, self._line2.isend(job, message.data, peer)))
                    report.bytes_payload2 += message.nbytes_payload
                    self._count(job, message)
            if c >= _AHEAD - 1:
                self._collect(job, c - _AHEAD + 1, way)
                self.levels.leave(job, c - _AHEAD + 1)
        for c in range(max(0, layout.chunks - _AHEAD + 1), layout.chunks):
            self._collect(job, c, way)
            self.levels.leave(job, c)
        if job.here:
            report.seconds_wait1 += self._wait_all(job, self._line1, job.sent1)
        report.seconds_wait2 += self._wait_all(job, self._line2, sends)
        now = clock()
        self._end_levels(job)
        report.nonfinite = job.nonfinite
        report.mss = self._framing.record(report.bytes_sent, report.messages + report.messages_received)
        # On one thread nothing happened while it waited; on two, compute and wire overlap, and the whole time is the best bound.
        seconds = report.seconds_wait1 + report.seconds_wait2 if job.here else now - job.link_start
        report.link_bytes_per_second = self._meter.record(
            max(report.bytes_sent, report.bytes_received), seconds, overlapped=not job.here
        )
        self._finish(job)

    def _end_levels(self, job: Job) -> None:
        if self.levels.node is not None:
            self._note_earlier(job)
            self.levels.finish(job)

    def _collect(self, job: Job, c: int, way: OwnShard) -> None:
        """Decodes chunk c of the other ranks' shards."""
        layout, clock = job.layout, time.perf_counter
        assert layout is not None
        for message, src, handle in zip(layout.recv2[c], layout.owners, job.received2[c], strict=True):
            if message is None or handle is None:
                continue
            before = clock()
            self._line2.wait(job, src, handle)
            after = clock()
            job.report.seconds_wait2 += after - before
            job.read_verdict(message)
            if not job.failed:
                way.read(job, c, message, src)
            job.report.seconds_decode2 += clock() - after

    def _finish(self, job: Job) -> None:
        report = job.report
        if job.error is None and job.peer_error is not None:
            origin, reason = job.peer_error
            self._fail(job, PeerError(f"rank {origin} failed: {reason}: {job.where(self.name)}"))
            return
        if job.error is None:
            if job.layout is not None:
                self._layouts.give(self._layout_key(job, job.layout.chunks), job.layout)
            report.seconds_total = time.perf_counter() - job.submitted - report.seconds_queue
            try:
                job.observer.complete(report)
            except Exception as problem:
                job.note(problem)
        if job.error is not None:
            self._fail(job, job.error)
            self._jobs1.put(self._wake)  # the peers may not know yet
            return
        job.future.set_result(job.result)

    def _wait_all(self, job: Job, line: Line, sends: list[tuple[int, Handle]]) -> float:
        """Waits until all has been sent; returns the seconds it took."""
        before = time.perf_counter()
        for peer, handle in sends:
            line.wait(job, peer, handle)
        return time.perf_counter() - before

    def _count(self, job: Job, message: Message) -> None:
        job.report.bytes_header += message.data.numel() - message.nbytes_payload
        job.report.messages += 1
