"""Entropy-coded quantisers at a hard budget: ecsq, ecdq, trellis, and each after a random rotation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal, final

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.codecs._spec import RATE_ONE, Spec, format_rate, parse_rate
from commpress.codecs._tabled import TabledCodec
from commpress.errors import SpecError, WireError

Kind = Literal["ecsq", "ecdq", "trellis"]
KINDS: tuple[Kind, ...] = ("ecsq", "ecdq", "trellis")
ENTROPY_FAMILIES = tuple(rotation + kind for rotation in ("", "hadamard+") for kind in KINDS)
TRELLIS_STATES = (8, 16, 32, 64, 128, 256)
_LEAST_RATE = 50_000
_EVEN_FROM = 2 * RATE_ONE  # as of `hadamard+lloyd`
_FINE_FROM = 7_500_000
_SEGMENT = 1 << 23  # csrc/kernels/ecsq.h


@final
@dataclasses.dataclass(frozen=True)
class EntropyCodec(TabledCodec):
    """One common step for a whole payload, found so that its bits just fit: the bits go where the energy is.

    A payload is one piece, up to 2^23 coordinates: its parts have no bytes of their own. ``rate`` is in millionths of a bit per coordinate.

    Args:
        kind: ``ecsq`` has a dead zone and the centroid decoder; ``ecdq`` subtractive dither, which makes it exactly unbiased; the quantiser of ``trellis`` is a trellis code (ECTCQ, Fischer and Wang 1992), with about a decibel less error than a scalar one at high rates.
            Payloads below 8192 bytes are coded as `ecsq` does, and so are classes of blocks whose mean magnitude is more than eight steps.
        rotate: after a randomised Hadamard transform of each 4096 coordinates.
        centroid: least-squares scale, for error feedback; else the scale that makes the estimate as long as the input on average. Not with dither.
        states: of the trellis, one of TRELLIS_STATES; 0 for the other kinds.
        substream: KiB of payload, about, that can be decoded side by side, 8 to 4096; 0: all in one. Each takes about 110 bytes, 0.2 % at 64.
    """

    rate: int
    kind: Kind = "ecsq"
    rotate: bool = False
    centroid: bool = False
    states: int = 0
    substream: int = 0

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return self.kind == "ecdq"

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        if self.kind == "ecdq":
            return "additive"
        if self.rotate:
            return "mixed" if self.centroid and self.rate < _EVEN_FROM else "additive"
        return "additive" if self.rate >= _FINE_FROM else "mixed"  # the dead zone takes small coordinates whole

    def for_feedback(self) -> Codec:
        """With the centroid scale, and `ecsq` in place of `ecdq`: a dither's error can be larger than the input, which feedback would amplify."""
        return dataclasses.replace(self, kind="ecsq" if self.kind == "ecdq" else self.kind, centroid=True)

    def __str__(self) -> str:
        family = ("hadamard+" if self.rotate else "") + self.kind
        states = f",states={self.states}" if self.states > TRELLIS_STATES[0] else ""
        substream = f",substream={self.substream}" if self.substream else ""
        return f"{family}:{format_rate(self.rate)}" + states + substream + (",scale=centroid" if self.centroid else "")

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return ops.ecsq_payload_nbytes(self.rate, offset, numel)

    def seams(self, start: int, stop: int, parts: int) -> list[int]:
        return [start, *range((start // _SEGMENT + 1) * _SEGMENT, stop, _SEGMENT), stop]

    def runs_on(self, device: torch.device) -> bool:
        return _device.runs_on(device)

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        """As :meth:`Codec.device_layers`: one for each segment, whose substreams are decoded side by side."""
        if not numel:
            return []
        code = ops.entropy_code(self.rate, self.rotate, self.kind == "ecdq", self.states)
        cuts = self.seams(offset, offset + numel, 0)
        layers = []
        for start, stop in itertools.pairwise(cuts):
            each = ops.ecsq_substream_numel(self.rate, self.substream << 10, stop - start)
            words = ops.ecsq_scratch_words(self.rate, self.states, self.substream << 10, stop - start)
            kind = ops.Kind(ops.ENTROPY, code, int(self.centroid), self.substream << 10, each, scratch_words=words)
            layers.append(ops.DeviceLayer(kind, 0, start, stop - start, self.payload_nbytes(stop - start)))
        return layers

    def arguments(self, key: Key, offset: int, gain: float) -> dict[str, Any]:
        """What the operators take beside tensors."""
        return {
            "rate": self.rate,
            "rotate": self.rotate,
            "dither": self.kind == "ecdq",
            "centroid": self.centroid,
            "states": self.states,
            "substream": self.substream << 10,
            "seed": key.seed,
            "words": key.words(),
            "offset": offset,
            "gain": gain,
        }

    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.ecsq_encode(x, out, **self.arguments(key, offset, gain))

    def _decode_on_cpu(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        segment = ops.ecsq_decode(payload, out, accumulate=accumulate, beta=beta, **self.arguments(key, offset, gain))
        if segment >= 0:
            raise self._corrupt(f"segment {segment}")

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a {self} header that no encoder writes: the bytes are corrupt, or of another codec"
        )


def parse_entropy(spec: Spec) -> Codec:
    """``[hadamard+]ecsq:b[,scale=unbiased|centroid]``, ``[hadamard+]ecdq:b``, ``[hadamard+]trellis:b[,states=8|...|256][,scale=unbiased|centroid]``, each with ``[,substream=k]``; 0.05 <= b <= 8."""
    options = dict(spec.options)
    kind = next(kind for kind in KINDS if spec.family.endswith(kind))
    states = options.pop("states", "8") if kind == "trellis" else "0"
    substream = options.pop("substream", "0")
    scale = None if kind == "ecdq" else options.pop("scale", None)
    if options or scale not in (None, "unbiased", "centroid"):
        allowed = "substream=8 to 4096" + ("" if kind == "ecdq" else ", scale=unbiased or scale=centroid")
        if kind == "trellis":
            allowed = f"states={'|'.join(map(str, TRELLIS_STATES))}, {allowed}"
        raise SpecError(f"unknown option in {str(spec)!r}; options of {spec.family}: {allowed}")
    if kind == "trellis" and states not in map(str, TRELLIS_STATES):
        raise SpecError(f"{spec.family} has trellises of {', '.join(map(str, TRELLIS_STATES))} states, got {states!r}")
    if substream != "0" and not (substream.isdecimal() and substream.isascii() and 8 <= int(substream) <= 4096):
        raise SpecError(f"{spec.family} has substreams of 8 to 4096 KiB, got {substream!r}")
    rate = parse_rate(spec)
    if rate < _LEAST_RATE:
        raise SpecError(f"{spec.family} has at least 0.05 bits per coordinate, got {spec.argument!r}")
    rotate = spec.family.startswith("hadamard+")
    return EntropyCodec(rate, kind, rotate, scale == "centroid", int(states), int(substream))
