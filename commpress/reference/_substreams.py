"""Substreams of a segment: coders, classes' contexts and, in a trellis, chains of their own (docs/wire-format.md, section 4.8)."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _rans
from commpress.reference._ecsq_classes import Classes
from commpress.reference._ecsq_format import BLOCK, ENTRY, I64, Spec, substreams


def streams(source: Classes, frequency: I64, start: I64, sent: npt.NDArray[np.bool_], lanes: int) -> list[bytes]:
    """Every substream's states and words, of coordinates in whole blocks or up to the segment's end."""
    out = []
    for first, last in source.substreams:
        part = slice(first * BLOCK, last * BLOCK)
        chosen = np.flatnonzero(sent[part])
        out.append(_rans.rans_encode(frequency[part][chosen], start[part][chosen], chosen % BLOCK % lanes, lanes))
    return out


def assembled(
    source: Classes,
    mode: int,
    j: int,
    rho: np.float32 | None,
    heads: bytes,
    raw: list[bytes],
    escapes: list[tuple[int, float]],
    parts: list[bytes],
) -> bytes | None:
    """The segment; None where it is too long.

    Args:
        j: the step.
        rho: None where the format has none.
        heads: what is said of each class that occurs.
        raw: bits of each block.
        escapes: (coordinate, value in steps), in any order.
        parts: of `streams`.
    """
    escapes = sorted(escapes)
    at = source.nbytes - np.cumsum([len(part) for part in parts][::-1])[::-1]
    out = bytes([mode]) + (j + 2048 * source.shift).to_bytes(3, "little", signed=True)
    out += source.relative(0, j).to_bytes(3, "little", signed=True) + bytes([source.count])
    if at[0] < 0:
        return None
    out += struct.pack("<HII", source.coded_kinds_nbytes[0], len(escapes), at[0])
    out += b"" if rho is None else struct.pack("<f", rho)
    out += sum(1 << kind for kind in source.present).to_bytes((source.count + 7) // 8, "little") + heads
    raw_from = len(out) + source.entries_nbytes + len(source.coded_kinds)
    for s, (first, _) in enumerate(source.substreams[1:], start=1):
        before = sum(coordinate < first * BLOCK for coordinate, _ in escapes)
        raw_at = raw_from + sum(len(bits) for bits in raw[:first])
        out += struct.pack("<IIIH", at[s], before, raw_at, source.coded_kinds_nbytes[s])
    out += source.coded_kinds + b"".join(raw) + b"".join(struct.pack("<f", value) for _, value in escapes)
    if len(out) > at[0]:
        return None
    return out.ljust(int(at[0]), b"\0") + b"".join(parts)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Blocks ``first`` to before ``last``; ``stream`` are states and words; ``escapes`` from and to, among the segment's; ``raw_at``: where raw bits should be, None for the first."""

    first: int
    last: int
    stream: bytes
    escapes: tuple[int, int]
    raw_at: int | None
    kinds_nbytes: int


def entries(data: bytes, at: int, spec: Spec, n: int, lanes: int) -> tuple[list[Entry], int]:
    """The substreams of a segment whose entries are at ``at``, and the place behind these. Raises WireError."""
    blocks, kinds_nbytes = substreams(spec, n), struct.unpack("<H", data[8:10])[0]
    total, stream_at = struct.unpack("<II", data[10:18])
    after = at + ENTRY * (len(blocks) - 1)
    if after > len(data):
        raise WireError("a segment's entries do not fit")
    found = [(stream_at, 0, None, kinds_nbytes)]
    found += [struct.unpack("<IIIH", data[place : place + ENTRY]) for place in range(at, after, ENTRY)]
    found.append((len(data), total, None, 0))
    out = []
    for (first, last), (begin, met, raw_at, size), (end, then, _, _) in zip(blocks, found, found[1:], strict=False):
        if met > then or begin + 4 * lanes > end:
            raise WireError("a segment's substreams overlap")
        out.append(Entry(first, last, data[begin:end], (met, then), raw_at, size))
    return out, after


def kinds_of(data: bytes, at: int, parts: list[Entry], count: int) -> tuple[list[int], int]:
    """The classes of all blocks, coded at ``at``, and the place behind them. Raises WireError."""
    kinds: list[int] = []
    for part in parts:
        if at + part.kinds_nbytes > len(data):
            raise WireError("a segment's classes do not fit")
        here = _rans.decode_classes(data[at : at + part.kinds_nbytes], part.last - part.first, count)
        if here is None:
            raise WireError("a block has a class that there is not")
        kinds += here
        at += part.kinds_nbytes
    return kinds, at
