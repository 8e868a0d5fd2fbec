"""Codecs whose arithmetic is in the C++ kernels: casts, uniform, lloyd, hadamard+lloyd."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise, of_grid
from commpress.codecs._spec import RATE_ONE, Spec, check_rate, format_rate, parse_rate
from commpress.errors import SpecError, WireError


class Family(enum.IntEnum):
    """Numbers that the C++ kernels use (csrc/kernels/wire.h)."""

    CAST_FP16 = 1
    CAST_BF16 = 2
    UNIFORM = 3
    LLOYD = 4
    HADAMARD_LLOYD = 5


_CASTS = {"fp16": Family.CAST_FP16, "bf16": Family.CAST_BF16}
_QUANTISERS = {"uniform": Family.UNIFORM, "lloyd": Family.LLOYD, "hadamard+lloyd": Family.HADAMARD_LLOYD}
FAMILIES = tuple(_QUANTISERS)
_PASSED_ON_BELOW = 4 * RATE_ONE
_EVEN_FROM = 2 * RATE_ONE  # below, the least-squares scale takes more from a coordinate than the code's own error


@dataclasses.dataclass(frozen=True)
class QuantisingCodec(Codec):
    """``rate`` is in millionths of a bit per coordinate; ``centroid`` asks for the least-squares scale. All work is in float32."""

    family: Family
    rate: int
    centroid: bool = False

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return self.family is Family.UNIFORM or (self.family is Family.HADAMARD_LLOYD and not self.centroid)

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        if self.family in _CASTS.values():
            return "multiplicative"
        if self.family is Family.UNIFORM:
            return of_grid(2.0 ** (self.bits - 1))
        if self.family is Family.LLOYD:
            return "mixed"  # fine in the middle, coarse outside
        return "mixed" if self.centroid and self.rate < _EVEN_FROM else "additive"

    @property
    def even_error(self) -> bool:
        return self.family not in _CASTS.values()

    def passes_on(self, world_size: int) -> bool:
        # At four bits the mean's second quantisation adds one to four percent of the energy, and the owner's one pass over memory (`reduce`) saves a fifth of the time.
        return self.rate < _PASSED_ON_BELOW and super().passes_on(world_size)

    def for_feedback(self) -> Codec:
        return dataclasses.replace(self, centroid=True) if self.family is Family.HADAMARD_LLOYD else self

    def __str__(self) -> str:
        for text, family in _CASTS.items():
            if family is self.family:
                return f"cast:{text}"
        name = next(name for name, family in _QUANTISERS.items() if family is self.family)
        return f"{name}:{format_rate(self.rate)}" + (",scale=centroid" if self.centroid else "")

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return ops.payload_nbytes(self.family, self.rate, self.centroid, offset, numel)

    def at_rate(self, rate: int) -> Codec:
        if self.family in _CASTS.values():
            return super().at_rate(rate)
        return dataclasses.replace(self, rate=check_rate(rate, str(self)))

    def payload_nbytes_each(self, rates: np.ndarray, numels: np.ndarray) -> np.ndarray:
        both = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)) for a in (rates, numels))
        return ops.payload_nbytes_each(self.family, self.centroid, *both).numpy()

    def runs_on(self, device: torch.device) -> bool:
        return _device.runs_on(device)

    @property
    def kind(self) -> ops.Kind:
        """What the CUDA kernels know it by."""
        return ops.Kind(int(self.family), self.rate, int(self.centroid))

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        return [ops.DeviceLayer(self.kind, 0, offset, numel, self.payload_nbytes(numel, offset=offset))]

    def _device_table(self, numel: int, offset: int, device: torch.device) -> ops.DeviceTable:
        return ops.device_table(self.device_layers(offset, numel), device)

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        if x.is_cuda:
            _device.encode(self._device_table(x.numel(), offset, x.device), x, key, out, gain)
            return
        x = x.to(torch.float32)
        ops.encode(
            x,
            out,
            family=self.family,
            rate=self.rate,
            centroid=self.centroid,
            seed=key.seed,
            words=key.words(),
            offset=offset,
            gain=gain,
        )

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
        if out.is_cuda:
            table = self._device_table(out.numel(), offset, out.device)
            _device.decode(
                table,
                [payload],
                [key],
                out,
                accumulate=accumulate,
                gain=gain,
                beta=beta,
                corrupt=lambda _: self._corrupt("the payload"),
            )
            return
        work = out.to(torch.float32)
        block = ops.decode(
            payload,
            work,
            family=self.family,
            rate=self.rate,
            centroid=self.centroid,
            seed=key.seed,
            words=key.words(),
            offset=offset,
            accumulate=accumulate,
            gain=gain,
            beta=beta,
        )
        if block >= 0:
            raise self._corrupt(f"block {block}")
        if work is not out:
            out.copy_(work)

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
        if values.is_cuda and values.numel() > 0 and key.of_same_tensor(keys):
            table = self._device_table(values.numel(), offset, values.device)
            return _device.reduce(
                table,
                payloads,
                keys,
                key,
                values=values,
                out=out,
                beta=beta,
                corrupt=lambda i: self._corrupt(f"the payload of rank {keys[i].sender}"),
            )
        one_pass = values.dtype == torch.float32 and values.numel() > 0 and not values.is_cuda
        if not (one_pass and key.of_same_tensor(keys)):
            return super().reduce(payloads, keys, key, values=values, out=out, offset=offset, beta=beta)
        status = ops.reduce(
            list(payloads),
            values,
            out,
            family=self.family,
            rate=self.rate,
            centroid=self.centroid,
            seed=key.seed,
            senders=[k.words()[1] for k in keys],
            words=key.words(),
            offset=offset,
            beta=beta,
        )
        if status >= 0:
            raise self._corrupt(f"the payload of rank {keys[status].sender}")
        return status == -1

    def decode_sum(
        self, payloads: Sequence[torch.Tensor], keys: Sequence[Key], *, out: torch.Tensor, offset: int = 0
    ) -> bool:
        first = keys[0]
        if out.is_cuda and out.numel() > 0 and first.of_same_tensor(keys):
            table = self._device_table(out.numel(), offset, out.device)
            return _device.decode(
                table,
                payloads,
                keys,
                out,
                accumulate=False,
                corrupt=lambda i: self._corrupt(f"the payload of rank {keys[i].sender}"),
            )
        one_pass = out.dtype == torch.float32 and out.numel() > 0 and not out.is_cuda
        if not (one_pass and first.of_same_tensor(keys)):
            return super().decode_sum(payloads, keys, out=out, offset=offset)
        status = ops.decode_sum(
            list(payloads),
            out,
            family=self.family,
            rate=self.rate,
            centroid=self.centroid,
            seed=first.seed,
            senders=[k.words()[1] for k in keys],
            step=first.step,
            tensor=first.tensor,
            offset=offset,
        )
        if status >= 0:
            raise self._corrupt(f"the payload of rank {keys[status].sender}")
        return status == -1

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a {self} scale that no encoder writes: the bytes are corrupt, or of another codec"
        )


def parse_cast(spec: Spec) -> Codec:
    """``cast:fp16`` or ``cast:bf16``."""
    if spec.options or spec.argument not in _CASTS:
        raise SpecError(f"write 'cast:fp16' or 'cast:bf16', got {str(spec)!r}")
    return QuantisingCodec(_CASTS[spec.argument], 16 * RATE_ONE)


def parse_quantiser(spec: Spec) -> Codec:
    """``uniform:b``, ``lloyd:b``, ``hadamard+lloyd:b[,scale=unbiased|centroid]`` with 0 < b <= 8."""
    family = _QUANTISERS[spec.family]
    options = dict(spec.options)
    scale = options.pop("scale", None) if family is Family.HADAMARD_LLOYD else None
    if options or scale not in (None, "unbiased", "centroid"):
        allowed = "scale=unbiased or scale=centroid" if family is Family.HADAMARD_LLOYD else "none"
        raise SpecError(f"unknown option in {str(spec)!r}; options of {spec.family}: {allowed}")
    return QuantisingCodec(family, parse_rate(spec), scale == "centroid")
