"""`commpress experiment side-information`: recorded aggregates, prediction from the past on sequences whose answer is known, and the command."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
import torch
import torch.distributed as dist

from commpress.allocation import history_window
from commpress.cli import main
from commpress.errors import SpecError
from commpress.experiments import MainJob, RunWriter, Settings, process_group
from commpress.experiments._gradients import Recording
from commpress.experiments._model import Shape
from commpress.experiments.side_information._coding import modulo, pair, plain, residual, saving
from commpress.experiments.side_information._history import (
    VECTORS,
    Aggregates,
    aggregates,
    long_memory,
    moving_average,
    sequence_errors,
)
from commpress.experiments.side_information._runs import CORRELATIONS, CROSSINGS, TOLERANCES, Coded, Decay, Findings

TINY = Shape(width=32, layers=1, heads=2, context=16)


def test_a_recording_is_the_main_job() -> None:
    """The parameters after some steps are those of the job with an exact all-reduce, which goes through DDP and clips."""
    settings = Settings(
        codec="fp32", steps=4, shape=TINY, held_out_windows=4, curve_windows=2, curve_points=1, probes=0
    )
    recording = Recording(settings, 1)
    seen = list(recording.steps())
    assert not dist.is_initialized()
    with process_group():
        job = MainJob(settings, writer=RunWriter(None))
        job.run()
        job.close()
    for ours, theirs in zip(recording.model.parameters(), job.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [one.step for one in seen] == [0, 1, 2, 3]
    assert seen[0].mean.numel() == recording.layers[-1].stop == job.numel


def test_ranks_share_a_batch() -> None:
    """The mean of two ranks with 4 sequences each is the gradient of one rank with 8: the same windows, dealt out."""
    common = {"steps": 2, "shape": TINY}
    two = Recording(Settings(windows_per_rank=4, **common), 2)
    one = Recording(Settings(windows_per_rank=8, **common), 1)
    for a, b in zip(two.steps(), one.steps(), strict=True):
        assert len(a.ranks) == 2 and not torch.equal(*a.ranks)
        assert torch.allclose(a.mean, b.mean, rtol=1e-3, atol=1e-6) and a.loss == pytest.approx(b.loss, rel=1e-5)
    assert {layer.short for layer in two.matrices} >= {"embedding", "block 0 query key value", "head"}
    with pytest.raises(SpecError):
        Recording(Settings(), 0)


def test_what_side_information_saves() -> None:
    assert [round(saving(r), 2) for r in (0.5, 0.8, 0.9, 0.95, 0.99)] == [0.21, 0.74, 1.2, 1.68, 2.83]
    assert saving(0.0) == 0.0 and saving(-0.5) == saving(0.5)
    for wrong in (1.0, -1.0, 2.0, float("nan")):
        with pytest.raises(SpecError):
            saving(wrong)


def test_a_residual_needs_what_is_known() -> None:
    x, known = pair(1 << 16, 0.9, 7)
    assert float((x * known).mean()) == pytest.approx(0.9, abs=0.02)
    unrelated = torch.randn(1 << 16, generator=torch.Generator().manual_seed(99))
    base = plain("lloyd:2", x, 7)
    assert residual("lloyd:2", x, known, 7) == pytest.approx(0.19 * base, rel=0.05)
    assert residual("lloyd:2", x, unrelated, 7) == base, "the control: the predictor leaves it alone"
    assert residual("lloyd:2", x, -known, 7) == pytest.approx(0.19 * base, rel=0.05), "of either sign"
    assert modulo(2, 0.9, x, known, 7) < 0.5 * base < modulo(2, 0.9, x, unrelated, 7)


def test_errors_of_sequences_are_those_of_theory() -> None:
    """Innovations algorithm for a moving average, partial correlations d/(k-d) for fractional noise."""
    generator = torch.Generator().manual_seed(2)
    theta, d, lengths = 0.6, 0.3, 8
    exact, v = [], 1 + theta**2
    for _ in range(lengths):
        v = 1 + theta**2 - theta**2 / v
        exact.append(v / (1 + theta**2))
    got = sequence_errors(moving_average(theta, 4096, 128, generator), lengths)
    assert got == pytest.approx(exact, abs=0.005)
    exact = np.cumprod([1 - (d / (k - d)) ** 2 for k in range(1, lengths + 1)])
    got = sequence_errors(long_memory(d, 4096, 128, generator), lengths)
    assert got == pytest.approx(exact.tolist(), abs=0.01)
    white = torch.randn(64, 4096, generator=generator, dtype=torch.float64)
    assert sequence_errors(white, 4) == pytest.approx([1.0] * 4, abs=0.002)


def made(x: torch.Tensor, window: int, ranks: int = 2) -> Aggregates:
    """Aggregates of one layer, x (steps, coordinates); the ranks' own gradients are those without noise."""
    steps = len(x)
    products = np.zeros((steps, 1, window + 1))
    for t in range(steps):
        for lag in range(min(t, window) + 1):
            products[t, 0, lag] = float(x[t] @ x[t - lag])
    return Aggregates(ranks, ["layer"], products, products[:, :, 0].copy())


