"""`all_reduce` on torch.distributed: any floating-point tensor, one call. Keeps one Reducer per process group."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from commpress.collectives import _torch
from commpress.collectives._accounting import Report
from commpress.collectives._cuda_ops import CudaOps
from commpress.collectives._device_call import DeviceCalls
from commpress.collectives._fake import FakeGroup
from commpress.collectives._one_call import Entry, reduce_tensor
from commpress.collectives.communicator import Communicator
from commpress.collectives.device import DeviceOps
from commpress.collectives.device_reducer import DeviceReducer
from commpress.collectives.nodes import Asked, Hierarchical
from commpress.collectives.reducer import Reducer, on_nodes
from commpress.errors import StateError

if TYPE_CHECKING:
    from commpress.codecs import Key

_DEFAULT_TIMEOUT = 1800.0


# The one module-level state: Reducers of plain all_reduce calls, keyed by group object, dropped with it, by `close`, or at exit.
_entries: weakref.WeakKeyDictionary[Any, Entry] = weakref.WeakKeyDictionary()
_entries_lock = threading.Lock()


def make_channels(group: Any = None, timeout: float | None = None) -> tuple[Communicator, Communicator]:
    """Makes two gloo groups with the ranks of `group` and returns a channel on each. Collective: every rank of the group, and no other, must call it.

    Args:
        group: a ProcessGroup, or a FakeGroup; None is the default group.
        timeout: seconds for making the connections; by default the group's own timeout.
    """
    if isinstance(group, FakeGroup):
        return group.channels()
    group = _resolve(group)
    return _torch.make_channels(group, timeout or group_timeout(group))


def make_channel(group: Any = None, timeout: float | None = None) -> Communicator:
    """As :func:`make_channels`, a single one. (To close one of a pair at once would end the connections that a slower rank is still making.)"""
    if isinstance(group, FakeGroup):
        return group.channels()[0]
    group = _resolve(group)
    return _torch.make_channel(group, timeout or group_timeout(group))


def group_timeout(group: Any = None) -> float:
    """The timeout of a process group in seconds; half an hour where its backend does not tell."""
    if isinstance(group, FakeGroup):
        return group.timeout
    for device in ("cpu", "cuda"):
        try:
            options = _resolve(group)._get_backend(torch.device(device)).options
            return float(options._timeout.total_seconds())
        except (RuntimeError, AttributeError):
            continue
    return _DEFAULT_TIMEOUT


def _resolve(group: Any) -> Any:
    if not dist.is_available() or not dist.is_initialized():
        raise StateError("torch.distributed has no process group: call init_process_group first")
    group = dist.group.WORLD if group is None else group
    if group == dist.GroupMember.NON_GROUP_MEMBER or not isinstance(group, dist.ProcessGroup):
        raise StateError("this process is not a member of the group")
    return group


def _entry(group: Any) -> Entry:
    with _entries_lock:
        if group not in _entries:
            alive = weakref.ref(group)  # the entry must not keep its own key alive
            _entries[group] = Entry(
                lambda asked: _make_reducer(alive(), asked), lambda device: _make_device_calls(alive(), device)
            )
        return _entries[group]


def group_entry(group: Any = None) -> Entry:
    """What is kept for a process group; None is the default one. Raises StateError."""
    return _entry(_resolve(group))


def _make_reducer(group: Any, asked: Asked) -> Reducer:
    timeout = group_timeout(group)
    return on_nodes(*make_channels(group, timeout), asked, timeout)


def make_device_reducer(ops: DeviceOps, group: Any, timeout: float) -> DeviceReducer:
    """A reducer of tensors on a device, with a channel between the hosts. Collective."""
    return DeviceReducer(ops, make_channel(group, timeout), timeout)


def _make_device_calls(group: Any, device: torch.device) -> DeviceCalls:
    ops = CudaOps(device, group)
    return DeviceCalls(ops, lambda: make_device_reducer(ops, group, group_timeout(group)))


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
    """Bytes and times of the last completed `all_reduce` of `group`, or None. Of CUDA tensors: of the last one whose outcome is known."""
    entry = _entries.get(_resolve(group))
    return None if entry is None else entry.newest_report()


def all_reduce(
    tensor: torch.Tensor | Sequence[torch.Tensor],
    codec: Any,
    *,
    op: str = "mean",
    group: Any = None,
    key: Key | None = None,
    async_op: bool = False,
    hierarchical: Hierarchical = None,
) -> Any:
    """Reduces `tensor` over all ranks of `group`, in place, with compressed communication in both phases.

    All ranks end with the same bits. Every rank owns a shard of the tensor; its own contribution to it is not quantised, those of the others are, and so is the result.
    A NaN or an infinity on one rank arrives as a non-finite value on all. With one rank the tensor stays as it is.

    On several nodes with several ranks each the exchange has two levels (docs/topology.md): exact sums inside each node, in fp32, which never leave it, and a compressed
    exchange of each part of them between the ranks of the same local rank. The result then is that of a flat exchange between nodes: less error for fewer bytes, but other bits than
    a flat one's.

    Args:
        tensor: CPU or CUDA tensor of a floating-point or complex dtype, of any shape and strides; or a list of such, which are reduced as if they were one, laid end to end: one message
            where each would need its own. The work is done in fp32 (fp64 tensors with a lossless codec: fp64),
            the mean is taken before the result is narrowed to the tensor's dtype. fp32 and complex64 tensors that are contiguous need no copy.
        codec: a codec, or a spec such as "uniform:4"; equal on all ranks. "lowrank:4" takes a matrix, (shape[0], the rest), and begins with power iterations, as it
            knows nothing of earlier calls; it uses two more pairs of subgroups. A codec with side information ("modulo:2,rho=0.9") serves phase 1, where the owner's own shard is
            that information; phase 2 then is "hadamard+lloyd" of the same bits. With a codec that adds codes ("homomorphic:4") the own contribution is quantised too, and the result is not.
        op: "mean" (the default, unlike torch's sum) or "sum".
        group: process group; None is the default one. The first call for a group makes two subgroups, collectively; `close` gives them back.
        key: randomness, equal on all ranks; None: seed 0 and the number of this group's earlier calls without a key as step.
        async_op: return at once; do not touch `tensor` before the future is done.
        hierarchical: None: two levels where the launcher started at least two nodes of at least two ranks, equally many on each in this group, else flat. False: flat.
            True: two levels, or an error; on a single node nothing is compressed then. A list with the ranks (of the group) of each node: the same with these nodes.
            Equal on all ranks. "lowrank" is flat.

    Returns:
        `tensor`, or with `async_op` a torch.futures.Future of it, whose `wait` raises what this function would.

    On a CUDA device everything is enqueued on a stream of its own, over the group's NCCL backend, and the host waits for nothing: the current stream waits for the result (with `async_op`
    where the future is waited for). Codecs with kernels there serve, in one level. What went wrong on the device, such as an invalid payload, is raised by the group's next call or by
    `close`; the host itself waits then for the call before (docs/cuda.md).

    Raises:
        TensorError: integer, bool or sparse tensor, tensors of several devices, or an unknown `op`. Nothing was sent: the other ranks wait.
        SpecError: the spec is malformed, or not for so many ranks, or `hierarchical` is not as above or not for this codec.
        TopologyError: `hierarchical` demands what the nodes do not allow; on all ranks.
        MismatchError: ranks disagree on codec, version, size, dtype, key, operation, `hierarchical`, or sizes of a list's tensors; raised on all.
        PeerError: another rank died, was silent for the group's timeout, or failed in its codec.
        WireError: what arrived cannot be decoded.
        StateError: no process group, or an earlier call of this group failed (`close` it on all ranks, then calls work again).
    """
    return reduce_tensor(
        tensor,
        codec,
        lambda: _entry(_resolve(group)),
        op=op,
        key=key,
        async_op=async_op,
        hierarchical=hierarchical,
    )
