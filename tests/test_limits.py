"""`commpress experiment limits`: the references against published tables, the checks' teeth, and the command."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest
import torch

from commpress.cli import main
from commpress.experiments._codec_map import SPECS, Measured, measure
from commpress.experiments._mean_estimation import Trial, draw_prior
from commpress.experiments.limits._curves import BOUNDS, ScalarOptimum, bounds
from commpress.experiments.limits._plot import group_of
from commpress.experiments.limits._runs import MORE_SPECS, QUICK_SPECS, REACHED, Findings

RATES = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5)
DISTORTIONS = (0.95219, 0.90852, 0.78945, 0.61734, 0.34826, 0.17761, 0.08893, 0.02224, 0.00556, 0.00139)


@pytest.fixture(scope="module")
def optimum() -> ScalarOptimum:
    return ScalarOptimum()


def test_the_best_scalar_quantiser_is_that_of_the_tables(optimum: ScalarOptimum) -> None:
    for rate, distortion in zip(RATES, DISTORTIONS, strict=True):
        assert 1 - optimum.captured(rate) == pytest.approx(distortion, rel=3e-3)
    assert optimum.eta(4.0) == pytest.approx(0.9983, abs=2e-4) and optimum.eta(1.0) == pytest.approx(0.869, abs=1e-3)
    low, high = optimum.rates
    assert low < 0.02 and high > 4.5
    # Below the limit at every rate, and more bits carry more.
    captured = [optimum.captured(r) for r in torch.linspace(0.01, 5, 200).tolist()]
    assert captured == sorted(captured)
    assert all(optimum.eta(r) < 1 for r in torch.linspace(0.01, 5, 200).tolist())


def test_bounds_and_the_entropy_of_the_prior() -> None:
    trial = Trial(64, samples=200, half_width=4.0)
    found = bounds(trial, 1.0)
    assert found[BOUNDS[0]] == pytest.approx(200 * (1 - math.pi**2 / (200 * 16)) / 0.75)
    assert found[BOUNDS[1]] == pytest.approx(100)
    assert max(found.values()) == found[BOUNDS[0]]
    # Entropy of the prior by a histogram: its power takes the variance's place in the third bound.
    x = draw_prior((1 << 20,), 4.0, torch.Generator().manual_seed(1))
    counts = torch.histc(x, 400, -4.0, 4.0)
    p = counts[counts > 0].double() / counts.sum()
    entropy = float(-(p * (p / 0.02).log()).sum())
    power = math.exp(2 * entropy) / (2 * math.pi * math.e)
    assert found[BOUNDS[2]] == pytest.approx(0.5 * math.log2(power * 200), rel=2e-3)
    assert bounds(trial, 0.1)[BOUNDS[2]] == pytest.approx(10 * found[BOUNDS[2]])


def test_every_codec_has_a_place_in_the_picture() -> None:
    for spec in (*SPECS, *MORE_SPECS, *QUICK_SPECS):
        assert group_of(spec)
    assert group_of("hadamard+lloyd:2") != group_of("hadamard+bitshift:2") == group_of("bitshift:1,length=8")
    assert set(REACHED) <= {*SPECS, *MORE_SPECS}


def test_what_must_hold_has_teeth(optimum: ScalarOptimum) -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    good = measure("ecsq:2", "gaussian", x, keys=1, rounds=0)
    assert math.isnan(good.encode) and good.bits < 2.1
    trial = Trial(4096, samples=40)

    def failed(m: Measured) -> list[str]:
        return [check.what for check in Findings([m], [], trial, optimum).checks() if not check.passed]

    assert failed(good) == []
    assert any("most of any codec" in what for what in failed(dataclasses.replace(good, eta=1.01)))
    assert failed(dataclasses.replace(good, captured=0.95 * good.captured)) == ["ecsq:2, of the best scalar quantiser"]
    worse = dataclasses.replace(good, spec="bitshift:1", eta=0.95)
    assert failed(worse) == ["bitshift:1, of the limit"]


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "limits", "--quick", "--seed", "13", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text() in printed
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"codec", "ecsq optimum", "rounds", "check"}
    assert all(check["passed"] for check in records if check["kind"] == "check")
    codecs = [r for r in records if r["kind"] == "codec"]
    assert {r["source"] for r in codecs} == {"gaussian", "gradient"} and all("encode" not in r for r in codecs)
    assert all(r["eta"] <= 1.001 for r in codecs if r["source"] == "gaussian")
    assert any(r["eta"] > 2 for r in codecs if r["source"] == "gradient"), "a gradient is not Gaussian"
    pytest.importorskip("matplotlib")
    assert (tmp_path / "limits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
