"""Mean estimation from B bits a round against the lower bound. Small versions, with negative controls."""

from __future__ import annotations

import json
import math
import pathlib
import re
from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.cli import main
from commpress.errors import SpecError, StateError
from commpress.experiments._mean_estimation import (
    HEADER_BITS,
    Point,
    Trial,
    _crossing,
    draw_prior,
    forecast,
    measure,
    prior_variance,
)
from commpress.experiments._mean_oracle import CodecOracle, Oracle, calibrate, generator_for, specs
from commpress.experiments._mean_runs import Plan, points, points_table

SEED = 90210
LLOYD_MAX = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501}  # theory.md, section 2


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Tensors are small here: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@final
class Exact(Oracle):
    """Sends the values themselves, times a factor, and claims a number of bits per coordinate."""

    def __init__(self, claimed: float, factor: float = 1.0, unbiased: bool = True) -> None:
        self._claimed, self._factor, self._unbiased = claimed, factor, unbiased

    @property
    def name(self) -> str:
        return f"exact, says {self._claimed}"

    @property
    def unbiased(self) -> bool:
        return self._unbiased

    def bits(self, d: int) -> int:
        return math.ceil(self._claimed * d)

    def send(self, x: torch.Tensor, *, seed: int, round_: int, purpose: int = 0) -> torch.Tensor:
        return self._factor * x


@final
class Scaled(Oracle):
    """A codec whose decoder multiplies by a wrong factor, and still promises to be unbiased."""

    def __init__(self, spec: str, factor: float) -> None:
        self._inner, self._factor = CodecOracle(spec), factor

    @property
    def name(self) -> str:
        return f"{self._factor} x {self._inner.name}"

    @property
    def unbiased(self) -> bool:
        return True

    def bits(self, d: int) -> int:
        return self._inner.bits(d)

    def send(self, x: torch.Tensor, *, seed: int, round_: int, purpose: int = 0) -> torch.Tensor:
        return self._factor * self._inner.send(x, seed=seed, round_=round_, purpose=purpose)


# -- the bound


@pytest.mark.parametrize("d", [64, 200])
def test_bound_of_a_point(d: int) -> None:
    """Written out once more."""
    trial = Trial(d, samples=16, repeats=4, sigma=1.5, half_width=7.0, seed=SEED)
    point = measure(CodecOracle("lloyd:2"), trial)
    for bits, limit in ((point.bits, point.limit), (point.bits + 4096, point.limit_with_header)):
        prior = 1 - math.pi**2 * trial.eps2 / (49 * d)
        assert limit == pytest.approx(1.5**2 * d / trial.eps2 * prior / (1 - 2 ** (-2 * bits / d)), rel=1e-12)
    assert trial.eps2 == 1.5**2 * d / 16


def test_prior_is_the_one_of_the_bound() -> None:
    a = 2.5
    x = draw_prior((400_000,), a, generator_for("test", SEED)).double()
    assert float(x.abs().max()) <= a
    assert float(x.square().mean()) == pytest.approx(prior_variance(a), rel=0.01)
    # Its distribution function is 1/2 + x / 2a + sin(pi x / a) / 2 pi.
    at = torch.linspace(-a, a, 21, dtype=torch.float64)
    below = torch.stack([(x <= t).double().mean() for t in at])
    assert torch.allclose(below, 0.5 + at / (2 * a) + torch.sin(math.pi * at / a) / (2 * math.pi), atol=0.004)
    assert draw_prior((0, 3), a, generator_for("test", SEED)).shape == (0, 3)


# -- the oracle


def test_bits_are_the_payloads() -> None:
    for spec in ("hadamard+lloyd:1", "lloyd:3", "uniform:2.5"):
        for d in (1, 16, 200, 4096):
            oracle = CodecOracle(spec)
            assert oracle.bits(d) == 8 * len(oracle._codec.encode(torch.ones(d), _key()))


def test_rows_of_whole_blocks_are_separate_messages() -> None:
    oracle = CodecOracle("hadamard+lloyd:2")
    x = torch.randn(3, 4096, generator=generator_for("rows", SEED))
    together = oracle.send(x, seed=1, round_=5)
    other = oracle.send(torch.cat([x[:1], 7 * x[1:]]), seed=1, round_=5)
    assert torch.equal(together[0], other[0])
    assert torch.allclose(7 * together[1:], other[1:], rtol=1e-5)


