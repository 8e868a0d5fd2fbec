"""`allocation.history_window`: both laws found again, the window that they ask for, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from commpress.allocation import history_window
from commpress.errors import SpecError

W = np.arange(1, 25)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_a_power_law_is_found_and_its_window_is_eps_to_the_minus_one_over_alpha(alpha: float, floor: float) -> None:
    errors = floor + 0.2 * W**-alpha
    for eps in (0.02, 0.01, 0.005):
        found = history_window(errors, eps=eps)
        assert found.law == "power" and found.alpha == pytest.approx(alpha, rel=0.01)
        assert found.floor == pytest.approx(floor, abs=2e-3)
        assert found.power_residual < 1e-3 * found.exponential_residual + 1e-6
        assert found.window == pytest.approx((0.2 / eps) ** (1 / alpha), rel=0.03, abs=1)


@pytest.mark.parametrize("tau", [1.0, 2.5, 6.0])
def test_an_exponential_is_found_and_its_window_is_a_logarithm(tau: float) -> None:
    errors = 0.5 + 0.4 * np.exp(-W / tau)
    for eps in (0.1, 0.01, 0.001):
        found = history_window(errors, eps=eps)
        assert found.law == "exponential" and found.tau == pytest.approx(tau, rel=0.01)
        assert abs(found.window - max(1, math.ceil(tau * math.log(0.4 / eps)))) <= 1
        assert found.exponential_residual < 1e-3 * found.power_residual


def test_with_noise_the_law_is_still_told_apart() -> None:
    generator = np.random.default_rng(3)
    noise = 5e-4 * generator.standard_normal((20, len(W)))
    power = [history_window(0.6 + 0.2 / W + row, eps=0.01).law for row in noise]
    exponential = [history_window(0.6 + 0.2 * np.exp(-W / 3) + row, eps=0.01).law for row in noise]
    assert power == ["power"] * 20 and exponential == ["exponential"] * 20


def test_a_window_is_no_longer_than_what_is_gained() -> None:
    assert history_window([0.9] * 8, eps=0.01).law == "none"
    flat = history_window(0.9 + 0.005 / W, eps=0.01)
    assert (flat.law, flat.window) == ("none", 1)
    worse = history_window(0.5 + 0.01 * W, eps=0.01)  # a longer history does harm: nothing to choose
    assert (worse.law, worse.window) == ("none", 1)
    assert history_window(0.0 + 1.0 * W**-0.05, eps=1e-6).window == 1 << 20, "the largest"


@pytest.mark.parametrize(
    ("errors", "eps"),
    [
        ([1.0, 0.5, 0.3], 0.1),
        ([], 0.1),
        ([[1.0, 0.9], [0.8, 0.7]], 0.1),
        ([1.0, 0.5, float("nan"), 0.3], 0.1),
        ([1.0, 0.5, -0.1, 0.3], 0.1),
        ([1.0, 0.5, 0.4, 0.3], 0.0),
        ([1.0, 0.5, 0.4, 0.3], float("inf")),
    ],
)
def test_what_it_refuses(errors: list[float], eps: float) -> None:
    with pytest.raises(SpecError):
        history_window(errors, eps=eps)
