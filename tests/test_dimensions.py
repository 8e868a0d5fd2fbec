"""Dimensions of low-rank factors: the choice against all choices, budgets, guesses beyond what was sent."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.allocation import Dimensions, share_dimensions
from commpress.allocation._dimensions import extended
from commpress.errors import SpecError


def captured(spectra, dimensions):
    return sum(sum(s[:r]) for s, r in zip(spectra, dimensions, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_nothing_captures_more_for_the_bytes_that_are_spent(seed):
    rng = random.Random(seed)
    prices = [rng.randint(1, 9) for _ in range(3)]
    spectra = [sorted((rng.random() for _ in range(4)), reverse=True) for _ in range(3)]
    budget = rng.randint(sum(prices), 4 * sum(prices))
    found = share_dimensions(spectra, lambda i, r: prices[i] * r, budget, [1, 1, 1])
    spent = sum(p * r for p, r in zip(prices, found, strict=True))
    assert spent <= budget
    # The greedy choice without its last fillers is optimal; with them it loses less than one dimension to the optimum of the whole budget.
    best = max(
        captured(spectra, other)
        for other in itertools.product(range(1, 5), repeat=3)
        if sum(p * r for p, r in zip(prices, other, strict=True)) <= budget
    )
    assert captured(spectra, found) >= best - max(max(s[1:]) for s in spectra) - 1e-12
    room = budget - spent
    assert all(r == 4 or p > room for p, r in zip(prices, found, strict=True)), "bytes are left for one more"


def test_energy_per_byte_decides_and_least_is_kept():
    spectra = [[10.0, 9.0, 8.0], [1.0, 0.9, 0.8]]
    assert share_dimensions(spectra, lambda i, r: r, 4, [1, 1]) == [3, 1]
    assert share_dimensions(spectra, lambda i, r: (20, 1)[i] * r, 43, [1, 1]) == [2, 3]
    assert share_dimensions(spectra, lambda i, r: r, 4, [1, 2]) == [2, 2]
    with pytest.raises(SpecError, match="need 1 bytes more"):
        share_dimensions(spectra, lambda i, r: r, 1, [1, 1])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.floats(0, 1e6), st.integers(1, 12))
def test_guesses_never_rise_nor_exceed_what_was_left_out(spectrum, rest, most):
    total = sum(spectrum) + rest
    found = extended(spectrum, total, most)
    assert len(found) == most
    assert all(a >= b >= 0 for a, b in itertools.pairwise(found))
    assert (
        sum(found[len(spectrum) :])
        <= max(0.0, total - sum(itertools.accumulate(spectrum[:most], min))) * (1 + 1e-9) + 1e-9
    )


def test_guesses_go_on_as_the_spectrum_did():
    assert extended([8.0, 4.0, 2.0, 1.0], 100.0, 6)[4:] == pytest.approx([0.5, 0.25])


def make(**options):
    prices = [10, 20]
    return Dimensions([1000, 2000], [8, 8], lambda i, r: prices[i] * r, 100, **options)


def test_it_begins_alike_and_follows_the_energy():
    d = make()
    assert d.alike == 3 and d.planned_bytes <= 100 and min(d.chosen) >= 3
    assert not d.replan()  # nothing was observed
    d.observe(0, [1e-3, 1e-4, 1e-5, 1e-6][: d.chosen[0]], 1.0)
    d.observe(1, [10.0, 9.0, 8.0, 7.0][: d.chosen[1]], 100.0)
    assert d.replan() and d.chosen == [2, 4] and d.planned_bytes == 100
    assert not d.replan()


def test_the_floor_and_the_weights():
    for options, expected in (({"floor": 0.7}, 2), ({"floor": 0.0}, 1)):
        d = make(**options)
        d.observe(0, [1e-9] * d.chosen[0], 1.0)
        d.observe(1, [10.0, 9.0, 8.0, 7.0][: d.chosen[1]], 100.0)
        assert d.replan() and d.chosen[0] >= expected
    # Relative errors: the small matrix counts as much as the large one.
    d = make(gamma=1.0)
    d.observe(0, [1e-3, 9e-4, 8e-4, 7e-4][: d.chosen[0]], 4e-3)
    d.observe(1, [10.0, 0.1, 0.01, 0.01][: d.chosen[1]], 11.0)
    assert d.replan() and d.chosen[0] > 4


def test_a_saved_choice_goes_on():
    d, other = make(), make()
    d.observe(0, [1e-3] * d.chosen[0], 1.0)
    d.observe(1, [10.0, 9.0, 8.0, 7.0][: d.chosen[1]], 100.0)
    d.replan()
    other.load_state_dict(d.state_dict())
    assert other.chosen == d.chosen and other.state_dict() == d.state_dict()
    with pytest.raises(SpecError, match="other matrices"):
        other.load_state_dict({"chosen": [9, 1], "spectra": [[], []], "totals": [0.0, 0.0]})
