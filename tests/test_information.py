"""Information: against exact figures, a general solver, Monte Carlo, and properties that must hold everywhere."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from commpress import information as info
from commpress.errors import SpecError, TensorError

# The worked example: one bit per coordinate over four layers.
DIMS, VARIANCES = np.array([100.0, 400, 1000, 50]), np.array([4.0, 1, 0.25, 9])
BITS = DIMS.sum()

positive = st.floats(1e-3, 1e3)
some_layers = st.lists(st.tuples(st.integers(1, 10_000), positive, st.floats(0, 12)), min_size=1, max_size=12)


def unzip(layers):
    d, s, b = (np.array(column, dtype=float) for column in zip(*layers, strict=True))
    return d, s, b


# -- the limit


def test_exact_and_linear_limit_at_a_tenth_of_a_bit():
    exact, linear = info.fisher_limit(4096, 2.0, 0.1), info.fisher_limit_linear(4096, 2.0, 0.1)
    assert 4096 / 2 / exact == pytest.approx(7.72502, abs=5e-6)
    assert 4096 / 2 / linear == pytest.approx(7.21348, abs=5e-6)


def test_limit_at_the_ends():
    assert info.fisher_limit(0, 1.0, 2.0) == 0
    assert info.fisher_limit(10, 0.5, 0) == 0
    assert info.fisher_limit(10, 0.5, math.inf) == 20 == info.fisher_limit_linear(10, 0.5, math.inf)
    # No digits are lost where 2^(-2b) is nearly 1.
    assert info.fisher_limit(1, 1.0, 1e-20) == pytest.approx(2 * math.log(2) * 1e-20, rel=1e-12)


@given(some_layers, st.floats(1.01, 3))
def test_limits_are_monotone_and_the_linear_one_is_looser(layers, more):
    d, s, b = unzip(layers)
    exact, linear = info.layer_limits(d, s, b), info.layer_limits_linear(d, s, b)
    assert (exact <= linear * (1 + 1e-14)).all()
    assert (linear <= d / s).all()
    assert (info.layer_limits(d, s, b * more) >= exact).all()
    assert info.total_limit(d, s, b) == pytest.approx(exact.sum())
    for i in range(len(d)):
        assert exact[i] == pytest.approx(info.fisher_limit(d[i], s[i], b[i]), rel=1e-14)
        assert linear[i] == pytest.approx(info.fisher_limit_linear(d[i], s[i], b[i]), rel=1e-14)


# -- the best allocation


def test_worked_example():
    bits = info.fisher_waterfilling(DIMS, VARIANCES, BITS)
    np.testing.assert_allclose(bits, [0, 0.3929, 1.3929, 0], atol=1e-4)
    assert info.fisher_optimum(DIMS, VARIANCES, BITS) == pytest.approx(3587.909, abs=1e-3)
    assert (DIMS / VARIANCES).sum() == pytest.approx(4430.556, abs=1e-3)
    best_fraction = info.fisher_optimum(DIMS, VARIANCES, BITS) / (DIMS / VARIANCES).sum()
    assert best_fraction == pytest.approx(0.8098, abs=5e-5)
    # The other three allocations of the same bits, and what they leave of the information.
    for other, fraction in (
        ([2.5295, 1.5295, 0.5295, 3.1145], 0.5557),
        ([2.0907, 1.2778, 0.6982, 2.6319], 0.6414),
        ([1.0, 1, 1, 1], 0.75),
    ):
        total = info.total_limit(DIMS, VARIANCES, other)
        assert total / (DIMS / VARIANCES).sum() == pytest.approx(fraction, abs=1e-4)
        assert info.eta_alloc(DIMS, VARIANCES, other) == pytest.approx(total / 3587.909, abs=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_waterfilling_agrees_with_a_general_solver(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    d, s = rng.integers(1, 500, n).astype(float), np.exp(rng.normal(0, 1.5, n))
    budget = d.sum() * rng.uniform(0.05, 4)
    scale = (d / s).sum()
    found = minimize(
        lambda b: -(d / s * -np.expm1(-2 * math.log(2) * b)).sum() / scale,
        np.full(n, budget / d.sum()),
        jac=lambda b: -(d / s * 2 * math.log(2) * np.exp2(-2 * b)) / scale,
        bounds=[(0, None)] * n,
        constraints={"type": "eq", "fun": lambda b: (d @ b - budget) / d.sum(), "jac": lambda b: d / d.sum()},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    best = info.fisher_optimum(d, s, budget)
    assert best == pytest.approx(-found.fun * scale, rel=1e-6)
    assert best >= info.total_limit(d, s, np.maximum(found.x, 0) * (budget / (d @ np.maximum(found.x, 0)))) * (
        1 - 1e-12
    )


@given(some_layers)
def test_optimum_is_above_any_allocation_and_spends_the_budget(layers):
    d, s, b = unzip(layers)
    budget = float(d @ b)
    bits = info.fisher_waterfilling(d, s, budget)
    assert (bits >= 0).all()
    assert d @ bits == pytest.approx(budget, rel=1e-12)
    assert info.fisher_optimum(d, s, budget) >= info.total_limit(d, s, b) * (1 - 1e-12)
    # Quieter layers never get fewer bits, equal layers get the same.
    assert (np.diff(bits[np.argsort(s, kind="stable")]) <= 1e-12).all()
    # So few bits that their information is 0 in double precision have no share of it.
    assert info.eta_alloc(d, s, b) <= 1 or info.fisher_optimum(d, s, budget) == 0
    # The value by the other formula: sum d [1/s - nu]_+.
    if bits.max() > 0:
        i = int(np.argmax(bits))
        nu = 2 ** (-2 * bits[i]) / s[i]
        value = (d * np.maximum(1 / s - nu, 0)).sum()
        assert value == pytest.approx(info.fisher_optimum(d, s, budget), rel=1e-9, abs=1e-12 * (d / s).sum())


def test_waterfilling_at_the_ends():
    none = np.zeros(0)
    assert info.fisher_waterfilling(none, none, 0).shape == (0,)
    assert info.fisher_optimum(none, none, 0) == 0
    assert (info.fisher_waterfilling(DIMS, VARIANCES, 0) == 0).all()
    assert info.fisher_optimum(DIMS, VARIANCES, 0) == 0
    np.testing.assert_array_equal(info.fisher_waterfilling([7], [3.0], 14), [2])
    tiny = info.fisher_waterfilling(DIMS, VARIANCES, 1e-30)
    np.testing.assert_allclose(tiny, [0, 0, 1e-33, 0], rtol=1e-12)
    huge = info.fisher_waterfilling(DIMS, VARIANCES, 1e30)
    np.testing.assert_allclose(huge, 1e30 / 1550, rtol=1e-12)
    assert info.fisher_optimum(DIMS, VARIANCES, 1e30) == pytest.approx((DIMS / VARIANCES).sum(), rel=1e-15)
    # Exactly where the second layer is about to get its first bit, and layers that are alike.
    np.testing.assert_allclose(info.fisher_waterfilling(DIMS, VARIANCES, 1000.0), [0, 0, 1, 0], atol=1e-15)
    np.testing.assert_array_equal(info.fisher_waterfilling([2, 2, 2], [5.0, 5, 5], 6), [1, 1, 1])
    # Variances at the ends of what a double holds.
    np.testing.assert_array_equal(info.fisher_waterfilling([1, 1], [1e-300, 1e300], 10), [10, 0])


# -- what was achieved


def test_sign_of_a_gaussian():
    x = np.random.default_rng(1).standard_normal(1_000_000)
    y = np.sign(x)
    g = info.captured(float(x @ y), float(x @ x), float(y @ y))
    assert isinstance(g, float)
    assert g == pytest.approx(2 / math.pi, abs=2e-3)
    assert info.efficiency(g, 1.0) == pytest.approx(0.848826, abs=2e-3)
    # Halving the rate that is claimed must not go unnoticed.
    assert info.efficiency(g, 0.5) > 1.2


def lloyd_max(levels):
    """Centroids, probabilities and distortion of the Lloyd-Max quantiser of N(0,1), by Lloyd's iteration."""
    points = np.linspace(-2, 2, levels)
    for _ in range(20_000):
        edges = np.concatenate([[-np.inf], (points[1:] + points[:-1]) / 2, [np.inf]])
        mass = np.diff(norm.cdf(edges))
        new = -np.diff(norm.pdf(edges)) / mass
        if np.abs(new - points).max() < 1e-14:
            break
        points = new
    return points, edges, 1 - (mass * points**2).sum()


