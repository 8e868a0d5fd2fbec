"""`all_reduce`: any floating-point tensor, one call. Keeps one Reducer per process group."""

from __future__ import annotations

import collections
import threading
import weakref
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist

from commpress.codecs import LowRankCodec
from commpress.collectives import _torch
from commpress.collectives._accounting import Report
from commpress.collectives._factor_call import reduce_by_factors
from commpress.collectives._factor_plan import MatrixShape, matrix_shape
from commpress.collectives._torch import TorchCommunicator
from commpress.collectives.factor_reducer import FactorReducer
from commpress.collectives.observer import Observer
from commpress.collectives.reducer import Reducer
from commpress.errors import StateError, TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key

_DEFAULT_TIMEOUT = 1800.0


@final
class _Entry:
    """What is kept for one process group: its reducers, the call counter, spare work buffers, the last report."""

    def __init__(self) -> None:
        self.reducer: Reducer | None = None
        self.factors: FactorReducer | None = None  # for low-rank codecs
        self.calls = 0
        self.report: Report | None = None
        self._spare: collections.deque[torch.Tensor] = collections.deque(maxlen=8)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Waits for what is in flight and gives the subgroups back."""
        for reducer in (self.reducer, self.factors):
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

    def __init__(self, entry: _Entry, tensor: torch.Tensor | None, work: torch.Tensor) -> None:
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


# The one module-level state: Reducers of plain all_reduce calls, keyed by group object, dropped with it, by `close`, or at exit.
_entries: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()
_entries_lock = threading.Lock()


def make_channels(group: Any = None, timeout: float | None = None) -> tuple[TorchCommunicator, TorchCommunicator]:
    """Makes two gloo groups with the ranks of `group` and returns a channel on each. Collective: every rank of the group, and no other, must call it.

    Args:
        group: a ProcessGroup; None is the default group.
        timeout: seconds for making the connections; by default the group's own timeout.
    """
    group = _resolve(group)
    return _torch.make_channels(group, timeout or group_timeout(group))


def group_timeout(group: Any = None) -> float:
    """The timeout of a process group in seconds; half an hour where its backend does not tell."""
    try:
        options = _resolve(group)._get_backend(torch.device("cpu")).options
        return float(options._timeout.total_seconds())
    except (RuntimeError, AttributeError):
        return _DEFAULT_TIMEOUT


def _resolve(group: Any) -> Any:
    if not dist.is_available() or not dist.is_initialized():
        raise StateError("torch.distributed has no process group: call init_process_group first")
    group = dist.group.WORLD if group is None else group
    if group == dist.GroupMember.NON_GROUP_MEMBER or not isinstance(group, dist.ProcessGroup):
        raise StateError("this process is not a member of the group")
    return group


def _entry(group: Any) -> _Entry:
    with _entries_lock:
        return _entries.setdefault(group, _Entry())


def _reducer_of(entry: _Entry, group: Any) -> Reducer:
    with _entries_lock:
        if entry.reducer is None:
            entry.reducer = _make_reducer(group)
        return entry.reducer


def _factors_of(entry: _Entry, group: Any) -> FactorReducer:
    with _entries_lock:
        if entry.factors is None:
            entry.factors = FactorReducer(_make_reducer(group), _make_reducer(group))
        return entry.factors


def _make_reducer(group: Any) -> Reducer:
    timeout = group_timeout(group)
    return Reducer(*make_channels(group, timeout), timeout=timeout)


def close(group: Any = None) -> None:
    """Closes the Reducer and the two subgroups that `all_reduce` keeps for `group` (None: the default group), if there are any.

    Waits for calls under way. Each rank may close at any time after its last call; the next `all_reduce` makes new subgroups, which is collective.
    """
    if not dist.is_initialized():
        for key in list(_entries):
            _entries.pop(key).close()
        return
    with _entries_lock:
        entry = _entries.pop(_resolve(group), None)
    if entry is not None:
        entry.close()


def last_report(group: Any = None) -> Report | None:
    """Bytes and times of the last completed `all_reduce` of `group`, or None."""
    entry = _entries.get(_resolve(group))
    return None if entry is None else entry.report


def all_reduce(
    tensor: torch.Tensor,
    codec: Any,
    *,
    op: str = "mean",
    group: Any = None,
    key: Key | None = None,
    async_op: bool = False,
) -> Any:
    """Reduces `tensor` over all ranks of `group`, in place, with compressed communication in both phases.

    All ranks end with the same bits. Every rank owns a shard of the tensor; its own contribution to it is not quantised, those of the others are, and so is the result.
    A NaN or an infinity on one rank arrives as a non-finite value on all. With one rank the tensor stays as it is.

    Args:
        tensor: CPU tensor of a floating-point or complex dtype, of any shape and strides. The work is done in fp32 (fp64 tensors with a lossless codec: fp64),
            the mean is taken before the result is narrowed to the tensor's dtype. fp32 and complex64 tensors that are contiguous need no copy.
        codec: a codec, or a spec such as "uniform:4"; equal on all ranks. "lowrank:4" takes a matrix, (shape[0], the rest), and begins with power iterations, as it
            knows nothing of earlier calls; it uses two more pairs of subgroups. A codec with side information ("modulo:2,rho=0.9") serves phase 1, where the owner's own shard is
            that information; phase 2 then is "hadamard+lloyd" of the same bits. With a codec that adds codes ("homomorphic:4") the own contribution is quantised too, and the result is not.
        op: "mean" (the default, unlike torch's sum) or "sum".
        group: process group; None is the default one. The first call for a group makes two subgroups, collectively; `close` gives them back.
        key: randomness, equal on all ranks; None: seed 0 and the number of this group's earlier calls without a key as step.
        async_op: return at once; do not touch `tensor` before the future is done.

    Returns:
        `tensor`, or with `async_op` a torch.futures.Future of it, whose `wait` raises what this function would.

    Raises:
        TensorError: integer, bool, sparse or CUDA tensor, or an unknown `op`. Nothing was sent: the other ranks wait.
        SpecError: the spec is malformed, or not for so many ranks.
        MismatchError: ranks disagree on codec, version, size, dtype, key, or operation; raised on all.
        PeerError: another rank died, was silent for the group's timeout, or failed in its codec.
        WireError: what arrived cannot be decoded.
        StateError: no process group, or an earlier call of this group failed (`close` it on all ranks, then calls work again).
    """
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
    group = _resolve(group)
    entry = _entry(group)
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
        future = reduce_by_factors(_factors_of(entry, group), flat, shapes, codec, key, op, call.complete, tensor)
        return future if async_op else future.wait()
    reducer = _reducer_of(entry, group)
    start = reducer.submit if async_op else reducer.run
    second = getattr(codec, "of_second_phase", codec)
    return start(flat, codec, second, key, op=op, observer=call, result=tensor)


def _matrix_of(tensor: torch.Tensor, numel: int) -> list[MatrixShape]:
    """The whole tensor as a matrix of its first dimension and the rest, where it has more than one."""
    if tensor.dim() < 2 or numel == 0:
        return []
    strides = torch.empty(tensor.shape, device="meta").stride()  # of the work buffer: in order
    return [matrix_shape(0, tensor.shape, strides, numel)]
