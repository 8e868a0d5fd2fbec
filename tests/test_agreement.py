"""The monitor's projections, its records in a run's log, its part of the report, its scalars."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
import torch
from _runs import run_records, write
from _threads import values as on_ranks

from commpress.codecs import Key
from commpress.collectives import make_channel
from commpress.errors import SpecError
from commpress.estimation import Unlike
from commpress.hooks import HookState
from commpress.hooks._layer_scales import NAMED, FarLayer, LayerScales, ScaleWatch
from commpress.hooks._projection import WIDTH, Projection
from commpress.hooks._worker_agreement import Agreement, sentence
from commpress.reference._random import ROTATION_1, words
from commpress.telemetry import load_run, write_report
from commpress.telemetry._report_agreement import scale_words
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


def scales(step, bad, n):
    """Of two layers that the other records know, and one that they do not."""
    names = ("blocks.0.up.weight", "head.weight", "other")
    far = () if bad is None else (FarLayer(bad, "head.weight", 0.0), FarLayer(bad, "<other>", 64.0))
    counts = tuple(2 * (rank == bad) for rank in range(n))
    return LayerScales(names, (262144, 65536, 100), np.array([1e-3, 1e-2 / (1 + step), 0.0]), far, counts, 2, 50, 4)


def records(steps=30, bad=2, n=4):
    found = run_records(steps=steps)
    for step in range(0, steps, 5):
        cosines = np.full((n, n), 0.5)
        unlike = ()
        if bad is not None:
            cosines[bad] = cosines[:, bad] = 0.02
            unlike = (Unlike(bad, 0.02, 0.5, 1.1, "cosine"),)
        np.fill_diagonal(cosines, 1.0)
        found.append(Agreement(step, cosines, np.ones(n), 0.035, unlike, scales(step, bad, n)).record(0))
    return found


def test_the_log_and_the_page(tmp_path: pathlib.Path):
    run = load_run(write(tmp_path / "run.jsonl", records()))
    assert [step for step, _ in run.agreements.kept] == [0, 5, 10, 15, 20, 25]
    assert run.agreement["least"] == pytest.approx(0.02) and len(run.standing_out) == 6
    page, *pictures = write_report([run], tmp_path / "report.html")
    text = page.read_text()
    assert "Do the ranks agree?" in text and "<b>Rank 2 stood out</b> in 6 of 6 looks" in text
    assert {"report-agreement.png", "report-scales.png"} <= {picture.name for picture in pictures}
    assert run.scales.looks == 6 and run.scales.looks_of == {2: 6} and len(run.scales.far) == 12
    steps, rms = run.scales.rms.table()
    assert list(steps) == [0, 5, 10, 15, 20, 25]
    assert rms[run.layer_names.index("head.weight")] == pytest.approx([1e-2 / (1 + step) for step in steps])
    assert run.layer_numels[run.layer_names.index("other")] == 100
    assert (
        "<b>Layers of rank 2 had another size</b> than on most ranks in 6 of 6 looks" in text
        and "&lt;other&gt;" in text
    )
    calm = load_run(write(tmp_path / "calm.jsonl", records(bad=None)))
    assert "No rank stood out." in told(calm) and "No rank's layers" in scale_words(calm)
    without = load_run(write(tmp_path / "without.jsonl", run_records(steps=5)))
    page, *pictures = write_report([without, run], tmp_path / "both.html")
    assert {picture.name for picture in pictures if "agreement" in picture.name} == {"both-agreement-2.png"}


def test_unknown_figures_and_many_ranks_are_drawn(tmp_path: pathlib.Path):
    found = records(n=40)
    found[-1]["cosines"] = [[None] * 40] * 40
    found[-1]["standing_out"] = [{"rank": 1000, "why": "<b>"}, {"rank": "x"}, 3]
    page, *_ = write_report([load_run(write(tmp_path / "run.jsonl", found))], tmp_path / "report.html")
    assert "<b></td>" not in page.read_text() and "Rank 1000" in page.read_text()
    run = load_run(write(tmp_path / "odd.jsonl", [{**r, "scales": odd} for r in records() if r["kind"] == "agreement" for odd in (3, {}, {"layers": [1, {"name": "x", "rms": "y"}], "far": [1, {"rank": "z"}]})]))  # fmt: skip
    assert run.scales.far == [] and write_report([run], tmp_path / "odd.html")
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


def watched(looks, *, ranks=3, sizes=(1000, 1000, 15, 1000)):
    """What ScaleWatch makes of rms by look, rank and layer; and the ranks that are news."""

    def one(rank, group):
        watch = ScaleWatch([f"l{i}" for i in range(len(sizes))], make_channel(group), 20.0)
        found = [watch.compare(np.array(look[rank], dtype=float), np.array(sizes)) for look in looks]
        return [(scales, watch.news(scales)) for scales in found]

    return on_ranks(ranks, one)


def test_far_layers_and_those_that_cannot_be_judged():
    usual = [1.0, 1e-6, 1.0, 0.0]
    first = [
        usual,
        [1.2, 1e-6, 1.0, 5.0],
        [12.0, 1e-8, 99.0, 0.0],
    ]  # 15 coordinates are too few; most have no gradient in the last
    looks = [first, first, [usual, usual, usual]]
    for found in watched(looks):
        (one, news), (again, no_news), (calm, _) = found
        assert news == [2] and no_news == [] and calm.far == () and calm.counts == (0, 0, 0)
        assert one.counts == (0, 0, 2) == again.counts
        assert [(f.rank, f.layer) for f in one.far] == [(2, "l1"), (2, "l0")]  # the furthest first
        assert one.far[1].ratio == pytest.approx(12 / 1.25)
        assert one.values == pytest.approx([1.25, 1e-6, 1.0, 0.0], rel=0.26)
        assert "in 2 of 4 layers: l1 (0.0" in one.sentence(2) and "times" in one.sentence(2)
    many = watched([[[1.0] * 9, [1.0] * 9, [0.0] * 9]], sizes=(50,) * 9)[0][0][0]
    assert many.counts == (0, 0, 9) and len(many.far) == NAMED and "l0 (zero there)" in many.sentence(2)
    assert "and 5 more" in many.sentence(2)
    pair = watched([[[1.0, 1.0], [100.0, 1.0]]], ranks=2, sizes=(50, 50))[0][0][0]
    assert pair.far == () and pair.values == pytest.approx([1.0, 1.0])  # of two, who is wrong?
