"""One rank's parameters against the synchronised ones, x_sync, in flat buckets.

For each bucket there are flat tensors of the same numbers: `sync`, equal to the bit on all ranks, and `difference`, what a round
exchanges. Parameters of 32 bits and fewer are kept in fp32 there, fp64 ones in fp64; a complex one is pairs of real numbers.
A difference is taken from what the replica began with, which is x_sync rounded to the parameter's dtype: so x_sync gathers what
bf16 alone would round away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import final

import torch

from commpress.errors import SpecError
from commpress.feedback import Layout

_BUCKET_NUMEL = 25 << 18  # of fp32: DDP's 25 MiB


@final
@dataclasses.dataclass(frozen=True)
class Piece:
    """Coordinates [start, stop) of a flat parameter, which lie at [low, high) of a bucket."""

    name: str
    parameter: torch.Tensor
    start: int
    stop: int
    low: int
    high: int

    @property
    def whole(self) -> bool:
        return self.stop - self.start == _numel(self.parameter)

    def values(self) -> torch.Tensor:
        """As the parameter has them now."""
        return _real(self.parameter).reshape(-1)[self.start : self.stop]

    def write(self, values: torch.Tensor) -> None:
        """Rounds them to the parameter's dtype."""
        real = _real(self.parameter)
        flat = real.reshape(-1)  # a copy, unless it is contiguous
        flat[self.start : self.stop].copy_(values)
        if not real.is_contiguous():
            real.copy_(flat.view(real.shape))


@final
@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pieces that travel together."""

    part: int
    layout: Layout
    pieces: tuple[Piece, ...]


@final
class Replica:
    """Args:
        parameters: name to tensor, with at least one coordinate in all.
        parts: how many parts, of about equal numbers of coordinates, take turns.
        overlap: keep a copy of what the differences were taken from.

    Attributes:
        buckets, sync, difference: see above; all lists are alike.
        pieces: name to view of x_sync, in the parameter's shape where the piece is a whole one.

    Memory: 8 bytes for each coordinate, 12 with `overlap`; twice that in fp64.

    Raises:
        SpecError: there are more parts than coordinates.
    """

    def __init__(self, parameters: dict[str, torch.Tensor], parts: int, overlap: bool) -> None:
        self.buckets = list(_buckets(parameters, parts))
        self.sync = [_empty(bucket) for bucket in self.buckets]
        self.difference = [_empty(bucket) for bucket in self.buckets]
        self._taken = [_empty(bucket) for bucket in self.buckets] if overlap else None
        self.pieces: dict[str, torch.Tensor] = {}
        for bucket, sync in zip(self.buckets, self.sync, strict=True):
            for piece in bucket.pieces:
                view = sync[piece.low : piece.high]
                self.pieces[piece.name] = view.view(_real(piece.parameter).shape) if piece.whole else view
        self.begin()

    @property
    def layouts(self) -> list[Layout]:
        return [bucket.layout for bucket in self.buckets]

    def members(self, part: int | None) -> list[int]:
        """The buckets of a part, or all of them."""
        return [i for i, bucket in enumerate(self.buckets) if part is None or bucket.part == part]

    def begin(self) -> None:
        """x_sync is what the parameters are now."""
        for bucket, sync in zip(self.buckets, self.sync, strict=True):
            for piece in bucket.pieces:
                sync[piece.low : piece.high].copy_(piece.values())

    def take(self, members: Iterable[int]) -> None:
        """Fills `difference` of these buckets."""
        for i in members:
            for piece in self.buckets[i].pieces:
                place = slice(piece.low, piece.high)
                x, begun, out = piece.values(), self.sync[i][place], self.difference[i][place]
                if x.dtype == out.dtype:
                    torch.sub(x, begun, out=out)
                else:
                    out.copy_(x)
                    out.sub_(begun.to(x.dtype))
                if self._taken is not None:
                    self._taken[i][place].copy_(x)

    def advance(self, members: Iterable[int]) -> None:
        """``x_sync += difference``, the averaged one."""
        for i in members:
            self.sync[i].add_(self.difference[i])

    def adopt(self, members: Iterable[int]) -> None:
        """The parameters become x_sync; with `overlap` plus what they have moved since the differences were taken."""
        for i in members:
            self._write(i, self.sync[i])

    def spread(self, members: Iterable[int]) -> None:
        """The parameters become ``x_sync + difference``, and x_sync stays: what a NaN takes to all ranks."""
        for i in members:
            self._write(i, self.sync[i] + self.difference[i])

    def restore(self) -> None:
        """All parameters go back to x_sync."""
        for bucket, sync in zip(self.buckets, self.sync, strict=True):
            for piece in bucket.pieces:
                piece.write(sync[piece.low : piece.high])

    def _write(self, i: int, values: torch.Tensor) -> None:
        for piece in self.buckets[i].pieces:
            new = values[piece.low : piece.high]
            if self._taken is not None:
                new = new + (piece.values().to(new.dtype) - self._taken[i][piece.low : piece.high])
            piece.write(new)

    def state(self) -> dict[str, torch.Tensor]:
        """x_sync by piece."""
        return {name: view.clone() for name, view in self.pieces.items()}

    def pending_state(self, members: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Of a round under way: averaged differences and what they were taken from, for each of its buckets."""
        assert self._taken is not None
        return [{"difference": self.difference[i].clone(), "taken": self._taken[i].clone()} for i in members]

    def load_pending(self, members: Sequence[int], state: Sequence[dict[str, torch.Tensor]]) -> None:
        assert self._taken is not None
        for i, saved in zip(members, state, strict=True):
            self.difference[i].copy_(saved["difference"])
            self._taken[i].copy_(saved["taken"])


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def _numel(parameter: torch.Tensor) -> int:
    return _real(parameter).numel()


