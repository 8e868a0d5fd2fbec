"""One all-reduce of tensors on a device: what `all_reduce` does with CUDA tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import Codec
from commpress.collectives._accounting import Report
from commpress.collectives._tensors import is_flat_fp32, numel_of, pieces_of, put_back
from commpress.collectives.device import DeviceOps
from commpress.collectives.device_reducer import DeviceReducer, Verdict
from commpress.errors import SpecError, TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key

_WIDE = (torch.float64, torch.complex128)


@final
class DeviceCalls:
    """All-reduces of one group of ranks on one device, one step each.

    Args:
        ops: the device.
        make: makes the reducer on it; collective, called with the first all-reduce.

    Attributes:
        report: bytes and times of the last all-reduce whose outcome is known, or None.
    """

    def __init__(self, ops: DeviceOps, make: Callable[[], DeviceReducer]) -> None:
        self._ops = ops
        self._make = make
        self._reducer: DeviceReducer | None = None
        self._calls = 0
        self._lock = threading.Lock()
        self.report: Report | None = None

    def all_reduce(
        self,
        tensor: torch.Tensor | Sequence[torch.Tensor],
        codec: Codec,
        *,
        op: str,
        key: Key,
        async_op: bool,
        hierarchical: Any,
    ) -> Any:
        """As :func:`commpress.all_reduce`; what went wrong on the device is raised by the next call, or by :meth:`close`."""
        several = not isinstance(tensor, torch.Tensor)
        tensors: Sequence[torch.Tensor] = tensor if several else [tensor]
        plain = [one.detach() for one in tensors]
        self._check(plain, codec, hierarchical)
        sizes = [numel_of(one) for one in plain]
        with self._lock, torch.no_grad():
            if self._reducer is None:
                self._reducer = self._make()
            self._calls += 1
            facts: dict[str, object] = {
                "codec": codec,
                "op": op,
                "elements": sizes if several else sizes[0],
                "seed": key.seed,
                "key step": key.step,
                "key tensor": key.tensor,
            }
            self._take(self._reducer.open(self._calls, facts, 1, timed=True))
            future = self._ops.new_future() if async_op else None
            ready = self._ops.record()
            with self._ops.communicating():
                self._ops.wait(ready)
                for one in plain:
                    self._ops.keep(one)
                self._enqueue(self._reducer, plain, codec, key, op)
                self._reducer.finish()
                done = self._ops.record()
                if future is not None:
                    self._ops.complete(future, tensor)
            if future is not None:
                return future
            self._ops.wait(done)
        return tensor

    def _enqueue(
        self, reducer: DeviceReducer, tensors: Sequence[torch.Tensor], codec: Codec, key: Key, op: str
    ) -> None:
        if self._ops.size == 1:
            reducer.leave(tensors, codec)
            return
        if len(tensors) == 1 and is_flat_fp32(tensors[0]):
            one = tensors[0]
            reducer.reduce((torch.view_as_real(one) if one.is_complex() else one).view(-1), codec, key, op=op)
            return
        work = self._ops.empty(sum(map(numel_of, tensors)), torch.float32)
        for one, piece in zip(tensors, pieces_of(tensors, work), strict=True):
            source = torch.view_as_real(one.resolve_conj()) if one.is_complex() else one
            piece.view(source.shape).copy_(source)
        found = reducer.reduce(work, codec, key, op=op)
        for one, piece in zip(tensors, pieces_of(tensors, work), strict=True):
            put_back(piece, one)
            if one.dtype == torch.float16:  # a finite value may leave its range
                found.logical_or_(torch.isfinite(one).all().logical_not())

    def _check(self, tensors: Sequence[torch.Tensor], codec: Codec, hierarchical: Any) -> None:
        for one in tensors:
            if one.device != self._ops.device:
                raise TensorError(
                    f"all tensors of a call must be on one device, got {self._ops.device} and {one.device}"
                )
            if codec.lossless and one.dtype in _WIDE and self._ops.size > 1:
                raise TensorError(f"on a device the work is done in fp32, and {codec} would lose bits of {one.dtype}")
        self._ops.check(codec)
        if hierarchical:
            raise SpecError("an all-reduce of CUDA tensors is flat: leave hierarchical out, or set it to False")

    def settle(self) -> None:
        """Waits for what is under way and raises what went wrong."""
        with self._lock:
            if self._reducer is not None:
                self._take(self._reducer.settle())

    def _take(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.report = verdict.reports[0]

    def close(self) -> None:
        """Raises what went wrong in the last call."""
        with self._lock:
            reducer, self._reducer = self._reducer, None
            if reducer is not None:
                try:
                    if reducer.error is None:
                        self._take(reducer.settle())
                finally:
                    reducer.close()
