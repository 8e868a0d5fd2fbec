"""Scales common to all ranks, each found at one bit for each rank and round."""

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


@final
@dataclasses.dataclass(frozen=True)
class CommonScales:
    """What :func:`common_scales` found, and what it cost this rank.

    Attributes:
        values: float32, 1-D; the same on every rank.
        rounds: in which all scales were asked about at once, a bit for each; one more first, in which the ranks make sure that they search for the same.
        bytes_each, messages_each: sent to each other rank.
    """

    values: torch.Tensor
    rounds: int
    bytes_each: int
    messages_each: int


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
    _check(across, digits)
    if near is not None and not (near >= 0 and math.isfinite(near)):
        raise SpecError(f"near must be a finite number, at least 0, got {near!r}")
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.device.type != "cpu":
        raise TensorError("common_scale takes floating-point CPU tensors")
    own = _statistic(x, quantile)
    near_code = None if near is None else np.array([_code(near, digits)])
    search, size = _search(np.array([own]), digits, across, near_code, group, timeout)
    return CommonScale(_value(int(search.low[0]), digits), own, search.rounds, search.rounds * (size - 1))


def common_scales(
    statistics: torch.Tensor,
    *,
    across: str = "max",
    digits: int = 7,
    near: torch.Tensor | None = None,
    group: Any = None,
    timeout: float | None = None,
) -> CommonScales:
    """Many scales at once: as :func:`common_scale`, for as many statistics of each rank as there are scales, such as the rms of every layer's gradient. Collective.

    A round asks about all of them, in one message of a bit for each to every other rank.

    Args:
        statistics: CPU tensor, floating-point, 1-D, equally long on all ranks; each rank's own, at least 0.
        across, digits, group, timeout: as in `common_scale`.
        near: what they were last time, like `statistics` and equal on all ranks.

    Raises:
        SpecError, TensorError, PeerError: as `common_scale`; a rank with another number of statistics is a PeerError.
    """
    _check(across, digits)
    for what, x in (("statistics", statistics), ("near", near)):
        if x is None and what == "near":
            continue
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.device.type != "cpu" or x.dim() != 1:
            raise TensorError(f"common_scales takes floating-point CPU tensors of one dimension, {what} is none")
        if bool((x < 0).any()):
            raise TensorError(f"{what} must be at least 0")
    near_codes = None
    if near is not None:
        if near.shape != statistics.shape or not bool(torch.isfinite(near).all()):
            raise SpecError("near must be finite, and as long as the statistics")
        near_codes = _codes(near, digits)
    own = statistics.detach().to(torch.float32).numpy()
    search, _ = _search(own, digits, across, near_codes, group, timeout)
    values = torch.from_numpy((search.low << 23 - digits).astype(np.uint32).view(np.float32))
    return CommonScales(values, search.rounds, search.bytes_each, search.messages_each)


def _check(across: str, digits: int) -> None:
    if across not in _ACROSS:
        raise SpecError(f"across must be one of {', '.join(_ACROSS)}, got {across!r}")
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= _MOST_DIGITS:
        raise SpecError(f"digits must be an integer from 0 to {_MOST_DIGITS}, got {digits!r}")


def _search(
    own: np.ndarray, digits: int, across: str, near: np.ndarray | None, group: Any, timeout: float | None
) -> tuple[_Search, int]:
    """A search that has ended, and the number of ranks."""
    comm, wait, channels = _channel(group, timeout)
    try:
        search = _Search(comm, wait, own, digits, across, near)
        search.run()
    finally:
        for channel in channels:
            channel.close()
    return search, comm.size


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


def _codes(values: torch.Tensor, digits: int) -> np.ndarray:
    return np.array([_code(float(value), digits) for value in values], dtype=np.int64)


def _value(code: int, digits: int) -> float:
    return float(np.uint32(code << 23 - digits).view(np.float32))


_ASK, _CLIMB, _DESCEND, _BISECT = range(4)


