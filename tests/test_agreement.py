"""The monitor's projections, its records in a run's log, its part of the report, its scalars."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
import torch
from _runs import run_records, write

from commpress.codecs import Key
from commpress.errors import SpecError
from commpress.estimation import Unlike
from commpress.hooks import HookState
from commpress.hooks._projection import WIDTH, Projection
from commpress.hooks._worker_agreement import Agreement, sentence
from commpress.reference._random import ROTATION_1, words
from commpress.telemetry import load_run, write_report
from commpress.telemetry._report_agreement import words as told
from commpress.telemetry._report_data import Snapshots, matrix, mean_to_others
from commpress.telemetry._tensorboard import scalars


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("sizes", [[1], [5000], [4096], [3, 0, 9000, 4097], [140_000]])
def test_projections_against_the_definition(sizes):
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(n, generator=generator) for n in sizes]
    projection, folded = Projection(7, 11), np.zeros(WIDTH)
    for i, g in reversed(list(enumerate(gradients))):  # in any order
        projection.add(i, g)
        n = -(-len(g) // 128)
        bits = np.unpackbits(words(Key(7, 11, tensor=i, phase=3), ROTATION_1, 0, n).view(np.uint8))[: len(g)]
        signed = np.zeros(-(-len(g) // WIDTH) * WIDTH)
        signed[: len(g)] = g.double().numpy() * (2.0 * bits - 1)
        folded += signed.reshape(-1, WIDTH).sum(0)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert projection.norm == pytest.approx(norm, rel=1e-5)
    assert projection.projections(100) == pytest.approx(hadamard(WIDTH)[:100] @ folded / norm, abs=1e-3)


def test_projections_are_standard_normal_and_linear():
    x, y = torch.randn(200_000, generator=torch.Generator().manual_seed(1)), torch.zeros(200_000)
    y[17] = 5.0  # one coordinate alone: signs only
    projections = []
    for step, vector in ((0, x), (1, x), (0, y), (0, 2 * x)):
        one = Projection(3, step)
        one.add(0, vector)
        projections.append(one.projections(WIDTH))
    for values in projections:
        assert abs(values.mean()) < 5 / math.sqrt(WIDTH) and values.var() == pytest.approx(1.0, abs=0.12)
    assert np.abs(projections[2]) == pytest.approx(1.0, abs=1e-5)
    assert projections[3] == pytest.approx(projections[0], abs=1e-4)
    assert abs(np.mean(projections[0] * projections[1])) < 0.1  # fresh signs in every step
    assert np.mean(projections[0] ** 4) == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_nothing_can_be_said_of_some_gradients(value):
    one = Projection(0, 0)
    one.add(0, torch.full((5000,), value))
    assert np.isnan(one.projections(8)).all() and not 0 < one.norm < math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    one, two = Projection(0, 0), Projection(0, 0)
    one.add(0, x)
    two.add(0, x.float())
    assert np.array_equal(one.projections(16), two.projections(16))


def test_options_and_words():
    for bad in (-1, 1.5, "x"):
        with pytest.raises(SpecError):
            HookState(agreement_every=bad)
    assert HookState(agreement_every=5).agreement is None
    for why, text in (("cosine", "stands out"), ("norm", "times as long"), ("not finite", "not finite")):
        assert text in sentence(Unlike(3, 0.1, 0.6, 50.0, why)) and "rank 3" in sentence(Unlike(3, 0.1, 0.6, 50.0, why))


def records(steps=30, bad=2, n=4):
    found = run_records(steps=steps)
    for step in range(0, steps, 5):
        cosines = np.full((n, n), 0.5)
        unlike = ()
        if bad is not None:
            cosines[bad] = cosines[:, bad] = 0.02
            unlike = (Unlike(bad, 0.02, 0.5, 1.1, "cosine"),)
        np.fill_diagonal(cosines, 1.0)
        found.append(Agreement(step, cosines, np.ones(n), 0.035, unlike).record(0))
    return found


def test_the_log_and_the_page(tmp_path: pathlib.Path):
    run = load_run(write(tmp_path / "run.jsonl", records()))
    assert [step for step, _ in run.agreements.kept] == [0, 5, 10, 15, 20, 25]
    assert run.agreement["least"] == pytest.approx(0.02) and len(run.standing_out) == 6
    page, *pictures = write_report([run], tmp_path / "report.html")
    text = page.read_text()
    assert "Do the ranks agree?" in text and "<b>Rank 2 stood out</b> in 6 of 6 looks" in text
    assert "report-agreement.png" in {picture.name for picture in pictures}
    calm = load_run(write(tmp_path / "calm.jsonl", records(bad=None)))
    assert "No rank stood out." in told(calm)
    without = load_run(write(tmp_path / "without.jsonl", run_records(steps=5)))
    page, *pictures = write_report([without, run], tmp_path / "both.html")
    assert {picture.name for picture in pictures if "agreement" in picture.name} == {"both-agreement-2.png"}


def test_unknown_figures_and_many_ranks_are_drawn(tmp_path: pathlib.Path):
    found = records(n=40)
    found[-1]["cosines"] = [[None] * 40] * 40
    found[-1]["standing_out"] = [{"rank": 1000, "why": "<b>"}, {"rank": "x"}, 3]
    page, *_ = write_report([load_run(write(tmp_path / "run.jsonl", found))], tmp_path / "report.html")
    assert "<b></td>" not in page.read_text() and "Rank 1000" in page.read_text()
    found = [{**record, "cosines": bad} for record in records() for bad in ([[1]], "x", [[1, 2], [3]]) if record["kind"] == "agreement"]  # fmt: skip
    run = load_run(write(tmp_path / "bad.jsonl", [*run_records(steps=3), *found]))
    assert not run.agreements.kept and run.ignored >= len(found)


def test_a_resumed_run_and_long_ones():
    snapshots = Snapshots()
    for step in range(3000):
        snapshots.add(step, np.eye(2) * step)
    assert 200 < len(snapshots.kept) <= 512 and all(one[0, 0] == step for step, one in snapshots.kept)
    snapshots.add(10, np.eye(2))
    assert [step for step, _ in snapshots.kept if step >= 10] in ([10], [])
    snapshots.add(11, np.eye(3))
    assert [one.shape for _, one in snapshots.kept] == [(3, 3)]
    assert matrix([[1, None], [True, 2]]) is not None and matrix([]) is None
    assert np.isnan(mean_to_others(np.full((3, 3), np.nan))).all()


def test_scalars():
    record = [r for r in records() if r["kind"] == "agreement"][0]
    assert dict(scalars(record)) == {
        "agreement/mean_cosine": pytest.approx((3 * (1.0 + 0.02) / 3 + 0.02) / 4),
        "agreement/least_cosine": pytest.approx(0.02),
    }
    assert list(scalars({"kind": "agreement", "step": 1})) == []
