"""How a tensor is cut into shards and chunks, and the message buffers for it, which are kept between steps."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import torch

from commpress.codecs import LinearCodec
from commpress.collectives._agreement import Agreement
from commpress.collectives._message import VERDICT_NBYTES, Message

BLOCK = 4096
_T = TypeVar("_T")
_PIECE_BLOCKS = 256  # 4 MiB of fp32
_MAX_CHUNKS = 64


def shard_bounds(numel: int, world_size: int, rank: int, codec: Any = None) -> tuple[int, int]:
    """Limits [start, stop) of the coordinates that `rank` owns: as `codec` splits them, or whole blocks of 4096, but for the tensor's end."""
    start, stop = split(codec, 0, numel, world_size)[rank : rank + 2]
    return start, stop


def split(codec: Any, start: int, stop: int, parts: int) -> list[int]:
    """`codec.split`, or whole blocks of 4096 for a codec that has none."""
    if hasattr(codec, "split"):
        cuts: list[int] = codec.split(start, stop, parts)
        return cuts
    blocks = -(-(stop - start) // BLOCK)
    return [min(start + part * blocks // parts * BLOCK, stop) for part in range(parts + 1)]


def chunk_count(numel: int, world_size: int, block_nbytes: int, chunk_nbytes: int) -> int:
    """Into how many chunks each shard is cut so that a message has about `chunk_nbytes` of payload; the same on every rank."""
    blocks = -(-numel // BLOCK)
    shard_blocks = -(-blocks // world_size)
    return max(1, min(_MAX_CHUNKS, shard_blocks, round(shard_blocks * block_nbytes / chunk_nbytes)))


@final
class Layout:
    """All buffers of one submission. With None for a codec that phase has no payload: without `codec2`, as in a reduce-scatter, each shard is one row of equal length and phase 2
    brings verdicts only; without `codec1`, as in an all-gather, phase 1 has no messages. Lists are indexed [chunk][peer number]; an entry is None where there is nothing to send.

    Attributes:
        send1[c][i]: to owner `targets[i]`; recv1[c][i]: from `sources[i]`, this rank's shard; send2[c]: this rank's shard, to all;
        recv2[c][i]: from `owners[i]`, its shard; own1[c]: this rank's codes for its own shard, with a linear codec. chunks: their number. nbytes: size of all buffers.
        agreement: what a linear codec needs, or None. side: room for the own shard as side information, empty if phase 1 needs none; it begins at `own_start`.

    Args:
        start, stop: of the flat tensor, what is reduced; positions everywhere are those of the tensor.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        dtype: torch.dtype,
        codec1: Any,
        codec2: Any,
        rank: int,
        size: int,
        chunks: int,
    ) -> None:
        self.chunks = chunks
        self.sources = [(rank + d) % size for d in range(1, size)]  # the order of summation
        self.targets = [
            (rank - d) % size for d in range(1, size)
        ]  # so that what an owner waits for first is sent first
        self.owners = self.sources
        shape: list[tuple[str, int, int, int]] = []
        if codec1 is None or codec2 is None:
            bounds = [start + r * ((stop - start) // size) for r in range(size + 1)]
        else:
            bounds = split(codec1, start, stop, size)
        linear = isinstance(codec1, LinearCodec)
        cutter = codec2 if codec1 is None else codec1
        cuts = [split(cutter, bounds[r], bounds[r + 1], chunks) for r in range(size)]
        for c in range(chunks):
            own = cuts[rank][c], cuts[rank][c + 1]
            for peer in self.targets:
                shape.append(("send1", c, cuts[peer][c], cuts[peer][c + 1]))
            for _ in self.sources:
                shape.append(("recv1", c, *own))
            if linear:
                shape.append(("own1", c, *own))
            shape.append(("send2", c, *own))
            for peer in self.owners:
                shape.append(("recv2", c, cuts[peer][c], cuts[peer][c + 1]))
        sizes = []
        sizers = {kind: _sizer(*((codec1, 1) if kind.endswith("1") else (codec2, 2)), size, dtype) for kind in _KINDS}
        for kind, c, start, stop in shape:
            payload = sizers[kind](start, stop) if stop > start else 0
            needed = payload or (
                kind in ("send2", "recv2") and c == chunks - 1
            )  # the last word goes out even for an empty shard
            sizes.append(-(-(VERDICT_NBYTES + payload) // 64) * 64 if needed else 0)
        self.nbytes = sum(sizes)
        arena = torch.empty(self.nbytes, dtype=torch.uint8)
        self.send1: list[list[Message | None]] = [[] for _ in range(chunks)]
        self.recv1: list[list[Message | None]] = [[] for _ in range(chunks)]
        self.send2: list[list[Message | None]] = [[] for _ in range(chunks)]
        self.recv2: list[list[Message | None]] = [[] for _ in range(chunks)]
        self.own1: list[list[Message | None]] = [[] for _ in range(chunks)]
        self.agreement = Agreement(codec1, bounds, rank, self.targets, self.sources) if linear else None
        self.own_start = bounds[rank]
        needs_side = getattr(codec1, "needs_side", False)
        self.side = torch.empty(bounds[rank + 1] - bounds[rank] if needs_side else 0, dtype=dtype)
        position = 0
        for (kind, c, start, stop), room in zip(shape, sizes, strict=True):
            codec = codec1 if kind.endswith("1") else codec2
            message = _message(arena[position : position + room], codec, sizers[kind], start, stop) if room else None
            getattr(self, kind)[c].append(message)
            position += room


Sizer = Callable[[int, int], int]
_KINDS = ("send1", "recv1", "own1", "send2", "recv2")


def _sizer(codec: Any, phase: int, world_size: int, dtype: torch.dtype) -> Sizer:
    """Bytes that a phase sends for coordinates [start, stop)."""
    if codec is None:
        return lambda start, stop: 0
    if not isinstance(codec, LinearCodec):
        return lambda start, stop: int(codec.payload_nbytes(stop - start, offset=start, dtype=dtype))
    if phase == 1:
        return lambda start, stop: codec.codes_nbytes(stop - start)
    return lambda start, stop: codec.sums_nbytes(stop - start, world_size)


def _message(room: torch.Tensor, codec: Any, sizer: Sizer, start: int, stop: int) -> Message:
    if codec is None:
        return Message(room[:VERDICT_NBYTES], [])
    pieces = []
    position = VERDICT_NBYTES
    parts = -(-(stop - start) // (_PIECE_BLOCKS * BLOCK)) or 1
    seams = hasattr(codec, "seams") and not isinstance(codec, LinearCodec)
    edges = codec.seams(start, stop, parts) if seams else split(codec, start, stop, parts)
    for begin, end in itertools.pairwise(edges):
        if begin == end:
            continue
        nbytes = sizer(begin, end)
        pieces.append((begin, end, room[position : position + nbytes]))
        position += nbytes
    return Message(room[:position], pieces)


@final
class Pool(Generic[_T]):
    """Buffers not in use, so that steps after the first allocate nothing. Keeps at most `limit` of them, the least recently used go first."""

    def __init__(self, limit: int = 64) -> None:
        self._free: collections.OrderedDict[Any, list[_T]] = collections.OrderedDict()
        self._count = 0
        self._limit = limit
        self._lock = threading.Lock()

    def take(self, key: Any, make: Callable[[], _T]) -> _T:
        """One for exactly this case, used before or made now."""
        with self._lock:
            free = self._free.get(key)
            if free:
                self._count -= 1
                found = free.pop()
                if not free:
                    del self._free[key]
                return found
        return make()

    def give(self, key: Any, thing: _T) -> None:
        """Takes back what no message needs any more."""
        with self._lock:
            self._free.setdefault(key, []).append(thing)
            self._free.move_to_end(key)
            self._count += 1
            while self._count > self._limit:
                oldest = next(iter(self._free))
                self._free[oldest].pop()
                if not self._free[oldest]:
                    del self._free[oldest]
                self._count -= 1
