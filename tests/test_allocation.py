"""The Gaussian optimum and codecs' curves: against closed forms and scipy's solvers."""

import importlib.util
import math
import pathlib

import numpy as np
import pytest
from _costs import each
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.allocation import (
    LLOYD_MAX,
    Curve,
    objective_value,
    solve,
    solve_on_curve,
    weights_from_gamma,
)
from commpress.errors import SpecError

optimize = pytest.importorskip("scipy.optimize")
special = pytest.importorskip("scipy.special")

DIMS, VARIANCES = (100, 400, 1000, 50), (4.0, 1.0, 0.25, 9.0)
OBJECTIVES = ("unbiased", "mse", "fisher", "weighted")
TABLES = pathlib.Path(__file__).resolve().parent.parent / "commpress" / "codecs" / "_tables.py"


def weights_for(objective, rng, layers):
    return 10 ** rng.uniform(-2, 2, layers) if objective == "weighted" else None


@pytest.mark.parametrize(
    ("objective", "bits", "value"),
    [
        ("fisher", (0, 0.3929, 1.3929, 0), 3587.909),
        ("mse", (2.5295, 1.5295, 0.5295, 3.1145), 185.982),
        ("unbiased", (2.0907, 1.2778, 0.6982, 2.6319), 1770.480),
    ],
)
def test_the_worked_example(objective, bits, value):
    found = solve(objective, DIMS, VARIANCES, 1550)
    assert found == pytest.approx(bits, abs=1e-3)
    assert objective_value(objective, DIMS, VARIANCES, found) == pytest.approx(value, abs=1e-3)
    # nobody else's bits do as well
    for other in ("fisher", "mse", "unbiased"):
        value_there = objective_value(objective, DIMS, VARIANCES, solve(other, DIMS, VARIANCES, 1550))
        if other != objective:
            assert value_there < value - 1 if objective == "fisher" else value_there > value + 1


def test_shares_of_the_worked_example():
    for objective, fisher, nmse in (("fisher", 0.8098, 0.7455), ("mse", 0.5557, 0.1240), ("unbiased", 0.6414, 0.1312)):
        bits = solve(objective, DIMS, VARIANCES, 1550)
        whole = np.dot(DIMS, 1 / np.array(VARIANCES))
        assert objective_value("fisher", DIMS, VARIANCES, bits) / whole == pytest.approx(fisher, abs=5e-4)
        assert objective_value("mse", DIMS, VARIANCES, bits) / np.dot(DIMS, VARIANCES) == pytest.approx(nmse, abs=5e-4)
    uniform = np.ones(4)
    assert objective_value("mse", DIMS, VARIANCES, uniform) / np.dot(DIMS, VARIANCES) == pytest.approx(0.25)


