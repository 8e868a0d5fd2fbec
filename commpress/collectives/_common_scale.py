"""One scale for all ranks, found at one bit for each rank and round."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any, final

import numpy as np
import torch

from commpress.collectives._accounting import wire_nbytes
from commpress.collectives._all_reduce import group_timeout, make_channel
from commpress.collectives._fake import FakeGroup
from commpress.collectives.communicator import ChannelError, Communicator
from commpress.errors import PeerError, SpecError, TensorError

_ACROSS = ("max", "median")
_MOST_DIGITS = 23
_ABOVE, _NOT_FINITE, _OTHER = 1, 2, 4


@final
@dataclasses.dataclass(frozen=True)
class CommonScale:
    """What :func:`common_scale` found, and what it cost this rank.

    Attributes:
        value: the scale; the same float32 on every rank.
        own: this rank's own statistic.
        rounds: of questions; bits: that this rank told (one in each round).
        messages, bytes_sent: one byte to each other rank in each round. wire_bytes: with framing, as `wire_nbytes` counts.
    """

    value: float
    own: float
    rounds: int
    messages: int

    @property
    def bits(self) -> int:
        return self.rounds

    @property
    def bytes_sent(self) -> int:
        return self.messages

    @property
    def wire_bytes(self) -> int:
        return wire_nbytes(self.messages, self.messages, self.messages, self.messages)


def common_scale(
    x: torch.Tensor,
    *,
    quantile: float = 1.0,
    across: str = "max",
    digits: int = 7,
    near: float | None = None,
    group: Any = None,
    timeout: float | None = None,
) -> CommonScale:
    """Finds a scale for quantisers that all ranks share, such as the range of a fixed-range code or the amax of FP8. Collective.

    Every rank has a statistic of its own, a quantile of ``|x|``. In each round all are asked whether theirs is above a threshold, each tells every other one bit, and the answers decide
    the next threshold: a bisection with votes over the float32 numbers of so many binary digits, ``8 + digits`` rounds for any scale from 1e-38 to 3e38. With "median" the vote is that
    of the majority (the sequential estimator of docs/mean-1bit.md), so a minority of ranks whose gradients have exploded cannot move it; with "max" one voice is enough, and no
    rank's statistic is above the result.

    Args:
        x: CPU tensor, floating-point, any shape; its values may differ between ranks, and its size too.
        quantile: in (0, 1]: 1 is the largest magnitude, .999 leaves the largest thousandth out (of the lower neighbours, no interpolation).
        across: "max" or "median" (the lower one) of the ranks' statistics, rounded up to the next number of so many digits.
        digits: binary digits behind the leading one, 0 to 23: the result is too large by at most 2^-digits.
        near: what it was last time, equal on all ranks: the search begins there and takes about ``2 log2`` of the distance in steps of the last digit, 2 rounds if nothing changed.
        group: process group, `FakeGroup`, or a `Communicator` that nothing else uses meanwhile (a group's call makes connections of its own each time; for use in every step make one:
            ``make_channel(group)``). None: the default group.
        timeout: seconds that a wait for a peer may take; None: the group's, 30 minutes for a communicator.

    Raises:
        SpecError: an option makes no sense. TensorError: x is no such tensor, or, on all ranks, some rank's holds a NaN or an infinity (they are named).
        PeerError: a rank did not take part, or one of them has other options (digits, across, near).
    """
    if not 0 < quantile <= 1:
        raise SpecError(f"quantile must be in (0, 1], got {quantile!r}")
    if across not in _ACROSS:
        raise SpecError(f"across must be one of {', '.join(_ACROSS)}, got {across!r}")
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= _MOST_DIGITS:
        raise SpecError(f"digits must be an integer from 0 to {_MOST_DIGITS}, got {digits!r}")
    if near is not None and not (near >= 0 and math.isfinite(near)):
        raise SpecError(f"near must be a finite number, at least 0, got {near!r}")
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.device.type != "cpu":
        raise TensorError("common_scale takes floating-point CPU tensors")
    own = _statistic(x, quantile)
    comm, wait, channels = _channel(group, timeout)
    try:
        search = _Search(comm, wait, own, digits, across, None if near is None else _code(near, digits))
        code = search.run()
    finally:
        for channel in channels:
            channel.close()
    return CommonScale(_value(code, digits), own, search.rounds, search.rounds * (comm.size - 1))


def _channel(group: Any, timeout: float | None) -> tuple[Communicator, float, tuple[Communicator, ...]]:
    if isinstance(group, Communicator):
        return group, 1800.0 if timeout is None else timeout, ()
    wait = group_timeout(group) if timeout is None else timeout
    made = make_channel(group, None if isinstance(group, FakeGroup) else wait)
    return made, wait, (made,)


def _statistic(x: torch.Tensor, quantile: float) -> float:
    """NaN if x holds one, or an infinity."""
    sizes = x.detach().reshape(-1).to(torch.float32).abs()
    if not sizes.numel():
        return 0.0
    if not bool(torch.isfinite(sizes).all()):
        return math.nan
    place = max(1, math.ceil(quantile * sizes.numel()))
    return float(sizes.max() if place == sizes.numel() else sizes.kthvalue(place).values)


def _code(value: float, digits: int) -> int:
    """The place, among the numbers with so many digits, of the first that is not below `value`."""
    bits = int(np.float32(value).view(np.uint32))
    return min((bits + (1 << 23 - digits) - 1) >> 23 - digits, (255 << digits) - 1)


def _value(code: int, digits: int) -> float:
    return float(np.uint32(code << 23 - digits).view(np.float32))


@final
class _Search:
    """For the least code that enough ranks' own codes do not exceed."""

    def __init__(
        self, comm: Communicator, timeout: float, own: float, digits: int, across: str, near: int | None
    ) -> None:
        self._comm, self._timeout = comm, timeout
        self._finite = own == own
        self._own = _code(own, digits) if self._finite else 0
        self._top = (255 << digits) - 1
        # Every answer says, in bits that a message of a whole byte has to spare, what the ranks must have in common.
        self._sign = _OTHER * (1 + zlib.crc32(repr((digits, across, near)).encode()) % 63)
        self._near = near
        self._needed = 1 if across == "max" else comm.size // 2 + 1
        self.rounds = 0

    def run(self) -> int:
        low, high = 0, self._top  # the answer is in there
        if self._near is not None:
            low, high = self._bracket(self._near, low, high)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._above(middle) else (low, middle)
        return low

    def _bracket(self, near: int, low: int, high: int) -> tuple[int, int]:
        """Steps away from `near`, each twice as long, until the answer is passed."""
        if self._above(near):
            low, step = near + 1, 1
            while low + step - 1 < high and self._above(low + step - 1):
                low, step = low + step, 2 * step
            return low, min(high, low + step - 1)
        high, step = near, 1
        while high - step >= low and not self._above(high - step):
            high, step = high - step, 2 * step
        return max(low, high - step + 1), high

    def _above(self, threshold: int) -> bool:
        """One round: whether so many ranks are above it."""
        comm = self._comm
        self.rounds += 1
        mine = self._sign | (_ABOVE if self._own > threshold else 0) | (0 if self._finite else _NOT_FINITE)
        told = {comm.rank: mine}
        out = torch.tensor([mine], dtype=torch.uint8)
        peers = [r for r in range(comm.size) if r != comm.rank]
        received = {r: torch.zeros(1, dtype=torch.uint8) for r in peers}
        peer = comm.rank
        try:
            handles = [(r, comm.irecv(into, r)) for r, into in received.items()]
            handles += [(r, comm.isend(out, r)) for r in peers]
            for peer, handle in handles:  # noqa: B007  named in the error
                handle.wait(self._timeout)
        except ChannelError as error:
            raise PeerError(f"rank {comm.rank} lost rank {peer} while a common scale was sought: {error}") from error
        told |= {r: int(into[0]) for r, into in received.items()}
        if broken := [r for r, byte in sorted(told.items()) if byte & _NOT_FINITE]:
            raise TensorError(
                f"no common scale: the tensor of rank {', '.join(map(str, broken))} holds a NaN or infinity"
            )
        if others := [r for r, byte in sorted(told.items()) if byte & ~3 != self._sign]:
            raise PeerError(
                f"rank {', '.join(map(str, others))} seeks a common scale with other options (digits, across or near)"
            )
        return sum(byte & _ABOVE for byte in told.values()) >= self._needed
