"""One all-reduce of a tensor, or of several as one, of any floating-point dtype and shape, on the reducers that are kept for its group of ranks, whatever carries its messages."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import LowRankCodec
from commpress.collectives._accounting import Report
from commpress.collectives._device_call import DeviceCalls
from commpress.collectives._factor_call import reduce_by_factors
from commpress.collectives._factor_plan import MatrixShape, matrix_shape
from commpress.collectives._tensors import is_flat_fp32, numel_of, pieces_of, put_back
from commpress.collectives.factor_reducer import FactorReducer
from commpress.collectives.nodes import Asked, asked_of
from commpress.collectives.observer import Observer
from commpress.collectives.reducer import Reducer
from commpress.errors import CommpressError, SpecError, TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key


@final
class Entry:
    """What is kept for one group of ranks: its reducers, the call counter, spare work buffers, the last report.

    Args:
        make_reducer: makes a Reducer on channels of its own, hierarchical as asked for; collective, so all ranks call it at the same point. Called when a reducer is first needed.
        make_device: likewise for tensors on a CUDA device; None: there are none.
    """

    def __init__(
        self,
        make_reducer: Callable[[Asked], Reducer],
        make_device: Callable[[torch.device], DeviceCalls] | None = None,
    ) -> None:
        self._make = make_reducer
        self._make_device = make_device
        self._devices: dict[torch.device, DeviceCalls] = {}
        self._reducers: dict[Asked, Reducer] = {}
        self._factors: FactorReducer | None = None  # for low-rank codecs
        self.calls = 0
        self.report: Report | None = None
        self._spare: collections.deque[torch.Tensor] = collections.deque(maxlen=8)
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def reducer(self, asked: Asked) -> Reducer:
        """The one for most codecs."""
        with self._making:
            if asked not in self._reducers:
                made = self._reducers[asked] = self._make(asked)
                if asked is None:  # what was chosen serves who demands it
                    self._reducers.setdefault(made.nodes is not None, made)
            return self._reducers[asked]

    @property
    def factors(self) -> FactorReducer:
        """The one for low-rank codecs."""
        with self._making:
            if self._factors is None:
                self._factors = FactorReducer(self._make(False), self._make(False))
            return self._factors

    def device(self, device: torch.device) -> DeviceCalls:
        """The calls on a CUDA device. Raises TensorError."""
        with self._making:
            if self._make_device is None:
                raise TensorError(f"tensors must be on the CPU here, got {device}")
            if device not in self._devices:
                self._devices[device] = self._make_device(device)
            return self._devices[device]

    def newest_report(self) -> Report | None:
        """Of the last all-reduce whose figures are known."""
        found = [calls.report for calls in self._devices.values() if calls.report is not None]
        return found[-1] if found else self.report

    def close(self) -> None:
        """Waits for what is in flight and gives the channels back. Raises what went wrong in the last call on a device."""
        problem: CommpressError | None = None
        for calls in self._devices.values():
            try:
                calls.close()
            except CommpressError as error:
                problem = problem or error
        for reducer in (*self._reducers.values(), self._factors):
            if reducer is not None:
                reducer.close()
        if problem is not None:
            raise problem

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
    """Copies the result back where the tensors themselves could not serve as the work buffer."""

    def __init__(self, entry: Entry, tensors: Sequence[torch.Tensor], work: torch.Tensor) -> None:
        self._entry = entry
        self._tensors = tensors
        self._work = work

    def complete(self, report: Report) -> None:
        for target, piece in zip(self._tensors, pieces_of(self._tensors, self._work), strict=True):
            put_back(piece, target)
        if self._tensors:
            self._entry.give(self._work)
        self._entry.report = report


def reduce_tensor(
    tensor: torch.Tensor | Sequence[torch.Tensor],
    codec: Any,
    entry_of: Callable[[], Entry],
    *,
    op: str,
    key: Key | None,
    async_op: bool,
    hierarchical: Any,
) -> Any:
    """Reduces `tensor` in place; arguments, result and errors are those of `all_reduce`. `entry_of` is asked for the group's entry once the arguments are known to be good.

    Tensors on a CUDA device go to the entry's calls on that device.
    """
    if isinstance(codec, str):
        from commpress.codecs import codec as parse

        codec = parse(codec)
    asked = asked_of(hierarchical)
    if asked and isinstance(codec, LowRankCodec):
        raise SpecError(f"{codec} knows no hierarchical all-reduce: leave hierarchical out, or set it to False")
    several = not isinstance(tensor, torch.Tensor)
    tensors: Sequence[torch.Tensor] = tensor if several else [tensor]
    _check(tensors)
    if op not in ("mean", "sum"):
        raise TensorError(f"op must be 'mean' or 'sum', got {op!r}")
    entry = entry_of()
    if key is None:
        from commpress.codecs import Key

        key = Key(seed=0, step=entry.calls % (1 << 32))
        entry.calls += 1
    if tensors[0].is_cuda:
        calls = entry.device(tensors[0].device)
        return calls.all_reduce(tensor, codec, op=op, key=key, async_op=async_op, hierarchical=asked)
    if any(one.is_cuda for one in tensors):
        raise TensorError("all tensors of a call must be on one device")
    plain = [one.detach() for one in tensors]
    numel = sum(map(numel_of, plain))
    if len(plain) == 1 and is_flat_fp32(plain[0]):
        flat = (torch.view_as_real(plain[0]) if plain[0].is_complex() else plain[0]).view(-1)
        call = _Call(entry, [], flat)
    else:
        wide = codec.lossless and any(one.dtype in (torch.float64, torch.complex128) for one in plain)
        flat = entry.take(numel, torch.float64 if wide else torch.float32)
        for one, piece in zip(plain, pieces_of(plain, flat), strict=True):
            source = torch.view_as_real(one.resolve_conj()) if one.is_complex() else one
            piece.view(source.shape).copy_(source)
        call = _Call(entry, plain, flat)
    if isinstance(codec, LowRankCodec):
        shapes = _matrices_of(plain)
        future = reduce_by_factors(entry.factors, flat, shapes, codec, key, op, call.complete, tensor)
        return future if async_op else future.wait()
    reducer = entry.reducer(asked)
    start = reducer.submit if async_op else reducer.run
    second = getattr(codec, "of_second_phase", codec)
    # Where one tensor ends and the next begins must be the same everywhere, and the total does not say.
    plan = f"tensors of {', '.join(str(numel_of(one)) for one in plain)} elements" if several else None
    return start(flat, codec, second, key, op=op, observer=call, result=tensor, plan=plan)


def _check(tensors: Sequence[torch.Tensor]) -> None:
    """Raises TensorError."""
    if not isinstance(tensors, (list, tuple)) or not tensors:
        raise TensorError(f"expected a tensor, or a list or tuple of one or more tensors, got {tensors!r:.100}")
    for one in tensors:
        if not isinstance(one, torch.Tensor):
            raise TensorError(f"expected tensors, got {type(one).__name__}")
        if one.layout != torch.strided:
            raise TensorError(f"expected a dense tensor, got layout {one.layout}")
        if one.device.type not in ("cpu", "cuda"):
            raise TensorError(f"tensors must be on the CPU or a CUDA device, got {one.device}")
        if not (one.is_floating_point() or one.is_complex()):
            raise TensorError(f"expected a floating-point or complex tensor, got {one.dtype}")


def _matrices_of(tensors: Sequence[torch.Tensor]) -> list[MatrixShape]:
    """Each tensor of more than one dimension as a matrix of its first dimension and the rest."""
    found, start = [], 0
    for one in tensors:
        numel = numel_of(one)
        if one.dim() > 1 and numel:
            strides = torch.empty(one.shape, device="meta").stride()  # of the work buffer: in order
            found.append(matrix_shape(start, one.shape, strides, numel))
        start += numel
    return found
