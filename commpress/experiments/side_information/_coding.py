"""Codes with side information, measured: a residual where both sides know it, `modulo` where only the receiver does."""

from __future__ import annotations

import math

import numpy as np
import torch

from commpress.codecs import Key
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError
from commpress.feedback import Layout
from commpress.hooks._prediction import Predictor
from commpress.hooks._statistics import LayerStatistics
from commpress.hooks._sums import Column, LayerSums

_HALVINGS = 14


def saving(rho: float) -> float:
    """-1/2 log2(1 - rho^2): bits a coordinate that side information of this correlation saves at most, whoever knows it (Wyner and Ziv, 1976).

    Raises:
        SpecError: rho is not in (-1, 1).
    """
    if not -1 < rho < 1:
        raise SpecError(f"a correlation is between -1 and 1, got {rho}")
    return -0.5 * math.log2(1 - rho * rho)


def pair(numel: int, rho: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and what is known of it, both N(0,1) fp32 of shape (numel,), of correlation rho."""
    generator = torch.Generator().manual_seed(seed)
    y, z = torch.randn(2, numel, generator=generator)
    return rho * y + math.sqrt(1 - rho * rho) * z, y


def plain(spec: str, x: torch.Tensor, seed: int) -> float:
    """Mean squared error of a codec that knows nothing."""
    codec, key = make_codec(spec), Key(seed=seed)
    return _error(codec.decode(codec.encode(x, key), key, out=torch.empty_like(x)), x)


def residual(spec: str, x: torch.Tensor, known: torch.Tensor, seed: int) -> float:
    """Mean squared error where `known` is the previous aggregate: by the predictor of the DDP hook, which finds the coefficient itself."""
    layout = Layout(("layer",), (x.numel(),))
    predictor = Predictor({"layer": x.numel()})
    predictor.keep("layer", known)
    bucket, sums = predictor.bucket(layout), LayerSums(layout, distortion=False)
    sums.add_squares(Column.LOCAL, x)
    bucket.measure(x, sums)
    predictor.observe(statistics_from(sums.table, step=0, senders=1))
    codec, key, work = make_codec(spec), Key(seed=seed), x.clone()
    bucket.subtract(work)
    codec.decode(codec.encode(work, key), key, out=work)
    bucket.add_back(work)
    return _error(work, x)


def statistics_from(table: np.ndarray, *, step: int, senders: int) -> LayerStatistics:
    """What a step's sums tell a `Predictor`; nothing was encoded."""
    unknown = np.full(len(table), np.nan)
    return LayerStatistics(step, table, unknown, unknown, unknown, unknown, senders)


def modulo(bits: int, rho: float, x: torch.Tensor, known: torch.Tensor, seed: int) -> float:
    """Mean squared error of ``modulo:bits,rho=rho``; the receiver alone has `known`."""
    codec, key = make_codec(f"modulo:{bits},rho={rho:.6f}"), Key(seed=seed)
    return _error(codec.decode(codec.encode(x, key), key, out=torch.empty_like(x), side=known), x)


def crossing(bits: int, numel: int, seed: int) -> float:
    """The correlation at which `modulo` is as good as plain Lloyd-Max quantisation of the same bits, by bisection with the same noise throughout."""
    low, high = 0.3, 0.99
    for _ in range(_HALVINGS):
        rho = (low + high) / 2
        x, known = pair(numel, rho, seed)
        if modulo(bits, rho, x, known, seed) < plain(f"lloyd:{bits}", x, seed):
            high = rho
        else:
            low = rho
    return (low + high) / 2


def _error(found: torch.Tensor, x: torch.Tensor) -> float:
    return float((found - x).double().square().mean())
