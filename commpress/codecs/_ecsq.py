"""Entropy-coded quantisers at a hard budget: ecsq, ecdq, and both after a random rotation."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._spec import RATE_ONE, Spec, format_rate, parse_rate
from commpress.errors import SpecError, WireError

ENTROPY_FAMILIES = ("ecsq", "ecdq", "hadamard+ecsq", "hadamard+ecdq")
_LEAST_RATE = 50_000
_SEGMENT = 1 << 23  # csrc/kernels/ecsq.h


def segment_seams(start: int, stop: int) -> list[int]:
    """Where [start, stop) of a tensor is cut into segments."""
    return [start, *range((start // _SEGMENT + 1) * _SEGMENT, stop, _SEGMENT), stop]


def wrong_segment(segment: int, codec: Codec) -> WireError:
    """The error for a segment that a decoder refuses."""
    return WireError(
        f"segment {segment} has a {codec} header that no encoder writes: the bytes are corrupt, or of another codec"
    )


@final
@dataclasses.dataclass(frozen=True)
class EntropyCodec(Codec):
    """One common step for a whole payload, found so that its bits just fit: the bits go where the energy is.

    A payload is one piece, up to 2^23 coordinates: its parts have no bytes of their own. ``rate`` is in millionths of a bit per coordinate.

    Args:
        rotate: after a randomised Hadamard transform of each 4096 coordinates.
        dither: with subtractive dither, which makes it exactly unbiased; else with a dead zone and the centroid decoder.
        centroid: least-squares scale, for error feedback; else the scale that makes the estimate as long as the input on average. Without dither only.
    """

    rate: int
    rotate: bool = False
    dither: bool = False
    centroid: bool = False

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return self.dither

    @property
    def lossless(self) -> bool:
        return False

    def for_feedback(self) -> Codec:
        """`ecsq` with the centroid scale, for `ecdq` too: a dither's error can be larger than the input, which feedback would amplify."""
        return dataclasses.replace(self, dither=False, centroid=True)

    def __str__(self) -> str:
        family = ("hadamard+" if self.rotate else "") + ("ecdq" if self.dither else "ecsq")
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
            "dither": self.dither,
            "centroid": self.centroid,
            "seed": key.seed,
            "words": key.words(),
            "offset": offset,
            "gain": gain,
        }

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.ecsq_encode(x.to(torch.float32), out, **self.arguments(key, offset, gain))

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
        segment = ops.ecsq_decode(payload, work, accumulate=accumulate, beta=beta, **self.arguments(key, offset, gain))
        if segment >= 0:
            raise wrong_segment(segment, self)
        if work is not out:
            out.copy_(work)


def parse_entropy(spec: Spec) -> Codec:
    """``[hadamard+]ecsq:b[,scale=unbiased|centroid]``, ``[hadamard+]ecdq:b`` with 0.05 <= b <= 8."""
    options = dict(spec.options)
    dither = spec.family.endswith("ecdq")
    scale = None if dither else options.pop("scale", None)
    if options or scale not in (None, "unbiased", "centroid"):
        allowed = "none" if dither else "scale=unbiased or scale=centroid"
        raise SpecError(f"unknown option in {str(spec)!r}; options of {spec.family}: {allowed}")
    rate = parse_rate(spec)
    if rate < _LEAST_RATE:
        raise SpecError(f"{spec.family} has at least 0.05 bits per coordinate, got {spec.argument!r}")
    return EntropyCodec(rate, spec.family.startswith("hadamard+"), dither, scale == "centroid")
