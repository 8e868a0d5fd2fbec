"""Entropy-coded trellis-coded quantisation at a hard budget: trellis, hadamard+trellis."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs._base import Codec
from commpress.codecs._ecsq import segment_seams, wrong_segment
from commpress.codecs._key import Key
from commpress.codecs._spec import RATE_ONE, Spec, format_rate, parse_rate
from commpress.errors import SpecError

TRELLIS_FAMILIES = ("trellis", "hadamard+trellis")
TRELLIS_STATES = (8,)
_LEAST_RATE = 50_000


@final
@dataclasses.dataclass(frozen=True)
class TrellisCodec(Codec):
    """As `ecsq`, one step for a whole payload and the same sizes, but the quantiser is a trellis code (ECTCQ, Fischer and Wang 1992): about a decibel less error than a scalar one at high rates.

    A payload is one piece, up to 2^23 coordinates. Those below 8192 bytes are coded as `ecsq` does; so are classes of blocks whose mean magnitude is more than eight steps. ``rate`` is in millionths of a bit per coordinate.

    Args:
        rotate: after a randomised Hadamard transform of each 4096 coordinates.
        centroid: least-squares scale, for error feedback; else the scale that makes the estimate as long as the input on average.
    """

    rate: int
    rotate: bool = False
    centroid: bool = False

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def lossless(self) -> bool:
        return False

    def for_feedback(self) -> Codec:
        return dataclasses.replace(self, centroid=True)

    def __str__(self) -> str:
        family = ("hadamard+" if self.rotate else "") + "trellis"
        return f"{family}:{format_rate(self.rate)}" + (",scale=centroid" if self.centroid else "")

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return ops.ecsq_payload_nbytes(self.rate, offset, numel)

    def seams(self, start: int, stop: int, parts: int) -> list[int]:
        return segment_seams(start, stop)

    def arguments(self, key: Key, offset: int, gain: float) -> dict[str, Any]:
        """What the operators take beside tensors."""
        return {
            "rate": self.rate,
            "rotate": self.rotate,
            "centroid": self.centroid,
            "seed": key.seed,
            "words": key.words(),
            "offset": offset,
            "gain": gain,
        }

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.trellis_encode(x.to(torch.float32), out, **self.arguments(key, offset, gain))

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
        common = self.arguments(key, offset, gain)
        segment = ops.trellis_decode(payload, work, accumulate=accumulate, beta=beta, **common)
        if segment >= 0:
            raise wrong_segment(segment, self)
        if work is not out:
            out.copy_(work)


def parse_trellis(spec: Spec) -> Codec:
    """``[hadamard+]trellis:b[,states=8][,scale=unbiased|centroid]`` with 0.05 <= b <= 8."""
    options = dict(spec.options)
    states = options.pop("states", "8")
    scale = options.pop("scale", None)
    if options or scale not in (None, "unbiased", "centroid"):
        raise SpecError(
            f"unknown option in {str(spec)!r}; options of {spec.family}: states=8, scale=unbiased or scale=centroid"
        )
    if states not in map(str, TRELLIS_STATES):
        there = ", ".join(map(str, TRELLIS_STATES))
        raise SpecError(f"{spec.family} has trellises of {there} states in this version, got {states!r}")
    rate = parse_rate(spec)
    if rate < _LEAST_RATE:
        raise SpecError(f"{spec.family} has at least 0.05 bits per coordinate, got {spec.argument!r}")
    return TrellisCodec(rate, spec.family.startswith("hadamard+"), scale == "centroid")
