"""The FactorReducer: all-reduce of matrices by two factors, with any number of tensors in flight."""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import codec as make_codec
from commpress.collectives._passage import Passage
from commpress.collectives.observer import Observer
from commpress.collectives.reducer import Reducer
from commpress.errors import CommpressError, StateError

if TYPE_CHECKING:
    from commpress.codecs import Key
    from commpress.collectives._accounting import Report

_EXACT = make_codec("none")


@final
class FactorReducer:
    """Two Reducers, one for the left factors and one for the right ones, each with its own pair of channels.

    A passage's left factors are submitted to the first; when they are averaged, its right factors go to the second, from the first one's thread. So the second
    sees the passages in the order of the first, and that is the order of `submit`, which all ranks share. A passage with power iterations goes round more than
    once; those behind it wait until its last left factors are on their way. All of this depends on reduced values alone: no order can differ between ranks.

    Args:
        left, right: Reducers of the same ranks. Closed with this one.
    """

    def __init__(self, left: Reducer, right: Reducer) -> None:
        if (left.rank, left.world_size) != (right.rank, right.world_size):
            raise StateError("the two reducers have different ranks or sizes")
        self.rank = left.rank
        self.world_size = left.world_size
        self._left = left
        self._right = right
        self._lock = threading.RLock()
        self._turning: Passage | None = None  # it will need the left reducer again, before those that wait
        self._waiting: collections.deque[Passage] = collections.deque()

    @property
    def error(self) -> Exception | None:
        """The first failure of either reducer, or None."""
        return self._left.error or self._right.error

    def submit(self, passage: Passage) -> torch.futures.Future[torch.Tensor]:
        """Starts a passage; returns at once.

        Returns:
            A future of the passage's `out`, or of the CommpressError that ended it.

        Raises:
            StateError: closed, or failed before.
        """
        with self._lock:
            if self.error is not None:
                raise StateError(f"an earlier submission failed: {self.error}") from self.error
            if self._turning is not None:
                self._waiting.append(passage)
            else:
                self._submit_left(passage)
        return passage.future

    def say(self, text: str, key: Key) -> None:
        """Instead of a passage: the others, who expect one, meet a header that differs from theirs and shows `text`."""
        self._left.submit(torch.zeros(0), _EXACT, _EXACT, key, plan=text)

    def close(self) -> None:
        """Waits for what is in flight, ends the threads and closes the channels."""
        self._left.close()
        self._right.close()

    # -- the way of a passage; after `submit` on the reducers' threads

    def _submit_left(self, passage: Passage) -> None:
        if self.world_size == 1:
            alone = self._left.submit(
                passage.out, _EXACT, _EXACT, passage.key(right=False), op=passage.op, observer=_Alone(self, passage)
            )
            _resolve(passage, alone)
            return
        self._turning = None if passage.is_final else passage
        here = passage.round
        key, codec = passage.key(right=False), here.left_codec
        self._left.submit(here.left, codec, codec, key, op=passage.op, observer=_Left(self, passage))

    def _submit_right(self, passage: Passage) -> None:
        here = passage.round
        key, codec = passage.key(right=True), here.right_codec
        future = self._right.submit(here.right, codec, codec, key, op=passage.op, observer=_Right(self, passage))
        if passage.is_final:
            _resolve(passage, future)

    def _turn(self, passage: Passage) -> None:
        """After a power iteration."""
        passage.end_iteration()
        with self._lock:
            self._submit_left(passage)
            while self._turning is None and self._waiting:
                self._submit_left(self._waiting[0])
                self._waiting.popleft()

    def _failed(self, passage: Passage, error: Exception) -> None:
        with self._lock:  # one failure ends both reducers: nobody would come for those that wait
            ended = [passage, *([] if self._turning is None else [self._turning]), *self._waiting]
            self._turning = None
            self._waiting.clear()
        for one in dict.fromkeys(ended):
            try:
                one.observer.failed(error)
            finally:
                if not one.future.done():
                    one.future.set_exception(error)


def _resolve(passage: Passage, last: torch.futures.Future[Any]) -> None:
    def done(future: torch.futures.Future[Any]) -> None:
        with contextlib.suppress(CommpressError):  # the observer was told
            future.value()
            passage.future.set_result(passage.out)

    last.add_done_callback(done)


@final
class _Alone(Observer):
    """One rank: the tensor stays as it is."""

    def __init__(self, reducer: FactorReducer, passage: Passage) -> None:
        self._reducer = reducer
        self._passage = passage

    def prepare(self, flat: torch.Tensor) -> None:
        self._passage.observer.prepare()

    def complete(self, report: Report) -> None:
        self._passage.observer.complete(report)

    def failed(self, error: Exception) -> None:
        self._reducer._failed(self._passage, error)


@final
class _Left(Observer):
    """Of the left factors."""

    def __init__(self, reducer: FactorReducer, passage: Passage) -> None:
        self._reducer = reducer
        self._passage = passage

    def prepare(self, flat: torch.Tensor) -> None:
        self._passage.fill_left()

    def complete(self, report: Report) -> None:
        self._passage.reports.append(report)
        self._reducer._submit_right(self._passage)

    def failed(self, error: Exception) -> None:
        self._reducer._failed(self._passage, error)


@final
class _Right(Observer):
    """Of the right factors."""

    def __init__(self, reducer: FactorReducer, passage: Passage) -> None:
        self._reducer = reducer
        self._passage = passage
        self._codec = passage.round.right_codec

    @property
    def follows_reduction(self) -> bool:
        return not self._codec.lossless

    def prepare(self, flat: torch.Tensor) -> None:
        self._passage.fill_right()

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Key, gain: float) -> None:
        if not self._codec.lossless and self._passage.is_final:
            decoded = torch.empty(stop - start)
            self._codec.decode(payload, key, out=decoded, offset=start, gain=1.0 / gain)
            of_mean = phase == 2 and not self._codec.passes_on(self._passage.world_size)
            self._passage.record(start, stop, decoded, mean=of_mean)

    def complete(self, report: Report) -> None:
        self._passage.reports.append(report)
        if self._passage.is_final:
            self._passage.finish()
            self._passage.observer.complete(self._passage.report())
        else:
            self._reducer._turn(self._passage)

    def failed(self, error: Exception) -> None:
        self._reducer._failed(self._passage, error)
