"""What is done with a codec on the way: a rank encodes for the owners, an owner adds the others' contributions and encodes the result, and everybody decodes that.

Two ways have the same bytes and the same result: step by step, where an observer looks at the reduced values in between, and in one pass over memory, where none does.
Two ranks, codecs with side information and codecs that add codes have ways of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch

from commpress.codecs import LinearCodec
from commpress.collectives._job import Job
from commpress.collectives._message import Message


class OwnShard(ABC):
    """A way to reduce. Failures of codec and observer are noted in the job, not raised: the exchange goes on in step."""

    def encode(self, job: Job, chunk: int, rank: int) -> None:
        """Fills the payloads of a chunk that go to the owners. Phase 1."""
        assert job.layout is not None
        key = job.key.replace(phase=1, sender=rank)
        try:
            for message in job.layout.send1[chunk]:
                for start, stop, payload in job.parts(message) if message is not None and job.error is None else ():
                    job.codec1.encode(job.flat[start:stop], key, out=payload, offset=start, gain=job.gain)
                    job.observer.encoded(1, start, stop, payload, key, job.gain)
        except Exception as problem:
            job.note(problem)

    @abstractmethod
    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        """A contribution to a chunk has arrived from `src`; `first` of this chunk or not. Phase 1."""

    @abstractmethod
    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        """All contributions to a chunk are there: fills the payload of `message` with the result, and `job.flat` with what it decodes to. Phase 2."""

    def read(self, job: Job, chunk: int, message: Message, src: int) -> None:
        """Fills `job.flat` with the result of a chunk that arrived from the owner `src`. Phase 2."""
        key = job.key.replace(phase=2, sender=src)
        try:
            for start, stop, payload in job.parts(message):
                job.codec2.decode(payload, key, out=job.flat[start:stop], offset=start)
        except Exception as problem:
            job.note(problem)


class StepByStep(OwnShard):
    """Adds in phase 1, calls the observer, encodes, decodes."""

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        if job.failed:
            return
        key = job.key.replace(phase=1, sender=src)
        beta = job.gain if first else 1.0
        try:
            for start, stop, payload in message.pieces:
                job.codec1.decode(payload, key, out=job.flat[start:stop], accumulate=True, offset=start, beta=beta)
        except Exception as problem:
            job.note(problem)

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        key = job.key.replace(phase=2, sender=rank)
        try:
            for start, stop, payload in message.pieces:
                if job.failed:
                    return
                part = job.flat[start:stop]
                job.observer.reduced(start, stop)
                job.codec2.encode(part, key, out=payload, offset=start)
                job.observer.encoded(2, start, stop, payload, key, 1.0)
                job.codec2.decode(payload, key, out=part, offset=start)
                if not job.nonfinite and not is_finite(part):
                    job.nonfinite = True
        except Exception as problem:
            job.note(problem)


@final
class OnePass(OwnShard):
    """Leaves everything to one call of the codec, in phase 2."""

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        pass

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        layout = job.layout
        assert layout is not None
        key = job.key.replace(phase=2, sender=rank)
        sources = [(m, src) for m, src in zip(layout.recv1[chunk], layout.sources, strict=True) if m is not None]
        keys = [job.key.replace(phase=1, sender=src) for _, src in sources]
        try:
            for start, stop, payload in message.whole:
                if job.failed:
                    return
                payloads = [m.whole[0][2] for m, _ in sources]
                finite = job.codec1.reduce(
                    payloads, keys, key, values=job.flat[start:stop], out=payload, offset=start, beta=job.gain
                )
                job.nonfinite = job.nonfinite or not finite
        except Exception as problem:
            job.note(problem)


@final
class BothContributions(OwnShard):
    """Two ranks: phase 2 brings the owner's contribution, and each rank adds it to the other's, which one of them sent and one received in phase 1.

    The same messages, and no quantisation of what is a sum of quantised values: at two ranks that would be most of the error.
    """

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        pass

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        layout = job.layout
        assert layout is not None
        key, other = job.key.replace(phase=2, sender=rank), layout.recv1[chunk][0]
        try:
            for number, (start, stop, payload) in enumerate(message.pieces):
                if job.failed:
                    return
                assert other is not None
                part = job.flat[start:stop]
                job.observer.reduced(start, stop)
                job.codec2.encode(part, key, out=payload, offset=start, gain=job.gain)
                job.observer.encoded(2, start, stop, payload, key, job.gain)
                finite = self._sum(job, start, stop, payload, rank, other.pieces[number][2], layout.sources[0])
                job.nonfinite = job.nonfinite or not finite
        except Exception as problem:
            job.note(problem)

    def read(self, job: Job, chunk: int, message: Message, src: int) -> None:
        assert job.layout is not None
        mine = job.layout.send1[chunk][0]
        try:
            for number, (start, stop, payload) in enumerate(message.pieces):
                assert mine is not None
                self._sum(job, start, stop, payload, src, mine.pieces[number][2], 1 - src)
        except Exception as problem:
            job.note(problem)

    @staticmethod
    def _sum(
        job: Job, start: int, stop: int, owners: torch.Tensor, owner: int, others: torch.Tensor, other: int
    ) -> bool:
        """In one order on both ranks: the roundings are the same. Returns whether the sum is finite."""
        keys = [job.key.replace(phase=2, sender=owner), job.key.replace(phase=1, sender=other)]
        return bool(job.codec1.decode_sum([owners, others], keys, out=job.flat[start:stop], offset=start))


@final
class WithSide(StepByStep):
    """Decodes the contributions with the own shard, as it was, for side information."""

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        layout = job.layout
        assert layout is not None
        if job.failed:
            return
        key = job.key.replace(phase=1, sender=src)
        beta = job.gain if first else 1.0
        try:
            for start, stop, payload in message.pieces:
                part, side = job.flat[start:stop], layout.side[start - layout.own_start : stop - layout.own_start]
                if first:
                    side.copy_(part)
                job.codec1.decode(payload, key, out=part, accumulate=True, offset=start, beta=beta, side=side)
        except Exception as problem:
            job.note(problem)


@final
class AddingCodes(OwnShard):
    """The owner adds codes, its own among them; everybody decodes the sums."""

    def encode(self, job: Job, chunk: int, rank: int) -> None:
        layout = job.layout
        assert layout is not None and layout.agreement is not None
        key, codec, follows = job.key.replace(phase=1, sender=rank), job.codec1, job.observer.follows_reduction
        try:
            for message in (*layout.send1[chunk], *layout.own1[chunk]):
                for start, stop, codes in job.parts(message) if message is not None and not job.failed else ():
                    scales = layout.agreement.scales(start, stop)
                    codec.encode_codes(job.flat[start:stop], scales, key, out=codes, offset=start)
                    if follows:
                        job.observer.encoded(1, start, stop, codec.payload_of(scales, codes), key, 1.0)
        except Exception as problem:
            job.note(problem)

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        pass

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        layout = job.layout
        assert layout is not None
        messages = [m for m in (*layout.own1[chunk], *layout.recv1[chunk]) if m is not None]
        try:
            for start, stop, sums in message.whole:
                if job.failed:
                    return
                job.codec1.add_codes([m.payload for m in messages], out=sums, numel=stop - start)
                self._decode(job, start, stop, sums)
                if job.observer.follows_reduction:
                    job.observer.sent_exactly(start, stop)
        except Exception as problem:
            job.note(problem)

    def read(self, job: Job, chunk: int, message: Message, src: int) -> None:
        try:
            for start, stop, sums in job.parts(message):
                self._decode(job, start, stop, sums)
        except Exception as problem:
            job.note(problem)

    def _decode(self, job: Job, start: int, stop: int, sums: torch.Tensor) -> None:
        layout = job.layout
        assert layout is not None and layout.agreement is not None
        job.codec2.decode_sums(
            sums,
            layout.agreement.scales(start, stop),
            job.key.replace(phase=1, sender=0),
            workers=job.senders,
            out=job.flat[start:stop],
            offset=start,
            gain=job.gain,
        )


@final
class Scattering(OwnShard):
    """A reduce-scatter: the owner adds the contributions to its own row, beside the tensor, and tells the others no more than whether all went well."""

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        layout = job.layout
        assert layout is not None and job.row is not None
        if job.failed:
            return
        key, base = job.key.replace(phase=1, sender=src), layout.own_start
        beta = job.gain if first else 1.0
        try:
            for start, stop, payload in message.pieces:
                part = job.row[start - base : stop - base]
                if first:
                    part.copy_(job.flat[start:stop])
                job.codec1.decode(payload, key, out=part, accumulate=True, offset=start, beta=beta)
        except Exception as problem:
            job.note(problem)

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        # Called once, for the verdict that follows the last chunk: the whole row is there.
        assert job.row is not None
        job.nonfinite = job.nonfinite or not is_finite(job.row)

    def read(self, job: Job, chunk: int, message: Message, src: int) -> None:
        pass


@final
class Gathering(OwnShard):
    """An all-gather: phase 2 alone."""

    def encode(self, job: Job, chunk: int, rank: int) -> None:
        pass

    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        pass

    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        key = job.key.replace(phase=2, sender=rank)
        try:
            for start, stop, payload in message.whole:
                if job.failed:
                    return
                part = job.flat[start:stop]
                job.codec2.encode(part, key, out=payload, offset=start)
                job.codec2.decode(payload, key, out=part, offset=start)
                job.nonfinite = job.nonfinite or not is_finite(part)
        except Exception as problem:
            job.note(problem)


_SCATTERING = Scattering()
_GATHERING = Gathering()
_STEP_BY_STEP = StepByStep()
_ONE_PASS = OnePass()
_WITH_SIDE = WithSide()
_BOTH_CONTRIBUTIONS = BothContributions()
_ADDING_CODES = AddingCodes()


def way_of(job: Job) -> OwnShard:
    """The fastest way that serves this job's observer and codecs."""
    if job.codec2 is None:
        return _SCATTERING
    if job.codec1 is None:
        return _GATHERING
    if isinstance(job.codec1, LinearCodec):
        return _ADDING_CODES
    if getattr(job.codec1, "needs_side", False):
        return _WITH_SIDE
    if job.codec1 == job.codec2 and passes_on(job.codec1, job.senders):
        return _BOTH_CONTRIBUTIONS
    one_pass = job.codec1 == job.codec2 and hasattr(job.codec1, "reduce") and not job.observer.follows_reduction
    return _ONE_PASS if one_pass else _STEP_BY_STEP


def passes_on(codec: Any, world_size: int) -> bool:
    """`codec.passes_on`, False for a codec that has none."""
    return hasattr(codec, "passes_on") and bool(codec.passes_on(world_size))


def is_finite(part: torch.Tensor) -> bool:
    """Whether all are finite. The sum is not finite if one is not; it may overflow otherwise, and then every value is looked at."""
    return bool(torch.isfinite(part.sum())) or bool(torch.isfinite(part).all())
