"""The optimizer-precision experiment: its roundings against the codec, its steps against torch's optimizers, its bars with controls, the command."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from commpress import Key
from commpress.cli import main
from commpress.codecs import codec
from commpress.errors import SpecError
from commpress.experiments.optimizer_precision import _problem
from commpress.experiments.optimizer_precision._average import MANTISSAS, averages, tracks
from commpress.experiments.optimizer_precision._needs import GROWING, Need, growths, line, needs
from commpress.experiments.optimizer_precision._problem import NOISE, PLACES, Run, gradient, problem, rate_of, run
from commpress.experiments.optimizer_precision._rounding import masks, round_nearest, round_stochastic
from commpress.experiments.optimizer_precision._tables import failures, looked, sensitive


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def values(count=4000, seed=3):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(count) * np.exp2(generator.integers(-30, 30, count))
    return np.concatenate([x, [0.0, -0.0, 1.0, -1.5, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8]]).astype(np.float32)


@pytest.mark.parametrize("mantissa", MANTISSAS)
def test_nearest_is_the_codecs(mantissa):
    x = values()
    shift, mask = masks(np.array([mantissa]))
    mine = x.copy()[:, None]
    round_nearest(mine, shift, mask)
    one = codec(f"float:e8m{mantissa},rounding=nearest")
    theirs = one.decode(one.encode(torch.from_numpy(x), Key()), Key(), out=torch.full((len(x),), torch.nan))
    assert np.array_equal(mine[:, 0], theirs.numpy())
    assert not np.array_equal(mine[:, 0], x)


@pytest.mark.parametrize("mantissa", [1, 4, 9])
def test_stochastic_goes_to_the_codecs_neighbours_with_its_probabilities(mantissa):
    x = np.full(20000, 1.3, np.float32)
    _, mask = masks(np.array([mantissa]))
    mine = x.copy()[:, None]
    round_stochastic(mine, mask, np.random.default_rng(1))
    one = codec(f"float:e8m{mantissa}")
    theirs = one.decode(one.encode(torch.from_numpy(x), Key()), Key(), out=torch.empty(len(x))).numpy()
    assert set(np.unique(mine)) == set(np.unique(theirs)) and len(np.unique(mine)) == 2
    step = 2.0**-mantissa
    for found in (mine, theirs):
        assert abs(float(found.astype(np.float64).mean()) - float(x[0])) < 4 * step / 2 / math.sqrt(len(x))


def test_gradient():
    a, b, start = problem(0)
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    r = torch.tensor(a, dtype=torch.float64) @ w - torch.tensor(b, dtype=torch.float64)
    (0.5 * (r.square() / (1 + r.square())).sum()).backward()
    mine = gradient(np.repeat(start[:, :, None], 2, axis=2), a, b)
    assert np.allclose(mine[:, :, 1], w.grad.numpy(), atol=1e-6)
    assert bool((r.square() > 1 / 3).any() and (r.square() < 1 / 3).any())  # both signs of the curvature


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_steps_are_torchs(optimizer):
    horizon = 40
    found = []
    rate = rate_of(optimizer, 1000)
    run(optimizer, horizon, weights=found, seed=4, rate=rate)
    a, b, start = problem(4)
    w = torch.nn.Parameter(torch.from_numpy(start.copy()))
    if optimizer == "adam":
        theirs = torch.optim.Adam([w], lr=rate, betas=(0.9, 0.999), eps=1e-8)
    else:
        theirs = torch.optim.Muon([w], lr=rate, momentum=0.95, nesterov=False, weight_decay=0.0)
    noises = np.random.default_rng([4, 1])
    for mine in found:
        g = gradient(w.detach().numpy()[:, :, None], a, b)[:, :, 0]
        xi = np.float32(NOISE) * noises.standard_normal((4, 8, 1, 1), dtype=np.float32)[:, :, 0, 0]
        w.grad = torch.from_numpy(g + xi)
        theirs.step()
        moved = float((w.detach() - torch.from_numpy(start)).abs().max())
        # torch's Muon orthogonalises in bfloat16
        within = 2e-4 if optimizer == "adam" else 0.03
        assert float((w.detach() - torch.from_numpy(mine[:, :, 0])).abs().max()) < within * moved


def test_averages():
    assert [(one.beta, one.needed, one.predicted) for one in averages()] == [(0.9, 3, 3), (0.99, 6, 6), (0.999, 9, 9)]
    for one in averages():
        assert one.clean == tuple(range(one.needed, 13))


@pytest.fixture(scope="module")
def decays():
    return tracks(quick=True, seed=6)


def test_tracks(decays):
    nearest, stochastic, wide = decays
    assert abs(nearest.values[-1] / 1.5 - 1) < 0.05
    assert looked(stochastic)[1] == pytest.approx(0.07457, abs=1e-5)
    assert looked(stochastic)[0] == pytest.approx(0.07457, rel=0.015)
    assert wide.values[-1] == pytest.approx(wide.exact[-1], rel=0.05)


def made(optimizer, place, rounding, bits_at):
    """Runs whose difference falls by a factor of 2 a bit and is 10 % at bits_at(T)."""
    lengths = (1000, 10000, 100000)
    off = {t: [0.1 * 2.0 ** (bits_at(t) - m) for m in MANTISSAS] for t in lengths}
    return [Run(optimizer, t, rounding, place, MANTISSAS, tuple(1 + v for v in off[t]), 1.0) for t in lengths]


def test_needs_and_growth():
    found = needs(made("adam", "all", "nearest", lambda t: 0.5 * math.log2(t)))
    for one in found:
        assert one.crossing == pytest.approx(0.5 * math.log2(one.horizon), abs=1e-6)
        assert one.mantissa == math.ceil(one.crossing)
    (growth,) = growths(found)
    assert growth.crossing_slope == pytest.approx(0.5) and growth.crossing_r2 == pytest.approx(1.0)
    assert growth.bits == (5, 7, 9)
    # one that never comes near, one that always is, and a lucky one in between, which does not count
    far = Run("adam", 10, "nearest", "all", (1, 2, 3), (2.0, 2.0, math.nan), 1.0)
    near = Run("adam", 10, "nearest", "all", (1, 2, 3), (1.0, 1.0, 1.0), 1.0)
    lucky = Run("adam", 10, "nearest", "all", (1, 2, 3), (1.0, 0.8, 1.0), 1.0)
    assert [one.mantissa for one in needs([far, near, lucky])] == [4, 1, 3]
    assert line([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]) == (0.0, 1.0, 0.0)


def test_bars_have_teeth(decays):
    good = []
    for rounding in ("nearest", "stochastic"):
        for optimizer, places in PLACES.items():
            for place in places:
                at = {"second moment": 8.5, "momentum": 1.5}.get(place)
                grows = (rounding, place) in GROWING
                rule = (lambda t: 0.5 * math.log2(t)) if grows else (lambda t, at=at: at or 3.5)
                good += made(optimizer, place, rounding, rule)
    found, exact = needs(good), (averages(), decays)
    assert failures(*exact, found, growths(found), quick=False) == []
    assert sensitive(found) == (9, 2)
    flat = [dataclasses.replace(n, mantissa=7, crossing=7.0) if (n.rounding, n.place) in GROWING else n for n in found]
    assert len(failures(*exact, flat, growths(flat), quick=False)) == 4
    close = [dataclasses.replace(n, mantissa=6) if n.place == "momentum" else n for n in found]
    assert "fewer than 4 apart" in failures(*exact, close, growths(close), quick=False)[0]
    wrong = [dataclasses.replace(one, needed=7) for one in exact[0]]
    assert len(failures(wrong, exact[1], found, growths(found), quick=False)) == 3
    assert isinstance(found[0], Need)
    with pytest.raises(SpecError):
        run("lion", 10)


def test_rounding_where_it_should_be():
    """A place that is rounded to 23 bits would change nothing: the mantissas do, each its own run."""
    found = {(r.place, r.rounding): r for r in run("adam", 400, repeats=2, seed=1)}
    assert set(found) == {(p, r) for p in PLACES["adam"] for r in ("stochastic", "nearest")}
    weights = found["weights", "nearest"]
    assert weights.norms[0] > 2 * weights.exact
    assert weights.norms[-1] == pytest.approx(weights.exact, rel=0.02)
    assert all(r.exact == weights.exact for r in found.values())


def test_command(tmp_path, capsys, monkeypatch):
    # the command's own quick mode has 22,000 steps of each; the bars need them, this needs to see that all of it runs
    monkeypatch.setattr(_problem, "horizons", lambda *, quick: (1000, 4000))
    assert main(["experiment", "optimizer-precision", "--quick", "--seed", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "never sticks" in shown and "Needed mantissa" in shown and "The main job" in shown
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    kinds = {"average", "track", "final-gradient", "needed-mantissa", "growth", "training"}
    assert {r["kind"] for r in records} == kinds
    plain, packed = (r for r in records if r["kind"] == "training" and r["optimizer"] == "adamw")
    assert packed["state_bytes"] < 0.6 * plain["state_bytes"]
    assert packed["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=0.01)
    assert packed["held_out_loss"] != plain["held_out_loss"]
    assert (tmp_path / "optimizer-precision.png").stat().st_size > 10_000


def test_wrong_use(tmp_path, capsys):
    assert main(["experiment", "optimizer-precision", "--seed", "-1", "--out", str(tmp_path)]) == 2
    assert "SpecError" in capsys.readouterr().err
