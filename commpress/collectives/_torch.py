"""Communicator on a torch.distributed process group."""

from __future__ import annotations

import datetime
import threading
import weakref
from typing import Any, final

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from commpress.collectives.communicator import ChannelError, Communicator, Handle

_TAG = 0  # one tag: gloo matches messages of one tag in order


def _error(problem: Exception) -> ChannelError:
    text = str(problem)
    timed_out = "Timed out" in text or "timed out" in text
    if "Application timeout" in text:  # gloo closes all connections of a group when one wait times out
        return ChannelError("another message of this group timed out, or the group was aborted", timed_out=True)
    if (
        "Connection closed by peer" in text
        or "Connection reset" in text
        or "Broken pipe" in text
        or "Socket closed" in text
    ):
        return ChannelError("the connection was closed from the other side")
    return ChannelError(text.splitlines()[0] if text else type(problem).__name__, timed_out=timed_out)


@final
class _Work(Handle):
    __slots__ = ("_tensor", "_work")

    def __init__(self, work: Any, tensor: torch.Tensor) -> None:
        self._work = work
        self._tensor = tensor  # gloo keeps the address only

    def wait(self, timeout: float) -> None:
        try:
            self._work.wait(datetime.timedelta(seconds=max(timeout, 0.001)))
        except RuntimeError as problem:
            raise _error(problem) from None


@final
class TorchCommunicator(Communicator):
    """Channel on a process group that nothing else uses.

    Calls go to the group object, not through `torch.distributed`'s registry: they cost less, and the channel outlives `destroy_process_group`.

    Args:
        group: a ProcessGroup, or one backend (such as ProcessGroupGloo), of which this process is a member. Tensors must suit it (gloo: CPU).
            It belongs to its maker; `close` only lets go of it (a gloo backend closes its connections when nobody holds it any more).
    """

    def __init__(self, group: Any) -> None:
        self.rank = group.rank()
        self.size = group.size()
        self._group: Any = group
        self._gloo = (dist.get_backend(group) if isinstance(group, dist.ProcessGroup) else group.name()) == "gloo"
        self._aborted = False

    def isend(self, tensor: torch.Tensor, dst: int) -> Handle:
        if self._group is None or self._aborted:
            raise ChannelError("the channel is closed")
        try:
            return _Work(self._group.send([tensor], dst, _TAG), tensor)
        except RuntimeError as problem:
            raise _error(problem) from None

    def irecv(self, tensor: torch.Tensor, src: int) -> Handle:
        if self._group is None or self._aborted:
            raise ChannelError("the channel is closed")
        try:
            return _Work(self._group.recv([tensor], src, _TAG), tensor)
        except RuntimeError as problem:
            raise _error(problem) from None

    def abort(self) -> None:
        if self._group is None or self._aborted:
            return
        self._aborted = True
        if self.size == 1:
            return
        if not self._gloo:
            self._group.abort()
            return
        # gloo's abort() does nothing. A receive that times out closes all connections of its group, which ends every other wait; tag 1 matches no message.
        try:
            trash = torch.empty(1, dtype=torch.uint8)
            self._group.recv([trash], (self.rank + 1) % self.size, 1).wait(datetime.timedelta(milliseconds=1))
        except RuntimeError:
            pass

    def close(self) -> None:
        self._group = None


# How many pairs of channels, or single backends, this process has made for a group. Equal on all its ranks, since making them is collective.
_pairs_made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_pairs_lock = threading.Lock()


def make_channels(group: Any, timeout: float) -> tuple[TorchCommunicator, TorchCommunicator]:
    """Makes two gloo groups with the ranks of `group`, a ProcessGroup, and returns a channel on each. Collective.

    They are made from the group's store, not by `new_group`, which all ranks of the job would have to call, or which (with local synchronisation) makes up different
    names on ranks that belong to different numbers of groups.
    """
    number = _next_number(group)
    first, second = (TorchCommunicator(_backend(group, f"{number}/{phase}", timeout)) for phase in (1, 2))
    return first, second


def make_channel(group: Any, timeout: float) -> TorchCommunicator:
    """As :func:`make_channels`, a single one."""
    return TorchCommunicator(make_backend(group, timeout))


def make_backend(group: Any, timeout: float) -> Any:
    """One gloo backend with the ranks of `group`, made like the channels, for collectives that nothing else may get between. Collective."""
    return _backend(group, f"{_next_number(group)}/whole", timeout)


def _next_number(group: Any) -> int:
    with _pairs_lock:
        number = _pairs_made[group] = _pairs_made.get(group, 0) + 1
    return number


def _backend(group: Any, name: str, timeout: float) -> Any:
    store = distributed_c10d._get_process_group_store(group)
    prefix = dist.PrefixStore(f"commpress/{group.group_name}/{name}", store)
    return dist.ProcessGroupGloo(prefix, group.rank(), group.size(), datetime.timedelta(seconds=timeout))
