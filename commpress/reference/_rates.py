"""Specs, rates, blocks and sizes (docs/wire-format.md, sections 2 and 4)."""

from __future__ import annotations

import dataclasses
import re

BLOCK, GROUP, SUBBLOCK = 4096, 512, 128
MILLION = 1_000_000
_SPEC = re.compile(
    r"(none|cast:(?:fp16|bf16)|(uniform|lloyd|hadamard\+lloyd):(\d+(?:\.\d{1,6})?)(,scale=(?:centroid|unbiased))?)"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec: ``family`` with ``rate`` in millionths of a bit per coordinate (0 where there is none)."""

    family: str
    rate: int = 0
    centroid: bool = False

    @property
    def subsampled(self) -> bool:
        """Whether fewer than all coordinates are sent (under one bit)."""
        return 0 < self.rate < MILLION


def parse(text: str) -> Spec:
    """The spec of a codec's text. Raises ValueError if it is none that this twin knows."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"not a spec of wire format 1: {text!r}")
    if match[2] is None:
        return Spec(match[1])
    whole, _, decimals = match[3].partition(".")
    rate = int(whole) * MILLION + int(decimals.ljust(6, "0") or 0)
    if not 1 <= rate <= 8 * MILLION:
        raise ValueError(f"rate outside 0.000001..8 bits: {text!r}")
    return Spec(match[2], rate, match[2] == "lloyd" or match[4] == ",scale=centroid")


def group_bits(rate: int, index: int) -> int:
    """Bits per coordinate of the group in which the coordinate with this index lies, for a rate of one bit or more."""
    j = index // GROUP
    low, f = divmod(rate, MILLION)
    return low + int((j + 1) * f // MILLION > j * f // MILLION)


def sent(rate: int, index: int, n: int) -> int:
    """How many of ``n`` coordinates that begin at ``index`` are sent, for a rate under one bit."""
    return min(n, max(1, (index + n) * rate // MILLION - index * rate // MILLION))


def runs(n: int) -> list[tuple[int, int]]:
    """(start, length) of the groups of ``n`` coordinates; the last may be shorter."""
    return [(at, min(GROUP, n - at)) for at in range(0, n, GROUP)]


def code_runs(spec: Spec, index: int, n: int) -> list[tuple[int, int, int]]:
    """(start, length, bits) of the runs in which the codes of a block of ``n`` coordinates are packed."""
    if spec.subsampled:
        return [(at, m, 1) for at, m in runs(sent(spec.rate, index, n))]
    return [(at, m, group_bits(spec.rate, index + at)) for at, m in runs(n)]


def packed_nbytes(n: int, bits: int) -> int:
    """Bytes of a run of ``n`` codes."""
    return (n * bits + 7) // 8


def pieces(spec: Spec, numel: int, offset: int) -> list[tuple[str, int, int, int]]:
    """What a payload is made of, in order: (kind, index, numel, nbytes); kind is "uniform", "lloyd" or "hadamard"."""
    out = []
    for at in range(0, numel, BLOCK):
        index, n = offset + at, min(BLOCK, numel - at)
        parts = _cut(spec, index, n) if spec.family == "hadamard+lloyd" else [(spec.family, index, n)]
        for kind, i, m in parts:
            coded = code_runs(spec, i, m)
            scales = 2 * len(coded) if kind == "uniform" else 4
            out.append((kind, i, m, scales + sum(packed_nbytes(length, bits) for _, length, bits in coded)))
    return out


def _cut(spec: Spec, index: int, n: int) -> list[tuple[str, int, int]]:
    """A hadamard block, or a shorter last one cut into powers of two down to 128 and a rest that isn't rotated."""
    parts = []
    size = BLOCK
    while size >= SUBBLOCK:
        if n >= size:
            parts.append(("hadamard", index, size))
            index, n = index + size, n - size
        size //= 2
    if n:
        parts.append(("lloyd" if spec.centroid else "uniform", index, n))
    return parts


def payload_nbytes(spec: Spec, numel: int, offset: int, itemsize: int) -> int:
    """Size of a payload; ``itemsize`` counts for `none` alone."""
    if spec.family == "none":
        return numel * itemsize
    if spec.family.startswith("cast:"):
        return numel * 2
    return sum(nbytes for *_, nbytes in pieces(spec, numel, offset))
