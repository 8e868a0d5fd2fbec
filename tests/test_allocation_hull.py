"""Plans on a codec's hull: against scipy's solvers, and the rules that budgets follow; the shortest exchange for a target."""

import math
import pathlib

import numpy as np
import pytest
from _costs import each
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.allocation import LLOYD_MAX, Curve, fastest, objective_value, solve_on_curve
from commpress.allocation._curve import Curves
from commpress.allocation._fill import Segments
from commpress.allocation._price import Price
from commpress.errors import SpecError

optimize = pytest.importorskip("scipy.optimize")

OBJECTIVES = ("unbiased", "mse", "fisher", "weighted")
ROOM = pathlib.Path(__file__).resolve().parent.parent / "commpress" / "allocation"


def weights_for(objective, rng, layers):
    return 10 ** rng.uniform(-2, 2, layers) if objective == "weighted" else None


def by_scipy(objective, d, s, w, nbytes, curve):
    """The same problem as a linear program (G under every line of the hull), or with 1/G by SLSQP."""
    layers = len(d)
    lines = [
        ((y1 - y0) / (x1 - x0), y0 - (y1 - y0) / (x1 - x0) * x0)
        for (x0, y0), (x1, y1) in zip(curve.hull[:-1], curve.hull[1:], strict=True)
    ]
    v = w / s if objective == "fisher" else w * s
    if objective != "unbiased":
        rows, bounds = [], []
        for i in range(layers):
            for slope, base in lines:
                row = np.zeros(2 * layers)
                row[i], row[layers + i] = -slope, 1
                rows.append(row)
                bounds.append(base)
        rows.append(np.concatenate([d, np.zeros(layers)]))
        bounds.append(8.0 * nbytes)
        unit = (d * v).sum()
        best = optimize.linprog(
            np.concatenate([np.zeros(layers), -d * v / unit]),
            np.array(rows),
            np.array(bounds),
            bounds=[(0, curve.highest_rate)] * layers + [(0, 1)] * layers,
            method="highs",
        )
        assert best.success
        lost = (best.fun + 1) * unit
        return (d * v).sum() - lost if objective == "fisher" else lost
    scale = (d * v).sum()
    share = 8.0 * nbytes / d.sum()
    constraints = [{"type": "ineq", "fun": lambda x: share - np.dot(d / d.sum(), x[:layers])}]
    for slope, base in lines:
        constraints.append({"type": "ineq", "fun": lambda x, m=slope, c=base: m * x[:layers] + c - x[layers:]})
    start = np.concatenate([np.full(layers, share), [curve.captured_at(share) * 0.99] * layers])
    best = optimize.minimize(
        lambda x: (d * v / x[layers:]).sum() / scale,
        start,
        jac=lambda x: np.concatenate([np.zeros(layers), -d * v / x[layers:] ** 2 / scale]),
        bounds=[(0, curve.highest_rate)] * layers + [(1e-6, 1)] * layers,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return best.fun * scale if best.success else None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_general_solver_does_better_on_a_hull(objective):
    rng, agreed = np.random.default_rng(5), 0
    for _ in range(10):
        layers = int(rng.integers(1, 6))
        d = rng.integers(10**6, 10**8, layers)
        s = 10 ** rng.uniform(-2, 2, layers)
        w = weights_for(objective, rng, layers)
        nbytes = int(rng.uniform(0.3, 6) * d.sum() / 8)
        mine = solve_on_curve(objective, d, s, nbytes, LLOYD_MAX, weights=w)
        assert nbytes >= mine.nbytes >= 0.9999 * nbytes
        at_rates = objective_value(objective, d, s, mine.rates, weights=w, curve=LLOYD_MAX)
        assert mine.value == pytest.approx(at_rates, rel=1e-12)
        theirs = by_scipy(objective, d.astype(float), s, np.ones(layers) if w is None else w, nbytes, LLOYD_MAX)
        if theirs is not None:
            better = (theirs - mine.value) / theirs * (-1 if objective == "fisher" else 1)
            assert better >= -2e-6, "rates are rounded down to 1e-6 bits, no more"
            agreed += abs(better) <= 2e-6
    assert agreed >= 7


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_small_exchange_of_bytes_helps(objective):
    rng = np.random.default_rng(9)
    d, s = rng.integers(10**5, 10**6, 12), 10 ** rng.uniform(-3, 3, 12)
    w = weights_for(objective, rng, 12)
    plan = solve_on_curve(objective, d, s, int(d.sum() / 4), LLOYD_MAX, weights=w)
    sign = -1 if objective == "fisher" else 1
    for giver in range(12):
        for taker in range(12):
            for step in (0.001, 0.3):
                bits = plan.rates.copy()
                bits[giver] -= step
                bits[taker] += step * d[giver] / d[taker]
                if giver != taker and bits.min() > 0 and bits.max() <= 8:
                    value = objective_value(objective, d, s, bits, weights=w, curve=LLOYD_MAX)
                    assert sign * value >= sign * plan.value - 1e-5 * abs(plan.value)


def block_cost(sizes):
    """A codec that sends 4 bytes per 4096 coordinates and rounds every block up to a byte."""

    def cost(layer, rate):
        blocks, rest = divmod(int(sizes[layer]), 4096)
        micro = round(rate * 1_000_000)
        whole = blocks * (4 + -(-4096 * micro // 8_000_000))
        return whole + (4 + -(-rest * micro // 8_000_000) if rest else 0)

    return cost


def group_cost(sizes):
    """Whole groups of 512 coordinates, each with floor or ceil of the rate: steps of 64 bytes."""

    def cost(layer, rate):
        groups = -(-int(sizes[layer]) // 512)
        return 64 * (groups * round(rate * 1_000_000) // 1_000_000) + 4 * groups

    return cost


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(OBJECTIVES),
    st.integers(0, 10**6),
    st.sampled_from([None, block_cost, group_cost]),
    st.floats(0.15, 7.5),
    st.sampled_from([0, 2000]),
)
def test_the_budget_is_kept_and_used(objective, seed, make_cost, bits, exact_below):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 40))
    d = (10 ** rng.uniform(2, 6, layers)).astype(int) if layers > 5 else rng.integers(10**5, 10**6, layers)
    s = 10 ** rng.uniform(-12, 6, layers) * (rng.random(layers) > 0.1)
    cost = make_cost(d) if make_cost else None
    budget = int(bits * d.sum() / 8) + 100
    w = weights_for(objective, rng, layers)
    plan = solve_on_curve(
        objective, d, s, budget, LLOYD_MAX, weights=w, cost=cost and each(cost), exact_below=exact_below
    )
    assert (plan.rates >= 0).all()
    real = math.ceil(np.dot(d, plan.rates * 1e6) / 8e6 - 1e-6)
    if cost:
        real = sum(
            4 * int(n) if e else cost(i, r) if r else 0
            for i, (n, r, e) in enumerate(zip(d, plan.rates, plan.exact, strict=True))
        )
    assert plan.nbytes == real <= budget
    # group_cost comes in steps of 64 bytes, which small budgets feel; and a layer that is not sent yet costs its scales first
    step = 64 if make_cost is group_cost else 1
    if cost:
        step = max([step, *(cost(i, 1e-6) for i in np.flatnonzero(plan.rates == 0))])
    full = (plan.rates[~plan.exact] >= 8).all()
    assert full or plan.nbytes >= min(0.99 * budget, budget - step)
    micro = plan.rates * 1e6
    assert (np.abs(micro - np.round(micro)) < 1e-3).all()
    if objective == "unbiased":
        assert (plan.rates[d > 0] >= 1e-6).all()


def test_costs_are_only_asked_where_a_codec_has_an_answer():
    asked = []

    def cost(layer, rate):
        asked.append(rate)
        return math.ceil(1000 * rate / 8)

    for objective in ("mse", "unbiased"):
        solve_on_curve(objective, [1000] * 5, [1, 2, 0, 4, 9.0], 600, LLOYD_MAX, cost=each(cost))
    assert min(asked) > 0
    assert max(asked) <= 8


def test_each_layer_may_have_its_own_curve():
    good, poor = Curve((1, 2), (0.9, 0.99)), Curve((1, 4), (0.3, 0.6))
    plan = solve_on_curve("mse", [1000, 1000], [1.0, 1.0], 250, [poor, good])
    assert plan.rates.tolist() == [1, 1]
    assert solve_on_curve("mse", [1000, 1000], [1.0, 1.0], 125, [poor, good]).rates.tolist() == [0, 1]
    with_overhead = Curve((1, 2), (0.9, 0.99), (0.1, 0.1))
    assert solve_on_curve("mse", [1000], [1.0], 138, with_overhead).rates == pytest.approx([1], abs=0.01)
    mixed = solve_on_curve("unbiased", [8000, 8000], [1.0, 1.0], 2000, [with_overhead, poor])
    spent = sum(8000 * (r + c.overhead_at(r)) / 8 for r, c in zip(mixed.rates, (with_overhead, poor), strict=True))
    assert 0.99 * 2000 <= spent <= 2000


def test_small_layers_go_exact_while_they_are_cheap():
    d, s = [10, 100, 20, 10**6, 50], [1.0] * 5
    plan = solve_on_curve("unbiased", d, s, 250_000, LLOYD_MAX, exact_below=100)
    assert plan.exact.tolist() == [True, False, True, False, True]
    assert plan.rates[[0, 2, 4]].tolist() == [32, 32, 32]
    assert 0.99 * 250_000 <= plan.nbytes <= 250_000
    tight = solve_on_curve("unbiased", d, s, 250_000, LLOYD_MAX, exact_below=100, exact_share=4 * 31 / 250_000)
    assert tight.exact.tolist() == [True, False, True, False, False], "the smallest first"
    assert not solve_on_curve("unbiased", d, s, 250_000, LLOYD_MAX, exact_below=10).exact.any()
    half = solve_on_curve("unbiased", d, s, 250_000, LLOYD_MAX, exact_below=100, exact_rate=16)
    assert half.rates[0] == 16


def test_a_budget_that_is_too_small_says_what_the_least_is():
    def cost(layer, rate):
        return 7 + math.ceil(1000 * rate / 8)

    with pytest.raises(SpecError, match="at least 24 bytes"):
        solve_on_curve("unbiased", [1000] * 3, [1.0] * 3, 23, LLOYD_MAX, cost=each(cost))
    least = solve_on_curve("unbiased", [1000] * 3, [1.0] * 3, 24, LLOYD_MAX, cost=each(cost))
    assert least.nbytes <= 24
    assert (least.rates > 0).all()
    with pytest.raises(SpecError, match="at least 75 bytes"):
        solve_on_curve("mse", [1000] * 3, [1.0] * 3, 74, LLOYD_MAX, lowest_rate=0.2)
    assert solve_on_curve("mse", [1000] * 3, [1.0] * 3, 0, LLOYD_MAX).rates.tolist() == [0, 0, 0]


def test_rates_stay_above_a_lowest_rate():
    plan = solve_on_curve("mse", [1000] * 3, [1e-9, 1, 1e9], 500, LLOYD_MAX, lowest_rate=0.5)
    assert plan.rates.min() == 0.5
    assert plan.nbytes == 500


def test_hulls_in_bytes_are_concave_whatever_the_cost():
    sizes = np.array([80, 10**6, 3, 2000])
    curves = Curves(LLOYD_MAX, 4)
    price = Price(sizes, curves, each(lambda layer, rate: 40 + math.ceil(sizes[layer] * rate / 8 - 1e-9)))
    for lowest in (0, 1, 1_500_000):
        segments = Segments(np.arange(4), curves, price, lowest)
        for row in range(4):
            slopes = segments.slope[row, segments.open[row]]
            assert (np.diff(slopes) < 0).all()
            assert segments.captured[row, -1] == LLOYD_MAX.captured[-1]
        assert segments.open[0].sum() < segments.open[1].sum() or lowest, (
            "80 coordinates with a header of 40 bytes do bend"
        )


@pytest.mark.parametrize("header", [0, 40, 100])
def test_a_header_that_bends_the_curve_inward(header):
    """Layer 0 pays before its first bit: it is sent well or not at all, which a hull only comes near to. Against every pair of rates in tenths of a bit."""

    def cost(layer, rate):
        return (0 if layer else header) + math.ceil(80 * rate / 8 - 1e-9)

    tenths = [k / 10 for k in range(81)]
    for budget in (60, 100, 150, 200):
        found = solve_on_curve("mse", [80, 80], [4.0, 1.0], budget, LLOYD_MAX, cost=each(cost))
        best = min(
            objective_value("mse", [80, 80], [4.0, 1.0], [a, b], curve=LLOYD_MAX)
            for a in tenths
            for b in tenths
            if (cost(0, a) if a else 0) + (cost(1, b) if b else 0) <= budget
        )
        assert found.nbytes <= budget
        assert found.value <= (1.01 if header != 40 else 1.3) * best, "mixing of rates is what such a layer can't do"


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
def test_no_layers_one_layer_and_nothing_to_say(objective):
    none = solve_on_curve(objective, [], [], 10, LLOYD_MAX)
    assert (none.rates.shape, none.nbytes, none.value) == ((0,), 0, 0)
    assert solve_on_curve(objective, [1000], [2.0], 250, LLOYD_MAX).rates.tolist() == [2]
    assert solve_on_curve(objective, [1000], [2.0], 10**6, LLOYD_MAX).rates.tolist() == [8]
    assert solve_on_curve(objective, [1000, 0], [2.0, 5.0], 250, LLOYD_MAX).rates.tolist() == [2, 0]
    silent = solve_on_curve(objective, [1000] * 4, [0.0] * 4, 1000, LLOYD_MAX)
    assert silent.rates == pytest.approx([2] * 4, abs=1e-5)
    assert silent.value == 0
    one_silent = solve_on_curve(objective, [1000, 1000], [0.0, 1.0], 250, LLOYD_MAX)
    assert one_silent.rates == pytest.approx([0, 2], abs=0.01)


def test_equal_arguments_give_equal_bits_in_any_container():
    rng = np.random.default_rng(1)
    d, s = rng.integers(1, 10**5, 300), 10 ** rng.uniform(-6, 6, 300)
    for objective in ("unbiased", "mse", "fisher"):
        a = solve_on_curve(objective, d, s, int(d.sum() / 4), LLOYD_MAX)
        b = solve_on_curve(objective, d.tolist(), tuple(s), int(d.sum() / 4), [LLOYD_MAX] * 300)
        assert a.rates.tobytes() == b.rates.tobytes()
        assert (a.nbytes, a.value) == (b.nbytes, b.value)


def test_the_hulls_path_uses_no_function_that_machines_round_differently():
    """No logarithm, power, exponential, dot product or fused sum in the files that ranks must agree on."""
    for name in ("_fill", "_problem", "_price", "_curve", "_statistics", "_allocator", "_objective"):
        text = (ROOM / f"{name}.py").read_text()
        for word in (
            "np.log",
            "np.exp",
            "np.power",
            "np.dot",
            "np.interp(",
            "math.log",
            "math.exp",
            "einsum",
            " @ ",
            ".mean(",
        ):
            assert word not in text, f"{name}.py uses {word}"


# Time


def test_time_a_slow_link_compresses_and_a_fast_one_does_not():
    common = {"max_nmse": 0.12, "world_size": 4, "codec_bytes_per_second": 4e9}
    slow = fastest([10**6], [1.0], LLOYD_MAX, link_bytes_per_second=1e8, **common)
    assert slow.compress
    assert slow.rates == pytest.approx([2], abs=0.02)
    assert slow.nmse <= 0.12
    assert slow.seconds == pytest.approx(1.5 * slow.rates[0] / 8 * 1e6 / 1e8 + 4e6 / 4e9, rel=1e-9)
    assert slow.fp32_seconds == pytest.approx(1.5 * 4e6 / 1e8)
    fast = fastest([10**6], [1.0], LLOYD_MAX, link_bytes_per_second=1e11, **common)
    assert not fast.compress
    assert fast.rates.tolist() == [32]
    assert fast.seconds == fast.fp32_seconds
    assert not fastest([10**6], [1.0], LLOYD_MAX, link_bytes_per_second=1.0, max_nmse=0.5, world_size=1).compress


def test_time_on_an_infinitely_slow_link_is_the_fewest_bytes():
    rng = np.random.default_rng(2)
    d, s = rng.integers(10**4, 10**6, 10), 10 ** rng.uniform(-3, 3, 10)
    found = fastest(d, s, LLOYD_MAX, max_nmse=0.05, world_size=2, link_bytes_per_second=None)
    assert found.seconds is None
    assert found.compress
    assert 0.05 * (1 - 1e-4) <= found.nmse <= 0.05
    assert found.sent_bytes == pytest.approx(np.dot(d, found.rates) / 8)
    # The mse plan with these bytes has this distortion: one problem from both sides.
    same = solve_on_curve("mse", d, s, math.ceil(found.sent_bytes), LLOYD_MAX)
    assert same.value / np.dot(d, s) == pytest.approx(found.nmse, rel=1e-4)


def test_time_weighs_the_codecs_speed():
    # 2 bits are so slow to encode that a mix of 1 and 3 is faster.
    speeds = [1e9, 1e7, 1e9] + [1e9] * 5
    found = fastest(
        [10**6], [1.0], LLOYD_MAX, max_nmse=0.12, world_size=2, link_bytes_per_second=1e7, codec_bytes_per_second=speeds
    )
    assert found.compress
    assert found.nmse <= 0.12
    with pytest.raises(SpecError, match="reaches"):
        fastest([1], [1.0], LLOYD_MAX, max_nmse=1e-6, world_size=2, link_bytes_per_second=1.0)
    for wrong in (
        {"max_nmse": 0.0},
        {"world_size": 0},
        {"link_bytes_per_second": 0.0},
        {"codec_bytes_per_second": [1.0]},
    ):
        with pytest.raises(SpecError):
            fastest([1], [1.0], LLOYD_MAX, **({"max_nmse": 0.1, "world_size": 2, "link_bytes_per_second": 1.0} | wrong))
    empty = fastest([], [], LLOYD_MAX, max_nmse=0.1, world_size=2, link_bytes_per_second=1.0)
    assert empty.rates.shape == (0,)
    silent = fastest([5, 5], [0.0, 0.0], LLOYD_MAX, max_nmse=0.1, world_size=2, link_bytes_per_second=1.0)
    assert silent.rates.tolist() == [0, 0]
