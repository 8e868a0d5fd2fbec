"""Codecs for tests of the collectives: tiny, in torch, with faults on demand. They follow the protocol of commpress codecs and nothing more."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from commpress.errors import WireError

BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rounds to multiples of `step`, dithered by the key, in 16 bits a coordinate; a NaN travels as -32768. One marker byte per block.

    `sabotage` of the form "encode:PHASE" raises in encode, "decode:PHASE" in decode, "corrupt:PHASE" emits a bad marker; only from key.step `at` on.
    """

    name: str = "grid"
    step: float = 1 / 64
    sabotage: str = ""
    at: int = 0
    lossless: bool = False

    def __str__(self) -> str:
        return self.name

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        assert offset % BLOCK == 0
        return 2 * numel + -(-numel // BLOCK)

    def _dither(self, key: Any, numel: int, offset: int) -> torch.Tensor:
        index = torch.arange(offset, offset + numel, dtype=torch.int64)
        mixed = (
            index * 2654435761
            + key.seed * 97
            + key.step * 7919
            + key.sender * 104729
            + key.tensor * 1299709
            + key.phase * 15485863
        ) % 65521
        return mixed.float() / 65521

    def _hit(self, what: str, key: Any) -> bool:
        return self.sabotage == f"{what}:{key.phase}" and key.step >= self.at

    def encode(self, x: torch.Tensor, key: Any, *, out: Any = None, offset: int = 0, gain: float = 1.0) -> torch.Tensor:
        if self._hit("encode", key):
            raise ArithmeticError("sabotaged encode")
        n = x.numel()
        out = torch.empty(self.payload_nbytes(n, offset=offset), dtype=torch.uint8) if out is None else out
        assert out.numel() == self.payload_nbytes(n, offset=offset)
        codes = torch.floor(
            x.float() * torch.tensor(gain, dtype=torch.float32) / self.step + self._dither(key, n, offset)
        )
        codes = torch.where(torch.isfinite(codes), codes.clamp(-32767, 32767), torch.tensor(-32768.0))
        for block, start in enumerate(range(0, n, BLOCK)):
            part = codes[start : start + BLOCK].to(torch.int16)
            position = 2 * start + block
            out[position] = 13 if self._hit("corrupt", key) else 7
            out[position + 1 : position + 1 + 2 * part.numel()] = part.view(torch.uint8)
        return out

    def decode(
        self,
        payload: torch.Tensor,
        key: Any,
        *,
        out: torch.Tensor,
        accumulate: bool = False,
        offset: int = 0,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> torch.Tensor:
        n = out.numel()
        assert payload.numel() == self.payload_nbytes(n, offset=offset)
        if self._hit("decode", key):
            raise ArithmeticError("sabotaged decode")
        starts = range(0, n, BLOCK)
        for block, start in enumerate(starts):
            if payload[2 * start + block] != 7:
                raise WireError(f"bad marker in block {(offset + start) // BLOCK}")
        for block, start in enumerate(starts):
            stop = min(start + BLOCK, n)
            codes = payload[2 * start + block + 1 : 2 * stop + block + 1].clone().view(torch.int16)
            value = torch.where(codes == -32768, torch.tensor(float("nan")), codes.float() * self.step) * gain
            if accumulate:
                value = out[start:stop] * torch.tensor(beta, dtype=out.dtype) + value
            out[start:stop] = value
        return out


@dataclasses.dataclass(frozen=True)
class Raw:
    """The bytes of the dtype: nothing is lost."""

    lossless: bool = True

    def __str__(self) -> str:
        return "raw"

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        return numel * dtype.itemsize

    def encode(self, x: torch.Tensor, key: Any, *, out: Any = None, offset: int = 0, gain: float = 1.0) -> torch.Tensor:
        data = (x * torch.tensor(gain, dtype=x.dtype)).contiguous().view(torch.uint8)
        return data.clone() if out is None else out.copy_(data)

    def decode(
        self,
        payload: torch.Tensor,
        key: Any,
        *,
        out: torch.Tensor,
        accumulate: bool = False,
        offset: int = 0,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> torch.Tensor:
        value = payload.clone().view(out.dtype) * gain
        return out.mul_(torch.tensor(beta, dtype=out.dtype)).add_(value) if accumulate else out.copy_(value)


def expected(
    inputs: list[torch.Tensor], codec1: Any, codec2: Any, key: Any, op: str = "mean"
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What an all-reduce of flat fp32 (or fp64) `inputs` must give on every rank, computed in one process without commpress.collectives.

    Returns the result and, per rank, its reduced shard before phase 2.
    """
    n, numel = len(inputs), inputs[0].numel()
    gain = 1.0 / n if op == "mean" else 1.0
    result = torch.full_like(inputs[0], float("nan"))
    blocks = -(-numel // BLOCK)
    reduced = []
    for owner in range(n):
        start = min(numel, owner * blocks // n * BLOCK)
        stop = min(numel, (owner + 1) * blocks // n * BLOCK)
        total = inputs[owner][start:stop].clone()
        if stop > start:
            for d in range(1, n):
                sender = (owner + d) % n
                k = key.replace(phase=1, sender=sender)
                payload = codec1.encode(inputs[sender][start:stop].clone(), k, offset=start, gain=gain)
                codec1.decode(payload, k, out=total, accumulate=True, offset=start, beta=gain if d == 1 else 1.0)
            reduced.append(total.clone())
            k = key.replace(phase=2, sender=owner)
            codec2.decode(codec2.encode(total, k, offset=start), k, out=result[start:stop], offset=start)
        else:
            reduced.append(total)
    return result, reduced
