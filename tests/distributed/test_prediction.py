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