def _dtype(parameter: torch.Tensor) -> str:
    return "float64" if _real(parameter).dtype == torch.float64 else "float32"


def _empty(bucket: Bucket) -> torch.Tensor:
    return torch.zeros(bucket.layout.numel, dtype=getattr(torch, bucket.layout.dtype))


def _buckets(parameters: dict[str, torch.Tensor], parts: int) -> Iterator[Bucket]:
    sizes = {name: _numel(p) for name, p in parameters.items() if _numel(p)}
    total = sum(sizes.values())
    if parts > total:
        raise SpecError(f"parts must be at most the number of coordinates, {total}, got {parts}")
    edges = [part * total // parts for part in range(parts + 1)]
    for part in range(parts):
        first, last = edges[part], edges[part + 1]
        by_dtype: dict[str, list[tuple[str, int, int]]] = {"float32": [], "float64": []}
        place = 0
        for name, size in sizes.items():
            start, stop = max(first - place, 0), min(last - place, size)
            place += size
            if start < stop:
                by_dtype[_dtype(parameters[name])].append((name, start, stop))
        for dtype, ranges in by_dtype.items():
            yield from _of_one_dtype(parameters, part, dtype, ranges)


def _of_one_dtype(
    parameters: dict[str, torch.Tensor], part: int, dtype: str, ranges: Sequence[tuple[str, int, int]]
) -> Iterator[Bucket]:
    """Buckets of about 25 MiB. A parameter is not cut for that: low-rank factors need whole ones."""
    pieces: list[Piece] = []
    high = 0
    for i, (name, start, stop) in enumerate(ranges):
        p = parameters[name]
        label = name if stop - start == _numel(p) else f"{name}[{start}:{stop}]"
        pieces.append(Piece(label, p, start, stop, high, high + stop - start))
        high = pieces[-1].high
        if high >= _BUCKET_NUMEL or i == len(ranges) - 1:
            sizes = tuple(piece.stop - piece.start for piece in pieces)
            yield Bucket(part, Layout(tuple(piece.name for piece in pieces), sizes, dtype), tuple(pieces))
            pieces, high = [], 0
