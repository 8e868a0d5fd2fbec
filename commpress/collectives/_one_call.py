"""One all-reduce of a tensor of any floating-point dtype and shape, on the reducers that are kept for its group of ranks, whatever carries its messages."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import LowRankCodec
from commpress.collectives._accounting import Report
from commpress.collectives._factor_call import reduce_by_factors
from commpress.collectives._factor_plan import MatrixShape, matrix_shape
from commpress.collectives.factor_reducer import FactorReducer
from commpress.collectives.observer import Observer
from commpress.collectives.reducer import Reducer
from commpress.errors import TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key


@final
class Entry:
    """What is kept for one group of ranks: its reducers, the call counter, spare work buffers, the last report.

    Args:
        make_reducer: makes a Reducer on channels of its own; collective, so all ranks call it at the same point. Called when a reducer is first needed.
    """

    def __init__(self, make_reducer: Callable[[], Reducer]) -> None:
        self._make = make_reducer
        self._reducer: Reducer | None = None
        self._factors: FactorReducer | None = None  # for low-rank codecs
        self.calls = 0
        self.report: Report | None = None
        self._spare: collections.deque[torch.Tensor] = collections.deque(maxlen=8)
        self._lock = threading.Lock()
        self._making = threading.Lock()

    @property
    def reducer(self) -> Reducer:
        """The one for most codecs."""
        with self._making:
            if self._reducer is None:
                self._reducer = self._make()
            return self._reducer

    @property
    def factors(self) -> FactorReducer:
        """The one for low-rank codecs."""
        with self._making:
            if self._factors is None:
                self._factors = FactorReducer(self._make(), self._make())
            return self._factors

    def close(self) -> None:
        """Waits for what is in flight and gives the channels back."""
        for reducer in (self._reducer, self._factors):
            if reducer is not None:
                reducer.close()

    def take(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        with self._lock:
            for buffer in self._spare:
                if buffer.numel() == numel and buffer.dtype == dtype:
                    self._spare = collections.deque((b for b in self._spare if b is not buffer), maxlen=8)
                    return buffer
        return torch.empty(numel, dtype=dtype)

    def give(self, buffer: torch.Tensor) -> None:
        with self._lock:
            self._spare.append(buffer)


@final
class _Call(Observer):
    """Copies the result back where the tensor itself could not serve as the work buffer."""

    def __init__(self, entry: Entry, tensor: torch.Tensor | None, work: torch.Tensor) -> None:
        self._entry = entry
        self._tensor = tensor
        self._work = work

    def complete(self, report: Report) -> None:
        if self._tensor is not None:
            target, work = self._tensor, self._work
            if target.is_complex():
                target.copy_(torch.view_as_complex(work.view(*target.shape, 2)))
            else:
                target.copy_(work.view(target.shape))
            self._entry.give(work)
        self._entry.report = report


def reduce_tensor(
    tensor: torch.Tensor,
    codec: Any,
    entry_of: Callable[[], Entry],
    *,
    op: str,
    key: Key | None,
    async_op: bool,
) -> Any:
    """Reduces `tensor` in place; arguments, result and errors are those of `all_reduce`. `entry_of` is asked for the group's entry once the arguments are known to be good."""
    if isinstance(codec, str):
        from commpress.codecs import codec as parse

        codec = parse(codec)
    if tensor.layout != torch.strided:
        raise TensorError(f"expected a dense tensor, got layout {tensor.layout}")
    if tensor.device.type != "cpu":
        raise TensorError(f"tensors must be on the CPU, got {tensor.device}: the CUDA kernels come later")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TensorError(f"expected a floating-point or complex tensor, got {tensor.dtype}")
    if op not in ("mean", "sum"):
        raise TensorError(f"op must be 'mean' or 'sum', got {op!r}")
    entry = entry_of()
    if key is None:
        from commpress.codecs import Key

        key = Key(seed=0, step=entry.calls % (1 << 32))
        entry.calls += 1
    plain = tensor.detach()
    numel = plain.numel() * (2 if plain.is_complex() else 1)
    direct = (
        plain.is_contiguous()
        and plain.dtype in (torch.float32, torch.complex64)
        and not plain.is_conj()
        and not plain.is_neg()
    )
    if direct:
        flat = (torch.view_as_real(plain) if plain.is_complex() else plain).view(-1)
        call = _Call(entry, None, flat)
    else:
        wide = plain.dtype in (torch.float64, torch.complex128) and codec.lossless
        flat = entry.take(numel, torch.float64 if wide else torch.float32)
        source = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
        flat.view(source.shape).copy_(source)
        call = _Call(entry, plain, flat)
    if isinstance(codec, LowRankCodec):
        shapes = _matrix_of(plain, numel)
        future = reduce_by_factors(entry.factors, flat, shapes, codec, key, op, call.complete, tensor)
        return future if async_op else future.wait()
    reducer = entry.reducer
    start = reducer.submit if async_op else reducer.run
    second = getattr(codec, "of_second_phase", codec)
    return start(flat, codec, second, key, op=op, observer=call, result=tensor)


def _matrix_of(tensor: torch.Tensor, numel: int) -> list[MatrixShape]:
    """The whole tensor as a matrix of its first dimension and the rest, where it has more than one."""
    if tensor.dim() < 2 or numel == 0:
        return []
    strides = torch.empty(tensor.shape, device="meta").stride()  # of the work buffer: in order
    return [matrix_shape(0, tensor.shape, strides, numel)]
