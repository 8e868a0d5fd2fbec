"""What an all-reduce asks of a device that works beside the host: streams, launches and collectives, in one place.

Everything that depends on CUDA or NCCL is behind this class, so that the order of operations can be checked where there is no GPU: a stand-in runs the same steps on CPU tensors, keeps
book of which stream touches what and waits for whom, and finds a missing wait (tests/_device_stand_in.py).

There are two streams: the caller's, whichever is current, and one for communication. Outside :meth:`DeviceOps.communicating` operations go to the first, inside to the second. No method waits for
the device but :meth:`Fetched.read`, which is for what was fetched a step ago.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from commpress.codecs import Codec, Key

Range = tuple[int, int]


class Fetched(abc.ABC):
    """A small tensor on its way to the host."""

    @abc.abstractmethod
    def read(self, timeout: float) -> list[int]:
        """Its values, flat. Waits, at most `timeout` seconds, until the device has come so far.

        Raises:
            PeerError: it has not, so some rank has not done its part.
            StateError: the device failed.
        """


class DeviceOps(abc.ABC):
    """Streams, launches and collectives of one rank.

    Attributes:
        device: where tensors are. rank, size: of this process in its group.
    """

    device: torch.device
    rank: int
    size: int

    # ---- streams

    @abc.abstractmethod
    def communicating(self) -> AbstractContextManager[Any]:
        """Inside, the communication stream is the current one."""

    @abc.abstractmethod
    def record(self, *, timed: bool = False) -> Any:
        """An event behind all that the current stream has been given. `timed`: for :meth:`seconds`."""

    @abc.abstractmethod
    def wait(self, event: Any) -> None:
        """What the current stream is given from now on comes after `event`. The host does not wait."""

    @abc.abstractmethod
    def seconds(self, begin: Any, end: Any) -> float:
        """Between two timed events, both of which the device has passed: to be asked after a read of what was fetched behind them."""

    @abc.abstractmethod
    def keep(self, tensor: torch.Tensor) -> None:
        """The current stream uses a tensor that another one allocated: its memory is not given to others before this stream is through."""

    @abc.abstractmethod
    def capturing(self) -> bool:
        """Whether the current stream is being captured in a graph."""

    @abc.abstractmethod
    def new_future(self) -> torch.futures.Future[Any]:
        """One that :meth:`complete` may complete. Waiting for it makes the waiter's stream wait, not the host."""

    @abc.abstractmethod
    def complete(self, future: torch.futures.Future[Any], value: Any) -> None:
        """Sets the result, tensors that the current stream is still to write."""

    # ---- memory

    @abc.abstractmethod
    def empty(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """New memory that belongs to the current stream."""

    @abc.abstractmethod
    def fetch(self, tensor: torch.Tensor) -> Fetched:
        """Copies integers to the host, behind what the current stream has been given."""

    # ---- codecs

    @abc.abstractmethod
    def check(self, codec: Codec) -> None:
        """Raises SpecError unless the device has kernels for this codec, with what :meth:`encode` and :meth:`decode` need."""

    @abc.abstractmethod
    def encode(
        self, codec: Codec, flat: torch.Tensor, ranges: Sequence[Range], key: Key, out: torch.Tensor, gain: float
    ) -> None:
        """Writes the payloads of ``gain * flat[start:stop]`` of all `ranges`, in ascending order and not empty, one behind the other: one launch for each kind of kernel.

        Args:
            flat: 1-D contiguous fp32, the whole tensor; a range's start is the offset of its payload.
            out: uint8 of exactly these payloads' bytes.
        """

    @abc.abstractmethod
    def decode(
        self,
        codec: Codec,
        payloads: Sequence[torch.Tensor],
        keys: Sequence[Key],
        out: torch.Tensor,
        offset: int,
        report: torch.Tensor,
        *,
        accumulate: bool = False,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        """``out = gain * decoded payloads``, added up in their order, or on top of ``beta * out`` with `accumulate`; one pass over `out`.

        Args:
            keys: differ in sender and phase alone.
            out: 1-D contiguous fp32, the coordinates from `offset` on; undefined after an invalid payload.
            report: int32 (2), never cleared: 1 + the position of an invalid payload; not 0 if something in the result is not finite.
        """

    # ---- collectives: in the same order on all ranks, on the communication stream

    @abc.abstractmethod
    def all_to_all(
        self, received: torch.Tensor, received_nbytes: list[int], sent: torch.Tensor, sent_nbytes: list[int]
    ) -> None:
        """Bytes to and from every rank, by rank; both buffers are 1-D uint8 of exactly the sum of their sizes."""

    @abc.abstractmethod
    def all_gather(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """Every rank's bytes, in rank order; `received` is `size` times as long."""
