"""Point-to-point channels between ranks: the abstract base and what every implementation promises."""

from __future__ import annotations

import abc

import torch

from commpress.errors import PeerError


class ChannelError(PeerError):
    """A message could not be sent or received.

    Attributes:
        timed_out: the wait reached its timeout (otherwise the connection broke).
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Handle(abc.ABC):
    """One message under way."""

    @abc.abstractmethod
    def wait(self, timeout: float) -> None:
        """Blocks (without the GIL) until the message is through.

        Raises:
            ChannelError: it was not within `timeout` seconds, or the connection broke. The channel may be unusable afterwards.
        """


class Communicator(abc.ABC):
    """One ordered channel between each two of `size` ranks.

    Messages from one rank to another arrive in the order in which they were sent, and meet receives in the order in which those were posted. A receive must be as long
    as the message that it meets; the caller makes sure of that. Neither call waits; a send may be posted before its receive, at the price of latency.
    """

    rank: int
    size: int

    @abc.abstractmethod
    def isend(self, tensor: torch.Tensor, dst: int) -> Handle:
        """Sends a contiguous uint8 tensor, which must stay as it is until the handle's wait returns. Raises ChannelError."""

    @abc.abstractmethod
    def irecv(self, tensor: torch.Tensor, src: int) -> Handle:
        """Receives into a contiguous uint8 tensor. Raises ChannelError."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Makes every wait, now and later, on every thread, fail soon. Peers see a broken connection."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the channel's resources back; nothing may be under way. Calling it twice does no harm."""
