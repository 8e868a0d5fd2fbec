"""The two-phase all-reduce on a device: a step's buckets are enqueued, and what became of them is known when the next step begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch

from commpress.codecs import Codec, Key
from commpress.collectives._accounting import Report
from commpress.collectives._device_header import DeviceHeaders
from commpress.collectives._layout import split
from commpress.collectives._own_shard import passes_on
from commpress.collectives.communicator import Communicator
from commpress.collectives.device import DeviceOps, Fetched
from commpress.collectives.observer import Observer
from commpress.errors import CommpressError, StateError, TensorError, WireError

_FACTS = 4  # of a bucket on one rank: 1 + the position of an invalid payload and whether something is not finite, in phase 1 and in phase 2
_ALIGN = 16


@final
@dataclasses.dataclass
class Verdict:
    """What became of a step, equal on all ranks.

    Attributes:
        step: its number. finite: of each bucket, whether the result was. reports: of each bucket, with times if they were asked for.
    """

    step: int
    finite: list[bool]
    reports: list[Report]


@dataclasses.dataclass
class _Step:
    number: int
    timed: bool
    findings: torch.Tensor
    reports: list[Report] = dataclasses.field(default_factory=list)
    events: list[list[Any]] = dataclasses.field(default_factory=list)
    fetched: Fetched | None = None


@final
class DeviceReducer:
    """All-reduces of fp32 tensors on one device, in steps: :meth:`open`, :meth:`reduce` for each bucket, :meth:`finish`. The same on every rank.

    Nothing waits for the device but :meth:`settle`, which the next :meth:`open` calls: it reads what the last step left, which all ranks have gathered, so all raise the same error, a step
    late. Until then the step's results are not to be trusted. The results are those of `Reducer`, to the bit.

    Args:
        ops: the device and the collectives on it.
        control: a channel between the hosts, used by nothing else, closed with the reducer.
        timeout: seconds that a wait for a peer may take.

    Attributes:
        error: the first failure, or None; from then on everything raises StateError.
    """

    def __init__(self, ops: DeviceOps, control: Communicator, timeout: float) -> None:
        self.ops = ops
        self.rank, self.world_size = ops.rank, ops.size
        self.error: CommpressError | None = None
        self._headers = DeviceHeaders(control, timeout)
        self._timeout = timeout
        self._arena: torch.Tensor | None = None
        self._step: _Step | None = None
        self._last: _Step | None = None
        self._closed = False

    # ---- steps

    def open(self, number: int, facts: dict[str, object], buckets: int, *, timed: bool = False) -> Verdict | None:
        """Begins a step of so many buckets and returns what became of the last one, if there was one that is not settled.

        Args:
            facts: what must be equal on all ranks (codecs, sizes, keys), by name.
            timed: fill in the reports' times.

        Raises:
            MismatchError: ranks disagree on this step, if it is unlike the last one, or on the last one.
            WireError: a payload of the last step was invalid. PeerError: a rank is gone, or did not take part. StateError: closed, or failed before.
        """
        self._check_usable()
        if self._step is not None:
            raise StateError(f"step {self._step.number} has not been finished")
        if self.ops.capturing():
            raise StateError("an all-reduce cannot be captured in a CUDA graph: its headers are the host's")
        verdict = self.settle()
        self._guard(lambda: self._headers.open(number, facts))
        with self.ops.communicating():
            findings = self.ops.empty(max(buckets, 1) * _FACTS, torch.int32)
            findings.zero_()
        self._step = _Step(number, timed, findings)
        return verdict

    def finish(self) -> None:
        """All buckets of the step have been given: gathers what the ranks found of it. Does not wait."""
        step, self._step = self._opened(), None
        with self.ops.communicating():
            mine = step.findings.view(torch.uint8)
            everyones = mine
            if self.world_size > 1:
                everyones = self.ops.empty(self.world_size * mine.numel(), torch.uint8)
                self.ops.all_gather(everyones, mine)
            step.fetched = self.ops.fetch(everyones.view(torch.int32))
        self._last = step

    def settle(self) -> Verdict | None:
        """What became of the last finished step; None if there is none, or it is known already. Waits for it. Raises as :meth:`open`."""
        self._check_usable()
        step, self._last = self._last, None
        if step is None:
            return None
        self._guard(self._headers.read)
        assert step.fetched is not None
        fetched = step.fetched
        found: list[int] = []
        self._guard(lambda: found.extend(fetched.read(self._timeout)))
        self._guard(lambda: self._check_payloads(step, found))
        each = len(found) // self.world_size
        finite = []
        for bucket, report in enumerate(step.reports):
            flags = [found[r * each + bucket * _FACTS + i] for r in range(self.world_size) for i in (1, 3)]
            report.nonfinite = any(flags)
            finite.append(not report.nonfinite)
            if step.events[bucket]:
                self._take_times(report, step.events[bucket])
        return Verdict(step.number, finite, step.reports)

    def _check_payloads(self, step: _Step, found: list[int]) -> None:
        each = len(found) // self.world_size
        for place, value in enumerate(found):
            rank, fact = place // each, place % _FACTS
            if fact % 2 == 0 and value:
                sender = (rank + value) % self.world_size  # phase 1: position 0 is the rank after the owner
                whose = f"from rank {sender}" if fact == 0 else "in phase 2"
                raise WireError(
                    f"rank {rank} met an invalid payload {whose}, in bucket {place % each // _FACTS} of step {step.number}: its bytes are corrupt, "
                    "and that step's result is wrong on all ranks"
                )

    def _take_times(self, report: Report, events: list[Any]) -> None:
        names = ("encode1", "wait1", "decode1", "encode2", "wait2", "decode2")
        for name, begin, end in zip(names, events, events[1:], strict=False):
            setattr(report, f"seconds_{name}", self.ops.seconds(begin, end))
        report.seconds_total = self.ops.seconds(events[0], events[-1])

    # ---- one bucket

    def reduce(
        self, flat: torch.Tensor, codec: Codec, key: Key, *, op: str = "mean", observer: Observer | None = None
    ) -> torch.Tensor:
        """Enqueues the all-reduce of one bucket; to be called with the communication stream current, and behind what wrote `flat`.

        Args:
            flat: 1-D contiguous fp32; overwritten.
            codec: of both phases; :meth:`DeviceOps.check` knows it. key: equal on all ranks; `sender` and `phase` are filled in.
            op: "mean" or "sum".
            observer: its `prepare`, `encoded` and `reduced` are called as a `Reducer` would, to enqueue more; for a whole shard at a time.

        Returns:
            int32 (1) on the device, for more findings: not 0 if the caller finds something that is not finite in what it makes of the result.
        """
        step = self._opened()
        if flat.dtype != torch.float32 or flat.dim() != 1 or not flat.is_contiguous():
            raise TensorError(f"expected a 1-D contiguous fp32 tensor, got {flat.dtype} of shape {tuple(flat.shape)}")
        if self.world_size == 1:
            return self.leave([flat], codec)
        facts, report = self._begin(step, flat.numel(), codec)
        gain = 1.0 / self.world_size if op == "mean" else 1.0
        _Bucket(self, step, facts, report, flat, codec, key, gain, observer).run()
        return facts[3:]

    def leave(self, tensors: Sequence[torch.Tensor], codec: Codec) -> torch.Tensor:
        """A bucket of the only rank there is: tensors of any dtype stay as they are, and are looked at. As :meth:`reduce`."""
        step = self._opened()
        facts, _ = self._begin(step, sum(one.numel() for one in tensors), codec)
        for one in tensors:
            facts[3:].logical_or_(torch.isfinite(one).all().logical_not())
        return facts[3:]

    def _begin(self, step: _Step, numel: int, codec: Codec) -> tuple[torch.Tensor, Report]:
        bucket = len(step.reports)
        report = Report(numel, self.world_size, str(codec), str(codec), bucket, chunks=1)
        step.reports.append(report)
        step.events.append([])
        return step.findings[bucket * _FACTS : (bucket + 1) * _FACTS], report

    def arena(self, nbytes: int) -> torch.Tensor:
        """Room for one bucket's messages. One is enough: buckets follow each other on one stream."""
        if self._arena is None or self._arena.numel() < nbytes:
            self._arena = None
            self._arena = self.ops.empty(nbytes, torch.uint8)
        return self._arena[:nbytes]

    # ---- the rest

    def shard(self, numel: int, codec: Codec) -> tuple[int, int]:
        """Limits of what this rank owns of a bucket."""
        start, stop = split(codec, 0, numel, self.world_size)[self.rank : self.rank + 2]
        return start, stop

    @property
    def header_bytes_each(self) -> int:
        """What a step's header costs this rank."""
        return self._headers.bytes_each

    def fail(self, problem: Exception) -> None:
        """Something went wrong on this rank alone: later calls raise, and peers that wait for the next header learn that this rank is gone."""
        if self.error is None:
            self.error = problem if isinstance(problem, CommpressError) else StateError(str(problem))
            self._headers.abort()

    def close(self) -> None:
        """Ends the reducer. What the last step left is read first: raises as :meth:`settle`. Twice does no harm."""
        if self._closed:
            return
        try:
            if self.error is None:
                self.settle()
        finally:
            self._closed = True
            self._headers.close()
            self._arena = None

    def _opened(self) -> _Step:
        self._check_usable()
        if self._step is None:
            raise StateError("no step is open")
        return self._step

    def _check_usable(self) -> None:
        if self._closed:
            raise StateError("the reducer is closed")
        if self.error is not None:
            raise StateError(f"an earlier step failed: {self.error}") from self.error

    def _guard(self, call: Any) -> None:
        try:
            call()
        except CommpressError as error:
            self.error = self.error or error
            raise


