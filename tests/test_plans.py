"""Statistics and plans: running means, drift, files."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.allocation import Plan, Statistics
from commpress.errors import SpecError, StateError

# Statistics


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 1.5), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_mean_is_the_weighted_mean_of_all_updates(values, decay):
    statistics = Statistics(1, decay=decay)
    for x in values:
        statistics.update([x], [2 * x])
    weights = decay ** np.arange(len(values))[::-1]
    mean = np.dot(weights, values) / weights.sum()
    assert statistics.energies == pytest.approx([mean], rel=1e-9)
    assert statistics.variances == pytest.approx([2 * mean], rel=1e-9)
    assert statistics.restarts == (0,)


def test_statistics_before_the_first_update_and_without_layers():
    statistics = Statistics(2)
    assert statistics.energies.tolist() == [0, 0]
    assert statistics.variances is None
    assert statistics.update([1, 2]) == ()
    assert statistics.variances is None, "nobody gave any"
    statistics.update([1, 2], [3, 4])
    assert statistics.variances == pytest.approx([3, 4])
    empty = Statistics(0)
    assert empty.update([]) == ()
    assert empty.energies.shape == (0,)


def test_a_jump_begins_the_mean_anew_and_a_single_one_is_dropped():
    statistics = Statistics(3, drift=4)
    for _ in range(5):
        statistics.update([1, 1, 1], [1, 1, 1])
    assert statistics.update([5, 5, 1], [1, 1, 1]) == ()
    assert statistics.energies == pytest.approx([1, 1, 1]), "held back"
    assert statistics.update([7, 1, 1], [1, 1, 1]) == (0,)
    assert statistics.energies[0] == pytest.approx((0.9 * 5 + 7) / 1.9)
    assert statistics.energies[1:] == pytest.approx([1, 1])
    assert (statistics.restarts, statistics.outliers) == ((1, 0, 0), (0, 1, 0))
    # down, and by the variance alone
    assert statistics.update([6, 0.1, 1], [1, 1, 9]) == ()
    assert statistics.update([6, 0.1, 1], [1, 1, 9]) == (1, 2)
    assert statistics.energies[1] == pytest.approx(0.1)
    assert statistics.variances == pytest.approx([1, 1, 9])


def test_a_value_within_the_factor_is_no_drift():
    statistics = Statistics(1, drift=4)
    rng = np.random.default_rng(0)
    for _ in range(200):
        statistics.update([rng.uniform(0.6, 1.8)])
    assert (statistics.restarts, statistics.outliers) == ((0,), (0,))
    zero = Statistics(1)
    for _ in range(5):
        assert zero.update([0.0]) == ()
    zero.update([1.0])
    assert zero.update([1.0]) == (0,), "a layer wakes up"


@pytest.mark.parametrize("wrong", [[-1.0, 1], [math.nan, 1], [math.inf, 1], [1], [1, 2, 3], "ab", None])
def test_statistics_refuse_nonsense_and_stay_as_they_were(wrong):
    statistics = Statistics(2)
    statistics.update([1, 2], [1, 2])
    before = statistics.state_dict()
    with pytest.raises(SpecError):
        statistics.update(wrong, [1, 2])
    if wrong is not None:
        with pytest.raises(SpecError):
            statistics.update([1, 2], wrong)
    assert statistics.state_dict() == before


@pytest.mark.parametrize("arguments", [{"layers": -1}, {"layers": 1, "decay": 1}, {"layers": 1, "drift": 1}])
def test_statistics_refuse_bad_arguments(arguments):
    with pytest.raises(SpecError):
        Statistics(**arguments)


def test_statistics_go_on_from_a_state_to_the_bit():
    rng = np.random.default_rng(4)
    updates = [(10 ** rng.uniform(-1, 1, 4), rng.random(4)) for _ in range(40)]
    whole, first = Statistics(4), Statistics(4)
    for x, v in updates:
        whole.update(x, v)
    for x, v in updates[:17]:
        first.update(x, v)
    second = Statistics(4, decay=0.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for x, v in updates[17:]:
        second.update(x, v)
    assert second.state_dict() == whole.state_dict()
    assert sum(whole.restarts) > 0, "the state of a drift was part of it"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.pop("energy"),
        lambda s: s.update(layers=3),
        lambda s: s.update(energy=[1.0]),
        lambda s: s.update(energy=[1.0, math.nan]),
        lambda s: s.update(weight=[1.0, -1.0]),
        lambda s: s.update(decay=2),
        lambda s: s.update(restarts="x"),
    ],
)
def test_statistics_refuse_a_spoilt_state(spoil):
    statistics = Statistics(2)
    statistics.update([1, 2])
    before = statistics.state_dict()
    state = statistics.state_dict()
    spoil(state)
    with pytest.raises(StateError):
        statistics.load_state_dict(state)
    assert statistics.state_dict() == before


# Plans

PLAN = Plan(("a", "größe"), (10, 0), (1.25, 0.0), (False, True), "mse", 5, 2, 1.5, math.inf)


def test_a_plan_comes_back_from_its_file(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert Plan.load(tmp_path / "plan.json", names=["a", "größe"], dims=[10, 0]) == PLAN
    fields = PLAN.to_dict()
    turned = dict(reversed(fields.items()))
    assert Plan.from_dict(turned).digest() == PLAN.digest()
    empty = Plan((), (), (), (), "unbiased", 0, 0)
    assert Plan.from_dict(json.loads(json.dumps(empty.to_dict()))) == empty
    assert (empty.bits, PLAN.bits) == (0, 1.6)
    assert PLAN.micro_rates == (1_250_000, 0)


def test_the_digest_is_of_what_decides_the_bytes():
    def other(**change):
        return dataclasses.replace(PLAN, **change).digest()

    assert len(PLAN.digest()) == 32
    assert PLAN.digest() == "63926d6b97bbd87fc317bb42b1858619", "the digest is part of the protocol: it may not change"
    assert other(predicted=7.0, budget_bytes=6) == PLAN.digest()
    changes = [
        {"names": ("b", "größe")},
        {"dims": (11, 0)},
        {"rates": (1.250001, 0.0)},
        {"exact": (True, True)},
    ]
    assert len({PLAN.digest(), *(other(**change) for change in changes)}) == 5
    two = {
        "dims": (1, 1),
        "rates": (1, 1),
        "exact": (False, False),
        "objective": "mse",
        "budget_bytes": 1,
        "planned_bytes": 1,
    }
    assert Plan(names=("ab", "c"), **two).digest() != Plan(names=("a", "bc"), **two).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"rates": [1.5, 0.0]},
        {"rates": [1.25]},
        {"rates": [1.25, -1.0]},
        {"rates": [1.25, "x"]},
        {"rates": [1.2500005, 0.0]},
        {"names": ["a", "a"]},
        {"names": ["a", 5]},
        {"names": "ab"},
        {"dims": [10, 0.5]},
        {"dims": [10, True]},
        {"exact": [0, 1]},
        {"objective": "best"},
        {"planned_bytes": 6},
        {"planned_bytes": "2"},
        {"predicted": None},
        {"predicted": -1},
        {"format": 2},
        {"digest": "0"},
        {"more": 1},
    ],
)
def test_a_spoilt_plan_is_refused(change, tmp_path):
    fields = PLAN.to_dict() | change
    with pytest.raises(SpecError):
        Plan.from_dict(fields)
    (tmp_path / "plan.json").write_text(json.dumps(fields))
    with pytest.raises(SpecError):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_of_another_model_or_no_plan_is_refused(tmp_path):
    fields = PLAN.to_dict()
    for names, dims, message in ((["a", "b"], None, "layer 1"), (["a"], None, "2 layers"), (None, [10, 1], "layer 1")):
        with pytest.raises(SpecError, match=message):
            Plan.from_dict(fields, names=names, dims=dims)
    for nothing in ([], None, 5, {}):
        with pytest.raises(SpecError):
            Plan.from_dict(nothing)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(SpecError):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(OSError):
        Plan.load(tmp_path / "none.json")


def test_the_table_has_a_line_for_each_layer():
    lines = PLAN.table().splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["a", "10", "1.25", "100.0%"]
    assert lines[2].split() == ["größe", "0", "exact", "0.0%"]
    assert PLAN.digest() in lines[-1]


# The allocator

NAMES = [f"layer{i}" for i in range(12)]
DIMS = [64, 100_000, 50_000, 20_000, 300_000, 1_000, 70_000, 800, 40_000, 10_000, 128, 200_000]
