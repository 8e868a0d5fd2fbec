"""What happens to the shard that this rank owns: the others' contributions are added, the result is encoded, and decoded as every other rank will.

Two ways with the same bytes and the same result: step by step, where an observer looks at the reduced values in between, and in one pass over memory, where none does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch

from commpress.collectives._job import Job
from commpress.collectives._layout import Message


class OwnShard(ABC):
    """A way to reduce. Failures of codec and observer are noted in the job, not raised: the exchange goes on in step."""

    @abstractmethod
    def add(self, job: Job, message: Message, src: int, *, first: bool) -> None:
        """A contribution to a chunk has arrived from `src`; `first` of this chunk or not. Phase 1."""

    @abstractmethod
    def publish(self, job: Job, chunk: int, message: Message, rank: int) -> None:
        """All contributions to a chunk are there: fills the payload of `message` with the result, and `job.flat` with what it decodes to. Phase 2."""


@final
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
                if not job.nonfinite and not _is_finite(part):
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


_STEP_BY_STEP = StepByStep()
_ONE_PASS = OnePass()


def way_of(job: Job) -> OwnShard:
    """The faster way that serves this job's observer and codecs."""
    one_pass = job.codec1 == job.codec2 and hasattr(job.codec1, "reduce") and not job.observer.follows_reduction
    return _ONE_PASS if one_pass else _STEP_BY_STEP


def _is_finite(part: torch.Tensor) -> bool:
    """Whether all are finite. The sum is not finite if one is not; it may overflow otherwise, and then every value is looked at."""
    return bool(torch.isfinite(part.sum())) or bool(torch.isfinite(part).all())
