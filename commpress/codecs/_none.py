"""The codec that sends the values themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from commpress import ops
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.codecs._spec import Spec
from commpress.errors import SpecError


@dataclasses.dataclass(frozen=True)
class NoneCodec(Codec):
    """Raw values in the tensor's own dtype."""

    @property
    def bits(self) -> None:
        return None

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def lossless(self) -> bool:
        return True

    @property
    def noise(self) -> Noise:
        return "none"

    def runs_on(self, device: torch.device) -> bool:
        return device.type in ("cpu", "cuda")  # torch itself does all there is to do

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        return [ops.DeviceLayer(ops.Kind(0), 0, offset, numel, 4 * numel)]

    def for_feedback(self) -> Codec:
        return self

    def __str__(self) -> str:
        return "none"

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return numel * dtype.itemsize

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        out.copy_((x if gain == 1.0 else x * gain).contiguous().view(torch.uint8))

    def _decode(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        if not accumulate and gain == 1.0:
            out.view(torch.uint8).copy_(payload)
            return
        # A payload may begin at any byte of a buffer: copying aligns it.
        values = torch.empty(out.numel(), dtype=out.dtype, device=out.device)
        values.view(torch.uint8).copy_(payload)
        if gain != 1.0:
            values.mul_(gain)
        if not accumulate:
            out.copy_(values)
        elif beta == 1.0:
            out.add_(values)
        else:
            out.mul_(beta).add_(values)

    def reduce(
        self,
        payloads: Sequence[torch.Tensor],
        keys: Sequence[Key],
        key: Key,
        *,
        values: torch.Tensor,
        out: torch.Tensor,
        offset: int = 0,
        beta: float = 1.0,
    ) -> bool:
        for i, payload in enumerate(payloads):
            self._decode(payload, key, values, True, offset, 1.0, 1.0 if i else beta)
        out.copy_(values.view(torch.uint8))
        return bool(torch.isfinite(values).all())


def parse_none(spec: Spec) -> Codec:
    """``none``."""
    if spec.argument is not None or spec.options:
        raise SpecError(f"'none' takes no argument and no options, got {str(spec)!r}")
    return NoneCodec()
