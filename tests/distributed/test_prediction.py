"""Predictive coding of a layer against the previous mean, where it pays."""

from __future__ import annotations

import json

import pytest
import torch
from _launch import launch
from _scenarios import Given
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

SIZES = [65_536, 40_960, 300]  # the first layer's gradients follow an AR(1) process, the second's are fresh
A = 0.97


def true_means(steps):
    generator = torch.Generator().manual_seed(5)
    means = [[torch.randn(n, generator=generator) for n in SIZES]]
    for _ in range(1, steps):
        fresh = [torch.randn(n, generator=generator) for n in SIZES]
        means.append([A * means[-1][0] + (1 - A * A) ** 0.5 * fresh[0], *fresh[1:]])
    return means


def run(rank, world_size, folder, predict):
    steps = 24
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.2)
    path = f"{folder}/{predict}.jsonl"
    options = {
        "telemetry": path,
        "telemetry_every": 4,
        "plan_every": 4,
        "timeout": 30,
        "predict": predict,
        "shaping": 0,
    }
    state = commpress.register(ddp, bits=2.0, **options)
    errors, sums, saved = [], [], None
    for step, mean in enumerate(true_means(steps)):
        if step == 14:
            saved = state.state_dict()
        noise = torch.Generator().manual_seed(31 * step + rank)
        local = [m + 0.05 * torch.randn(m.numel(), generator=noise) for m in mean]
        if step == 18:
            local[1][7] = float("nan")
        ddp.zero_grad()
        ddp(local).backward()
        got = [w.grad.clone() for w in ddp.module.weights]
        errors.append([float((g - m).square().mean()) for g, m in zip(got, mean, strict=True)])
        sums.append(torch.cat(got))
    state.close()
    # The same from the checkpoint on.
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.2)
    state = commpress.register(ddp, bits=2.0, plan_every=4, timeout=30, predict=predict, telemetry_every=4, shaping=0)
    state.load_state_dict(saved)
    for step, mean in list(enumerate(true_means(steps)))[14:18]:
        noise = torch.Generator().manual_seed(31 * step + rank)
        ddp.zero_grad()
        ddp([m + 0.05 * torch.randn(m.numel(), generator=noise) for m in mean]).backward()
    resumed = torch.cat([w.grad for w in ddp.module.weights])
    state.close()
    return {"errors": errors, "last": sums[-1], "at17": sums[17], "resumed": resumed}


def both(rank, world_size, folder):
    return {predict: run(rank, world_size, folder, predict) for predict in (True, False)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    found = [r.ok().value for r in launch(__file__, "both", 2, args={"folder": str(folder)}, timeout=150)]
    records = {
        p: [json.loads(line) for line in (folder / f"{p}.jsonl").read_text().splitlines()] for p in (True, False)
    }
    return found, records


def test_the_predicted_layer_is_nearer_to_its_mean(results):
    found, _ = results
    tail = slice(10, 18)
    error = {p: torch.tensor(found[0][p]["errors"])[tail].mean(0) for p in (True, False)}
    assert error[True][0] < 0.4 * error[False][0]
    assert torch.isfinite(torch.tensor(found[0][True]["errors"])[19:]).all()  # the step after a NaN is clean


def test_replicas_agree_and_a_restart_is_bitwise_the_same(results):
    found, _ = results
    for predict in (True, False):
        assert torch.equal(found[0][predict]["last"], found[1][predict]["last"])
        for rank in found:
            assert torch.equal(rank[predict]["resumed"], rank[predict]["at17"])


def test_telemetry_names_the_layers_their_gain_and_the_limit(results):
    _, records = results
    with_, without = ([r["information"] for r in records[p] if "information" in r] for p in (True, False))
    late = with_[3]
    assert [layer["name"] for layer in late["prediction"]["layers"]] == ["weights.0"]
    assert late["binding"] == "with memory (prediction)"
    assert 4 < late["prediction"]["gain"] < 1 / (1 - A * A)
    assert late["prediction"]["layers"][0]["a"] == pytest.approx(A, abs=0.05)
    assert all("prediction" not in one and one["binding"] == "memoryless" for one in without)


WIDE, ODD = 60_000, 300


def sequences(steps, theta):
    """What the ranks' gradients have in common: a moving average of normal noise, z_t + theta z_(t-1), or (theta None) nothing of the past."""
    generator = torch.Generator().manual_seed(9)
    noise = [[torch.randn(n, generator=generator) for n in (WIDE, ODD)] for _ in range(steps + 1)]
    return [[z + (theta or 0.0) * y for z, y in zip(new, old, strict=True)] for old, new in zip(noise, noise[1:], strict=False)]  # fmt: skip


def remembered(rank, world_size, folder, steps=250, broken=20):
    for theta in (0.9, None):
        ddp = DDP(Given([WIDE, ODD]), bucket_cap_mb=0.1)
        path = f"{folder}/{theta}.jsonl"
        state = commpress.register(ddp, "hadamard+lloyd:4", telemetry=path, telemetry_every=8, timeout=30)
        for step, mean in enumerate(sequences(steps, theta)):
            noise = torch.Generator().manual_seed(31 * step + rank)
            local = [m + 0.2 * torch.randn(m.numel(), generator=noise) for m in mean]
            if step == broken:
                local[0][3] = float("inf")
            ddp.zero_grad()
            ddp(local).backward()
        state.close()


def test_what_a_longer_history_foretells_is_measured(tmp_path):
    [r.ok() for r in launch(__file__, "remembered", 2, args={"folder": str(tmp_path)}, timeout=150)]
    found = {}
    for theta in (0.9, None):
        records = [json.loads(line) for line in (tmp_path / f"{theta}.jsonl").read_text().splitlines()]
        steps = [r for r in records if r["kind"] == "step"]
        assert not steps[20]["finite"]
        found[theta] = [r["history"] for r in steps if "history" in r]
        # Measured in every 24th step that follows eight whole ones, so not at 24; told from the second measurement on, in every record with distortion.
        told = {r["step"]: r["history"]["measurements"] for r in steps if "history" in r}
        assert told == {step: step // 24 - 1 for step in range(72, 250, 8)}
    # Least squares by hand: autocovariances of the means, and of a rank's gradient with them.
    theta, own, mean = 0.9, 0.2**2, 0.2**2 / 2
    lags = [1 + theta**2, theta] + [0.0] * 7
    exact = []
    for w in range(1, 9):
        gram = torch.tensor([[lags[abs(i - j)] + mean * (i == j) for j in range(w)] for i in range(w)])
        cross = torch.tensor(lags[1 : w + 1])
        exact.append(1 - float(cross @ torch.linalg.solve(gram, cross)) / (lags[0] + own))
    last = found[0.9][-1]
    assert last["errors"] == pytest.approx(exact, abs=0.03)
    assert last["law"] in ("power", "exponential") and 3 <= last["window"] <= 20
    assert last["pays_below"] == pytest.approx(1 / 1.1)
    # The control: nothing to gain, and what is gained by chance counts as a loss.
    last = found[None][-1]
    assert last["law"] == "none" and last["window"] == 1 and min(last["errors"]) > 0.99
