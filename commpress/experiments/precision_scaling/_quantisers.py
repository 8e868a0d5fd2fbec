"""The quantisers of the experiment: codecs of the library as they are, and one under a scale that all blocks agree on."""

from __future__ import annotations

import abc
from typing import final

import torch

from commpress.codecs import Key, LinearCodec
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError
from commpress.experiments.precision_scaling import _theory

MANTISSA = 5
BITS = 8
LARGEST = 4.375  # on which the blocks agree, unless something is larger: with 8 bits a step whose error is 1e-4
_BLOCK = 512


class Quantiser(abc.ABC):
    """From a matrix of features (samples, M) to what arrives, and the variances of the error that theory expects."""

    name: str
    label: str

    @abc.abstractmethod
    def quantise(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (samples, M) -> the same decoded, and float64 (M,): expected variances of the error. One payload for the whole matrix."""


@final
class Floating(Quantiser):
    """Floats with stochastic rounding: multiplicative."""

    def __init__(self, mantissa: int = MANTISSA) -> None:
        self.name, self.label = f"float:e8m{mantissa}", "multiplicative"
        self._mantissa = mantissa
        self._codec = make_codec(self.name)

    def quantise(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        key = Key(seed=seed)
        return self._codec.decode(self._codec.encode(x, key), key, out=torch.empty_like(x)), _theory.floating(
            x.shape[1], self._mantissa
        )


@final
class Grid(Quantiser):
    """Dithered rounding on a grid: with one step for everything (the blocks agree on a scale, as ranks do in an all-reduce), or a step for each block of 512 features.

    Raises:
        SpecError: as the codec.
    """

    def __init__(self, bits: int = BITS, *, shared: bool, largest: float = LARGEST) -> None:
        codec = make_codec(f"homomorphic:{bits}")
        if not isinstance(codec, LinearCodec):
            raise SpecError(f"{codec} has no scales that blocks could agree on")
        self._codec, self._levels, self._shared, self._largest = codec, 2**bits - 1, shared, largest
        self.name = str(codec) + (", one step" if shared else f", a step for every {_BLOCK} features")
        self.label = "additive" if shared else "additive by block"

    def quantise(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        flat, codec, key = x.reshape(-1), self._codec, Key(seed=seed)
        scales = torch.empty(codec.scales_nbytes(flat.numel()), dtype=torch.uint8)
        codec.own_scales(flat, scales)
        words = scales.view(torch.int16)  # magnitudes of bfloat16: ordered as integers
        if self._shared:
            agreed = torch.tensor([self._largest], dtype=torch.bfloat16).view(torch.int16)
            words.fill_(int(torch.maximum(words.max(), agreed)))
        codes = torch.empty(codec.codes_nbytes(flat.numel()), dtype=torch.uint8)
        codec.encode_codes(flat, scales, key, out=codes, offset=0)
        out = torch.empty_like(flat)
        codec.decode_sums(codes, scales, key, workers=1, out=out, offset=0, gain=1.0)
        variances = (2.0 * words.view(torch.bfloat16).double() / self._levels).square() / 12.0
        if self._shared:
            return out.view_as(x), variances[:1].expand(x.shape[1])
        if x.shape[1] % _BLOCK:
            raise SpecError(f"blocks of {_BLOCK} must end where a sample's features end, got {x.shape[1]} features")
        by_block = variances.view(len(x), -1).mean(0)
        return out.view_as(x), by_block.repeat_interleave(_BLOCK)
