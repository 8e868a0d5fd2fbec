"""The experiment cosine: the table, controls that must fail, the command."""

from __future__ import annotations

import dataclasses
import json

import pytest

from commpress.cli import main
from commpress.experiments.cosine._runs import PUBLISHED, Gradient, Point, Results, best, changes_of_best, checks


def test_the_best_number_of_bits():
    assert [best(rho) for rho in (0.0, 0.3, 0.5, 0.8, 0.95)] == [1, 2, 2, 3, 4]
    starts = changes_of_best()
    assert [bits for _, bits in starts] == [1, 2, 3, 4]
    assert starts[1][0] == pytest.approx(0.16, abs=0.1) and 0.6 < starts[2][0] < 0.8 < starts[3][0] < 0.9


def made_up(**changes):
    points = [
        Point(b, rho, 2000, 1000, value, value, 0.01 * value, 0.0, 0.01, 0.02, -0.1, -0.1)
        for (b, rho), value in PUBLISHED.items()
    ]
    points[0] = dataclasses.replace(points[0], **changes)
    return Results(False, points, [Gradient(0.5, 1000, 100, 0.03, 0.03, 0.001)])


def test_checks_have_teeth():
    assert all(check.passed for check in checks(made_up()))
    bad = checks(made_up(measured=1.06 * 1.645))
    assert [check.passed for check in bad].count(False) == 1
    assert not all(check.passed for check in checks(made_up(predicted=1.66)))
    worse = dataclasses.replace(made_up(), gradients=[Gradient(0.5, 1000, 100, 0.05, 0.03, 0.001)])
    assert not all(check.passed for check in checks(worse))


def test_command(tmp_path, capsys):
    assert main(["experiment", "cosine", "--quick", "--seed", "5", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "What must hold" in shown and "FAILED" not in shown and "the best b" in shown
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"cosine", "cosine-gradient", "check"}
    assert (tmp_path / "cosine.png").stat().st_size > 10_000