def test_what_is_sent_is_checked_against_what_is_counted() -> None:
    oracle = CodecOracle("lloyd:2")
    with pytest.raises(StateError, match="are counted"):
        oracle._one(torch.ones(64), _key(), torch.empty(64), 8)


def test_calibration_finds_the_codec_s_constants() -> None:
    for b, distortion in LLOYD_MAX.items():
        gain, omega = calibrate(CodecOracle(f"lloyd:{b}"), 4096, seed=SEED)
        assert gain == pytest.approx(1 - distortion, rel=0.01)
        assert omega == pytest.approx(distortion / (1 - distortion), rel=0.1)
        assert calibrate(CodecOracle(f"hadamard+lloyd:{b}"), 4096, seed=SEED) == (1.0, pytest.approx(omega, rel=0.14))


def test_an_oracle_of_noise_is_refused() -> None:
    with pytest.raises(StateError, match="do not correlate"):
        calibrate(Exact(1, factor=-1, unbiased=False), 64, seed=SEED)


def test_specs() -> None:
    assert specs("hadamard+lloyd", (0.25, 1)) == ["hadamard+lloyd:0.25", "hadamard+lloyd:1"]
    assert specs("hadamard+lloyd:R,scale=centroid", (2,)) == ["hadamard+lloyd:2,scale=centroid"]
    assert specs("lloyd:3", (1, 2)) == ["lloyd:3"]
    for wrong in ("nonsense", "none", "cast"):
        with pytest.raises(SpecError):
            specs(wrong, (1.0,))
    for rate in (0.0, 9.0, math.nan):
        with pytest.raises(SpecError):
            specs("lloyd", (rate,))


# -- the simulator


@pytest.mark.parametrize(("d", "rate"), [(256, 1), (256, 2), (256, 4), (1024, 1), (4096, 1), (4096, 3)])
def test_near_the_bound_and_never_below(d: int, rate: int) -> None:
    point = measure(CodecOracle(f"hadamard+lloyd:{rate}"), Trial(d, samples=128, repeats=32, seed=SEED))
    assert point.bits == 8 * (math.ceil(d * rate / 8) + 4)
    assert point.ratio <= 1.35
    assert not point.beaten
    assert point.rounds == pytest.approx(point.forecast, rel=5 * point.rounds_se / point.rounds)
    assert point.ratio_with_header > point.ratio
    assert point.header_bits == HEADER_BITS


@pytest.mark.parametrize("spec", ["hadamard+lloyd:0.25", "lloyd:0.25", "lloyd:1", "uniform:2"])
def test_other_codecs_agree_with_the_forecast(spec: str) -> None:
    point = measure(CodecOracle(spec), Trial(256, samples=64, repeats=32, seed=SEED + 1))
    assert point.rounds == pytest.approx(point.forecast, rel=0.03 + 5 * point.rounds_se / point.rounds)
    assert not point.beaten and point.ratio > 1


@pytest.mark.parametrize("d", [1, 2])
def test_one_coordinate(d: int) -> None:
    point = measure(CodecOracle("lloyd:8"), Trial(d, samples=32, repeats=512, seed=SEED))
    assert point.bits >= 8 and math.isfinite(point.ratio) and not point.beaten


def test_forecast_without_compression_is_the_posterior() -> None:
    trial = Trial(8, samples=100)
    assert forecast(trial, 0.0) == pytest.approx(100 - 1 / prior_variance(4.0), rel=1e-9)


def test_uncompressed_is_near_the_bound_of_many_bits() -> None:
    point = measure(Exact(32), Trial(2048, samples=100, repeats=16, seed=SEED))
    assert point.ratio == pytest.approx(1.0, abs=5 * point.ratio_se)
    assert not point.beaten


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 500), st.floats(0.5, 2.0))
def test_crossing_of_a_power_law(rounds: int, power: float) -> None:
    time = torch.arange(1, 2 * rounds, dtype=torch.float64)
    curve = ((rounds / time) ** power)[:, None].expand(-1, 4)
    found, error = _crossing(curve, d=50)
    assert found == pytest.approx(rounds, rel=1e-6)
    assert error == pytest.approx(rounds / power * math.sqrt(2 / (50 * 4)), rel=1e-6)


