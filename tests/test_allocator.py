"""The allocator: hysteresis, budgets, equal plans on every rank."""

import json
import math

import numpy as np
import pytest
from _costs import each

from commpress.allocation import LLOYD_MAX, Allocator, Curve, Plan, objective_value, solve_on_curve
from commpress.errors import SpecError, StateError

NAMES = [f"layer{i}" for i in range(12)]
DIMS = [64, 100_000, 50_000, 20_000, 300_000, 1_000, 70_000, 800, 40_000, 10_000, 128, 200_000]


def spread(seed, decades=3.0):
    return 10 ** np.random.default_rng(seed).uniform(-decades, 0, len(DIMS)) * DIMS


def test_uniform_rates_come_first_and_an_observation_changes_them():
    allocator = Allocator(NAMES, DIMS, bits=2)
    first = allocator.plan
    assert first.rates == (2.0,) * 12
    assert first.planned_bytes == first.budget_bytes == sum(DIMS) // 4
    assert not any(first.exact)
    assert allocator.replan(0) is None, "nothing has been observed"
    allocator.observe(0, spread(1))
    plan = allocator.replan(0)
    assert plan is allocator.plan
    assert plan.predicted < plan.predicted_uniform
    assert 0.99 * plan.budget_bytes <= plan.planned_bytes <= plan.budget_bytes
    assert plan.exact == tuple(d < 512 for d in DIMS)
    assert allocator.replan(0) is None, "the same again is no better"
    same = solve_on_curve("unbiased", DIMS, spread(1) / DIMS, first.budget_bytes, LLOYD_MAX, exact_below=512)
    assert plan.rates == tuple(same.rates)
    assert plan.predicted == pytest.approx(same.value)
    at_uniform = objective_value("unbiased", DIMS, spread(1) / DIMS, [2.0] * 12, curve=LLOYD_MAX)
    assert plan.predicted_uniform == pytest.approx(at_uniform)


def test_a_budget_in_bytes_with_costs():
    def cost(layer, rate):
        return 4 + math.ceil(DIMS[layer] * round(rate * 1e6) / 8e6)

    allocator = Allocator(NAMES, DIMS, budget_bytes=100_000, cost=each(cost), objective="mse")
    (rate,) = set(allocator.plan.rates)
    assert sum(cost(i, rate) for i in range(12)) == allocator.plan.planned_bytes <= 100_000
    assert sum(cost(i, rate + 1e-5) for i in range(12)) > 100_000, "no higher uniform rate fits"
    allocator.observe(0, spread(2))
    plan = allocator.replan(0)
    real = sum(
        4 * d if e else cost(i, r) if r else 0
        for i, (d, r, e) in enumerate(zip(DIMS, plan.rates, plan.exact, strict=True))
    )
    assert 99_000 <= plan.planned_bytes == real <= 100_000


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_around_a_fixed_point_never_changes_the_plan(objective, noise):
    rng = np.random.default_rng(3)
    allocator = Allocator(NAMES, DIMS, bits=2, objective=objective, hysteresis=0.02)
    energies = spread(5)
    for step in range(20):
        allocator.observe(step, energies * np.exp(noise * rng.standard_normal(12)))
    allocator.replan(20)
    digest, changes = allocator.plan.digest(), 0
    for step in range(20, 220):
        allocator.observe(step, energies * np.exp(noise * rng.standard_normal(12)))
        changes += allocator.replan(step) is not None
    assert (changes, allocator.plan.digest()) == (0, digest)
    # The control: without hysteresis the same noise would change it.
    free = Allocator(NAMES, DIMS, bits=2, objective=objective, hysteresis=0)
    rng = np.random.default_rng(3)
    flaps = 0
    for step in range(60):
        free.observe(step, energies * np.exp(noise * rng.standard_normal(12)))
        flaps += free.replan(step) is not None
    assert flaps > (10 if noise == 0.1 else 0)
    # A real change does change it.
    for step in range(220, 226):
        allocator.observe(step, spread(6))
    assert allocator.replan(226) is not None
    assert allocator.plan.digest() != digest


def test_steps_at_which_statistics_are_due():
    allocator = Allocator(["a"], [5], bits=1, every=10, warmup=3)
    assert [step for step in range(35) if allocator.due(step)] == [0, 1, 2, 10, 20, 30]


def test_equal_calls_give_equal_plans_in_any_order_of_a_mapping():
    rng = np.random.default_rng(8)
    ranks = [Allocator(NAMES, DIMS, bits=1.5) for _ in range(3)]
    for step in range(20):
        energies = dict(zip(NAMES, 10 ** rng.uniform(-3, 0, 12), strict=True))
        turned = dict(reversed(energies.items()))
        shuffled = {NAMES[i]: energies[NAMES[i]] for i in rng.permutation(12)}
        for rank, values in zip(ranks, (energies, turned, shuffled), strict=True):
            rank.observe(step, values)
            rank.replan(step)
        assert len({rank.plan.digest() for rank in ranks}) == 1
        assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()
    with pytest.raises(SpecError, match="other"):
        ranks[0].observe(20, energies | {"other": 1.0})
    with pytest.raises(SpecError, match="layer0"):
        ranks[0].observe(20, dict.fromkeys(NAMES[1:], 1.0))


def test_an_allocator_goes_on_from_a_state():
    whole = Allocator(NAMES, DIMS, bits=1.5, objective="weighted", weights=np.ones(12))
    part = Allocator(NAMES, DIMS, bits=1.5, objective="weighted", weights=np.ones(12))
    for step in range(10):
        whole.observe(step, spread(step), weights=spread(step + 100))
        whole.replan(step)
        if step == 4:
            part.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        if step > 4:
            part.observe(step, spread(step), weights=spread(step + 100))
            part.replan(step)
    assert part.plan == whole.plan
    assert part.state_dict() == whole.state_dict()


