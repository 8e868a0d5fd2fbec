"""Trellis-coded quantisation: indices against the twin, and the rate that an ideal entropy coder would give them."""

import numpy as np
import pytest
import torch
from _inputs import Guarded, normal

from commpress import ops
from commpress.reference import _tcq

PATHS = [isa for isa in ops.Isa if isa is not ops.Isa.BEST and ops.isa_available(isa)]


def plain_levels() -> np.ndarray:
    k = np.arange(_tcq.INDICES)
    return np.stack([2 * k, np.maximum(2 * k - 1, 0)]).astype(np.float32)


def quantised(v: np.ndarray, levels: np.ndarray, prices: np.ndarray, isa: ops.Isa = ops.Isa.BEST) -> np.ndarray:
    out = Guarded(v.size, torch.int16)
    tables = {"levels": torch.from_numpy(levels), "prices": torch.from_numpy(prices)}
    ops.tcq_quantise(torch.from_numpy(v.reshape(-1)), out.tensor, block=v.shape[1], isa=isa, **tables)
    assert out.intact()
    return out.tensor.numpy().reshape(v.shape)


def dequantised(indices: np.ndarray, levels: np.ndarray) -> np.ndarray:
    out = Guarded(indices.size, torch.float32)
    ops.tcq_dequantise(
        torch.from_numpy(indices.reshape(-1)), out.tensor, block=indices.shape[1], levels=torch.from_numpy(levels)
    )
    assert out.intact()
    return out.tensor.numpy().reshape(indices.shape)


@pytest.mark.parametrize(("blocks", "n"), [(1, 1), (1, 300), (3, 64), (16, 40), (17, 33), (40, 5)])
def test_every_path_is_the_twin(blocks, n):
    prices = np.float32(0.3) * np.arange(128, dtype=np.float32).reshape(2, 64)
    prices[1] = np.float32(0.2) * np.arange(64, dtype=np.float32)
    levels = plain_levels() * np.float32(0.97)
    for number, width in enumerate((0.3, 1.5, 20.0, 1e6)):
        v = normal(blocks * n, number).reshape(blocks, n) * np.float32(width)
        v[0, -1] = -0.0 if n > 1 else v[0, -1]
        expected = _tcq.quantise(v, levels, prices)
        for isa in PATHS:
            assert np.array_equal(quantised(v, levels, prices, isa), expected), (width, isa.name)
        assert np.array_equal(dequantised(expected, levels), _tcq.dequantise(expected, levels))
        assert np.abs(expected).max() < 64 and (width < 10 or expected.any())


def test_any_floats_and_any_indices_are_safe():
    v = normal(640, 1).reshape(20, 32)
    v[0, :5] = np.nan, np.inf, -np.inf, 3e38, 1e-42
    levels, prices = plain_levels(), np.zeros((2, 64), np.float32)
    results = [quantised(v, levels, prices, isa) for isa in PATHS]
    assert all(np.abs(r.astype(int)).max() < 64 for r in results)
    assert all(np.array_equal(r[1:], results[0][1:]) for r in results)
    wild = np.random.default_rng(0).integers(-(2**15), 2**15, (20, 32)).astype(np.int16)
    assert np.isfinite(dequantised(wild, levels)).all()
    assert np.array_equal(dequantised(wild, levels), _tcq.dequantise(wild, levels))


def test_operators_check_their_arguments():
    v, k, table = torch.zeros(64), torch.zeros(64, dtype=torch.int16), torch.zeros(2, 64)
    good = {"block": 32, "levels": table, "prices": table}
    ops.tcq_quantise(v, k, **good)
    for change, message in (
        ({"block": 0}, "whole blocks"),
        ({"block": 33}, "whole blocks"),
        ({"levels": torch.zeros(127)}, "levels"),
        ({"prices": table.double()}, "prices"),
        ({"isa": 7}, "not available"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.tcq_quantise(v, k, **{**good, **change})
    with pytest.raises(RuntimeError, match="int16"):
        ops.tcq_quantise(v, k[:-1], **good)
    with pytest.raises(RuntimeError, match="float32"):
        ops.tcq_dequantise(k, v.double(), block=32, levels=table)


def states_of(indices: np.ndarray) -> np.ndarray:
    """The quantiser in force at every index: the twin's state machine, all blocks at once."""
    step = np.array([[_tcq.next_state(8, s, p) for p in range(2)] for s in range(8)])
    state, out = np.zeros(indices.shape[0], np.int64), np.empty(indices.shape, np.int64)
    for i in range(indices.shape[1]):
        out[:, i] = state & 1
        state = step[state, indices[:, i] & 1]
    return out


def designed(step: float, price: float, n: int) -> tuple[float, float, float]:
    """(bits, D, eta) of N(0,1) with the given step and price of a bit, tables fitted to one sample and measured on another.

    Bits are the ideal code lengths of the fitted frequencies, conditioned on the quantiser alone (first order).
    """
    levels, bits, weight = plain_levels(), np.zeros((2, 64)), price / step**2
    bits[:] = 1 + np.arange(64)
    for turn in range(16):
        fresh = turn == 15
        x = normal(n, 3 if fresh else 2).reshape(-1, 2048)
        k = quantised(x / np.float32(step), levels, (weight * bits).astype(np.float32))
        q, size = states_of(k), np.abs(k.astype(np.int64))
        cell = q * 64 + size
        if fresh:
            y = dequantised(k, levels).astype(np.float64)
            sent = (bits.reshape(-1)[cell]).mean()
            g = (x * y).sum() ** 2 / ((x.astype(np.float64) ** 2).sum() * (y**2).sum())
            return float(sent), float(1 - g), float(g / (1 - 2 ** (-2 * sent)))
        count = np.bincount(cell.reshape(-1), minlength=128).reshape(2, 64).astype(np.float64)
        total = np.bincount(cell.reshape(-1), np.abs(x).reshape(-1) / step, minlength=128).reshape(2, 64)
        levels = np.where(count > 20, total / np.maximum(count, 1), plain_levels()).astype(np.float32)
        levels[:, 0] = 0
        share = (count + 0.05) / (count + 0.05).sum(1, keepdims=True)
        bits = -np.log2(share) + (np.arange(64) > 0)  # and a sign


@pytest.mark.parametrize(
    ("rate", "step", "price", "bar"),
    [(1, 0.93, 0.422, 0.935), (1.5, 0.68, 0.2015, 0.975), (2, 0.5, 0.0973, 0.988), (3, 0.26, 0.0241, 0.997)],
)
def test_ideal_eta_of_eight_states(rate, step, price, bar):
    sent, _, eta = designed(step, price, 2**18)
    assert sent == pytest.approx(rate, abs=0.02)
    assert bar <= eta < bar + 0.01
