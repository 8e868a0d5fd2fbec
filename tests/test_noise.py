"""What codecs declare about their noise, against their errors; and the experiment that shows what it costs."""

import dataclasses
import json
import math

import pytest
import torch

import commpress
from commpress import Key
from commpress.cli import main
from commpress.codecs import _PARSERS, KINDS, LayeredCodec, codec
from commpress.codecs._noise import of_parts
from commpress.errors import SpecError
from commpress.experiments.precision_scaling import _theory
from commpress.experiments.precision_scaling._kinds import SPECS, WITHIN, measured_noise, octave_sample
from commpress.experiments.precision_scaling._measure import fits, points
from commpress.experiments.precision_scaling._tables import STATED, closed_forms, failures, slopes
from commpress.lowrank import orthonormal

MORE = (
    *("cast:fp16", "uniform:1", "uniform:6", "uniform:2.5", "lloyd:8", "hadamard+lloyd:0.25", "hadamard+lloyd:4"),
    *("hadamard+lloyd:1,scale=centroid", "hadamard+lloyd:2,scale=centroid", "hadamard+ecsq:1,scale=centroid"),
    *("bitshift:0.3", "bitshift:4", "hadamard+bitshift:0.3", "hadamard+bitshift:1,scale=centroid"),
    *("float:e1m2", "float:e1m7", "float:e2m5", "float:e3m1", "float:e5m2", "float:e8m7,rounding=nearest"),
    *("float:e5m2,scale=none", "float:e4m3,scale=none", "mxfp8,format=e5m2", "mxfp6,format=e3m2"),
    *(
        "natural,rounding=nearest",
        "int8,rounding=nearest",
        "qsgd:1",
        "qsgd:1000",
        "qsgd:7,norm=linf",
        "qsgd:127,norm=linf",
    ),
    *("qsgd:7,rounding=nearest", "ternary,rounding=nearest", "sign,scale=none", "ecsq:4", "ecsq:8", "trellis:8"),
    *("ecdq:8", "hadamard+ecdq:2", "homomorphic:8,rounding=stochastic", "homomorphic:2,rounding=stochastic"),
    *(
        "randk:0.1,scale=none",
        "randk:0.1,values=4",
        "randk:0.1,values=8",
        "randk:0.1,values=bf16",
        "topk:1,values=fp32",
    ),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("spec", [*SPECS, *MORE])
def test_declared_noise_is_measured(spec):
    one = codec(spec)
    row = measured_noise(one, keys=4, seed=3)
    assert row.measured == row.declared == one.noise
    if spec not in ("none", "topk:1,values=fp32"):
        assert one.payload_nbytes(1 << 16) < 4 << 16  # something was compressed
        assert max(row.errors) > 0


def test_every_family_is_measured():
    measured = {spec.split(":")[0].split(",")[0] for spec in (*SPECS, *MORE)}
    assert set(_PARSERS) - measured == {"lowrank", "modulo"}  # below


def test_wrong_declarations_fail():
    """The control: every other declaration of a codec differs from what is measured, and kinds lie far apart."""
    for spec, kind in (("float:e4m3", "multiplicative"), ("hadamard+lloyd:2", "additive"), ("ternary", "mixed")):
        row = measured_noise(codec(spec), seed=3)
        for wrong in set(KINDS) - {kind}:
            assert dataclasses.replace(row, declared=wrong).measured != wrong
        assert failures_of_kind(dataclasses.replace(row, declared="none"))
        assert not failures_of_kind(row)
    assert measured_noise(codec("float:e4m3")).even > 1000 * WITHIN
    assert measured_noise(codec("hadamard+lloyd:2")).proportional > 1000 * WITHIN


def failures_of_kind(row):
    return [line for line in failures(POINTS, [], [row]) if "declares" in line]


POINTS = points(quick=True, seed=5)


def test_side_information():
    one = codec("modulo:3,rho=0.9")

    def decode(x, key):
        generator = torch.Generator().manual_seed(key.step)
        scale = math.sqrt(1 / 0.81 - 1) * float(x.square().mean().sqrt())
        side = x + scale * torch.randn(x.numel(), generator=generator)
        return one.decode(one.encode(x, key), key, out=torch.full_like(x, torch.nan), side=side)

    row = measured_noise(one, decode=decode)
    assert row.measured == row.declared == "mixed"
    assert max(row.errors) > 0


def test_low_rank():
    """Of one step on one matrix: P = orth(G Q), and P P^T G is what arrives. (`all_reduce` of one rank would lose nothing.)"""
    one = codec("lowrank:8")

    def decode(x, key):
        matrix = x.view(256, 256)
        random = torch.randn(256, one.dimension, generator=torch.Generator().manual_seed(key.step))
        rows = orthonormal((matrix @ random).T.contiguous())
        return (rows.T @ (rows @ matrix)).reshape(-1)

    row = measured_noise(one, keys=2, decode=decode)
    assert max(row.errors) > 0
    assert row.measured == row.declared == "mixed"


def test_layers():
    exact, even, sized = codec("none"), codec("hadamard+lloyd:2"), codec("cast:bf16")
    assert LayeredCodec([(10, exact)]).noise == "none"
    assert LayeredCodec([(10, exact), (5000, even), (5000, codec("ecdq:1"))]).noise == "additive"
    assert LayeredCodec([(10, sized), (10, exact)]).noise == "multiplicative"
    assert LayeredCodec([(10, sized), (10, even)]).noise == "mixed"
    assert of_parts([]) == "none"


def test_shaping_is_for_what_is_not_multiplicative():
    for spec in (*SPECS, *MORE):
        assert not (codec(spec).even_error and codec(spec).noise == "multiplicative")


def test_octaves():
    x, octave = octave_sample(1 << 12)
    assert bool((x.abs() <= 2.0 ** -octave.float()).all() and (x.abs() >= 2.0 ** -(octave.float() + 1.001)).all())
    with pytest.raises(SpecError):
        measured_noise(codec("int8"), keys=0)


# ---- precision scaling


def test_closed_forms():
    for size, stated in STATED.items():
        assert closed_forms()[size] == pytest.approx(stated, abs=6e-5)
    i = torch.arange(1, 2_000_001, dtype=torch.float64)
    lost = 1e-4 / (i**-2.0 + 1e-4)
    lost[1000:] = 1
    brute = float((i**-1.5 * lost).sum()) + 2 / math.sqrt(2_000_000.5)  # the rest by the integral
    assert _theory.risk(1000, _theory.additive(1000, 1e-4)) == pytest.approx(brute, rel=1e-8)
    assert _theory.tail(0) == pytest.approx(2.612375348685488, rel=1e-8)
    assert _theory.effective(_theory.tail(123)) == pytest.approx(123, rel=1e-6)
    assert _theory.effective(5.0) == 0


def test_measured_risks_and_slopes():
    for p in POINTS:
        assert p.risk == pytest.approx(p.predicted, rel=0.01)
        assert p.risk > p.full
    found = slopes(POINTS)
    assert found["multiplicative"][0] == pytest.approx(-0.5, abs=0.03)
    assert abs(found["additive"][0]) <= 0.02
    # The control: neither slope would pass for the other.
    assert abs(found["multiplicative"][0]) > 0.02 and abs(found["additive"][0] + 0.5) > 0.03
    large = {p.label: p for p in POINTS if p.size == 10000}
    assert (
        large["additive"].effective
        < 100
        < large["additive by block"].effective
        < 5000
        < large["multiplicative"].effective
    )


def test_regressions():
    for f in fits(quick=True, seed=9):
        assert f.risk == pytest.approx(f.predicted, rel=0.05)


def test_command(tmp_path, capsys):
    assert main(["experiment", "precision-scaling", "--quick", "--seed", "2", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Closed forms" in shown and "Noise kinds" in shown and "Least squares" in shown
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"closed-form", "precision-scaling", "regression", "noise-kind"}
    assert (tmp_path / "precision-scaling.png").stat().st_size > 10_000


def test_command_fails_if_theory_does(tmp_path, capsys, monkeypatch):
    from commpress.experiments.precision_scaling import _kinds

    real = _kinds.measured_noise
    monkeypatch.setattr(_kinds, "measured_noise", lambda *a, **k: dataclasses.replace(real(*a, **k), declared="none"))
    monkeypatch.setattr(_kinds, "SPECS", ("int8",))
    assert main(["experiment", "precision-scaling", "--quick", "--out", str(tmp_path)]) == 1
    assert "int8 declares none noise, measured additive" in capsys.readouterr().err
    assert main(["experiment", "precision-scaling", "--seed", "-1", "--out", str(tmp_path)]) == 2


def test_info_says_it(tmp_path, capsys):
    frame = commpress.pack(torch.randn(5000), codec("hadamard+lloyd:2"), Key())
    (tmp_path / "x.cmpr").write_bytes(bytes(frame))
    assert main(["info", str(tmp_path / "x.cmpr")]) == 0
    assert "additive" in capsys.readouterr().out