def test_prediction_of_aggregates_is_tested_on_steps_that_it_was_not_fitted_on() -> None:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(200, 2000, generator=generator, dtype=torch.float64)
    fresh = made(noise, 6)
    left = fresh.prediction_errors(6)[0]
    assert (left > 0.999).all() and left[-1] < 1.1, "nothing is gained from noise, nor seems to be"
    assert abs(float(fresh.correlation(slice(1, 200))[0])) < 0.01
    rho = 0.8
    x = [noise[0]]
    for t in range(1, 200):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[t])
    followed = made(torch.stack(x), 6)
    assert followed.prediction_errors(6)[0] == pytest.approx([0.36] * 6, abs=0.01)
    assert float(followed.correlation(slice(1, 200))[0]) == pytest.approx(rho, abs=0.01)
    assert float(followed.correlation(slice(2, 200), lag=2)[0]) == pytest.approx(rho**2, abs=0.02)
    on, gain = followed.predicted()
    assert on[5:].min() == 1.0 and float(gain[5:].mean()) == pytest.approx(1 / 0.36, rel=0.05)
    on, gain = fresh.predicted()
    assert on.max() == 0.0 and np.all(gain == 1.0)


def test_products_of_a_recorded_run() -> None:
    settings = Settings(steps=5, shape=TINY, windows_per_rank=2)
    seen = aggregates(settings, 2, 3, lambda share, note: None)
    means = [one.mean for one in Recording(settings, 2).steps()]
    assert seen.layers[-1] == VECTORS and seen.products.shape == (5, len(seen.layers), 4)
    assert seen.products[4, :, 2].sum() == pytest.approx(float(means[4].double() @ means[2].double()), rel=1e-4)
    assert not seen.products[1, :, 2:].any(), "there is no step before the first"
    assert seen.shares().sum() == pytest.approx(1.0)
    assert (seen.local + 1e-12 >= seen.products[:, :, 0]).all(), "a mean has no more energy than its terms"


def findings(residual_error: float) -> Findings:
    w = np.arange(1, 9)
    coded = [Coded(rho, 0.1175, 0.1175 * (1 - rho * rho), 0.0484) for rho in CORRELATIONS]
    coded[2] = Coded(0.9, 0.1175, residual_error, 0.0484)
    errors = {"long": 0.7 + 0.1 / w, "short": 0.7 + 0.1 * np.exp(2 * math.log(0.6) * w)}
    decays = [
        Decay(n, e.tolist(), history_window(e.tolist(), eps=0.01), [1] * len(TOLERANCES)) for n, e in errors.items()
    ]
    return Findings(coded, coded, dict(CROSSINGS), decays, [])


def test_what_must_hold_has_teeth() -> None:
    good = findings(0.0223)
    assert all(check.passed for check in good.checks())
    assert json.dumps(good.records()) and "modulo:b" in good.table()
    failed = [check.what for check in findings(0.0236).checks() if not check.passed]
    assert failed == ["bits saved by the residual code, rho = 0.9", "residual code, rho = .9, 2 bits: D"]
    swapped = dataclasses.replace(good, decays=good.decays[::-1])
    assert sum(not check.passed for check in swapped.checks()) >= 3, "the laws are not told apart by their names"


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "side-information", "--quick", "--seed", "12", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text() in printed
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    checks = [r for r in records if r["kind"] == "check"]
    assert len(checks) == 15 and all(check["passed"] for check in checks)
    assert {r["kind"] for r in records} == {"coded", "crossing", "decay", "run", "check"}
    (run,) = [r for r in records if r["kind"] == "run"]
    assert np.array(run["correlations"]).shape == (len(run["layers"]), len(run["phases"]))
    pytest.importorskip("matplotlib")
    assert (tmp_path / "side-information.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
