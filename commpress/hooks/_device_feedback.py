"""Error feedback on a device with streams: the residuals are there, and become current when the next step begins."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch

from commpress.codecs import Codec, Key
from commpress.collectives import DeviceOps, Fetched, Observer
from commpress.feedback import BucketFeedback, Layout


@final
@dataclasses.dataclass(frozen=True)
class DeviceDecoder:
    """What error feedback asks of a codec, without a wait for the device. `report`: int32 (2) there, which nobody reads: these payloads are this rank's own."""

    codec: Codec
    ops: DeviceOps = dataclasses.field(compare=False)
    report: torch.Tensor = dataclasses.field(compare=False)

    @property
    def lossless(self) -> bool:
        return self.codec.lossless

    def passes_on(self, world_size: int) -> bool:
        return self.codec.passes_on(world_size)

    def decode(
        self,
        payload: torch.Tensor,
        key: Any,
        *,
        out: torch.Tensor,
        accumulate: bool = False,
        offset: int = 0,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> torch.Tensor:
        self.ops.decode(
            self.codec, [payload], [key], out, offset, self.report, accumulate=accumulate, gain=gain, beta=beta
        )
        return out


@final
class LayerFlags:
    """Which layers of a bucket no rank had a gradient for: their residuals are kept, and their result, which DDP discards, is zero. Kept between steps."""

    def __init__(self, layout: Layout, ops: DeviceOps) -> None:
        self.ranges = [(start, stop) for _, start, stop in layout.segments() if start < stop]
        self._ops = ops
        sizes = torch.tensor([stop - start for start, stop in self.ranges], dtype=torch.int64)
        self._sizes = sizes.to(ops.device)
        self._numel = layout.numel

    def unused(self, flat: torch.Tensor) -> torch.Tensor:
        """bool (layers): all zero, on all ranks. Collective."""
        pieces = [flat[start:stop] for start, stop in self.ranges]
        mine = (torch.stack(torch._foreach_norm(pieces, float("inf"))) != 0).view(torch.uint8)
        everyones = self._ops.empty(self._ops.size * mine.numel(), torch.uint8)
        self._ops.all_gather(everyones, mine)
        return everyones.view(self._ops.size, -1).amax(0) == 0

    def clear(self, flat: torch.Tensor, unused: torch.Tensor) -> None:
        """Zeroes these layers."""
        flat.masked_fill_(torch.repeat_interleave(unused, self._sizes, output_size=self._numel), 0.0)


@final
class DeviceFeedback(Observer):
    """One bucket of one step, on the communication stream. Args: flat: the work buffer, fp32."""

    def __init__(self, ops: DeviceOps, feedback: BucketFeedback, flags: LayerFlags, flat: torch.Tensor) -> None:
        self._ops, self._feedback, self._flags, self._flat = ops, feedback, flags, flat
        self._unused: torch.Tensor | None = None
        self._fetched: Fetched | None = None

    def prepare(self, flat: torch.Tensor) -> None:
        if self._flags.ranges:
            self._unused = self._flags.unused(flat)
        self._feedback.add_input(flat)

    def encoded(self, phase: int, start: int, stop: int, payload: torch.Tensor, key: Key, gain: float) -> None:
        if phase == 1:
            self._feedback.record_sent(self._flat, payload, key, start, stop)
        else:
            self._feedback.record_mean(self._flat, payload, key, start, stop, gain=gain)

    def reduced(self, start: int, stop: int) -> None:
        self._feedback.add_mean(self._flat, start, stop)

    def finish(self) -> None:
        """The result is there."""
        if self._unused is not None:
            self._flags.clear(self._flat, self._unused)
            self._fetched = self._ops.fetch(self._unused.to(torch.int32))

    def hold(self, timeout: float) -> int:
        """When the step is known to be over: keeps the residuals of layers that no rank used, and returns how many those are."""
        fetched, self._fetched = self._fetched, None
        flags = [] if fetched is None else fetched.read(timeout)
        held = [piece for piece, unused in zip(self._flags.ranges, flags, strict=False) if unused]
        for start, stop in held:
            self._feedback.hold(start, stop)
        return len(held)
