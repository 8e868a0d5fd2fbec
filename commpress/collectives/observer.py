"""What a caller of the Reducer can see and change while a tensor passes through: the seam for error feedback and telemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from commpress.codecs import Key
    from commpress.collectives._accounting import Report


class Observer:
    """Sees one submission of a Reducer. Every method does nothing here; an exception in one fails the submission on every rank.

    `prepare` and `encoded` of phase 1 run on the phase-1 thread, the rest on the phase-2 thread, possibly at the same time (on disjoint ranges).
    Nothing may wait here for another collective.
    """

    @property
    def follows_reduction(self) -> bool:
        """Whether `reduced`, and `encoded` for phase 2, are called. They need the reduced values, which otherwise are encoded and decoded again in one pass over memory."""
        return type(self).reduced is not Observer.reduced or type(self).encoded is not Observer.encoded

    def prepare(self, flat: torch.Tensor) -> None:
        """Called once, before anything of `flat` is encoded; may change it in place."""

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Key, gain: float) -> None:
        """Coordinates [start, stop) have been encoded as `gain` times their values.

        `flat[start:stop]` still holds those values. `codec.decode(payload, key, out=..., offset=start)` gives what receivers see. `payload` may be read during the call only.
        Ranges begin at multiples of 4096. Those of phase 1 cover everything but the own shard, those of phase 2 the own shard. With a codec that adds codes
        (`LinearCodec`) phase 1 covers everything and there is no encode in phase 2; `payload` then is the one that `codec.encode` would have made with the agreed scales.
        What a codec with side information sent in phase 1 cannot be decoded here.
        """

    def sent_exactly(self, start: int, stop: int) -> None:
        """Instead of `reduced` and `encoded` in phase 2, with a codec that adds codes: `flat[start:stop]` of the own shard is reduced, and everybody will have the same."""

    def reduced(self, start: int, stop: int) -> None:
        """`flat[start:stop]` of the own shard is reduced and about to be encoded for phase 2; it may be changed in place."""

    def complete(self, report: Report) -> None:
        """Everything arrived, and every rank said that all went well; the future is resolved next."""

    def failed(self, error: Exception) -> None:
        """The submission failed with `error`. Called instead of `complete`, on any thread; must not raise."""
