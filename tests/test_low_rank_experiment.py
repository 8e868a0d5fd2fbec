"""`commpress experiment low-rank`: what it follows, PowerSGD's iteration against torch's own hook's formula, and the command."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from commpress.cli import main
from commpress.errors import SpecError
from commpress.experiments._checks import Check, aligned, at_least, at_most, checks_table, near, within
from commpress.experiments.low_rank import Findings, Follower, PowerIteration, drifting
from commpress.experiments.low_rank._follow import best_fidelity, fidelity_of
from commpress.experiments.low_rank._runs import LayerFound, Noise, Trace


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_best_fidelity_is_that_of_the_truncated_decomposition() -> None:
    g = normal(30, 20)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ v[:3]
    assert best_fidelity(g, 3) == pytest.approx(fidelity_of(g, best), abs=1e-6)
    assert best_fidelity(torch.zeros(4, 4), 2) == 1.0 and fidelity_of(torch.zeros(4, 4), torch.zeros(4, 4)) == 1.0
    assert fidelity_of(g, -g) == pytest.approx(-3.0, abs=1e-5), "an approximation may be worse than none"


def test_power_iteration_is_that_of_powersgd() -> None:
    """The paper's algorithm with numpy-like QR written out: two steps with a warm start."""
    g = normal(24, 16)
    power = PowerIteration(16, 3, torch.Generator().manual_seed(5))
    q = torch.randn(16, 3, generator=torch.Generator().manual_seed(5)).double()
    for _ in range(2):
        p = torch.linalg.qr(g.double() @ q)[0]
        q = g.double().T @ p
        assert torch.allclose(power.step(g).double(), p @ q.T, atol=1e-5)
    for _ in range(200):
        found = power.step(g)
    assert fidelity_of(g, found) == pytest.approx(best_fidelity(g, 3), rel=1e-3)


def test_what_drifts_has_the_spectrum_and_the_noise_it_says() -> None:
    held = list(drifting(4, 2, torch.Generator().manual_seed(1), ranks=2, n=128, noise=0.0))
    for ranks in held:
        assert torch.equal(ranks[0], ranks[1])
        assert torch.linalg.svdvals(ranks[0])[:5].tolist() == pytest.approx([10, 8, 6, 5, 0], abs=1e-3)
    cosine = [float((a[0] * b[0]).sum() / a[0].square().sum()) for a, b in zip(held, held[1:], strict=False)]
    # Both bases turn by 0.05: each singular pair keeps cos^2 of it, but for the part that turns into the others.
    assert cosine[0] == pytest.approx(0.9975, abs=0.004) and abs(cosine[1]) < 0.3 and cosine[2] > 0.99
    noisy = next(drifting(1, 5, torch.Generator().manual_seed(1), ranks=4, n=128, noise=0.1))
    rest = torch.linalg.svdvals(torch.stack(noisy).mean(0))[4:].square().sum() / 128**2
    assert float(rest) == pytest.approx(0.01, rel=0.15)


def test_a_follower_sends_the_bytes_of_factors_and_finds_what_is_there() -> None:
    g = [normal(64, 3, seed=s) @ normal(3, 48, seed=s + 10) for s in (0, 1)]
    with Follower([(64, 48), (64, 48)], "lowrank:3,factors=none") as follower:
        first = follower.step([g, g])
        second = follower.step([g, g])
    assert min(first.fidelity + second.fidelity) > 0.9999
    assert first.restarted == [True, True] and second.restarted == [False, False]
    assert second.bits == pytest.approx(2 * (32 * 3 * (64 + 48) + 64) / (2 * 64 * 48), rel=0.02)
    assert first.bits > 1.5 * second.bits, "power iterations are counted"


def test_ranks_that_differ_meet_in_their_mean() -> None:
    a, b = normal(40, 4) @ normal(4, 40, seed=1), normal(40, 4, seed=2) @ normal(4, 40, seed=3)
    with Follower([(40, 40)], "lowrank:8,factors=none", ranks=3) as follower:
        assert follower.step([[a], [b], [a + b]]).fidelity[0] > 0.9999
        assert follower.step([[a], [-a], [b * 0]]).fidelity[0] == pytest.approx(1.0), "a zero mean arrives as zero"


@pytest.mark.parametrize(("codec", "ranks"), [("uniform:4", 2), ("lowrank", 2), ("lowrank:4", 1)])
def test_a_follower_refuses(codec: str, ranks: int) -> None:
    with pytest.raises(SpecError):
        Follower([(64, 64)], codec, ranks=ranks)


def test_checks() -> None:
    assert within("x", 1.01, 1.0, 0.02).passed and not within("x", 1.03, 1.0, 0.02).passed
    assert near("x", -0.5, 0.0, 0.5).passed and not near("x", -0.51, 0.0, 0.5).passed
    assert at_least("x", 1.0, 1.0).passed and not at_most("x", 1.1, 1.0).passed
    bad = Check("y", float("nan"), 1.0)
    assert not bad.passed and bad.record()["measured"] is None and bad.record()["low"] is None
    assert "FAILED" in checks_table([bad]) and "FAILED" not in checks_table([at_least("x", 2, 1)])
    assert aligned([("a", "b"), ("cc", "d")]).splitlines()[1].strip("-") == ""


def found(after: float) -> Findings:
    ours = [0.6, 0.995, 0.995, 0.4, after, 0.995]
    traces = [Trace(way, 3, 1, ours, ours, 0.5, 1) for way in ("lowrank:4,factors=none", "lowrank:4")]
    power = [0.5, 0.9, 0.98, 0.4, 0.9, 0.97]
    traces.append(Trace("PowerSGD", 3, 1, power, power, 1.0, 0))
    layers = [LayerFound("up", 8, 4, "second half", 0.5, 0.5, 0.3, 0.9, 0.8, 0.8, 0.6, 0.0)]
    return Findings(traces, Noise(1024, 0.0078, 0.0152, 0.125, 0.159), layers)


def test_what_must_hold_has_teeth() -> None:
    assert all(check.passed for check in found(0.999).checks())
    failed = [check.what for check in found(0.97).checks() if not check.passed]
    assert failed == [
        f"{way}: least f/f_opt one step after the jump" for way in ("lowrank:4,factors=none", "lowrank:4")
    ]
    assert json.dumps(found(0.97).records()) and "up" in found(0.97).table()


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "low-rank", "--quick", "--seed", "11", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text() in printed
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    checks = [r for r in records if r["kind"] == "check"]
    assert len(checks) == 9 and all(check["passed"] for check in checks)
    layers = [r for r in records if r["kind"] == "layer"]
    assert len(layers) >= 10 and all(0 < r["ours"] <= r["best"] + 1e-6 for r in layers)
    assert all(r["bits"] < 3 for r in layers), "something was compressed"
    assert main(["experiment", "low-rank", "--quick", "--seed", "-1", "--out", str(tmp_path)]) == 2
    pytest.importorskip("matplotlib")
    assert (tmp_path / "low-rank.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command_says_what_failed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from commpress.experiments import low_rank

    monkeypatch.setattr(low_rank, "run", lambda **_: found(0.97))
    assert main(["experiment", "low-rank", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "one step after the jump: 0.97" in captured.err and "FAILED" in captured.out
