"""Sparsifiers: ``topk``, ``threshold`` and ``randk``. A part of the coordinates is sent, the others decode to zero."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import math
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.codecs._spec import RATE_ONE, Spec, format_rate
from commpress.codecs._tabled import TabledCodec
from commpress.errors import SpecError, WireError


class Kind(enum.IntEnum):
    """Numbers that the C++ kernels use (csrc/kernels/sparse.h)."""

    TOPK = 1
    RANDK = 2


_NAMES = {Kind.TOPK: "topk", Kind.RANDK: "randk"}
_LARGEST_BLOCK = 1 << 18
_DEFAULT_BLOCK = 1 << 16
_DEFAULT_VALUES = {"topk": 4, "threshold": 1, "randk": 32}
_VALUES = {**{str(bits): bits for bits in range(1, 9)}, "bf16": 16, "fp32": 32}


@final
@dataclasses.dataclass(frozen=True)
class SparseCodec(TabledCodec):
    """Sends some of the coordinates of each segment of ``block`` coordinates, counted from the tensor's start. All work is in float32.

    A segment of n coordinates sends k, ``fraction`` of them: over a tensor the mix of floor and ceiling is exact, and k is at least 1.

    * `TOPK`: the k of largest magnitude, the lower index first among equals, infinities and NaN largest; never a zero, so perhaps fewer. Their positions cost
      log2 C(n, k) bits and less than a percent, whatever they are. A segment that has few non-zeros is sent exactly, in the same bytes. Where a value that is sent is not
      finite and values have 8 bits or fewer, all that are sent arrive as NaN.
    * `RANDK`: one coordinate of each of k windows, which both sides derive from the key: positions cost nothing. A segment with a value that is not finite arrives as NaN.

    Args:
        kind: as above.
        fraction: in millionths.
        value_bits: 1 to 8 quantised, 16 for bfloat16, 32 for float32.
        scaled: `RANDK` only: values are multiplied by the length of their window, which makes the mean over keys the input.
        block: coordinates of a segment, a power of two from 4096 to 262144; payloads begin at multiples of it.
        threshold: what a spec ``threshold:t`` said, None for the others.
    """

    kind: Kind
    fraction: int
    value_bits: int
    scaled: bool
    block: int = _DEFAULT_BLOCK
    threshold: str | None = None

    @property
    def bits(self) -> float:
        numel = RATE_ONE // 64 * _LARGEST_BLOCK  # the mix of whole segments is exact here
        return 8 * self.payload_nbytes(numel) / numel

    @property
    def unbiased(self) -> bool:
        return self.scaled

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        if self.fraction == RATE_ONE and self.value_bits == 32:
            return "none"
        if self.kind is Kind.TOPK:
            return "mixed"
        # What is left out costs in proportion to the square; eight bits of a value add little to that.
        exact = self.value_bits >= 16 or (self.value_bits == 8 and self.fraction <= RATE_ONE // 2)
        return "multiplicative" if exact else "mixed"

    def for_feedback(self) -> Codec:
        return dataclasses.replace(self, scaled=False)

    def __str__(self) -> str:
        head = f"{_NAMES[self.kind]}:{format_rate(self.fraction)}"
        if self.threshold is not None:
            head = f"threshold:{self.threshold}"
        options = []
        if self.block != _DEFAULT_BLOCK:
            options.append(f"block={self.block}")
        if self.kind is Kind.RANDK and not self.scaled:
            options.append("scale=none")
        if self.value_bits != _DEFAULT_VALUES[head.partition(":")[0]]:
            options.append(f"values={next(text for text, bits in _VALUES.items() if bits == self.value_bits)}")
        return ",".join([head, *options])

    def split(self, start: int, stop: int, parts: int) -> list[int]:
        segments = -(-(stop - start) // self.block)
        return [min(start + part * segments // parts * self.block, stop) for part in range(parts + 1)]

    def check_offset(self, offset: int) -> None:
        if offset < 0 or offset % self.block:
            raise SpecError(f"offset must be a non-negative multiple of {self.block} for {self}, got {offset}")

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return ops.sparse_payload_nbytes(
            self.kind, self.fraction, self.value_bits, self.scaled, self.block, offset, numel
        )

    def runs_on(self, device: torch.device) -> bool:
        """CUDA devices have kernels for `TOPK` only."""
        return device.type == "cpu" or (self.kind is Kind.TOPK and _device.runs_on(device))

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer] | None:
        if self.kind is not Kind.TOPK:
            return None
        code = ops.topk_code(self.fraction, self.value_bits, self.block)
        kind = ops.Kind(ops.TOPK, code, block_nbytes=1, block=self.block)  # sizes of segments differ: none is looked up
        return [ops.DeviceLayer(kind, 0, offset, numel, self.payload_nbytes(numel, offset=offset))]

    def arguments(self, key: Key, offset: int, gain: float) -> dict[str, Any]:
        """What the operators of :mod:`commpress.ops` take, but for the tensors."""
        return {
            "kind": self.kind,
            "fraction": self.fraction,
            "bits": self.value_bits,
            "scaled": self.scaled,
            "block": self.block,
            "seed": key.seed,
            "words": key.words(),
            "offset": offset,
            "gain": gain,
        }

    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.sparse_encode(x, out, **self.arguments(key, offset, gain))

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
        segment = ops.sparse_decode(payload, out, accumulate=accumulate, beta=beta, **self.arguments(key, offset, gain))
        if segment >= 0:
            raise self._corrupt(f"segment {segment}")

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a {self} header that no encoder writes: the bytes are corrupt, or of another codec"
        )


def _number(spec: Spec, example: str) -> decimal.Decimal:
    try:
        value = decimal.Decimal(spec.argument or "")
    except decimal.InvalidOperation:
        value = decimal.Decimal("nan")
    if not value.is_finite():
        raise SpecError(f"{str(spec)!r} needs a number, for example {example!r}")
    return value


def _fraction(spec: Spec) -> tuple[int, str | None]:
    """(millionths, threshold)."""
    if spec.family == "threshold":
        t = _number(spec, "threshold:2.5")
        # The part of a normal distribution that lies beyond t standard deviations: erfc(t / sqrt 2).
        millionths = round(math.erfc(float(t) / math.sqrt(2)) * RATE_ONE)
        if not (t >= 0 and t.as_tuple().exponent in range(-6, 1) and millionths >= 1):
            raise SpecError(f"a threshold lies in [0, 5) with at most six decimals, got {spec.argument!r}")
        return millionths, format(t.normalize() + 0, "f")
    value = _number(spec, f"{spec.family}:0.01") * RATE_ONE
    if value != value.to_integral_value() or not 1 <= value <= RATE_ONE:
        raise SpecError(
            f"the part of the coordinates that {spec.family} sends must lie in (0, 1] with at most six decimals, got {spec.argument!r} in {str(spec)!r}"
        )
    return int(value), None


def parse_sparse(spec: Spec) -> Codec:
    """``topk:f``, ``threshold:t``, ``randk:f`` with ``values=fp32|bf16|1..8``, ``block=n``; ``randk`` also with ``scale=none``."""
    kind = Kind.RANDK if spec.family == "randk" else Kind.TOPK
    fraction, threshold = _fraction(spec)
    options = dict(spec.options)
    values, block = options.pop("values", None), options.pop("block", str(_DEFAULT_BLOCK))
    scale = options.pop("scale", None) if kind is Kind.RANDK else None
    if options or scale not in (None, "none", "unbiased"):
        more = ", scale=none" if kind is Kind.RANDK else ""
        raise SpecError(
            f"unknown option in {str(spec)!r}; options of {spec.family}: values=fp32|bf16|1..8, block=n{more}"
        )
    if values is not None and values not in _VALUES:
        raise SpecError(f"values are fp32, bf16 or have 1 to 8 bits, got {values!r} in {str(spec)!r}")
    size = int(block) if block.isascii() and block.isdigit() else 0
    if not BLOCK <= size <= _LARGEST_BLOCK or size & (size - 1):
        raise SpecError(f"a block is a power of two from {BLOCK} to {_LARGEST_BLOCK}, got {block!r} in {str(spec)!r}")
    bits = _DEFAULT_VALUES[spec.family] if values is None else _VALUES[values]
    return SparseCodec(kind, fraction, bits, kind is Kind.RANDK and scale != "none", size, threshold)
