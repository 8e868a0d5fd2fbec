"""Number formats and the classic quantisers, whose arithmetic is in the C++ kernels (csrc/kernels/formats.h)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import final

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise, of_float, of_grid
from commpress.codecs._spec import Spec
from commpress.codecs._tabled import TabledCodec
from commpress.errors import SpecError, WireError
from commpress.ops import Format, FormatFlag, Scheme

_BLOCKS = {str(1 << k): 1 << k for k in range(4, 13)}
_ROUNDING = {"rounding": ("stochastic", "nearest")}
_BLOCK = {"block": ("512", *(name for name in _BLOCKS if name != "512"))}
_LARGE_BLOCK = {"block": ("4096", *(name for name in _BLOCKS if name != "4096"))}
# For each family its options: the values of each, the default first. `float`'s default scale depends on its exponent.
_OPTIONS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "float": {**_ROUNDING, "scale": ("block", "none"), **_BLOCK},
    "mxfp8": {**_ROUNDING, "format": ("e4m3", "e5m2")},
    "mxfp6": {**_ROUNDING, "format": ("e2m3", "e3m2")},
    "mxfp4": _ROUNDING,
    "nvfp4": _ROUNDING,
    "natural": {**_ROUNDING, "scale": ("block", "none"), **_BLOCK},
    "int8": {**_ROUNDING, **_BLOCK},
    "qsgd": {**_ROUNDING, "norm": ("l2", "linf"), **_BLOCK},
    "ternary": {**_ROUNDING, **_BLOCK},
    "sign": {"scale": ("mean", "none"), **_LARGE_BLOCK},
    "onebit": _LARGE_BLOCK,
}
FAMILIES = tuple(_OPTIONS)
MX_BLOCK, NVFP4_BLOCK = 32, 16
MOST_LEVELS = 32767


@final
@dataclasses.dataclass(frozen=True)
class FormatCodec(TabledCodec):
    """A block's statistic gives a scale, the scale codes of fixed width. All work is in float32.

    Args:
        spec: canonical, without options that have their default value.
        format: what the kernels do.
    """

    spec: Spec
    format: Format

    @property
    def bits(self) -> float:
        """Of a payload of whole blocks, scales included."""
        return 8 * ops.format_nbytes(self.format, BLOCK) / BLOCK

    @property
    def unbiased(self) -> bool:
        """Stochastic rounding is, unless values can lie beyond the largest code. At eight bits of exponent only the last step below 2^128 does, as with every codec
        whose values are float32."""
        f = self.format
        unlimited = f.block > 0 or f.exponent == 8
        return bool(f.flags & FormatFlag.STOCHASTIC) and unlimited

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        f, nearest = self.format, not self.format.flags & FormatFlag.STOCHASTIC
        if f.scheme is Scheme.FLOAT:
            return of_float(f.exponent, f.mantissa, scaled=f.block > 0, nearest=nearest)
        if f.scheme is Scheme.LEVELS:
            # A norm may be as large as all coordinates of a block together.
            norm = math.sqrt(f.block) if f.flags & FormatFlag.EUCLIDEAN else 1.0
            return of_grid(f.levels / norm, nearest=nearest)
        return "mixed"

    def passes_on(self, world_size: int) -> bool:
        vote = self.format.scheme is Scheme.SIGN and dict(self.spec.options).get("scale") == "none"
        return not vote and super().passes_on(world_size)

    def for_feedback(self) -> Codec:
        """Nearest rounding, under which no coordinate's error exceeds the coordinate; signs get the scale that is their least-squares one."""
        options = dict(self.spec.options)
        if self.format.scheme is Scheme.SIGN:
            options.pop("scale", None)
        elif self.format.scheme is not Scheme.TWO_MEANS:
            options["rounding"] = "nearest"
        return parse_format(dataclasses.replace(self.spec, options=tuple(sorted(options.items()))))

    def __str__(self) -> str:
        return str(self.spec)

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return ops.format_nbytes(self.format, numel)

    def runs_on(self, device: torch.device) -> bool:
        return _device.runs_on(device)

    @property
    def kind(self) -> ops.Kind:
        """What the CUDA kernels know it by."""
        return ops.Kind(ops.FORMAT, ops.format_code(self.format), 0, ops.format_nbytes(self.format, BLOCK))

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer]:
        return [ops.DeviceLayer(self.kind, 0, offset, numel, self.payload_nbytes(numel))]

    def _encode_on_cpu(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        ops.format_encode(x, out, format=self.format, seed=key.seed, words=key.words(), offset=offset, gain=gain)

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
        block = ops.format_decode(payload, out, format=self.format, accumulate=accumulate, gain=gain, beta=beta)
        if block >= 0:
            raise self._corrupt(f"block {block}")

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a {self} scale or code that no encoder writes: the bytes are corrupt, or of another codec"
        )


