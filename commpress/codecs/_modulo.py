"""``modulo:b,rho=r``: a code for a receiver that holds something like what is sent (csrc/kernels/modulo.h)."""

from __future__ import annotations

import dataclasses
import decimal
import math
import re
from typing import final

import torch

from commpress import ops
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.codecs._quantisers import Family, QuantisingCodec
from commpress.codecs._spec import RATE_ONE, Spec, format_rate
from commpress.errors import SpecError, TensorError, WireError

FAMILY = "modulo"
MOST_RHO = 999_900  # millionths
# For each b the step and the factor of the decoded difference with the least squared error, where the difference is N(0,1) (tests/test_modulo_statistics.py finds them again).
_BEST = (
    (3.7359, 0.4116),
    (1.7999, 0.7692),
    (0.9572, 0.9239),
    (0.5173, 0.9769),
    (0.2787, 0.9932),
    (0.1492, 0.9981),
    (0.0792, 0.9994),
    (0.0417, 0.9998),
)


def modulo_constants(width: int, rho: int) -> ops.Modulo:
    """The code of ``width`` bits for a correlation of ``rho`` millionths."""
    correlation = rho / RATE_ONE
    step, shrink = _BEST[width - 1]
    over_rms = step * math.sqrt(1 - correlation * correlation)
    return ops.Modulo(width, over_rms, correlation / over_rms, shrink)


@final
@dataclasses.dataclass(frozen=True)
class ModuloCodec(Codec):
    """``width`` bits per coordinate, for side information of correlation ``rho`` (millionths). All work is in float32."""

    width: int
    rho: int

    @property
    def bits(self) -> float:
        return float(self.width)

    @property
    def unbiased(self) -> bool:
        """No: what the decoder adds to the side information is shrunk, and it wraps round now and then."""
        return False

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        return "mixed"  # a part of the difference from the side information stays, whatever that is

    def passes_on(self, world_size: int) -> bool:
        return False  # a sum of wrapped values would need another's side information

    @property
    def needs_side(self) -> bool:
        return True

    @property
    def of_second_phase(self) -> Codec:
        """There all ranks must decode the same, and no two hold the same side information."""
        return QuantisingCodec(Family.HADAMARD_LLOYD, self.width * RATE_ONE)

    def for_feedback(self) -> Codec:
        raise SpecError(f"{self} takes no error feedback: the sender cannot tell what the receiver decodes")

    def __str__(self) -> str:
        return f"{FAMILY}:{self.width},rho={format_rate(self.rho)}"

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        blocks, group = -(-numel // 4096), 512
        return 4 * blocks + numel // group * 64 * self.width + (numel % group * self.width + 7) // 8

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.modulo_encode(
            x.to(torch.float32),
            out,
            code=modulo_constants(self.width, self.rho),
            seed=key.seed,
            words=key.words(),
            offset=offset,
            gain=gain,
        )

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
        raise TensorError(
            f"a payload of {self} can be decoded with side information only: decode(..., side=y), y of the shape of out"
        )

    def _decode_with(
        self,
        side: torch.Tensor,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        work = out.to(torch.float32)
        block = ops.modulo_decode(
            payload,
            side.to(torch.float32),
            work,
            code=modulo_constants(self.width, self.rho),
            seed=key.seed,
            words=key.words(),
            offset=offset,
            accumulate=accumulate,
            gain=gain,
            beta=beta,
        )
        if block >= 0:
            raise WireError(
                f"block {block} has a {self} scale that no encoder writes: the bytes are corrupt, or of another codec"
            )
        if work is not out:
            out.copy_(work)


def parse_modulo(spec: Spec) -> Codec:
    """``modulo:b,rho=r``, b from 1 to 8 whole bits, r from 0 to 0.9999 with at most six decimals."""
    options = dict(spec.options)
    text = options.pop("rho", "")
    if options or not re.fullmatch("[1-8]", spec.argument or ""):
        raise SpecError(f"write 'modulo:b,rho=r' with b from 1 to 8 whole bits, got {str(spec)!r}")
    try:
        value = decimal.Decimal(text) * RATE_ONE
    except decimal.InvalidOperation:
        value = decimal.Decimal(-1)
    if not value.is_finite() or value != value.to_integral_value() or not 0 <= value <= MOST_RHO:
        raise SpecError(
            f"rho= is the correlation with the receiver's side information, from 0 to 0.9999 with at most six decimals, in {str(spec)!r}"
        )
    return ModuloCodec(int(spec.argument or ""), int(value))
