"""The two-phase pipeline: two FIFO threads, one for each phase and its channel. See the package's text for what callers see.

A failure on one rank alone (a codec or an observer raised) keeps the exchange in step: the rank goes on sending messages of the agreed sizes whose verdict prefix says that
it failed, and every rank learns of it at the latest from the last phase-2 message. A broken or silent connection ends both channels at once, which tells the peers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any, final

import torch

from commpress._version import __version__
from commpress.collectives import _header
from commpress.collectives._accounting import Report
from commpress.collectives._layout import BLOCK, Layout, LayoutPool, Message, chunk_count
from commpress.collectives._link import LinkMeter, chunk_nbytes
from commpress.collectives.communicator import ChannelError, Communicator, Handle
from commpress.collectives.observer import Observer
from commpress.errors import CommpressError, MismatchError, PeerError, StateError

_AHEAD = 2  # chunks encoded and sent before the first one back is waited for


@final
class _Agreed(Exception):
    """Carries a failure that every rank finds at the same point by itself, so that nobody has to be told."""

    def __init__(self, problem: CommpressError) -> None:
        super().__init__(str(problem))
        self.problem = problem


@final
class Job:
    """One submission on its way."""

    __slots__ = (
        "codec1", "codec2", "error", "flat", "fused", "future", "gain", "key", "layout", "link_start", "nonfinite", "observer", "op", "peer_error",
        "plan", "received2", "report", "result", "sequence", "submitted", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        flat: torch.Tensor,
        codec1: Any,
        codec2: Any,
        key: Any,
        op: str,
        observer: Observer,
        sequence: int,
        plan: str,
    ) -> None:
        self.flat = flat
        self.result = flat
        self.codec1 = codec1
        self.codec2 = codec2
        self.key = key
        self.op = op
        self.gain = 1.0  # what phase 1 multiplies by
        self.observer = observer
        # Reducing, encoding and decoding the own shard in one pass over memory, where nobody looks in between.
        self.fused = codec1 == codec2 and hasattr(codec1, "reduce") and not observer.follows_reduction
        self.sequence = sequence
        self.plan = plan
        self.future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self.report = Report(flat.numel(), 1, str(codec1), str(codec2), sequence)
        self.submitted = time.perf_counter()
        self.link_start = 0.0
        self.layout: Layout | None = None
        self.error: Exception | None = None  # what failed on this rank
        self.peer_error: tuple[int, str] | None = None  # what a peer said
        self.nonfinite = False
        self.received2: list[list[Handle | None]] = []
        self.tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True for each reduced chunk, False: give up

    def note(self, problem: Exception) -> None:
        """Remembers this rank's first failure."""
        if self.error is None:
            self.error = problem