def parse_format(spec: Spec) -> Codec:
    """``float:eXmY``, ``mxfp8``, ``mxfp6``, ``mxfp4``, ``nvfp4``, ``natural``, ``int8``, ``qsgd:s``, ``ternary``, ``sign``, ``onebit``, with their options."""
    family, allowed = spec.family, dict(_OPTIONS[spec.family])
    exponent, mantissa, levels = _argument(spec)
    if family == "float" and exponent == 8:
        allowed = {**_ROUNDING, "scale": ("none",)}  # the range of float32 itself
    given = dict(spec.options)
    if given.get("scale") == "none":
        allowed.pop("block", None)
    for name, value in given.items():
        if value not in allowed.get(name, ()):
            known = "; ".join(f"{option}={'|'.join(values)}" for option, values in allowed.items())
            raise SpecError(f"unknown option {name}={value} in {str(spec)!r}; options of {family}: {known}")
    chosen = {name: given.get(name, values[0]) for name, values in allowed.items()}
    kept = tuple(sorted((name, value) for name, value in given.items() if value != allowed[name][0]))
    canonical = dataclasses.replace(spec, options=kept)
    nearest = chosen.get("rounding") == "nearest"
    flags = FormatFlag(0) if nearest or "rounding" not in chosen else FormatFlag.STOCHASTIC
    block = 0 if chosen.get("scale") == "none" else _BLOCKS[chosen.get("block", "512")]
    if family in ("float", "natural"):
        if family == "natural":
            exponent, mantissa = (7, 0) if block else (8, 0)
        if block == 0 and exponent + mantissa < 2:
            raise SpecError(f"{str(spec)!r} has no code left for values that are not finite; leave out scale=none")
        format = Format(Scheme.FLOAT, exponent, mantissa, block=block, flags=flags)
    elif family.startswith("mxfp"):
        match = _FLOAT.fullmatch(chosen.get("format", "e2m1"))
        assert match is not None
        flags |= FormatFlag.MAY_SATURATE if nearest else FormatFlag(0)
        format = Format(Scheme.FLOAT, int(match[1]), int(match[2]), block=MX_BLOCK, flags=flags)
    elif family == "nvfp4":
        format = Format(Scheme.NVFP4, 2, 1, block=NVFP4_BLOCK, flags=flags)
    elif family in ("sign", "onebit"):
        format = Format(Scheme.SIGN if family == "sign" else Scheme.TWO_MEANS, block=block)
    else:
        if chosen.get("norm") == "l2":
            flags |= FormatFlag.EUCLIDEAN
        if family == "ternary":
            flags |= FormatFlag.TRITS
        format = Format(Scheme.LEVELS, levels=levels, block=block, flags=flags)
    return FormatCodec(canonical, format)


_FLOAT = re.compile(r"e([1-8])m([0-9]|1[0-9]|2[0-3])")


def _argument(spec: Spec) -> tuple[int, int, int]:
    """(exponent, mantissa, levels) of the argument or of the family."""
    argument = spec.argument
    if spec.family == "float":
        match = _FLOAT.fullmatch(argument or "")
        if match is None:
            raise SpecError(
                f"write 'float:eXmY' with X from 1 to 8 bits of exponent and Y from 0 to 23 of mantissa, got {str(spec)!r}"
            )
        return int(match[1]), int(match[2]), 0
    if spec.family == "qsgd":
        if not re.fullmatch(r"[1-9]\d{0,4}", argument or "") or int(argument or "") > MOST_LEVELS:
            raise SpecError(f"write 'qsgd:s' with s from 1 to {MOST_LEVELS} levels, got {str(spec)!r}")
        return 0, 0, int(argument or "")
    if argument is not None:
        raise SpecError(f"{spec.family} takes no argument, got {str(spec)!r}")
    return 0, 0, {"int8": 127, "ternary": 1}.get(spec.family, 0)
