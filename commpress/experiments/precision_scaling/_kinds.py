"""The noise kind of a codec, measured: mean squared error octave by octave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from commpress.codecs import OCTAVES, Codec, Key, Noise
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError

WITHIN = 2.0
SPECS = (
    *("none", "cast:bf16", "float:e8m5", "float:e4m3", "mxfp8", "natural", "randk:0.1"),
    *("hadamard+lloyd:2", "hadamard+bitshift:1", "homomorphic:4", "ecdq:2", "hadamard+ecsq:1", "hadamard+trellis:1"),
    *("uniform:8", "int8", "uniform:4", "qsgd:7", "ternary", "mxfp4", "nvfp4", "mxfp6", "float:e3m4"),
    *("lloyd:2", "bitshift:1", "ecsq:1", "trellis:1", "topk:0.1", "threshold:2", "sign", "onebit"),
)
"""What `kinds` measures: every family that encodes a tensor by itself."""


@dataclasses.dataclass(frozen=True)
class KindRow:
    """What was declared and what was measured.

    Attributes:
        spec: the codec. declared: its `noise`. measured: what its errors say.
        slope: of the logarithm of the mean squared error over that of the mean square, octave by octave: 0 additive, 1 multiplicative. None without errors.
        even: largest over smallest mean squared error of an octave. proportional: the same of the error over the square.
        errors: mean squared error of each octave, the largest coordinates (from 1/2 to 1) first.
    """

    spec: str
    declared: Noise
    measured: Noise
    slope: float | None
    even: float
    proportional: float
    errors: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "noise-kind", **dataclasses.asdict(self)}


def octave_sample(numel: int = 1 << 16, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of random sign whose magnitudes are evenly spread, in their logarithm, over the `OCTAVES` octaves below 1; and which octave each is in."""
    generator = torch.Generator().manual_seed(seed)
    below = torch.rand(numel, generator=generator) * OCTAVES
    sign = torch.where(torch.rand(numel, generator=generator) < 0.5, -1.0, 1.0)
    return torch.exp2(-below) * sign, below.floor().long().clamp_(max=OCTAVES - 1)


def measured_noise(
    codec: Codec, *, keys: int = 8, seed: int = 0, decode: Callable[[torch.Tensor, Key], torch.Tensor] | None = None
) -> KindRow:
    """Measures a codec.

    Args:
        codec: any that encodes a tensor by itself, unless `decode` says how.
        keys: over how many keys errors are averaged.
        seed: of the keys and of the values.
        decode: from values and key to what arrives; by default `codec` encodes and decodes.

    Raises:
        SpecError: `keys` is not positive.
    """
    if keys < 1:
        raise SpecError(f"keys must be at least 1, got {keys}")
    x, octave = octave_sample(seed=seed + 1)
    error = torch.zeros(x.numel(), dtype=torch.float64)
    for step in range(keys):
        key = Key(seed=seed, step=step)
        if decode is None:
            y = codec.decode(codec.encode(x, key), key, out=torch.full_like(x, torch.nan))
        else:
            y = decode(x, key)
        error += (y.double() - x.double()).square() / keys
    squares, errors = (
        torch.zeros(OCTAVES, dtype=torch.float64).scatter_add_(0, octave, v) for v in (x.double().square(), error)
    )
    counts = torch.bincount(octave, minlength=OCTAVES).double()
    if not bool(errors.any()):
        return KindRow(str(codec), codec.noise, "none", None, 1.0, 1.0, (0.0,) * OCTAVES)
    even, proportional = (float(v.max() / v.min().clamp_(min=1e-300)) for v in (errors / counts, errors / squares))
    kind: Noise = "additive" if even <= WITHIN else "multiplicative" if proportional <= WITHIN else "mixed"
    size, level = ((v / counts).clamp_(min=1e-300).log() for v in (squares, errors))
    size = size - size.mean()
    fitted = float((size * level).sum() / size.square().sum())
    return KindRow(str(codec), codec.noise, kind, fitted, even, proportional, tuple((errors / counts).tolist()))


def kinds(seed: int = 0) -> list[KindRow]:
    """Measures all of `SPECS`."""
    return [measured_noise(make_codec(spec), seed=seed) for spec in SPECS]