def test_a_state_of_other_layers_or_a_larger_budget_is_refused():
    state = Allocator(["a"], [5000], bits=2).state_dict()
    for other in (Allocator(["b"], [5000], bits=2), Allocator(["a"], [5001], bits=2), Allocator(["a"], [5000], bits=1)):
        before = other.state_dict()
        with pytest.raises(StateError):
            other.load_state_dict(state)
        assert other.state_dict() == before
    fine = Allocator(["a"], [5000], bits=2)
    for wrong in ({}, state | {"plan": None}, state | {"weights": [-1.0]}, state | {"statistics": {}}):
        with pytest.raises(StateError):
            fine.load_state_dict(wrong)


def test_a_pinned_plan_stays():
    maker = Allocator(NAMES, DIMS, bits=2)
    maker.observe(0, spread(1))
    plan = maker.replan(0)
    allocator = Allocator(NAMES, DIMS, pinned=plan)
    assert allocator.pinned
    assert not maker.pinned
    assert not any(allocator.due(step) for step in range(100))
    for step in range(10):
        allocator.observe(step, spread(step + 50))
        assert allocator.replan(step) is None
    assert allocator.plan is plan
    allocator.load_state_dict(Allocator(NAMES, DIMS, bits=8).state_dict())
    assert allocator.plan is plan
    with pytest.raises(SpecError, match="layer 3"):
        Allocator([*NAMES[:3], "x", *NAMES[4:]], DIMS, pinned=plan)


def test_fisher_takes_noise_variances_and_the_others_energies():
    fisher = Allocator(["a", "b"], [10_000, 10_000], bits=1, objective="fisher")
    fisher.observe(0, [1.0, 100.0], [9.0, 1.0])
    assert fisher.second_moments() == pytest.approx([9, 1])
    assert np.argmax(fisher.replan(0).rates) == 1, "the quiet layer gets the bits"
    mse = Allocator(["a", "b"], [10_000, 10_000], bits=1, objective="mse")
    mse.observe(0, [1.0, 100.0], [2.0, 1.0])
    assert np.argmax(mse.replan(0).rates) == 1, "the loud layer gets the bits"
    assert mse.second_moments() == pytest.approx([1e-4, 1e-2])


def test_gamma_and_weights():
    even = Allocator(["a", "b"], [10_000, 10_000], bits=2, objective="weighted", gamma=1)
    even.observe(0, [1.0, 100.0])
    assert even.replan(0) is None, "w = 1/s makes uniform rates the best"
    with pytest.raises(SpecError, match="gamma"):
        even.observe(1, [1.0, 100.0], weights=[1, 1])
    weighted = Allocator(["a", "b"], [10_000, 10_000], bits=1, objective="unbiased", weights=[1, 1])
    weighted.observe(0, [1.0, 1.0])
    assert weighted.replan(0) is None
    weighted.observe(1, [1.0, 1.0], weights=[1, 1000])
    assert weighted.replan(1).rates[1] > 1.5


@pytest.mark.parametrize("objective", ["unbiased", "mse", "fisher"])
def test_no_layers_one_layer_zeros_and_extremes(objective):
    none = Allocator([], [], bits=1, objective=objective)
    none.observe(0, [])
    assert none.replan(0) is None
    assert none.plan.names == ()
    one = Allocator(["a"], [10_000], bits=1.5, objective=objective)
    one.observe(0, [3.0])
    assert one.replan(0) is None
    assert one.plan.rates == (1.5,)
    zero = Allocator(["a", "b"], [10_000, 10_000], bits=1.5, objective=objective)
    zero.observe(0, [0.0, 0.0], [0.0, 0.0])
    assert zero.replan(0) is None, "zero gradients are no reason for a plan"
    far = Allocator(["a", "b", "c", "d"], [10_000] * 4, bits=2, objective=objective)
    far.observe(0, [1e-38, 1.0, 1e38, 0.0])
    plan = far.replan(0)
    assert plan.planned_bytes <= plan.budget_bytes
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan
    assert np.argmax(plan.rates) == (0 if objective == "fisher" else 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": None},
        {"budget_bytes": 5},
        {"bits": 9},
        {"bits": 0},
        {"bits": None, "budget_bytes": -1},
        {"bits": None, "budget_bytes": 2.5},
        {"bits": None, "budget_bytes": 1, "lowest_rate": 1.0},
        {"names": ["a"]},
        {"names": ["a", "a"]},
        {"objective": "time"},
        {"objective": "weighted"},
        {"objective": "weighted", "gamma": 0.3},
        {"gamma": 1.0},
        {"weights": [1.0]},
        {"every": 0},
        {"warmup": -1},
        {"hysteresis": 1},
        {"curve": [LLOYD_MAX]},
        {"curve": Curve((1,), (0.5,)), "bits": 2},
        {"decay": 1.0},
        {"exact_share": -1},
    ],
)
def test_an_allocator_refuses_bad_arguments(arguments):
    with pytest.raises(SpecError):
        Allocator(**({"names": ["a", "b"], "dims": [1000, 2000], "bits": 2} | arguments))
    with pytest.raises(SpecError, match="step 3"):
        Allocator(["a"], [5], bits=1).observe(3, [math.nan])
    with pytest.raises(SpecError):
        Allocator(["a"], [5], bits=1).observe(-1, [1.0])
    with pytest.raises(SpecError):
        Allocator(["a"], [5], bits=1).replan(-1)
