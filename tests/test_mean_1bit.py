"""The experiment mean-1bit: its parts against exact figures, controls that must fail, the command."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from commpress.cli import main
from commpress.experiments._checks import between
from commpress.experiments.mean_1bit._runs import Located, growth_fit, two_stage_prediction
from commpress.experiments.mean_1bit._simulate import Way, measure, pareto

SEED = 4711


def test_fixed_thresholds_are_linear_and_quadratic_in_lambda():
    for method, predicted in (
        ("grid", lambda a: 2 * (a + 3) / 1.80639),
        ("random", lambda a: (a + 3) ** 2 - a * a / 3),
    ):
        for half_width in (8.0, 64.0):
            found = measure(Way("x", method, half_width, 8192, 400), SEED)
            assert abs(found.n_mse / predicted(half_width) - 1) < 5 * found.n_mse_se / predicted(half_width) + 0.1
    exact = measure(Way("x", "exact", 64.0, 1024, 400, noise="none"), SEED)
    assert abs(exact.n_mse - 1) < 5 * exact.n_mse_se


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0])
def test_pareto_noise_has_the_moment(order):
    draw = pareto(order, 3 * order)  # a high index, or a sample's moment would not settle
    x = draw(np.random.default_rng(1), (1, 2_000_000))
    assert (np.abs(x) ** order).mean() == pytest.approx(1.0, rel=0.05) and abs(x.mean()) < 0.01


def test_measurements_repeat_and_seeds_differ():
    way = Way("x", "adaptive", 64.0, 500, 100)
    assert measure(way, 1).n_mse == measure(way, 1).n_mse != measure(way, 2).n_mse
    assert json.dumps(measure(dataclasses.replace(way, sigma=(0.5, 2.0), n=900), 1).record())


def test_two_stages_lose_by_what_is_predicted():
    # Fisher information of thresholds spread over +-2.2 sigma, by hand
    assert 2.4 < two_stage_prediction() < 3.0


def located(rule):
    return [Located(2.0**k, rule(2.0**k), 1.0, 0.0) for k in range(2, 21, 2)]


def test_growth_is_measured_and_a_control_fails():
    slope, bend, _ = growth_fit(located(lambda x: 150 + 7 * math.log2(x)))
    assert slope == pytest.approx(7) and bend == pytest.approx(0, abs=1e-9)
    slope, bend, se = growth_fit(located(lambda x: 150 + math.log2(x) ** 2))  # not constant per doubling
    assert not between("", bend, 0.0, (-1.0, 1.0), 3 * se).passed or not between("", slope, 7.0, (6.0, 8.0)).passed


def test_command(tmp_path, capsys):
    assert main(["experiment", "mean-1bit", "--quick", "--seed", "11", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "What must hold" in shown and "FAILED" not in shown and "queries per doubling" in shown
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"mean-1bit", "mean-1bit-growth", "check"}
    assert (tmp_path / "mean-1bit.png").stat().st_size > 10_000
    assert main(["experiment", "mean-1bit", "--quick", "--seed", "-1", "--out", str(tmp_path)]) == 2


def test_a_failure_is_one():
    limits = (0.9, 1.1)
    assert between("x", 1.0, 1.0, limits).passed and not between("x", 1.2, 1.0, limits).passed
    assert between("x", 1.2, 1.0, limits, 0.15).passed and not between("x", math.nan, 1.0, limits, 9.0).passed