@pytest.mark.parametrize(
    ("bits", "distortion", "omega"),
    [(1, 0.363380, 0.570796), (2, 0.117482, 0.133121), (3, 0.034548, 0.035784), (4, 0.009501, 0.009592)],
)
def test_unbiased_error_of_lloyd_max(bits, distortion, omega):
    _, _, d = lloyd_max(2**bits)
    assert d == pytest.approx(distortion, abs=1e-5)
    assert info.vnmse(1 - d) == pytest.approx(omega, rel=1e-4)
    # Never below the limit of public-coin codes.
    assert info.vnmse(1 - d) > 1 / (2 ** (2 * bits) - 1) == pytest.approx(info.vnmse(info.fisher_fraction(bits)))


def test_a_centroid_decoder_is_as_sensitive_as_it_captures():
    """d E[x^]/d theta = E[x^^2] = G: the reason why G is Fisher information and 1/G the unbiased scale."""
    points, edges, d = lloyd_max(4)

    def mean(theta):
        return (points * np.diff(norm.cdf(edges - theta))).sum()

    slope = (mean(1e-5) - mean(-1e-5)) / 2e-5
    assert slope == pytest.approx(0.882518, abs=1e-5)
    assert 1 - d == pytest.approx(slope, abs=1e-5)


def test_captured_of_arrays_and_of_zeros():
    dot, e, f = np.array([3.0, 0, 0, -2]), np.array([9.0, 0, 4, 4]), np.array([4.0, 1, 0, 1])
    np.testing.assert_allclose(info.captured(dot, e, f), [0.25, 0, 0, 1])
    assert info.captured(0.0, 0.0, 0.0) == 0
    assert info.captured(np.zeros(0), np.zeros(0), np.zeros(0)).shape == (0,)
    # Energies whose product is out of range.
    assert info.captured(1e200, 1e200, 1e200) == pytest.approx(1)
    assert info.captured(1e-200, 1e-200, 4e-200) == pytest.approx(0.25)
    # Rounding in single precision is cut, nonsense is not.
    assert info.captured(1.0001, 1.0, 1.0) == 1
    with pytest.raises(SpecError, match="different vectors"):
        info.captured(2.0, 1.0, 1.0)