def test_crossing_that_never_comes() -> None:
    assert _crossing(torch.full((50, 3), 1.01, dtype=torch.float64), d=5) == (math.inf, math.inf)


def test_reproducible_and_the_seed_matters() -> None:
    one, two, other = (
        measure(CodecOracle("lloyd:2"), Trial(64, samples=16, repeats=8, seed=s)) for s in (SEED, SEED, SEED + 1)
    )
    assert one == two
    assert one.rounds != other.rounds


# Negative controls.


@pytest.mark.parametrize("claimed", [0.25, 1.0])
def test_bits_that_are_not_counted_are_noticed(claimed: float) -> None:
    point = measure(Exact(claimed), Trial(1024, samples=64, repeats=16, seed=SEED))
    assert point.ratio < 0.9
    assert point.beaten
    assert "BEATEN" in points_table([point])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_scale_misses_the_goal(factor: float) -> None:
    good, wrong = (
        measure(Scaled("hadamard+lloyd:2", f), Trial(256, samples=64, repeats=16, seed=SEED)) for f in (1.0, factor)
    )
    assert good.ratio < 1.2
    assert wrong.ratio > 1.35
    assert not wrong.beaten


def test_an_oracle_that_says_nothing_never_arrives() -> None:
    point = measure(Exact(8, factor=0.0), Trial(16, samples=16, repeats=2, seed=SEED))
    assert math.isinf(point.rounds) and not point.beaten
    assert point.record()["rounds"] is None
    json.dumps(point.record(), allow_nan=False)


@pytest.mark.parametrize(
    "wrong",
    [{"d": 0}, {"samples": 15}, {"repeats": 1}, {"sigma": 0.0}, {"sigma": math.inf}, {"half_width": -1.0}, {"half_width": 0.01}, {"seed": -1}],
)  # fmt: skip
def test_trial_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        Trial(**{"d": 8, **wrong})  # type: ignore[arg-type]


# -- the whole


def test_plan_measures_each_size_once() -> None:
    plan = Plan(dims=(16, 1024), rates=(1 / 16, 0.25, 1.0), seed=SEED)
    pairs = plan.pairs()
    assert ("hadamard+lloyd:0.0625", 16) not in pairs  # the same 24 bits as a quarter of a bit per coordinate
    assert ("hadamard+lloyd:0.25", 16) in pairs
    assert [d for _, d in pairs].count(1024) == 3
    with pytest.raises(SpecError, match="at least one"):
        Plan(dims=())
    with pytest.raises(SpecError, match="at least 1"):
        Plan(dims=(0,))


def test_progress_goes_up_to_the_end() -> None:
    seen: list[float] = []
    found = points(Plan(dims=(64,), rates=(1.0, 4.0), samples=32, values=64, seed=SEED), lambda s, _: seen.append(s))
    assert len(found) == 2 and all(isinstance(p, Point) for p in found)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 3


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "results"
    command = ["experiment", "mean-estimation", "--quick", "--seed", str(SEED), "--dims", "256", "--rates", "1,4"]
    assert main([*command, "--samples", "32", "--no-drift", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    table = (out / "table.txt").read_text()
    assert table in printed
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["bits"] for r in records] == [288, 1056]
    for record in records:
        assert f"{record['ratio']:.3f}" in table and not record["beaten"]
    pytest.importorskip("matplotlib")
    assert (out / "rounds.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_command_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment"]) == 0
    assert re.search(r"^mean-estimation +\w+", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "wrong", [["--dims", "x"], ["--dims", "0"], ["--rates", "9"], ["--codec", "nonsense"], ["--samples", "1"]]
)
def test_command_refuses(wrong: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "mean-estimation", "--out", str(tmp_path), *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("commpress experiment: SpecError: ") and captured.err.count("\n") == 1


def test_command_says_if_the_bound_was_beaten(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from commpress.experiments import _mean_runs

    cheat = measure(Exact(0.5), Trial(512, samples=32, repeats=16, seed=SEED))
    monkeypatch.setattr(_mean_runs, "points", lambda plan, tell: [cheat])
    assert main(["experiment", "mean-estimation", "--no-drift", "--out", str(tmp_path)]) == 1
    assert "least possible rounds" in capsys.readouterr().err


def _key() -> object:
    from commpress.codecs import Key

    return Key(SEED)