def slsqp(objective, d, s, w, total):
    """The same problem for a general solver, in bits spent, scaled to about 1; None where it gives up. It starts anew where it stopped, as it may stop early."""
    v = w / s if objective == "fisher" else w * s
    scale = (d * v).sum()

    def loss(bits):
        u = 2.0 ** (-2 * bits)
        return d * v / -np.expm1(-2 * math.log(2) * bits) if objective == "unbiased" else d * v * u

    def slope(bits):
        u = 2.0 ** (-2 * bits)
        down = -2 * math.log(2) * d * v * u
        return down / (1 - u) ** 2 if objective == "unbiased" else down

    unit = total / d  # variables: each layer's share of the total
    low = 1e-7 if objective == "unbiased" else 0.0
    share, least = d / d.sum(), math.inf
    for _ in range(5):
        best = optimize.minimize(
            lambda x: loss(x * unit).sum() / scale,
            share,
            jac=lambda x: slope(x * unit) * unit / scale,
            bounds=[(low, 1)] * len(d),
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if not best.success:
            break
        share = best.x / best.x.sum()  # a sum that is off by its tolerance would pass for a gain
        found = loss(share * unit).sum()
        if found >= least * (1 - 1e-9):
            break
        least = found
    return least if least < math.inf else None


def instance(rng, objective, most_layers, decades):
    layers = int(rng.integers(1, most_layers + 1))
    d = rng.integers(1, 10**5, layers)
    s = 10 ** rng.uniform(*decades, layers)
    return d, s, weights_for(objective, rng, layers), rng.uniform(0.05, 8) * d.sum()


def loss_at(objective, d, s, w, bits):
    """What SLSQP minimises: Fisher information that is lost."""
    value = objective_value(objective, d, s, bits, weights=w)
    return (d / s).sum() - value if objective == "fisher" else value


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_general_solver_does_better(objective):
    """Where SLSQP converges the values agree to 1e-6; over 18 decades of variance it may stop early, but is never better."""
    rng, agreed = np.random.default_rng(7), 0
    for turn in range(10):
        d, s, w, total = instance(rng, objective, 12, (-12, 6) if turn % 2 else (-2, 2))
        bits = solve(objective, d, s, total, weights=w)
        mine = objective_value(
            "weighted", d, 1 / s if objective == "fisher" else s, bits, weights=np.ones(len(d)) if w is None else w
        )
        if objective == "unbiased":
            mine = objective_value("unbiased", d, s, bits)
        theirs = slsqp(objective, d.astype(float), s, np.ones(len(d)) if w is None else w, total)
        if theirs is not None:
            assert mine <= theirs * (1 + 1e-9)
            agreed += mine >= theirs * (1 - 1e-6)
    assert agreed >= 5, "SLSQP hardly ever converged: the comparison says nothing"


@pytest.mark.parametrize(
    ("instances", "layers"), [(4, 60), pytest.param(200, 200, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_general_solver_agrees(objective, instances, layers):
    """Over four decades of variance SLSQP nearly always says that it has converged, then to the same value if it has, and never to a better one."""
    rng, agreed = np.random.default_rng(instances), 0
    for _ in range(instances):
        d, s, w, total = instance(rng, objective, layers, (-2, 2))
        bits = solve(objective, d, s, total, weights=w)
        assert np.dot(d, bits) == pytest.approx(total, rel=1e-9), "less loss for more bits is no gain"
        ours = loss_at(objective, d, s, w, bits)
        theirs = slsqp(objective, d.astype(float), s, np.ones(len(d)) if w is None else w, total)
        if theirs is not None:
            assert ours <= theirs * (1 + 1e-6)
            agreed += ours >= theirs * (1 - 1e-6)
    assert agreed >= 0.75 * instances


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_optimum_has_one_price_and_meets_the_total(objective):
    """The conditions of Karush, Kuhn and Tucker are sufficient here: the problem is convex. All 200 layers, all decades."""
    rng = np.random.default_rng(11)
    for _ in range(50):
        d, s, w, total = instance(rng, objective, 200, (-12, 6))
        bits = solve(objective, d, s, total, weights=w)
        assert np.dot(d, bits) == pytest.approx(total, rel=1e-9)
        assert (bits >= 0).all()
        w = np.ones(len(d)) if w is None else w
        v = w / s if objective == "fisher" else w * s
        u = 2.0 ** (-2 * bits)
        price = v * u / np.expm1(-2 * math.log(2) * bits) ** 2 if objective == "unbiased" else v * u
        some = bits > 0
        assert price[some] == pytest.approx(np.full(some.sum(), price[some].mean()), rel=1e-6)
        assert (price[~some] <= price[some].mean() * (1 + 1e-9)).all()


def test_gamma_runs_from_mse_by_uniform_to_fisher():
    rng = np.random.default_rng(3)
    d, s = rng.integers(1, 1000, 20), 10 ** rng.uniform(-3, 3, 20)
    for gamma, objective in ((0, "mse"), (2, "fisher")):
        assert solve("weighted", d, s, 3000, gamma=gamma) == pytest.approx(solve(objective, d, s, 3000), abs=1e-9)
    assert solve("weighted", d, s, 3 * d.sum(), gamma=1) == pytest.approx(np.full(20, 3.0))
    w = weights_from_gamma(s, 1.25)
    assert w == pytest.approx(s**-1.25, rel=1e-12)
    assert solve("weighted", d, s, 3000, gamma=1.25) == pytest.approx(
        solve("weighted", d, s, 3000, weights=w), abs=1e-9
    )
    a = objective_value("weighted", d, s, np.ones(20), gamma=0.5)
    assert a == pytest.approx(objective_value("weighted", d, s, np.ones(20), weights=s**-0.5))
    assert weights_from_gamma([0.0, 2.0], -1).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
def test_values_at_many_bits_keep_their_digits(objective):
    at_zero = {"unbiased": 1.0, "mse": 2.0**-60, "fisher": 1.0}
    assert objective_value(objective, [3], [1.0], [30.0]) == pytest.approx(3 * at_zero[objective], rel=1e-14)


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
def test_few_and_empty_and_silent_layers(objective):
    assert solve(objective, [], [], 100).shape == (0,)
    assert solve(objective, [10], [3.0], 25) == pytest.approx([2.5])
    assert solve(objective, [10, 0], [3.0, 1.0], 25) == pytest.approx([2.5, 0])
    assert solve(objective, [10, 30], [3.0, 0.0], 25) == pytest.approx([2.5, 0])
    assert solve(objective, [10, 30], [0.0, 0.0], 80) == pytest.approx([2, 2])
    assert solve(objective, [0], [1.0], 80) == pytest.approx([0])


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
@pytest.mark.parametrize("scale", [1e-38, 1e38, 1e-300, 1e300])
def test_units_do_not_matter(objective, scale):
    plain = solve(objective, DIMS, VARIANCES, 1550)
    assert solve(objective, DIMS, np.array(VARIANCES) * scale, 1550) == pytest.approx(plain, abs=1e-9)
    here = solve_on_curve(objective, [d * 1000 for d in DIMS], VARIANCES, 193750, LLOYD_MAX)
    there = solve_on_curve(objective, [d * 1000 for d in DIMS], np.array(VARIANCES) * scale, 193750, LLOYD_MAX)
    assert there.rates == pytest.approx(here.rates, abs=2e-6)


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
def test_scales_that_lie_far_apart(objective):
    d, s = [1000] * 3, [1e-38, 1.0, 1e38]
    bits = solve(objective, d, s, 6000)
    assert np.isfinite(bits).all()
    assert np.dot(d, bits) == pytest.approx(6000, rel=1e-9)
    plan = solve_on_curve(objective, d, s, 750, LLOYD_MAX)
    assert plan.nbytes <= 750
    assert np.argmax(plan.rates) == (0 if objective == "fisher" else 2)
    assert not math.isnan(plan.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: solve("best", [1], [1.0], 1),
        lambda: solve("time", [1], [1.0], 1),
        lambda: solve("mse", [1], [1.0, 2.0], 1),
        lambda: solve("mse", [1.5], [1.0], 1),
        lambda: solve("mse", [-1], [1.0], 1),
        lambda: solve("mse", ["x"], [1.0], 1),
        lambda: solve("mse", [1 << 39], [1.0], 1),
        lambda: solve("mse", [1], [-1.0], 1),
        lambda: solve("mse", [1], [math.nan], 1),
        lambda: solve("mse", [1], [1.0], -1),
        lambda: solve("mse", [1], [1.0], math.inf),
        lambda: solve("unbiased", [1], [1.0], 0),
        lambda: solve("weighted", [1], [1.0], 1),
        lambda: solve("mse", [1], [1.0], 1, gamma=1),
        lambda: solve("weighted", [1], [1.0], 1, gamma=1, weights=[1.0]),
        lambda: solve("weighted", [1], [1.0], 1, gamma=9),
        lambda: solve("mse", [1], [1.0], 1, weights=[math.inf]),
        lambda: weights_from_gamma([1.0], 0.3),
        lambda: weights_from_gamma([1e-200], 4),
        lambda: Curve((), ()),
        lambda: Curve((1, 2), (0.5,)),
        lambda: Curve((2, 1), (0.5, 0.6)),
        lambda: Curve((1,), (1.5,)),
        lambda: Curve((1,), (0.0,)),
        lambda: Curve((0.0000005,), (0.5,)),
        lambda: Curve((1,), (math.nan,)),
        lambda: Curve((1,), ("a",)),
        lambda: Curve((1, 2), (0.5, 0.6), (3.0, 1.0)),
        lambda: LLOYD_MAX.captured_at(-1),
        lambda: solve_on_curve("mse", [1], [1.0], -1, LLOYD_MAX),
        lambda: solve_on_curve("mse", [1, 1], [1.0, 1.0], 1, [LLOYD_MAX]),
        lambda: solve_on_curve("mse", [1], [1.0], 1, 0.5),
        lambda: solve_on_curve("mse", [100], [1.0], 20, LLOYD_MAX, cost=each(lambda layer, rate: 0.5)),
        lambda: solve_on_curve("mse", [100], [1.0], 20, LLOYD_MAX, cost=each(lambda layer, rate: 50 - int(rate))),
        lambda: solve_on_curve("mse", [100], [1.0], 20, LLOYD_MAX, lowest_rate=9),
        lambda: solve_on_curve("mse", [100], [1.0], 20, LLOYD_MAX, exact_share=2),
    ],
)
def test_what_is_refused(call):
    with pytest.raises(SpecError):
        call()


# Curves


def test_the_built_in_curve_is_that_of_the_codecs_tables():
    spec = importlib.util.spec_from_file_location("tables", TABLES)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for rate, captured in zip(LLOYD_MAX.rates, LLOYD_MAX.captured, strict=True):
        levels = np.array(tables.LEVELS[round(rate)])
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
        cross = np.dot(levels, density[:-1] - density[1:])
        square = np.dot(levels**2, np.diff(special.ndtr(edges)))
        assert captured == pytest.approx(cross**2 / square, abs=2e-10)
    assert LLOYD_MAX.captured[:6] == pytest.approx(
        (0.636620, 0.882518, 0.965452, 0.990499, 0.997495, 0.999356), abs=1e-6
    )


curves = st.lists(
    st.tuples(st.integers(1, 200), st.floats(0.001, 1), st.floats(0, 0.2)),
    min_size=1,
    max_size=8,
    unique_by=lambda p: p[0],
).map(sorted)


@settings(deadline=None)
@given(curves)
def test_a_hull_lies_above_its_points_and_is_concave(points):
    rates = [k / 20 for k, _, _ in points]
    spent = np.array(rates) + np.maximum.accumulate([o for _, _, o in points])
    curve = Curve(tuple(rates), tuple(g for _, g, _ in points), tuple(spent - rates))
    x = np.array([r + o for (r, _), o in zip(curve.hull, curve.hull_overhead, strict=True)])
    y = np.array([g for _, g in curve.hull])
    assert x[0] == y[0] == 0
    slopes = np.diff(y) / np.diff(x)
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 1e-9 * slopes[:-1]).all()
    assert y[-1] == max(curve.captured)
    for at, captured in zip(spent, curve.captured, strict=True):
        assert np.interp(at, x, y) >= captured - 1e-12
    for rate, captured in curve.hull:
        assert curve.captured_at(rate) == captured
    assert curve.captured_at(100) == y[-1]
    assert Curve(curve.rates, curve.captured, curve.overhead) == curve


def test_a_curve_between_its_points():
    curve = Curve((1, 2, 3), (0.6, 0.7, 0.9), (0.1, 0.2, 0.1))
    assert curve.hull == ((0, 0), (1, 0.6), (3, 0.9)), "2 bits are worse than half of 1 and half of 3"
    assert curve.captured_at(2) == pytest.approx(0.75)
    assert curve.overhead_at(0.5) == pytest.approx(0.05)
    assert Curve((1, 2), (0.6, 0.5)).highest_rate == 1
    assert Curve.from_distortions([1], [0.25]) == Curve((1,), (0.75,))
