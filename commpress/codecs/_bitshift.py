"""The bitshift trellis codec (kernels: csrc/kernels/bitshift*.h, bytes: docs/wire-format.md 4.9)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise, of_parts
from commpress.codecs._spec import RATE_ONE, Spec, format_rate, parse_rate
from commpress.codecs._tabled import TabledCodec
from commpress.errors import SpecError, WireError

# Bits and coordinates of a codeword, (k, V), for each rate in millionths of a bit.
RATES = {
    RATE_ONE * k // v: (k, v)
    for k, v in ((1, 20), (1, 10), (1, 8), (1, 5), (1, 4), (1, 2), (1, 1), (3, 2), (2, 1), (3, 1), (4, 1))
}
FAMILIES = ("bitshift", "hadamard+bitshift")
SHORTEST, LONGEST, DEFAULT = 8, 16, 12
_SPAN = 4 * BLOCK  # of a mixture
_EVEN_FROM = 2 * RATE_ONE  # as of `hadamard+lloyd`


class _TrellisCodec(TabledCodec):
    """What both codecs do alike."""

    def runs_on(self, device: torch.device) -> bool:
        return _device.runs_on(device)

    @abc.abstractmethod
    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        """As :meth:`Codec.device_layers`; a mixture has one for every span."""

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a {self} scale that no encoder writes: the bytes are corrupt, or of another codec"
        )


@final
@dataclasses.dataclass(frozen=True)
class BitshiftCodec(_TrellisCodec):
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
    def noise(self) -> Noise:
        if not self.rotated:
            return "mixed"
        return "mixed" if self.centroid and self.rate < _EVEN_FROM else "additive"

    @property
    def even_error(self) -> bool:
        return True

    def for_feedback(self) -> BitshiftCodec:
        return dataclasses.replace(self, centroid=True) if self.rotated else self

    def at_rate(self, rate: int) -> Codec:
        return _at_rate(self, rate)

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

    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.bitshift_encode(x, out, offset=offset, gain=gain, **self.arguments(key))

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
        block = ops.bitshift_decode(
            payload, out, offset=offset, accumulate=accumulate, gain=gain, beta=beta, **self.arguments(key)
        )
        if block >= 0:
            raise self._corrupt(f"block {block}")

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        bits, values = RATES[self.rate]
        code = ops.bitshift_code(bits, values, self.length, self.rotated)
        kind = ops.Kind(ops.BITSHIFT, code, int(self.centroid), codebook=(bits, values, self.length))
        return [ops.DeviceLayer(kind, 0, offset, numel, self.payload_nbytes(numel, offset=offset))]

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


@final
@dataclasses.dataclass(frozen=True)
class MixedBitshiftCodec(_TrellisCodec):
    """A rate between two of ``RATES``: each whole span of 16,384 coordinates has the one or the other, so evenly spread that every run of spans has the mean rate to within one span.

    What is left behind the last whole span has the lower one. Made by :func:`parse_bitshift` and ``at_rate``.
    """

    rate: int
    lower: BitshiftCodec
    upper: BitshiftCodec

    @property
    def bits(self) -> float:
        return self.rate / RATE_ONE

    @property
    def unbiased(self) -> bool:
        return self.lower.unbiased

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        return of_parts((self.lower.noise, self.upper.noise))

    @property
    def even_error(self) -> bool:
        return True

    def for_feedback(self) -> Codec:
        return MixedBitshiftCodec(self.rate, self.lower.for_feedback(), self.upper.for_feedback())

    def at_rate(self, rate: int) -> Codec:
        return _at_rate(self.lower, rate)

    def __str__(self) -> str:
        head, _, options = str(self.lower).partition(",")
        return f"{head.partition(':')[0]}:{format_rate(self.rate)}" + ("," + options if options else "")

    @property
    def span(self) -> int:
        """Coordinates that share a scale."""
        return _SPAN

    def split(self, start: int, stop: int, parts: int) -> list[int]:
        spans = -(-(stop - start) // _SPAN)
        return [min(start + part * spans // parts * _SPAN, stop) for part in range(parts + 1)]

    def _share(self) -> tuple[int, int]:
        """(p, q): p of q spans have the upper rate, so that the mean is `rate` with the scales counted, or the least that there is."""
        low, high = (codec.payload_nbytes(_SPAN) for codec in (self.lower, self.upper))
        return max(0, self.rate * _SPAN - 8 * RATE_ONE * low), 8 * RATE_ONE * (high - low)

    def _runs(self, offset: int, numel: int) -> Iterator[tuple[BitshiftCodec, int, int]]:
        """(codec, start, stop) of the spans in [offset, offset + numel); start and stop count from `offset`."""
        p, q = self._share()
        for start in range(0, numel, _SPAN):
            stop = min(start + _SPAN, numel)
            number = (offset + start) // _SPAN
            upper = stop - start == _SPAN and (number + 1) * p // q > number * p // q
            yield (self.upper if upper else self.lower), start, stop

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        return [
            layer
            for codec, start, stop in self._runs(offset, numel)
            for layer in codec.device_layers(offset + start, stop - start)
        ]

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        p, q = self._share()
        first, whole = offset // _SPAN, numel // _SPAN
        upper = (first + whole) * p // q - first * p // q
        tail = self.lower.payload_nbytes(numel % _SPAN, offset=offset + whole * _SPAN) if numel % _SPAN else 0
        return upper * self.upper.payload_nbytes(_SPAN) + (whole - upper) * self.lower.payload_nbytes(_SPAN) + tail

    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        byte = 0
        for codec, start, stop in self._runs(offset, x.numel()):
            end = byte + codec.payload_nbytes(stop - start, offset=offset + start)
            codec._encode_on_cpu(x[start:stop], key, out[byte:end], offset + start, gain)
            byte = end

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
        work, byte = out.clone(), 0  # nothing is written unless all of it is valid
        for codec, start, stop in self._runs(offset, out.numel()):
            end = byte + codec.payload_nbytes(stop - start, offset=offset + start)
            codec._decode_on_cpu(payload[byte:end], key, work[start:stop], accumulate, offset + start, gain, beta)
            byte = end
        out.copy_(work)


def _at_rate(codec: BitshiftCodec, rate: int) -> Codec:
    """Raises SpecError if the rate is out of the range of the codec's length."""
    allowed = sorted(r for r, (k, _) in RATES.items() if codec.length >= max(SHORTEST, 2 * k + 4))
    if not allowed[0] <= rate <= allowed[-1]:
        low, high = (format_rate(r) for r in (allowed[0], allowed[-1]))
        raise SpecError(
            f"a bitshift trellis of length {codec.length} sends {low} to {high} bits per coordinate, got {format_rate(rate)}"
        )
    above = next(r for r in allowed if r >= rate)
    if above == rate:
        return dataclasses.replace(codec, rate=rate)
    below = allowed[allowed.index(above) - 1]
    lower, upper = dataclasses.replace(codec, rate=below), dataclasses.replace(codec, rate=above)
    return MixedBitshiftCodec(rate, lower, upper)


def parse_bitshift(spec: Spec) -> Codec:
    """``[hadamard+]bitshift:b[,length=L]``, rotated also ``scale=unbiased|centroid``; 0.05 <= b <= 4, 8 <= L <= 16; a b that is not one of ``RATES`` is a mixture."""
    rotated = spec.family == "hadamard+bitshift"
    rate = parse_rate(spec)
    options = dict(spec.options)
    text = options.pop("length", str(DEFAULT))
    scale = options.pop("scale", None) if rotated else None
    if options or scale not in (None, "unbiased", "centroid"):
        allowed = "length, scale=unbiased, scale=centroid" if rotated else "length"
        raise SpecError(f"unknown option in {str(spec)!r}; options of {spec.family}: {allowed}")
    least = max(SHORTEST, 2 * RATES[rate][0] + 4) if rate in RATES else SHORTEST
    if not (text.isdecimal() and least <= int(text) <= LONGEST):
        raise SpecError(
            f"length, the bits of a state, must lie in [{least}, {LONGEST}] at this rate, got {text!r} in {str(spec)!r}"
        )
    return _at_rate(BitshiftCodec(RATE_ONE, int(text), rotated, scale == "centroid"), rate)
