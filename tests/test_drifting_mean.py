"""Rounds that depend on each other: predictive against memoryless encoders, correlated noise, drifting means. Small versions, with negative controls."""

from __future__ import annotations

import math

import pytest
import torch

from commpress.errors import SpecError
from commpress.experiments._drifting_mean import correlated_mean, reconstruct, track
from commpress.experiments._mean_oracle import CodecOracle, calibrate

SEED = 90210
LLOYD_MAX = {2: 0.117482}  # theory.md, section 2


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Tensors are small here: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def steady_state(a: float, q: float, information: float) -> float:
    """theory.md's recursion, iterated; information is 1 - u."""
    p = 1.0
    for _ in range(20_000):
        ahead = a * a * p + q * q
        p = ahead * (1 - ahead / (ahead + 1) * information)
    return p


def test_predictive_gain_at_two_bits() -> None:
    found = reconstruct("hadamard+lloyd:2,scale=centroid", 0.9, rows=4, seed=SEED)
    assert found.memoryless == pytest.approx(LLOYD_MAX[2], rel=0.01)
    # D = D_LM (1 - a^2 + a^2 D), if the prediction's error is as Gaussian as the rotation makes it.
    assert found.predictive == pytest.approx(LLOYD_MAX[2] * 0.19 / (1 - 0.81 * LLOYD_MAX[2]), rel=0.01)
    assert found.best_gain == pytest.approx((1 - 0.81 * 2 ** (-2 * found.rate)) / 0.19, rel=1e-12)
    assert 0.9 * 4.997 <= found.gain < found.best_gain


@pytest.mark.parametrize(
    ("codec", "a"), [("lloyd:2", 0.9), ("hadamard+lloyd:3,scale=centroid", 0.5), ("lloyd:1", 0.99)]
)
def test_predictive_gain_elsewhere(codec: str, a: float) -> None:
    found = reconstruct(codec, a, rows=2, seed=SEED)
    assert 1 < found.gain <= 1.01 * found.best_gain  # the two are close, and both distortions are measured
    assert found.predictive >= (1 - a * a) / (2 ** (2 * found.rate) - a * a)  # the causal limit itself


def test_nothing_to_predict_gains_nothing() -> None:
    assert reconstruct("lloyd:2", 0.0, rows=4, seed=SEED).gain == pytest.approx(1, abs=0.01)


def test_prediction_hurts_with_an_unbiased_scale_at_few_bits() -> None:
    """What the docstring warns of: a^2 omega > 1, the error grows without limit."""
    with_centroid, without = (
        reconstruct(f"hadamard+lloyd:0.25{o}", 0.99, rows=1, rounds=40, seed=SEED) for o in (",scale=centroid", "")
    )
    assert with_centroid.gain > 2
    assert without.gain < 0.01


def test_correlated_noise_adds_and_does_not_multiply() -> None:
    half = correlated_mean("hadamard+lloyd:1", 0.5, rows=2, rounds=1024, seed=SEED)
    assert half.measured == pytest.approx(half.expected, rel=5 * math.sqrt(2 / 8192) + 0.005)
    assert half.additive == pytest.approx(3.333, rel=0.01)
    assert half.measured > half.additive  # 3.57: the codec's omega takes the place of u/(1-u) = 1/3
    tenth = correlated_mean("hadamard+lloyd:0.1", 0.9, rows=2, rounds=1024, seed=SEED)
    assert tenth.additive < tenth.measured < 0.5 * tenth.product


def test_drifting_mean() -> None:
    slow = track("hadamard+lloyd:0.5,scale=centroid", 1.0, 0.01, rows=1, rounds=600, seed=SEED)
    assert slow.centred == pytest.approx(slow.expected, rel=0.05)
    assert slow.limit < slow.centred and slow.uncompressed < slow.limit
    assert slow.limit == pytest.approx(steady_state(1.0, 0.01, 1 - 2 ** (-2 * slow.rate)), rel=1e-9)
    _, omega = calibrate(CodecOracle(slow.codec), 4096, seed=SEED)
    assert slow.expected == pytest.approx(steady_state(1.0, 0.01, 1 / (1 + omega)), rel=1e-9)
    assert slow.plain is None and slow.plain_expected is None
    fast = track("hadamard+lloyd:1,scale=centroid", 0.99, 0.5, rows=1, rounds=300, seed=SEED)
    assert fast.plain is not None
    assert fast.centred == pytest.approx(fast.expected, rel=0.03)
    assert fast.plain == pytest.approx(fast.plain_expected, rel=0.03)
    assert fast.plain > 1.8 * fast.centred  # the energy of theta itself costs bits unless it is predicted


def test_the_scale_does_not_matter_to_a_filter_that_knows_it() -> None:
    both = [track(f"hadamard+lloyd:1{o}", 0.9, 1.0, rows=1, rounds=150, seed=SEED) for o in ("", ",scale=centroid")]
    assert both[0].centred == pytest.approx(both[1].centred, rel=0.03)


@pytest.mark.parametrize("wrong", [-1.0, 1.0, math.nan])
def test_sequences_refuse(wrong: float) -> None:
    with pytest.raises(SpecError):
        reconstruct("lloyd:2", wrong)
    with pytest.raises(SpecError):
        correlated_mean("lloyd:2", wrong)
    with pytest.raises(SpecError):
        track("lloyd:2", 2 * wrong, 0.1)
    with pytest.raises(SpecError):
        reconstruct("lloyd:2", 0.5, d=0)