@final
class _Search:
    """For the least codes that enough ranks' own codes do not exceed; all at once.

    Near an earlier answer it takes steps away from there, each twice as long, until the new one is passed; then it bisects.

    Attributes:
        low: the codes, once it has ended. rounds: of questions. bytes_each, messages_each: sent to each other rank.
    """

    def __init__(
        self, comm: Communicator, timeout: float, own: np.ndarray, digits: int, across: str, near: np.ndarray | None
    ) -> None:
        n = len(own)
        self._comm, self._timeout = comm, timeout
        self._peers = [r for r in range(comm.size) if r != comm.rank]
        self._finite = bool(np.isfinite(own).all())
        self._own = _codes(torch.from_numpy(np.nan_to_num(own.astype(np.float32))), digits)
        # Every rank says in a byte, which a single answer leaves room for, what all must have in common.
        common = (digits, across, None if near is None else near.tolist(), n)
        self._sign = _OTHER * (1 + zlib.crc32(repr(common).encode()) % 63)
        self._needed = 1 if across == "max" else comm.size // 2 + 1
        self.low, self._high = np.zeros(n, dtype=np.int64), np.full(n, (255 << digits) - 1, dtype=np.int64)
        self._near = self.low if near is None else near
        self._step = np.ones(n, dtype=np.int64)
        self._state = np.full(n, _BISECT if near is None else _ASK)
        self.rounds = self.bytes_each = self.messages_each = 0

    def run(self) -> None:
        if len(self._own) != 1:
            self._heads(self._exchange(np.array([self._head], dtype=np.uint8)))
        while True:
            thresholds, open_ = self._questions()
            if not open_.any():
                return
            self._learn(thresholds, open_, self._votes(self._own > thresholds) >= self._needed)

    def _questions(self) -> tuple[np.ndarray, np.ndarray]:
        """Thresholds, and where there is anything to ask still."""
        state, low, high, step = self._state, self.low, self._high, self._step
        over = (state == _CLIMB) & (low + step - 1 >= high)
        under = (state == _DESCEND) & (high - step < low)
        state[over | under] = _BISECT  # neither end of the range is passed: what is left of it
        places = np.choose(state, [self._near, low + step - 1, high - step, (low + high) // 2])
        return places, (state != _BISECT) | (low < high)

    def _learn(self, thresholds: np.ndarray, open_: np.ndarray, above: np.ndarray) -> None:
        state = self._state.copy()
        yes, no = open_ & above, open_ & ~above
        self.low[yes], self._high[no] = thresholds[yes] + 1, thresholds[no]
        again = (yes & (state == _CLIMB)) | (no & (state == _DESCEND))
        self._step[again] *= 2
        passed = (yes & (state == _DESCEND)) | (no & (state == _CLIMB))
        self._state[passed] = _BISECT
        self._state[yes & (state == _ASK)] = _CLIMB
        self._state[no & (state == _ASK)] = _DESCEND

    @property
    def _head(self) -> int:
        return self._sign | (0 if self._finite else _NOT_FINITE)

    def _votes(self, mine: np.ndarray) -> np.ndarray:
        """One round: how many ranks are above their thresholds."""
        self.rounds += 1
        if len(mine) == 1:
            told = self._exchange(np.array([self._head | (_ABOVE if mine[0] else 0)], dtype=np.uint8))
            self._heads(told)
            return np.array([sum(int(one[0]) & _ABOVE for one in told)])
        answers = self._exchange(np.packbits(mine))
        return np.stack([np.unpackbits(one, count=len(mine)) for one in answers]).sum(0, dtype=np.int64)

    def _exchange(self, mine: np.ndarray) -> list[np.ndarray]:
        """What every rank says, in rank order."""
        comm = self._comm
        out = torch.from_numpy(mine)
        received = {r: torch.zeros(len(mine), dtype=torch.uint8) for r in self._peers}
        self.bytes_each += len(mine)
        self.messages_each += 1
        peer = comm.rank
        try:
            handles = [(r, comm.irecv(into, r)) for r, into in received.items()]
            handles += [(r, comm.isend(out, r)) for r in self._peers]
            for peer, handle in handles:  # noqa: B007  named in the error
                handle.wait(self._timeout)
        except ChannelError as error:
            raise PeerError(f"rank {comm.rank} lost rank {peer} while a common scale was sought: {error}") from error
        received[comm.rank] = out
        return [received[r].numpy() for r in range(comm.size)]

    def _heads(self, told: list[np.ndarray]) -> None:
        """Raises unless all ranks search for the same, and theirs are finite."""
        heads = [int(one[0]) for one in told]
        if broken := [r for r, head in enumerate(heads) if head & _NOT_FINITE]:
            raise TensorError(
                f"no common scale: the tensor of rank {', '.join(map(str, broken))} holds a NaN or infinity"
            )
        if others := [r for r, head in enumerate(heads) if head & ~3 != self._sign]:
            raise PeerError(
                f"rank {', '.join(map(str, others))} seeks a common scale with other options (digits, across or near)"
            )