@given(st.integers(1, 50), st.integers(0, 2**32 - 1), st.floats(1e-8, 1e8))
def test_captured_is_a_share_and_knows_no_scale(n, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(n), rng.standard_normal(n)
    g = info.captured(float(x @ y), float(x @ x), float(y @ y))
    assert 0 <= g <= 1
    y = y * scale
    assert info.captured(float(x @ y), float(x @ x), float(y @ y)) == pytest.approx(g, rel=1e-9)
    assert info.captured(float(y @ y), float(y @ y), float(y @ y)) == pytest.approx(1)


def test_efficiency_without_bits():
    assert math.isnan(info.efficiency(0.0, 0.0))
    assert info.efficiency(0.5, 0.0) == math.inf
    np.testing.assert_allclose(info.efficiency(np.array([0.5, 1.0]), np.array([1.0, np.inf])), [2 / 3, 1])
    assert info.vnmse(0.0) == math.inf


def test_information_of_a_codec_at_the_limit():
    bits = info.fisher_waterfilling(DIMS, VARIANCES, BITS)
    at_limit = 1 - np.exp2(-2 * bits)
    found = info.achieved_information(DIMS, VARIANCES, bits, at_limit)
    assert found.achieved == pytest.approx(found.optimum) == pytest.approx(3587.909, abs=1e-3)
    assert found.eta_codec == pytest.approx(1)
    assert found.eta_alloc == pytest.approx(1)
    assert found.binding == "memoryless"
    assert list(found.as_dict()) == ["achieved", "allocated", "optimum", "eta_codec", "eta_alloc", "binding"]
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.achieved = 0.0


@given(some_layers, st.floats(0, 1))
def test_ratios_never_exceed_one_below_the_limit(layers, share):
    d, s, b = unzip(layers)
    found = info.achieved_information(d, s, b, share * -np.expm1(-2 * math.log(2) * b))
    if found.allocated == 0:
        assert math.isnan(found.eta_codec) and math.isnan(found.eta_alloc)
        return
    assert 0 < found.eta_alloc <= 1
    if found.allocated < 1e-290:  # a share of a denormal number is rounded to a whole one
        return
    assert found.eta_codec == pytest.approx(share)
    assert found.achieved <= found.allocated * (1 + 1e-12)
    assert info.eta_codec(d, s, b, share * -np.expm1(-2 * math.log(2) * b)) == found.eta_codec


def test_information_names_the_limit_with_memory():
    memoryless = info.achieved_information([100], [1.0], [0.1], [0.3])
    assert memoryless.eta_codec > 1, "error feedback may pass the memoryless limit"
    first = info.achieved_information([100], [1.0], [0.1], [0.3], memory_rounds=1)
    assert first.binding == "with memory"
    assert first.allocated == memoryless.allocated
    later = info.achieved_information([100], [1.0], [0.1], [0.3], memory_rounds=50)
    assert later.allocated == pytest.approx(info.memory_limit(100, 1.0, 0.1, 50) / 50)
    assert later.eta_codec < 1


def test_information_of_nothing():
    empty = info.achieved_information([], [], [], [])
    assert (empty.achieved, empty.allocated, empty.optimum) == (0, 0, 0)
    assert math.isnan(empty.eta_codec)
    assert info.achieved_information([5], [2.0], [0], [0.5]).eta_codec == math.inf


# -- bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: info.fisher_limit(-1, 1.0, 1.0),
        lambda: info.fisher_limit(1, 0.0, 1.0),
        lambda: info.fisher_limit(1, 1.0, -0.1),
        lambda: info.fisher_limit(math.inf, 1.0, 1.0),
        lambda: info.fisher_fraction(math.nan),
        lambda: info.layer_limits([1, 0], [1, 1], [1, 1]),
        lambda: info.layer_limits([1, 1], [1, math.nan], [1, 1]),
        lambda: info.layer_limits([1, 1], [1, 1], [1, -1]),
        lambda: info.fisher_waterfilling([1], [1], -1),
        lambda: info.fisher_waterfilling([], [], 1),
        lambda: info.captured(math.nan, 1.0, 1.0),
        lambda: info.captured(0.0, -1.0, 1.0),
        lambda: info.efficiency(1.1, 1.0),
        lambda: info.efficiency(0.5, -1.0),
        lambda: info.vnmse(2.0),
        lambda: info.achieved_information([1], [1], [1], [1.5]),
        lambda: info.achieved_information([1], [1], [1], [1], memory_rounds=0),
        lambda: info.rounds_lower_bound(0, 1, 1.0, 1.0),
        lambda: info.rounds_lower_bound(1.5, 1, 1.0, 1.0),
        lambda: info.rounds_lower_bound(1, 1, 1.0, 0.0),
        lambda: info.rounds_lower_bound(1, 1, 1.0, 1.0, workers=0),
        lambda: info.rounds_lower_bound(1, 1, 1.0, 1.0, half_width=0),
        lambda: info.optimisation_form(1.0, 1.0, 0.0),
        lambda: info.communication_bits(1, 1.0, 0.0),
        lambda: info.ar1_information(1, 1.0, 1.0, 2),
        lambda: info.ar1_dithered_variance(-1.0, 2),
        lambda: info.drift_error(math.inf, 0.1, 1.0, 1.0),
        lambda: info.drift_error(1.0, -0.1, 1.0, 1.0),
        lambda: info.causal_gain(1.0, 1.0),
        lambda: info.causal_rate(0.9, 1.0, 0.0),
        lambda: info.ring_inflation(-0.1, 2),
        lambda: info.homomorphic_width(0, 2),
        lambda: info.homomorphic_mse(0.0, 2),
        lambda: info.memory_limit(1, 1.0, 1.0, 0),
        lambda: info.drift_error(1e200, 0.1, 1.0, 1.0),
        lambda: info.homomorphic_mse(1e200, 2),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(SpecError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: info.fisher_limit("3", 1.0, 1.0),
        lambda: info.fisher_limit(np.ones(2), 1.0, 1.0),
        lambda: info.fisher_limit(None, 1.0, 1.0),
        lambda: info.layer_limits([1, 1], [1], [1, 1]),
        lambda: info.layer_limits([[1]], [[1]], [[1]]),
        lambda: info.layer_limits(["x"], [1], [1]),
        lambda: info.captured(np.ones(2), np.ones(3), np.ones(2)),
        lambda: info.efficiency(np.ones(2), 1.0),
        lambda: info.captured("x", 1.0, 1.0),
    ],
)
def test_wrong_types_and_shapes_are_refused(call):
    with pytest.raises(TensorError):
        call()


def test_everything_public_is_documented():
    for name in info.__all__:
        assert getattr(info, name).__doc__, name
