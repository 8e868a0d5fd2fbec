"""`commpress bench codecs`: what it measures, against exact figures."""

from __future__ import annotations

import json
import math
import pathlib

import pytest
import torch

from commpress.cli import main
from commpress.cli._bench import link_rate
from commpress.codecs import codec
from commpress.experiments._codec_map import SPECS, Measured, measure, pareto, recorded_gradient, sources
from commpress.experiments._model import Shape


def test_figures_of_a_known_codec() -> None:
    _, x = next(iter(sources(["gaussian"], 1 << 18, 3)))
    found = measure("hadamard+lloyd:2", "gaussian", x, keys=4, rounds=1)
    assert found.bits == 8 * codec("hadamard+lloyd:2").payload_nbytes(x.numel()) / x.numel()
    assert found.captured == pytest.approx(0.882518, rel=0.005)
    assert found.vnmse == pytest.approx(0.1331, rel=0.02)
    assert found.eta == pytest.approx(found.captured / (1 - 4**-found.bits))
    assert found.unbiased and found.bias == pytest.approx(1, abs=0.05)
    biased = measure("lloyd:2", "gaussian", x, keys=4, rounds=1)
    assert not biased.unbiased and biased.bias == pytest.approx(4, rel=1e-6), "the control: a deterministic codec"
    assert min(found.encode, found.decode, found.copy) > 0


def test_inputs_are_what_they_are_called() -> None:
    made = dict(sources(["gaussian", "laplace", "student"], 1 << 18, 5))
    kurtosis = {name: float((x**4).mean() / (x**2).mean() ** 2) for name, x in made.items()}
    assert kurtosis["gaussian"] == pytest.approx(3, abs=0.1)
    assert kurtosis["laplace"] == pytest.approx(6, abs=0.5)
    assert kurtosis["student"] > 10
    assert float(made["laplace"].abs().mean()) == pytest.approx(1, rel=0.01)


def test_a_recorded_gradient_is_the_same_every_time() -> None:
    shape = Shape(width=32, layers=1, heads=2, context=16)
    state = torch.get_rng_state()
    first, second = (recorded_gradient(2, steps=2, shape=shape) for _ in range(2))
    assert torch.equal(first, second) and first.numel() > 10_000
    assert not torch.equal(first, recorded_gradient(3, steps=2, shape=shape))
    assert torch.equal(torch.get_rng_state(), state), "the user's random stream was touched"


def entry(spec: str, bits: float, vnmse: float) -> Measured:
    return Measured(spec, "x", 1000, bits, 0.5, 0.5, vnmse, 1.0, True, 1e9, 1e9, 1e9)


def test_the_front_has_what_nobody_beats() -> None:
    good, better, beaten = entry("a", 1, 0.5), entry("b", 2, 0.1), entry("c", 2.5, 0.2)
    assert pareto([beaten, better, good], 1e6, 4) == [good, better]
    seconds = good.seconds(1e6, 4)
    assert seconds == pytest.approx(1.5 * 1000 / 8 / 1e6 + 2 * 4000 * 2e-9)


def test_rates() -> None:
    assert link_rate("1gbit") == 125e6 and link_rate("100Mbit") == 12.5e6
    for wrong in ("fast", "1", "-1gbit", "xgbit"):
        with pytest.raises(Exception, match="not a rate"):
            link_rate(wrong)


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, picture = tmp_path / "c.jsonl", tmp_path / "c.png"
    command = ["bench", "codecs", "uniform:4", "hadamard+lloyd:1", "--inputs", "gaussian", "laplace", "--numel", "10k"]
    assert main([*command, "--out", str(records), "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "hadamard+lloyd:1" in said and "Pareto" in said
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [f["source"] for f in found] == ["gaussian"] * 2 + ["laplace"] * 2
    assert all(math.isfinite(f["eta"]) for f in found)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "codecs", "nonsense:1"]) == 2


def test_every_spec_of_the_default_choice_is_canonical() -> None:
    assert [str(codec(spec)) for spec in SPECS] == list(SPECS)