@final
class Pipeline:
    """State and threads of one Reducer."""

    def __init__(self, comm1: Communicator, comm2: Communicator, timeout: float, chunk: int | None) -> None:
        self.comm1 = comm1
        self.comm2 = comm2
        self.rank = comm1.rank
        self.size = comm1.size
        self.timeout = timeout
        self.error: Exception | None = None
        self._chunk = chunk
        self._meter = LinkMeter()
        self._agreed_link = 0
        self._layouts = LayoutPool()
        self._broken = False
        self._said_farewell = False
        self._farewells: list[Handle] = []
        self._lock = threading.Lock()
        self._jobs1: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs2: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._headers = torch.zeros(self.size, _header.HEADER_NBYTES, dtype=torch.uint8)
        self._header_out = torch.zeros(_header.HEADER_NBYTES, dtype=torch.uint8)
        self._wake: Any = object()
        self._threads = [
            threading.Thread(target=self._run, args=(jobs, phase), name=f"commpress-phase{number}", daemon=True)
            for number, jobs, phase in ((1, self._jobs1, self._phase1), (2, self._jobs2, self._phase2))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""
        self._jobs1.put(job)

    def shutdown(self, grace: float) -> None:
        """Lets what is in flight finish for `grace` seconds, then breaks the channels, and joins the threads. May be called again."""
        self._jobs1.put(None)
        deadline = time.monotonic() + grace
        current = threading.current_thread()
        for thread in self._threads:
            if thread is not current:
                thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() and thread is not current for thread in self._threads):
            self._break()
            for thread in self._threads:
                if thread is not current:
                    thread.join(10.0)
        self.comm1.close()
        self.comm2.close()

    def _run(self, jobs: queue.SimpleQueue[Job | None], phase: Any) -> None:
        with torch.no_grad():
            while True:
                job = jobs.get()
                if job is None:
                    if jobs is self._jobs1:
                        self._jobs2.put(None)
                    return
                try:
                    phase(job)
                except _Agreed as agreed:
                    self._fail(job, agreed.problem)
                except Exception as problem:
                    self._break()  # out of step with the peers: nothing that follows could be understood
                    self._fail(job, problem)
                    job.tokens.put(False)
                del job

    # ---- failures

    def _where(self, job: Job, phase: int = 0) -> str:
        where = f", phase {phase}" if phase else ""
        return (
            f"step {job.key.step}, tensor {job.key.tensor}{where} (submission {job.sequence}), seen by rank {self.rank}"
        )

    def _channel_failure(self, job: Job, phase: int, peer: int, problem: ChannelError) -> PeerError:
        if problem.timed_out:
            text = f"rank {peer} was silent for {self.timeout:g} s ({problem})"
        else:
            text = f"rank {peer} is gone: {problem}; it died, or gave up after an error of its own (see its log)"
        return PeerError(f"{text}: {self._where(job, phase)}")

    def _fail(self, job: Job, problem: Exception) -> None:
        """Ends `job` with an error, and the reducer with it."""
        if not isinstance(problem, CommpressError):
            wrapped = StateError(f"{type(problem).__name__}: {problem}: {self._where(job)}")
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
            self.comm1.abort()
            self.comm2.abort()

    def _farewell(self) -> None:
        """Tells peers that may start another exchange why this rank will not."""
        if self._said_farewell or self._broken or self.size == 1:
            return
        self._said_farewell = True
        header = _header.Header(
            self.rank,
            self.size,
            "sum",
            torch.float32,
            0,
            0,
            0,
            0,
            0,
            __version__,
            "",
            "",
            "",
            b"",
            failed=True,
            reason=str(self.error),
        )
        _header.write(header, self._header_out)
        for peer in range(self.size):
            if peer != self.rank:
                with contextlib.suppress(ChannelError):
                    self._farewells.append(self.comm1.isend(self._header_out, peer))

    # ---- phase 1

    def _phase1(self, job: Job) -> None:
        if job is self._wake:
            self._farewell()
            return
        if self.error is not None:
            self._farewell()
            raise _Agreed(StateError(f"an earlier submission failed: {self.error}"))
        clock = time.perf_counter
        report, rank, size = job.report, self.rank, self.size
        report.world_size = size
        start = clock()
        report.seconds_queue = start - job.submitted
        if size == 1:
            job.observer.prepare(job.flat)
            self._jobs2.put(job)
            return
        peers = [(rank + d) % size for d in range(1, size)]
        handles = self._send_headers(job, peers)
        before = clock()
        try:
            job.observer.prepare(job.flat)
        except Exception as problem:
            job.note(problem)
        report.seconds_prepare = clock() - before
        chunks = 1
        if job.flat.numel():
            block = max(codec.payload_nbytes(BLOCK, dtype=job.flat.dtype) for codec in (job.codec1, job.codec2))
            chunks = chunk_count(job.flat.numel(), size, block, self._chunk or chunk_nbytes(self._agreed_link))
        layout = self._layouts.take(job.flat.numel(), job.flat.dtype, job.codec1, job.codec2, rank, size, chunks)
        job.layout = layout
        report.chunks = chunks
        gain = job.gain = 1.0 / size if job.op == "mean" else 1.0
        key = job.key.replace(phase=1, sender=rank)
        self._encode1(job, 0, key, gain)
        before = clock()
        self._match_headers(job, peers, handles)
        job.link_start = clock()
        report.seconds_header = job.link_start - before

        sends: list[tuple[int, Handle]] = []
        receives: list[list[Handle | None]] = []
        for c in range(chunks):
            receives.append(
                [
                    self._receive(job, self.comm1, 1, m, src)
                    for m, src in zip(layout.recv1[c], layout.sources, strict=True)
                ]
            )
        self._send1(job, 0, sends)
        for c in range(chunks):
            job.received2.append(
                [
                    self._receive(job, self.comm2, 2, m, src)
                    for m, src in zip(layout.recv2[c], layout.owners, strict=True)
                ]
            )
        self._jobs2.put(job)
        sent = 1
        for c in range(chunks):
            while sent < min(chunks, c + 1 + _AHEAD):
                self._encode1(job, sent, key, gain)
                self._send1(job, sent, sends)
                sent += 1
            self._reduce(job, c, receives[c], gain)
            job.tokens.put(True)
        before = clock()
        for peer, handle in sends:
            self._wait(job, 1, peer, handle)
        report.seconds_wait1 += clock() - before

    def _send_headers(self, job: Job, peers: list[int]) -> list[tuple[int, Handle, Handle]]:
        key = job.key
        header = _header.Header(
            rank=self.rank,
            world_size=self.size,
            op=job.op,
            dtype=job.flat.dtype,
            sequence=job.sequence,
            numel=job.flat.numel(),
            seed=key.seed,
            step=key.step,
            tensor=key.tensor,
            version=__version__,
            codec1=job.report.codec1,
            codec2=job.report.codec2,
            plan=job.plan,
            digest=_header.digest(job.report.codec1, job.report.codec2, job.plan),
            link=self._meter.quantised(),
        )
        _header.write(header, self._header_out)
        self._headers[self.rank].copy_(self._header_out)
        receives = [self._post(job, 1, peer, self.comm1.irecv, self._headers[peer]) for peer in peers]
        sends = [self._post(job, 1, peer, self.comm1.isend, self._header_out) for peer in peers]
        report = job.report
        report.bytes_header += _header.HEADER_NBYTES * len(peers)
        report.bytes_received += _header.HEADER_NBYTES * len(peers)
        report.messages += len(peers)
        report.messages_received += len(peers)
        return list(zip(peers, receives, sends, strict=True))

    def _match_headers(self, job: Job, peers: list[int], handles: list[tuple[int, Handle, Handle]]) -> None:
        for peer, receive, _ in handles:
            self._wait(job, 1, peer, receive)
        try:
            headers = [_header.read(self._headers[r], r) for r in range(self.size)]
            for header in headers:
                if header.failed:
                    raise _Agreed(PeerError(f"rank {header.rank} failed before: {header.reason}: {self._where(job)}"))
            _header.compare(headers)
        except MismatchError as found:
            raise _Agreed(MismatchError(f"{found}: {self._where(job)}")) from None
        for peer, _, send in handles:
            self._wait(job, 1, peer, send)
        self._agreed_link = min(header.link for header in headers)

    def _encode1(self, job: Job, c: int, key: Any, gain: float) -> None:
        assert job.layout is not None
        before = time.perf_counter()
        self._note_earlier(job)
        for message in job.layout.send1[c]:
            if message is not None and job.error is None:
                try:
                    self._encode(job, 1, job.codec1, message, key, gain)
                except Exception as problem:
                    job.note(problem)
        job.report.seconds_encode1 += time.perf_counter() - before

    def _send1(self, job: Job, c: int, sends: list[tuple[int, Handle]]) -> None:
        assert job.layout is not None
        for message, peer in zip(job.layout.send1[c], job.layout.targets, strict=True):
            if message is not None:
                self._verdict(job, message)
                sends.append((peer, self._post(job, 1, peer, self.comm1.isend, message.data)))
                job.report.bytes_payload1 += message.nbytes_payload
                self._count(job.report, message)

    def _reduce(self, job: Job, c: int, receives: list[Handle | None], gain: float) -> None:
        """Adds what the other ranks sent of chunk c of the own shard, in the order owner+1, owner+2, ...; a fused job leaves that to phase 2."""
        layout, clock = job.layout, time.perf_counter
        assert layout is not None
        beta = gain
        for message, src, handle in zip(layout.recv1[c], layout.sources, receives, strict=True):
            if message is None or handle is None:
                continue
            before = clock()
            self._wait(job, 1, src, handle)
            after = clock()
            job.report.seconds_wait1 += after - before
            self._read_verdict(job, message)
            if job.error is None and job.peer_error is None and not job.fused:
                key = job.key.replace(phase=1, sender=src)
                try:
                    for start, stop, payload in message.pieces:
                        job.codec1.decode(
                            payload, key, out=job.flat[start:stop], accumulate=True, offset=start, beta=beta
                        )
                except Exception as problem:
                    job.note(problem)
            job.report.seconds_decode1 += clock() - after
            beta = 1.0

    # ---- phase 2

    def _phase2(self, job: Job) -> None:
        report, layout, clock = job.report, job.layout, time.perf_counter
        if self.size == 1:
            report.nonfinite = not bool(torch.isfinite(job.flat).all())
            self._finish(job)
            return
        assert layout is not None
        key = job.key.replace(phase=2, sender=self.rank)
        sends: list[tuple[int, Handle]] = []
        for c in range(layout.chunks):
            before = clock()
            if not job.tokens.get():
                return  # phase 1 has reported the failure
            after = clock()
            report.seconds_wait2 += after - before
            message = layout.send2[c][0]
            if message is not None:
                if job.fused:
                    self._reduce_and_publish(job, c, message, key)
                else:
                    self._publish(job, message, key)
                report.seconds_encode2 += clock() - after
                for peer in layout.targets:
                    sends.append((peer, self._post(job, 2, peer, self.comm2.isend, message.data)))
                    report.bytes_payload2 += message.nbytes_payload
                    self._count(report, message)
            if c >= _AHEAD - 1:
                self._collect(job, c - _AHEAD + 1)
        for c in range(max(0, layout.chunks - _AHEAD + 1), layout.chunks):
            self._collect(job, c)
        before = clock()
        for peer, handle in sends:
            self._wait(job, 2, peer, handle)
        now = clock()
        report.seconds_wait2 += now - before
        report.nonfinite = job.nonfinite
        report.link_bytes_per_second = self._meter.record(
            max(report.bytes_sent, report.bytes_received), now - job.link_start
        )
        self._finish(job)

    def _publish(self, job: Job, message: Message, key: Any) -> None:
        """Encodes a chunk of the own shard and decodes it again, as every other rank will."""
        self._note_earlier(
            job
        )  # earlier jobs are through phase 2: once one has failed, every later one fails, on all ranks
        try:
            for start, stop, payload in message.pieces:
                if job.error is not None or job.peer_error is not None:
                    break
                part = job.flat[start:stop]
                job.observer.reduced(start, stop)
                job.codec2.encode(part, key, out=payload, offset=start)
                job.observer.encoded(2, start, stop, payload, key, 1.0)
                job.codec2.decode(payload, key, out=part, offset=start)
                if not job.nonfinite and not _is_finite(part):
                    job.nonfinite = True
        except Exception as problem:
            job.note(problem)
        self._verdict(job, message)

    def _reduce_and_publish(self, job: Job, c: int, message: Message, key: Any) -> None:
        """What `_reduce` and `_publish` do, piece by piece in one call of the codec."""
        layout = job.layout
        assert layout is not None
        self._note_earlier(job)
        sources = [(m, src) for m, src in zip(layout.recv1[c], layout.sources, strict=True) if m is not None]
        keys = [job.key.replace(phase=1, sender=src) for _, src in sources]
        try:
            for i, (start, stop, payload) in enumerate(message.pieces):
                if job.error is not None or job.peer_error is not None:
                    break
                payloads = [m.pieces[i][2] for m, _ in sources]
                finite = job.codec1.reduce(
                    payloads, keys, key, values=job.flat[start:stop], out=payload, offset=start, beta=job.gain
                )
                job.nonfinite = job.nonfinite or not finite
        except Exception as problem:
            job.note(problem)
        self._verdict(job, message)

    def _collect(self, job: Job, c: int) -> None:
        """Decodes chunk c of the other ranks' shards."""
        layout, clock = job.layout, time.perf_counter
        assert layout is not None
        for message, src, handle in zip(layout.recv2[c], layout.owners, job.received2[c], strict=True):
            if message is None or handle is None:
                continue
            before = clock()
            self._wait(job, 2, src, handle)
            after = clock()
            job.report.seconds_wait2 += after - before
            self._read_verdict(job, message)
            if job.error is None and job.peer_error is None:
                key = job.key.replace(phase=2, sender=src)
                try:
                    for start, stop, payload in message.pieces:
                        job.codec2.decode(payload, key, out=job.flat[start:stop], offset=start)
                except Exception as problem:
                    job.note(problem)
            job.report.seconds_decode2 += clock() - after

    def _finish(self, job: Job) -> None:
        report = job.report
        if job.error is None and job.peer_error is not None:
            origin, reason = job.peer_error
            self._fail(job, PeerError(f"rank {origin} failed: {reason}: {self._where(job)}"))
            return
        if job.error is None:
            if job.layout is not None:
                self._layouts.give(
                    report.numel, job.flat.dtype, job.codec1, job.codec2, self.rank, self.size, job.layout
                )
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

    # ---- messages

    def _encode(self, job: Job, phase: int, codec: Any, message: Message, key: Any, gain: float) -> None:
        for start, stop, payload in message.pieces:
            codec.encode(job.flat[start:stop], key, out=payload, offset=start, gain=gain)
            job.observer.encoded(phase, start, stop, payload, key, gain)

    def _verdict(self, job: Job, message: Message) -> None:
        origin, reason = self.rank, ""
        if job.error is not None:
            reason = f"{type(job.error).__name__}: {job.error}"
        elif job.peer_error is not None:
            origin, reason = job.peer_error
        failed = job.error is not None or job.peer_error is not None
        message.write_verdict(job.sequence, failed=failed, nonfinite=job.nonfinite, origin=origin, reason=reason)

    def _read_verdict(self, job: Job, message: Message) -> None:
        failed, nonfinite, origin, sequence, reason = message.read_verdict()
        if sequence != job.sequence:
            failed, reason = True, f"message of submission {sequence} in submission {job.sequence}"
        if failed and job.peer_error is None:
            job.peer_error = (origin, reason)
        job.nonfinite = job.nonfinite or nonfinite
        job.report.bytes_received += message.data.numel()
        job.report.messages_received += 1

    def _count(self, report: Report, message: Message) -> None:
        report.bytes_header += message.data.numel() - message.nbytes_payload
        report.messages += 1

    def _receive(self, job: Job, comm: Communicator, phase: int, message: Message | None, src: int) -> Handle | None:
        return None if message is None else self._post(job, phase, src, comm.irecv, message.data)

    def _post(self, job: Job, phase: int, peer: int, start: Any, data: torch.Tensor) -> Handle:
        try:
            handle: Handle = start(data, peer)
        except ChannelError as problem:
            raise self._channel_failure(job, phase, peer, problem) from None
        return handle

    def _wait(self, job: Job, phase: int, peer: int, handle: Handle) -> None:
        try:
            handle.wait(self.timeout)
        except ChannelError as problem:
            raise self._channel_failure(job, phase, peer, problem) from None


def _is_finite(part: torch.Tensor) -> bool:
    """Whether all are finite. The sum is not finite if one is not; it may overflow otherwise, and then every value is looked at."""
    return bool(torch.isfinite(part.sum())) or bool(torch.isfinite(part).all())
