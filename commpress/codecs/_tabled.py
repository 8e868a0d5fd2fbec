"""Codecs whose tensors on a CUDA device go through a table of layers, and on a CPU through an operator of their own."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.errors import WireError


class TabledCodec(Codec):
    """The choice of device. What is on a device is decoded, summed and encoded again by launches over `device_layers`, which the codec names; the rest is the codec's."""

    @abc.abstractmethod
    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        """Of fp32 values."""

    @abc.abstractmethod
    def _decode_on_cpu(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        """To fp32 values. Raises WireError."""

    @abc.abstractmethod
    def _corrupt(self, what: str) -> WireError:
        """The error that says of what the bytes are corrupt."""

    def _device_table(self, numel: int, offset: int, device: torch.device) -> ops.DeviceTable:
        return ops.device_table(self.device_layers(offset, numel) or [], device)

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        if x.is_cuda:
            _device.encode(self._device_table(x.numel(), offset, x.device), x, key, out, gain)
        else:
            self._encode_on_cpu(x.to(torch.float32), key, out, offset, gain)

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
        self._decode_on_cpu(payload, key, work, accumulate, offset, gain, beta)
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
        if not (values.is_cuda and values.numel() and key.of_same_tensor(keys) and self.runs_on(values.device)):
            return super().reduce(payloads, keys, key, values=values, out=out, offset=offset, beta=beta)
        return _device.reduce(
            self._device_table(values.numel(), offset, values.device),
            payloads,
            keys,
            key,
            values=values,
            out=out,
            beta=beta,
            corrupt=lambda i: self._corrupt(f"the payload of rank {keys[i].sender}"),
        )

    def decode_sum(
        self, payloads: Sequence[torch.Tensor], keys: Sequence[Key], *, out: torch.Tensor, offset: int = 0
    ) -> bool:
        if not (out.is_cuda and out.numel() and keys[0].of_same_tensor(keys)):
            return super().decode_sum(payloads, keys, out=out, offset=offset)
        return _device.decode(
            self._device_table(out.numel(), offset, out.device),
            payloads,
            keys,
            out,
            corrupt=lambda i: self._corrupt(f"the payload of rank {keys[i].sender}"),
        )
