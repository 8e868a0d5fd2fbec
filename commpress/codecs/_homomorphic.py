"""``homomorphic:b``: dithered rounding on a grid that all workers share (csrc/kernels/homomorphic.h)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from commpress import ops
from commpress.codecs._base import Codec
from commpress.codecs._key import Key
from commpress.codecs._linear import LinearCodec
from commpress.codecs._noise import Noise
from commpress.codecs._spec import Spec
from commpress.errors import SpecError, WireError

FAMILY = "homomorphic"
GROUP = 512
MOST_WIDTH, MOST_WORKERS = 16, 2048
_NON_FINITE, _LARGEST = 0xFFFF, 0x7F80
_BLOCKS = (512, 1024, 2048, 4096)


@final
@dataclasses.dataclass(frozen=True)
class HomomorphicCodec(LinearCodec):
    """``width`` bits for each worker and coordinate; ``block`` coordinates share a scale; ``subtract``: the decoder subtracts the dithers. All work is in float32."""

    width: int
    block: int = 512
    subtract: bool = True

    @property
    def bits(self) -> float:
        return float(self.width)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def lossless(self) -> bool:
        return False

    @property
    def noise(self) -> Noise:
        if self.subtract:
            return "additive"
        return (
            "additive" if self.width >= 4 else "mixed"
        )  # no grid point is at zero, so small coordinates are rounded by a whole step

    def for_feedback(self) -> Codec:
        raise SpecError(
            f"{self} takes no error feedback: it is unbiased, and what an owner adds up is codes; use feedback=False"
        )

    def __str__(self) -> str:
        options = [f"block={self.block}"] * (self.block != 512) + ["rounding=stochastic"] * (not self.subtract)
        return ",".join([f"{FAMILY}:{self.width}", *options])

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return self.scales_nbytes(numel) + self.codes_nbytes(numel)

    def seams(self, start: int, stop: int, parts: int) -> list[int]:
        return [start, stop]  # scales first, then codes

    def check_workers(self, workers: int) -> None:
        if workers > MOST_WORKERS or self._sum_width(workers) > MOST_WIDTH:
            most = min(MOST_WORKERS, 1 << (MOST_WIDTH - self.width))
            raise SpecError(f"{self} adds up the codes of at most {most} workers, got {workers}: choose fewer bits")

    def _sum_width(self, workers: int) -> int:
        return self.width + (workers - 1).bit_length()

    def scales_nbytes(self, numel: int) -> int:
        return 2 * -(-numel // self.block)

    def codes_nbytes(self, numel: int) -> int:
        return _integers_nbytes(numel, self.width)

    def sums_nbytes(self, numel: int, workers: int) -> int:
        return _integers_nbytes(numel, self._sum_width(workers))

    def own_scales(self, x: torch.Tensor, out: torch.Tensor) -> None:
        ops.homomorphic_scales(x.to(torch.float32), out, block=self.block)

    def agree(self, scales: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        found = _words(scales[0]).copy()
        for one in scales[1:]:
            np.maximum(found, _words(one), out=found)
        self._check(found)
        out.numpy()[:] = found.view(np.uint8)

    def finite(self, scales: torch.Tensor) -> bool:
        words = _words(scales)
        self._check(words)
        return not bool((words == _NON_FINITE).any())

    def _check(self, words: npt.NDArray[np.uint16]) -> None:
        if bool(((words > _LARGEST) & (words != _NON_FINITE)).any()):
            raise self._corrupt(int(np.argmax((words > _LARGEST) & (words != _NON_FINITE))))

    def encode_codes(self, x: torch.Tensor, scales: torch.Tensor, key: Key, *, out: torch.Tensor, offset: int) -> None:
        x = x.to(torch.float32)
        own = torch.empty_like(scales)
        self.own_scales(x, own)
        if bool((_words(scales) < _words(own)).any()):
            raise WireError(f"an agreed scale of {self} is below this worker's own: the bytes are corrupt")
        self._encode_under(x, scales, key, out, offset)

    def _encode_under(self, x: torch.Tensor, scales: torch.Tensor, key: Key, out: torch.Tensor, offset: int) -> None:
        ops.homomorphic_encode(
            x,
            scales,
            out,
            bits=self.width,
            block=self.block,
            worker=key.sender,
            seed=key.seed,
            words=key.replace(sender=0).words(),
            offset=offset,
        )

    def add_codes(self, codes: Sequence[torch.Tensor], *, out: torch.Tensor, numel: int) -> None:
        ops.homomorphic_add(list(codes), out, bits=self.width, numel=numel)

    def decode_sums(
        self,
        sums: torch.Tensor,
        scales: torch.Tensor,
        key: Key,
        *,
        workers: int,
        out: torch.Tensor,
        offset: int,
        gain: float,
    ) -> None:
        self._decode_from(sums, scales, key, 0, workers, out, offset, False, gain, 1.0)

    def _decode_from(
        self,
        sums: torch.Tensor,
        scales: torch.Tensor,
        key: Key,
        worker: int,
        workers: int,
        out: torch.Tensor,
        offset: int,
        accumulate: bool,
        gain: float,
        beta: float,
    ) -> None:
        work = out.to(torch.float32)
        scale = ops.homomorphic_decode(
            sums,
            scales,
            work,
            bits=self.width,
            block=self.block,
            subtract=self.subtract,
            worker=worker,
            workers=workers,
            seed=key.seed,
            words=key.replace(sender=0).words(),
            offset=offset,
            accumulate=accumulate,
            gain=gain,
            beta=beta,
        )
        if scale >= 0:
            raise self._corrupt(scale)
        if work is not out:
            out.copy_(work)

    def payload_of(self, scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.cat([scales, codes])

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        x = x.to(torch.float32)
        if gain != 1.0:
            most = torch.finfo(torch.float32).max  # a finite value stays finite
            x = torch.where(torch.isfinite(x), (x * gain).clamp(-most, most), x)
        scales, codes = self._parts(out, x.numel())
        self.own_scales(x, scales)
        self._encode_under(x, scales, key, codes, offset)

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
        scales, codes = self._parts(payload, out.numel())
        self._decode_from(codes, scales, key, key.sender, 1, out, offset, accumulate, gain, beta)

    def _parts(self, payload: torch.Tensor, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = self.scales_nbytes(numel)
        return payload[:at], payload[at:]

    def _corrupt(self, scale: int) -> WireError:
        return WireError(
            f"block {scale} has a {self} scale that no encoder writes: the bytes are corrupt, or of another codec"
        )


def _integers_nbytes(numel: int, width: int) -> int:
    return numel // GROUP * (GROUP // 8) * width + (numel % GROUP * width + 7) // 8


def _words(scales: torch.Tensor) -> npt.NDArray[np.uint16]:
    return np.frombuffer(memoryview(scales.numpy()), "<u2") if scales.numel() else np.empty(0, np.uint16)


def parse_homomorphic(spec: Spec) -> Codec:
    """``homomorphic:b[,block=512|1024|2048|4096][,rounding=dither|stochastic]``, b from 1 to 8 whole bits."""
    if not re.fullmatch("[1-8]", spec.argument or ""):
        raise SpecError(f"write 'homomorphic:b' with b from 1 to 8 whole bits, got {str(spec)!r}")
    options = dict(spec.options)
    block, rounding = options.pop("block", "512"), options.pop("rounding", "dither")
    if options or block not in map(str, _BLOCKS) or rounding not in ("dither", "stochastic"):
        raise SpecError(
            f"unknown option in {str(spec)!r}; options of homomorphic: block=512|1024|2048|4096; rounding=dither|stochastic"
        )
    return HomomorphicCodec(int(spec.argument or ""), int(block), rounding == "dither")
