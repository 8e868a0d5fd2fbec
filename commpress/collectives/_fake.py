"""In-process communicator: the ranks are threads. For tests and for trying out algorithms."""

from __future__ import annotations

import collections
import threading
import time
from typing import final

import torch

from commpress.collectives.communicator import ChannelError, Communicator, Handle
from commpress.errors import TensorError


class _Message:
    __slots__ = ("data", "done", "error")

    def __init__(self, data: torch.Tensor | None) -> None:
        self.data = data
        self.done = False
        self.error: ChannelError | None = None


@final
class FakeWorld:
    """The wires between `size` fake ranks; `communicator(rank)` gives one end each. One FakeWorld is one channel."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.sends: dict[tuple[int, int], collections.deque[_Message]] = collections.defaultdict(collections.deque)
        self.receives: dict[tuple[int, int], collections.deque[_Message]] = collections.defaultdict(collections.deque)
        self.dead: set[int] = set()
        self.nbytes_sent = [0] * size
        self.messages_sent = [0] * size

    def communicator(self, rank: int) -> FakeCommunicator:
        """This rank's end."""
        return FakeCommunicator(self, rank)

    def kill(self, rank: int) -> None:
        """As if the process died: all messages from and to it that are not through fail."""
        with self.changed:
            self.dead.add(rank)
            for table in (self.sends, self.receives):
                for (src, dst), queue in table.items():
                    if rank in (src, dst):
                        for message in queue:
                            message.error = ChannelError("the connection was closed from the other side")
                        queue.clear()
            self.changed.notify_all()

    def post(self, src: int, dst: int, message: _Message, *, sending: bool) -> None:
        with self.changed:
            if src in self.dead or dst in self.dead:
                raise ChannelError("the connection was closed from the other side")
            own, other = (self.sends, self.receives) if sending else (self.receives, self.sends)
            waiting = other[src, dst]
            if waiting:
                peer = waiting.popleft()
                source, target = (message, peer) if sending else (peer, message)
                assert source.data is not None and target.data is not None
                if source.data.numel() != target.data.numel():
                    message.error = peer.error = ChannelError(
                        f"message of {source.data.numel()} bytes from rank {src} met a receive of {target.data.numel()}"
                    )
                else:
                    target.data.copy_(source.data)
                    self.nbytes_sent[src] += source.data.numel()
                    self.messages_sent[src] += 1
                message.done = peer.done = True
                self.changed.notify_all()
            else:
                own[src, dst].append(message)


@final
class _FakeHandle(Handle):
    def __init__(self, world: FakeWorld, message: _Message) -> None:
        self._world = world
        self._message = message

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._world.changed:
            while not self._message.done and self._message.error is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._world.changed.wait(left):
                    raise ChannelError(f"no message within {timeout:g} s", timed_out=True)
            if self._message.error is not None:
                raise self._message.error


@final
class FakeCommunicator(Communicator):
    """One rank's end of a `FakeWorld`. A send is copied when its receive is there, so the rules about buffers are those of a real channel."""

    def __init__(self, world: FakeWorld, rank: int) -> None:
        self.rank = rank
        self.size = world.size
        self._world = world

    def isend(self, tensor: torch.Tensor, dst: int) -> Handle:
        return self._start(tensor, self.rank, dst, sending=True)

    def irecv(self, tensor: torch.Tensor, src: int) -> Handle:
        return self._start(tensor, src, self.rank, sending=False)

    def _start(self, tensor: torch.Tensor, src: int, dst: int, *, sending: bool) -> Handle:
        if tensor.dtype != torch.uint8 or not tensor.is_contiguous():
            raise TensorError("messages are contiguous uint8 tensors")
        message = _Message(tensor)
        self._world.post(src, dst, message, sending=sending)
        return _FakeHandle(self._world, message)

    def abort(self) -> None:
        self._world.kill(self.rank)

    def close(self) -> None:
        pass


@final
class FakeGroup:
    """One rank of a group whose ranks are threads of this process; `make_channels`, and what is built on it, take it in place of a ProcessGroup.

    `FakeGroup.ranks(4)` gives all four. `worlds` are the wires made so far, in the order in which the ranks, all alike, asked for channels.
    """

    def __init__(self, rank: int, size: int, worlds: list[FakeWorld], lock: threading.Lock, timeout: float) -> None:
        self.worlds = worlds
        self.timeout = timeout
        self._rank, self._size = rank, size
        self._lock = lock
        self._taken = 0

    @staticmethod
    def ranks(size: int, timeout: float = 60.0) -> list[FakeGroup]:
        """A group of `size` ranks; a wait for a peer may take `timeout` seconds."""
        worlds: list[FakeWorld] = []
        lock = threading.Lock()
        return [FakeGroup(rank, size, worlds, lock, timeout) for rank in range(size)]

    def rank(self) -> int:
        """This rank's number."""
        return self._rank

    def size(self) -> int:
        """How many ranks there are."""
        return self._size

    def channels(self) -> tuple[FakeCommunicator, FakeCommunicator]:
        """The next two channels between all ranks."""
        with self._lock:
            while len(self.worlds) < self._taken + 2:
                self.worlds.append(FakeWorld(self._size))
            first, second = self.worlds[self._taken : self._taken + 2]
            self._taken += 2
        return first.communicator(self._rank), second.communicator(self._rank)
