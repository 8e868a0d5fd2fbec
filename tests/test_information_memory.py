"""Rounds, memory, correlation and all-reduce models: against exact figures, a general solver, Monte Carlo, and properties that must hold everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from commpress import information as info
from commpress.errors import SpecError

# The worked example: one bit per coordinate over four layers.
DIMS, VARIANCES = np.array([100.0, 400, 1000, 50]), np.array([4.0, 1, 0.25, 9])
BITS = DIMS.sum()

positive = st.floats(1e-3, 1e3)
some_layers = st.lists(st.tuples(st.integers(1, 10_000), positive, st.floats(0, 12)), min_size=1, max_size=12)


def unzip(layers):
    d, s, b = (np.array(column, dtype=float) for column in zip(*layers, strict=True))
    return d, s, b


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