@final
class _Bucket:
    """One bucket on its way."""

    def __init__(
        self,
        reducer: DeviceReducer,
        step: _Step,
        facts: torch.Tensor,
        report: Report,
        flat: torch.Tensor,
        codec: Codec,
        key: Key,
        gain: float,
        observer: Observer | None,
    ) -> None:
        self._observer = observer
        self._ops, self._timed, self._events = reducer.ops, step.timed, step.events[-1]
        self._found1, self._found2 = facts[:2], facts[2:]
        self._flat, self._codec, self._gain, self._report = flat, codec, gain, report
        self._rank, self._size = reducer.rank, reducer.world_size
        self._cuts = split(codec, 0, flat.numel(), self._size)
        self._own = self._cuts[self._rank], self._cuts[self._rank + 1]
        self._sources = [(self._rank + d) % self._size for d in range(1, self._size)]  # the order of summation
        self._key1 = [key.replace(phase=1, sender=r) for r in range(self._size)]
        self._key2 = [key.replace(phase=2, sender=r) for r in range(self._size)]
        # Sizes follow from codec and numel, so every rank knows them all, and nothing is sent ahead.
        self._nbytes = [
            codec.payload_nbytes(stop - start, offset=start) if stop > start else 0
            for start, stop in zip(self._cuts, self._cuts[1:], strict=False)
        ]
        own = self._nbytes[self._rank]
        self._sent1 = [0 if r == self._rank else nbytes for r, nbytes in enumerate(self._nbytes)]
        self._received1 = [0 if r == self._rank else own for r in range(self._size)]
        self._slot = -(-max(self._nbytes) // _ALIGN) * _ALIGN
        sizes = sum(self._sent1), sum(self._received1), self._slot, self._size * self._slot
        rooms = [-(-nbytes // _ALIGN) * _ALIGN for nbytes in sizes]
        arena = reducer.arena(sum(rooms))
        views = [room[:nbytes] for room, nbytes in zip(arena.split(rooms), sizes, strict=True)]
        self._send1, self._recv1, self._send2, self._recv2 = views

    def run(self) -> None:
        if not self._flat.numel():
            return
        if self._observer is not None:
            self._observer.prepare(self._flat)
        self._mark()
        ranges = [(self._cuts[r], self._cuts[r + 1]) for r, nbytes in enumerate(self._sent1) if nbytes]
        self._ops.encode(self._codec, self._flat, ranges, self._key1[self._rank], self._send1, self._gain)
        if self._observer is not None:
            self._tell_sent(self._observer)
        self._mark()
        self._ops.all_to_all(self._recv1, self._received1, self._send1, self._sent1)
        self._mark()
        both = passes_on(self._codec, self._size)
        own, payload = self._flat[self._own[0] : self._own[1]], self._send2[: self._nbytes[self._rank]]
        if own.numel() and not both:
            received = [self._received(r) for r in self._sources]
            keys = [self._key1[r] for r in self._sources]
            self._ops.decode(
                self._codec, received, keys, own, self._own[0], self._found1, accumulate=True, beta=self._gain
            )
        self._mark()
        if own.numel():
            if self._observer is not None:
                self._observer.reduced(*self._own)
            gain = self._gain if both else 1.0
            self._ops.encode(self._codec, self._flat, [self._own], self._key2[self._rank], payload, gain)
            if self._observer is not None:
                self._observer.encoded(2, *self._own, payload, self._key2[self._rank], gain)
        self._mark()
        self._ops.all_gather(self._recv2, self._send2)
        self._mark()
        for r in (self._rank, *self._sources):
            self._decode2(r, both)
        self._mark()
        self._count()

    def _tell_sent(self, observer: Observer) -> None:
        position = 0
        for r, nbytes in enumerate(self._sent1):
            if nbytes:
                payload = self._send1[position : position + nbytes]
                observer.encoded(1, self._cuts[r], self._cuts[r + 1], payload, self._key1[self._rank], self._gain)
            position += nbytes

    def _decode2(self, owner: int, both: bool) -> None:
        """Everybody decodes what the owner published, the owner too. Of two ranks each adds the other's contribution, which one of them sent and one received in phase 1."""
        start, stop = self._cuts[owner], self._cuts[owner + 1]
        if start == stop:
            return
        payloads = [self._recv2[owner * self._slot :][: self._nbytes[owner]]]
        keys = [self._key2[owner]]
        if both:
            other = 1 - owner
            payloads.append(self._received(other) if owner == self._rank else self._send1)
            keys.append(self._key1[other])
        self._ops.decode(self._codec, payloads, keys, self._flat[start:stop], start, self._found2)

    def _received(self, rank: int) -> torch.Tensor:
        begin = sum(self._received1[:rank])
        return self._recv1[begin : begin + self._received1[rank]]

    def _mark(self) -> None:
        if self._timed:
            self._events.append(self._ops.record(timed=True))

    def _count(self) -> None:
        report, peers = self._report, self._size - 1
        own = self._nbytes[self._rank]
        report.bytes_payload1, report.bytes_payload2 = sum(self._sent1), own * peers
        report.bytes_header = (self._slot - own) * peers  # what makes the slots of a gather equally long
        report.messages = report.messages_received = 2 * peers
        report.bytes_received = sum(self._received1) + self._slot * peers
