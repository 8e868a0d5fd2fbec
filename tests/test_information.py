"""Information: against exact figures, a general solver, Monte Carlo, and properties that must hold everywhere."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
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
    assert info.eta_alloc(d, s, b) <= 1 or budget == 0
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
    assert found.eta_codec == pytest.approx(share)
    assert 0 < found.eta_alloc <= 1
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


# -- rounds


def test_van_trees_agrees_with_its_parts():
    d, bits, sigma, eps, a = 1000, 500.0, 2.0, 3.0, 0.7
    by_hand = sigma**2 * d / eps**2 * (1 - math.pi**2 * eps**2 / (a**2 * d)) / (1 - 2 ** (-2 * bits / d))
    assert info.rounds_lower_bound(d, bits, sigma, eps, half_width=a) == pytest.approx(by_hand)
    assert info.rounds_lower_bound(d, bits, sigma, eps, half_width=a, workers=8) == pytest.approx(by_hand / 8)
    # The information of the cos^2 prior on [-a, a], by integration.
    prior = quad(lambda x: 4 * (math.pi / (2 * a)) ** 2 / a * math.sin(math.pi * x / (2 * a)) ** 2, -a, a)[0]
    assert prior == pytest.approx(math.pi**2 / a**2)
    # What T rounds tell, put into the inequality, is the error again.
    trace = by_hand * info.fisher_limit(d, sigma**2, bits / d)
    assert d**2 / (trace + d * prior) == pytest.approx(eps**2)


@given(st.integers(1, 10**9), st.floats(1e-3, 64), positive, positive, st.floats(1, 100), st.integers(1, 1000))
def test_simple_form_is_never_above(d, bits, sigma, eps, wider, workers):
    a = math.pi * eps * math.sqrt(2 / d) * wider * (1 + 1e-12)
    sharp = info.rounds_lower_bound(d, bits * d, sigma, eps, half_width=a, workers=workers)
    simple = info.rounds_lower_bound_simple(d, bits * d, sigma, eps, half_width=a, workers=workers)
    assert simple <= sharp * (1 + 1e-9)
    assert info.rounds_lower_bound(d, 2 * bits * d, sigma, eps, half_width=a, workers=workers) <= sharp
    # Half the budget costs a factor of exactly 1 + 2^-b.
    half = info.rounds_lower_bound(d, bits * d / 2, sigma, eps, half_width=a, workers=workers)
    assert half / sharp == pytest.approx(1 + 2**-bits)


def test_simple_form_bends_and_has_a_condition():
    d, sigma, eps = 10_000, 1.0, 1.0
    assert info.rounds_lower_bound_simple(d, 4 * d, sigma, eps) == d / 2
    assert info.rounds_lower_bound_simple(d, d / 100, sigma, eps) == pytest.approx(d / 2 * 100 / (2 * math.log(2)))
    limit = math.pi * eps * math.sqrt(2 / d)
    info.rounds_lower_bound_simple(d, d, sigma, eps, half_width=limit * 1.001)
    with pytest.raises(SpecError, match="half_width"):
        info.rounds_lower_bound_simple(d, d, sigma, eps, half_width=limit * 0.999)


def test_rounds_at_the_ends():
    assert info.rounds_lower_bound(1, 1, 1.0, 1.0) == pytest.approx(4 / 3)
    assert info.rounds_lower_bound(5, 0, 1.0, 1.0) == math.inf == info.rounds_lower_bound_simple(5, 0, 1.0, 1.0)
    assert info.rounds_lower_bound(5, math.inf, 1.0, 1.0) == 5
    assert info.rounds_lower_bound(5, 1, 1e200, 1e-200) == math.inf, "out of range, and no error"
    assert info.rounds_lower_bound(5, 1, 1e-200, 1e200, half_width=1e-200) == 0
    # A prior that is good enough needs no round, even without bits.
    assert info.rounds_lower_bound(5, 0, 1.0, 1.0, half_width=0.1) == 0


def test_optimisation_form():
    sigma, eps = info.optimisation_form(3.0, 0.02, 4.0)
    assert (sigma, eps**2) == (0.75, pytest.approx(0.01))
    # T = sigma^2 d / (2 mu eps_f), uncompressed.
    assert info.rounds_lower_bound(64, math.inf, sigma, eps) == pytest.approx(9 * 64 / (2 * 4 * 0.02))


def test_communication_bound():
    assert info.communication_bits(100, 2.0, 3.0) == pytest.approx(50 * math.log2(100 * 9 / 4))
    assert info.communication_bits(100, 30.0, 3.0) == 0, "the prior's own error"
    assert info.communication_rounds(100, 10, 2.0, 3.0, workers=4) == pytest.approx(50 * math.log2(225) / 40)
    assert info.communication_rounds(100, 0, 2.0, 3.0) == math.inf
    assert info.communication_rounds(100, 0, 40.0, 3.0) == 0


# -- memory, correlation, drift, prediction


@given(st.integers(1, 1000), positive, st.floats(0, 8), st.integers(1, 1000))
def test_memory_raises_the_limit(d, s, bits, rounds):
    memoryless, remembering = rounds * info.fisher_limit(d, s, bits), info.memory_limit(d, s, bits, rounds)
    assert memoryless <= remembering * (1 + 1e-12)
    assert remembering <= rounds * d / s * (1 + 1e-12)
    assert info.memory_limit(d, s, bits, 1) == info.fisher_limit(d, s, bits)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.5, 0.95])
@pytest.mark.parametrize("rounds", [1, 2, 40])
def test_ar1_information_is_that_of_the_covariance(rho, rounds):
    t = np.arange(rounds)
    covariance = 2.5 * rho ** np.abs(t[:, None] - t).astype(float)
    exact = np.ones(rounds) @ np.linalg.solve(covariance, np.ones(rounds))
    assert info.ar1_information(3, 2.5, rho, rounds) == pytest.approx(3 * exact)


def dithered_mean_variance(rho, bits, rounds=4096, trials=20_000, seed=5):
    """T Var/sigma^2 of the mean of AR(1) noise, each value rounded with subtractive dither, by simulation.

    The step gives the error of an ideal dithered quantiser, step^2/12 = u/(1-u), so that the formula's two terms are seen alone.
    """
    rng = np.random.default_rng(seed)
    u = 2.0 ** (-2 * bits)
    step = math.sqrt(12 * u / (1 - u))
    x, total = rng.standard_normal(trials), np.zeros(trials)
    for _ in range(rounds):
        dither = rng.random(trials) * step
        total += np.floor((x + dither) / step + 0.5) * step - dither
        x = rho * x + math.sqrt(1 - rho * rho) * rng.standard_normal(trials)
    return rounds * float(np.var(total / rounds))


def test_ar1_dithered_form_is_additive():
    formula = info.ar1_dithered_variance(0.5, 1.0)
    assert formula == pytest.approx(10 / 3)
    measured = dithered_mean_variance(0.5, 1.0)
    assert measured == pytest.approx(formula, rel=0.05)
    product = 3 / (1 - 0.25)
    assert abs(measured / product - 1) > 0.05, "the product form must be told apart"


def test_ar1_dithered_variance_at_the_ends():
    assert info.ar1_dithered_variance(0.9, 0.1) == pytest.approx(25.7, abs=0.05)
    assert info.ar1_dithered_variance(0.0, 1.0) == pytest.approx(4 / 3)
    assert info.ar1_dithered_variance(0.5, math.inf) == 3
    assert info.ar1_dithered_variance(0.5, 0) == math.inf


@given(st.integers(1, 10**6), positive, positive, st.floats(-0.99, 0.99))
def test_ar1_rounds_invert_the_information(d, sigma, eps, rho):
    needed = info.ar1_rounds(d, sigma, eps, rho)
    if needed < 1:
        assert needed == pytest.approx(sigma**2 * d / eps**2)
        return
    gain = (1 - rho) / (1 + rho)
    assert d / sigma**2 * (1 + (needed - 1) * gain) == pytest.approx(d**2 / eps**2, rel=1e-9)
    assert info.ar1_rounds(d, sigma, eps, 0.0) == pytest.approx(max(needed if rho == 0 else 0, d * (sigma / eps) ** 2))


def test_ar1_rounds_against_the_leading_form():
    # For many rounds it is A (1+rho)/(1-rho), less 2 rho/(1-rho).
    leading = 10_000 * 19
    assert info.ar1_rounds(100, 1.0, 0.1, 0.9) == pytest.approx(leading - 18)
    assert info.ar1_rounds(100, 1.0, 0.1, 0.9, workers=4) == pytest.approx(leading / 4 - 18)


@pytest.mark.parametrize(("bits", "error"), [(0.5, 0.014142), (0.1, 0.02808)])
def test_drift(bits, error):
    found = info.drift_error(1.0, 0.01, 1.0, bits)
    assert found == pytest.approx(error, abs=5e-6)
    assert found == pytest.approx(0.01 / math.sqrt(info.fisher_fraction(bits)), rel=0.02)


@given(st.floats(-1.05, 1.05), st.floats(1e-3, 2), positive, st.floats(0.1, 8))
@settings(deadline=None)
def test_drift_is_the_fixed_point_of_the_filter(a, q, sigma, bits):
    p = info.drift_error(a, q, sigma, bits)
    m = a * a * p + q * q
    assert m * (1 - m / (m + sigma**2) * info.fisher_fraction(bits)) == pytest.approx(p, rel=1e-9)
    # And the one that the recursion goes to.
    x = 0.0
    for _ in range(3000):
        m = a * a * x + q * q
        x = m * (1 - m / (m + sigma**2) * info.fisher_fraction(bits))
    assert x <= p * (1 + 1e-9)
    if abs(a) < 0.95:
        assert x == pytest.approx(p, rel=1e-6)


def test_drift_at_the_ends():
    assert info.drift_error(0.5, 0.0, 1.0, 1.0) == 0 == info.drift_error(1.0, 0.0, 1.0, 1.0)
    assert info.drift_error(0.5, 1.0, 1.0, 0) == pytest.approx(1 / 0.75), "no bits: the stationary variance"
    assert info.drift_error(1.0, 0.1, 1.0, 0) == math.inf
    assert info.drift_error(2.0, 0.1, 1.0, 1.0) == math.inf, "a bit does not hold a doubling"
    assert info.drift_error(2.0, 0.1, 1.0, 1.1) < math.inf
    # A doubling mean needs error even without drift: the Riccati equation's other root.
    assert info.drift_error(2.0, 0.0, 1.0, math.inf) == pytest.approx(0.75)


def test_gorbunov_pinsker():
    assert info.causal_distortion(0.9, 1.0, 1.0) == pytest.approx(0.313480, abs=1e-6)
    for bits, gain in ((0.1, 1.552), (1.0, 4.1974), (2.0, 4.997)):
        assert info.causal_gain(0.9, bits) == pytest.approx(gain, abs=6e-4)
    assert info.causal_gain(0.9, 1.0) == pytest.approx(4.1974, abs=1e-4)
    assert info.causal_distortion(2.0, 1.0, 1.0) == math.inf
    assert info.causal_distortion(0.9, 1.0, math.inf) == 0
    assert info.causal_distortion(0.0, 3.0, 1.0) == pytest.approx(0.75), "no correlation: rate-distortion"


@given(st.floats(-0.999, 0.999), positive, st.floats(0, 10))
def test_causal_rate_and_gain_fit_the_distortion(a, s, bits):
    d = info.causal_distortion(a, s, bits)
    assert info.causal_rate(a, s, d) == pytest.approx(bits, abs=1e-6)
    assert info.causal_gain(a, bits) == pytest.approx(s / (1 - a * a) * 2 ** (-2 * bits) / d, rel=1e-9)
    assert info.causal_gain(a, bits) >= 1


# -- all-reduce


def test_ring_inflation():
    assert info.ring_inflation(0.1, 8) == pytest.approx(1.42949, abs=1e-5)
    assert info.ring_inflation(0.1, 32) == pytest.approx(6.286, abs=1e-3)
    for w, n in ((0.0, 5), (0.3, 1), (1e-12, 1000), (2.0, 20)):
        v = 1.0
        for _ in range(n - 1):
            v = (1 + w) * v + 1
        assert info.ring_inflation(w, n) == pytest.approx(v / n)
    assert info.ring_inflation(1.0, 5000) == math.inf


def thinned(x, keep, rng):
    """An unbiased codec whose omega is exactly 1/keep - 1: each coordinate survives with probability keep."""
    return x * (rng.random(x.shape) < keep) / keep


@pytest.mark.parametrize("own_exact", [False, True])
def test_two_stage_error_by_simulation(own_exact):
    rng = np.random.default_rng(3)
    n, d, k1, k2 = 4, 400_000, 0.6, 0.8
    w1, w2 = 1 / k1 - 1, 1 / k2 - 1
    g = rng.standard_normal((n, d))
    sent = thinned(g, k1, rng)
    if own_exact:
        for rank, shard in enumerate(np.array_split(np.arange(d), n)):
            sent[rank, shard] = g[rank, shard]
    result = thinned(sent.mean(0), k2, rng)
    mean = g.mean(0)
    expected = info.two_stage_error(float((g**2).sum()), float(mean @ mean), n, w1, w2, own_exact=own_exact)
    assert ((result - mean) ** 2).sum() == pytest.approx(expected, rel=0.02)
    inflation = (result**2).sum() / (d / n)
    if own_exact:
        assert inflation == pytest.approx((1 + w1 * (n - 1) / n) * (1 + w2), rel=0.02)
    else:
        assert inflation == pytest.approx(info.two_stage_inflation(w1, w2), rel=0.02)


def test_two_stage_fraction():
    assert info.two_stage_fraction(1, 2) == pytest.approx(0.75 * 0.9375)
    # At the limit omega is 1/(2^(2b) - 1), and the fraction is one over the inflation.
    assert info.two_stage_fraction(1, 2) == pytest.approx(1 / info.two_stage_inflation(1 / 3, 1 / 15))
    assert info.two_stage_fraction(1, 2, workers=1) == pytest.approx(0.9375)
    assert info.two_stage_fraction(1, 2, workers=4) == pytest.approx((1 + 3 * 0.75) / 4 * 0.9375)
    with pytest.raises(SpecError, match="mean_energy"):
        info.two_stage_error(4.0, 2.0, 4, 0.1, 0.1)


@given(st.integers(1, 12), st.integers(1, 5000))
def test_homomorphic_width_holds_the_sum(bits, n):
    width = info.homomorphic_width(bits, n)
    assert n * (2**bits - 1) < 2**width
    assert width == bits + math.ceil(math.log2(n))


def test_homomorphic_mse_by_simulation():
    rng = np.random.default_rng(4)
    n, d, step = 8, 100_000, 0.3
    g, dither = rng.standard_normal((n, d)), rng.random((n, d)) * step
    total = np.floor((g + dither) / step + 0.5).sum(0)  # integers only are added on the way
    result = (total * step - dither.sum(0)) / n
    assert ((result - g.mean(0)) ** 2).mean() == pytest.approx(info.homomorphic_mse(step, n), rel=0.02)


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
