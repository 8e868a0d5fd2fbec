"""The bitshift trellis codec (kernels: csrc/kernels/bitshift*.h, bytes: docs/wire-format.md 4.9)."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._key import Key
from commpress.codecs._spec import RATE_ONE, Spec, format_rate, parse_rate
from commpress.errors import SpecError, WireError

# Bits and coordinates of a codeword, (k, V), for each rate in millionths of a bit.
RATES = {
    RATE_ONE * k // v: (k, v)
    for k, v in ((1, 20), (1, 10), (1, 8), (1, 5), (1, 4), (1, 2), (1, 1), (3, 2), (2, 1), (3, 1), (4, 1))
}
FAMILIES = ("bitshift", "hadamard+bitshift")
SHORTEST, LONGEST, DEFAULT = 8, 16, 12


@final
@dataclasses.dataclass(frozen=True)
class BitshiftCodec(Codec):
    """``rate`` in millionths of a bit per coordinate, one of ``RATES``; ``length``: bits of a state; ``centroid`` asks for the least-squares scale. All work is in float32."""

    rate: int
    length: int = DEFAULT
    rotated: bool = False
    centroid: bool = False

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return self.rotated and not self.centroid

    @property
    def lossless(self) -> bool:
        return False

    @property
    def even_error(self) -> bool:
        return True

    def for_feedback(self) -> Codec:
        return dataclasses.replace(self, centroid=True) if self.rotated else self

    def __str__(self) -> str:
        length = "" if self.length == DEFAULT else f",length={self.length}"
        scale = ",scale=centroid" if self.centroid else ""
        return f"{FAMILIES[self.rotated]}:{format_rate(self.rate)}{length}{scale}"

    @property
    def span(self) -> int:
        """Coordinates that share a scale: a payload is cut at multiples of this from its start."""
        return 4 * BLOCK if self.rate >= RATE_ONE else 16 * BLOCK

    def split(self, start: int, stop: int, parts: int) -> list[int]:
        spans = -(-(stop - start) // self.span)
        return [min(start + part * spans // parts * self.span, stop) for part in range(parts + 1)]

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        bits, values = RATES[self.rate]
        return ops.bitshift_nbytes(bits, values, self.length, self.rotated, self.centroid, offset, numel)

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.bitshift_encode(x.to(torch.float32), out, offset=offset, gain=gain, **self.arguments(key))

    def _decode(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        work = out.to(torch.float32)
        block = ops.bitshift_decode(
            payload, work, offset=offset, accumulate=accumulate, gain=gain, beta=beta, **self.arguments(key)
        )
        if block >= 0:
            raise WireError(
                f"block {block} has a {self} scale that no encoder writes: the bytes are corrupt, or of another codec"
            )
        if work is not out:
            out.copy_(work)

    def arguments(self, key: Key) -> dict[str, Any]:
        """What the operators want to know of codec and key."""
        bits, values = RATES[self.rate]
        return {
            "bits": bits,
            "values": values,
            "length": self.length,
            "rotated": self.rotated,
            "centroid": self.centroid,
            "seed": key.seed,
            "words": key.words(),
        }


def parse_bitshift(spec: Spec) -> Codec:
    """``[hadamard+]bitshift:b[,length=L]``, rotated also ``scale=unbiased|centroid``; b one of ``RATES``, 8 <= L <= 16."""
    rotated = spec.family == "hadamard+bitshift"
    rate = parse_rate(spec)
    if rate not in RATES:
        raise SpecError(
            f"a bitshift trellis sends {', '.join(map(format_rate, RATES))} bits per coordinate, got {spec.argument!r} in {str(spec)!r}"
        )
    options = dict(spec.options)
    text = options.pop("length", str(DEFAULT))
    scale = options.pop("scale", None) if rotated else None
    if options or scale not in (None, "unbiased", "centroid"):
        allowed = "length, scale=unbiased, scale=centroid" if rotated else "length"
        raise SpecError(f"unknown option in {str(spec)!r}; options of {spec.family}: {allowed}")
    least = max(SHORTEST, 2 * RATES[rate][0] + 4)
    if not (text.isdecimal() and least <= int(text) <= LONGEST):
        raise SpecError(
            f"length, the bits of a state, must lie in [{least}, {LONGEST}] at this rate, got {text!r} in {str(spec)!r}"
        )
    return BitshiftCodec(rate, int(text), rotated, scale == "centroid")
