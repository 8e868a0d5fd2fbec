"""One moving average in a codec's format: when it sticks, and whether stochastic rounding frees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from commpress.codecs import Key
from commpress.codecs import codec as make_codec
from commpress.optim import mantissa_for_nearest

BETAS = (0.9, 0.99, 0.999)
MANTISSAS = tuple(range(1, 13))
_START, _BETA, _COPIES = 1.5, 0.999, 4096
_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Average:
    """Which mantissas a round-to-nearest average of one decay runs with.

    Attributes:
        beta: decay. clean: mantissas with which it moves from every value. needed: the least of them above which all are clean. predicted: `mantissa_for_nearest`.
    """

    beta: float
    clean: tuple[int, ...]
    needed: int
    predicted: int

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "average", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Track:
    """An average with beta = .999 that decays from 1.5, no more input coming.

    Attributes:
        codec: its format. steps: when it was looked at. values: mean over its copies then. exact: without rounding.
    """

    codec: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    exact: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "track", **dataclasses.asdict(self)}


def averages() -> list[Average]:
    """Asks the codec itself: of all values of a binade, is any one left where it is when the average should fall by (1 - beta) of it, or rise by as much?"""
    found = []
    for beta in BETAS:
        clean = tuple(m for m in MANTISSAS if _moves(m, beta))
        stuck = [m for m in MANTISSAS if m not in clean]
        found.append(Average(beta, clean, max(stuck, default=0) + 1, mantissa_for_nearest(beta)))
    return found


def _moves(mantissa: int, beta: float) -> bool:
    codec = make_codec(f"float:e8m{mantissa},rounding=nearest")
    v = 1.0 + torch.arange(2**mantissa, dtype=torch.float32) / 2**mantissa
    for g in (0.0 * v, 2.0 * v):
        new = (beta * v.double() + (1.0 - beta) * g.double()).float()
        stored = codec.decode(codec.encode(new, Key()), Key(), out=torch.empty_like(v))
        if bool((stored == v).any()):
            return False
    return True


def tracks(*, quick: bool, seed: int = 0) -> list[Track]:
    """bfloat16's mantissa rounded to nearest, stochastically, and 12 bits rounded to nearest; 3000 steps, in full 6000."""
    steps = 3000 if quick else 6000
    found = []
    for spec, copies in (
        ("float:e8m7,rounding=nearest", 1),
        ("float:e8m7", _COPIES // 2 if quick else _COPIES),
        ("float:e8m12,rounding=nearest", 1),
    ):
        codec = make_codec(spec)
        v = torch.full((copies,), _START)
        payload = torch.empty(codec.payload_nbytes(copies), dtype=torch.uint8)
        when, values = [0], [_START]
        for step in range(1, steps + 1):
            key = Key(seed=seed, step=step)
            codec.decode(codec.encode(v.mul_(_BETA), key, out=payload), key, out=v)
            if step % (steps // _POINTS) == 0:
                when.append(step)
                values.append(float(v.double().mean()))
        found.append(Track(spec, tuple(when), tuple(values), tuple(_START * _BETA**t for t in when)))
    return found
