"""``lowrank:r``: a matrix travels as two thin factors. What the spec says; the work is done where tensors have shapes and ranks meet."""

from __future__ import annotations

import dataclasses
import decimal
from typing import NoReturn, final

import torch

from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.codecs._quantisers import parse_cast
from commpress.codecs._spec import Spec
from commpress.errors import SpecError

_LARGEST = 1024
_ITERATIONS = 6
_RESET = "0.7"
_FACTORS = parse_cast(Spec("cast", "bf16"))


@final
@dataclasses.dataclass(frozen=True)
class LowRankCodec(Codec):
    """Low-rank factors, averaged over the ranks: `commpress.register` and `commpress.all_reduce` take it (docs/lowrank.md).

    The factors of a mean are not the mean of factors: ranks average G Q first, and only then is there something to encode. So this codec has no payload of
    its own: `encode`, `decode` and `payload_nbytes` raise SpecError, and so does a frame.

    Args:
        dimension: columns of each factor, 1 to 1024; 0 where the allocator chooses them (`commpress.register` with ``bits=``).
        factors: what the factors are sent with.
        iterations: power iterations that a lost matrix begins a step with at most.
        reset: part of its maximum, as decimal text, under which the fidelity means that a matrix is lost; "0": never after the first step.
    """

    dimension: int
    factors: Codec = _FACTORS
    iterations: int = _ITERATIONS
    reset: str = _RESET

    @property
    def bits(self) -> None:
        return None

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        return "mixed"

    def for_feedback(self) -> Codec:
        return dataclasses.replace(self, factors=self.factors.for_feedback())

    def __str__(self) -> str:
        options = []
        if self.factors != _FACTORS:
            options.append(f"factors={str(self.factors).replace(',', '/')}")
        if self.iterations != _ITERATIONS and self.dimension:
            options.append(f"iterations={self.iterations}")
        if self.reset != _RESET:
            options.append(f"reset={self.reset}")
        return ",".join([f"lowrank:{self.dimension}" if self.dimension else "lowrank", *options])

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        self._refuse()

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        self._refuse()

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
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SpecError(
            f"{self} has no payload of one rank's own: its factors are averaged first. Use it with commpress.register or commpress.all_reduce"
        )


def parse_lowrank(spec: Spec) -> Codec:
    """``lowrank:r`` with ``factors=SPEC`` (slashes for its commas), ``iterations=n``, ``reset=f``."""
    text = spec.argument or ""
    dimension = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    if not 1 <= dimension <= _LARGEST:
        raise SpecError(
            f"{str(spec)!r} needs a low-rank dimension, a whole number from 1 to {_LARGEST}, for example 'lowrank:4' (only commpress.register with bits= chooses it itself)"
        )
    options = dict(spec.options)
    factors = options.pop("factors", str(_FACTORS))
    iterations = options.pop("iterations", str(_ITERATIONS))
    reset = options.pop("reset", _RESET)
    if options:
        raise SpecError(
            f"unknown option in {str(spec)!r}; options of lowrank: factors=SPEC (its own options after a slash), iterations=n, reset=f"
        )
    if not (iterations.isascii() and iterations.isdigit() and len(iterations) < 3 and int(iterations) <= 16):
        raise SpecError(f"iterations= is a whole number from 0 to 16, got {iterations!r} in {str(spec)!r}")
    try:
        part = decimal.Decimal(reset)
    except decimal.InvalidOperation:
        part = decimal.Decimal(-1)
    if not (part.is_finite() and 0 <= part < 1):
        raise SpecError(f"reset= is a part of the fidelity's maximum in [0, 1), got {reset!r} in {str(spec)!r}")
    from commpress.codecs import codec  # the families' table is made of modules like this one

    inner = codec(factors.replace("/", ","))
    if isinstance(inner, LowRankCodec):
        raise SpecError(f"factors= names what the factors are sent with, not lowrank again, in {str(spec)!r}")
    return LowRankCodec(dimension, inner, int(iterations), format(part.normalize() + 0, "f"))
