"""Peers that the library is compared with, on real ranks: each does what its own definition says."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from _cluster_state import need_cluster
from _launch import launch

STEPS, EXACT, BETAS, EPS = 8, 3, (0.9, 0.95), 1e-8


def one_bit_adam(rank: int, size: int, codec: str) -> dict[str, Any]:
    """Trains with it, and beside it by the formulas on exact gradients that all ranks know."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from commpress.experiments._one_bit_adam import OneBitAdam

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    twin = [p.detach().clone().requires_grad_() for p in model.parameters()]
    shapes = [(p.shape, p.numel()) for p in twin]
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.01)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    adam = OneBitAdam(groups, ddp, lr=0.01, betas=BETAS, warm_up=EXACT, eps=EPS, codec=codec)
    momentum = [torch.zeros_like(p) for p in twin]
    square = [torch.zeros_like(p) for p in twin]
    worst, frozen = 0.0, []
    for step in range(STEPS):
        data = [torch.randn(size, 16, n, generator=torch.Generator().manual_seed(100 + step)) for n in (40, 8)]
        adam.zero_grad()
        (ddp(data[0][rank]) - data[1][rank]).square().mean().backward()
        adam.step()
        # The twin: mean gradient over all ranks' data, by hand.
        gradients = [torch.zeros(shape) for shape, _ in shapes]
        for other in range(size):
            hidden = torch.tanh(data[0][other] @ twin[0].T + twin[1])
            loss = (hidden @ twin[2].T + twin[3] - data[1][other]).square().mean()
            for total, g in zip(gradients, torch.autograd.grad(loss, twin), strict=True):
                total += g / size
        with torch.no_grad():
            for p, m, v, g in zip(twin, momentum, square, gradients, strict=True):
                m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
                if step < EXACT:
                    v.mul_(BETAS[1]).add_(g * g, alpha=1 - BETAS[1])
                p.mul_(1 - 0.01 * 0.1).sub_(0.01 * m / (v.sqrt() + EPS))
        worst = max(worst, max(float((p - q).abs().max()) for p, q in zip(model.parameters(), twin, strict=True)))
        frozen.append(float(adam.state[next(iter(model.parameters()))]["square"].sum()))
    found = {
        "worst": worst,
        "frozen": frozen,
        "counts": adam.exchange.counts,
        "parameters": [p.detach().clone() for p in model.parameters()],
    }
    adam.exchange.close()
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_one_bit_adam_is_adam_whose_second_moment_is_frozen(size: int) -> None:
    exact = [r.ok().value for r in launch(__file__, "one_bit_adam", size, args={"codec": "none"}, timeout=120)]
    for found in exact:
        assert found["worst"] < 2e-5
        assert len(set(found["frozen"][EXACT - 1 :])) == 1 and len(set(found["frozen"][:EXACT])) == EXACT
        assert found["counts"]["steps"] == STEPS - EXACT
    signs = [r.ok().value for r in launch(__file__, "one_bit_adam", size, args={"codec": "sign"}, timeout=120)]
    for found in signs:
        assert found["counts"]["compressed_numel"] > 0
        assert found["worst"] > 1e-3  # it is lossy: the bound above can fail
        for mine, first in zip(found["parameters"], signs[0]["parameters"], strict=True):
            assert mine.equal(first)


def hooks(rank: int, size: int) -> dict[str, Any]:
    """The gradient that each peer gives, of a model whose gradients are known."""
    import torch

    from commpress.experiments._bucket_ways import bucket_way
    from commpress.experiments._ways import way

    found: dict[str, Any] = {}
    for name in ("fp32", "fp16", "bf16", "powersgd:2"):
        torch.manual_seed(0)
        model = torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(3))
        peer = way(name)
        ddp = peer.wrap(Sum(model))
        peer.connect(ddp, seed=0, telemetry=None)
        for _ in range(5):
            weights = [
                1.0 + torch.randn(64, 64, generator=torch.Generator().manual_seed(10 * i + rank)) for i in range(3)
            ]
            ddp.zero_grad()
            ddp(weights).backward()
        found[name] = torch.stack([p.grad for p in model.parameters()])
        bucket = torch.stack(weights).flatten()
        reduce = bucket_way(name, bucket.numel())
        for _ in range(4):  # PowerSGD goes on from its last directions
            work = bucket.clone()
            reduce(work)
        found["bucket " + name] = work
    return found


def Sum(model: Any) -> Any:
    import torch

    class Weighted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, weights: list) -> Any:
            return sum((layer.weight * w).sum() for layer, w in zip(self.layers, weights, strict=True))

    return Weighted()


@pytest.mark.parametrize("size", [2, 4])
def test_hooks_of_the_peers(size: int) -> None:
    import torch

    ranks = [r.ok().value for r in launch(__file__, "hooks", size, timeout=120)]
    sent = [
        [1.0 + torch.randn(64, 64, generator=torch.Generator().manual_seed(10 * i + rank)) for i in range(3)]
        for rank in range(size)
    ]
    exact = torch.stack([torch.stack([sent[r][i] for r in range(size)]).mean(0) for i in range(3)])
    for found in ranks:
        for name, error in (("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 1.6e-2)):
            worst = float((found[name] - exact).abs().max() / exact.abs().max())
            assert worst < error, name
            assert name == "fp32" or worst > error / 1e3, name  # it was narrowed
            assert torch.allclose(found["bucket " + name], found[name].flatten(), rtol=error, atol=error), name
        # Every coordinate has mean 1: one of two directions is worth having.
        nmse = float((found["powersgd:2"] - exact).square().sum() / exact.square().sum())
        assert 1e-3 < nmse < 0.5
        bucket = float((found["bucket powersgd:2"] - exact.flatten()).square().sum() / exact.square().sum())
        assert 1e-3 < bucket < 0.5
        for name, value in found.items():
            assert value.equal(ranks[0][name]), name


@pytest.mark.parametrize("parts", ["bucket,steps", pytest.param("bucket,steps,loss", marks=pytest.mark.nightly)])
def test_experiment_on_a_cluster(parts: str, tmp_path: pathlib.Path) -> None:
    need_cluster()
    from commpress.cli._main import main

    words = "--ways fp32,fp16,hadamard+lloyd:2 --rates 200mbit --ranks 2 --job-ranks 2 --mib 2 --model base --steps 6 --budget 0.4"
    words += f" --parts {parts} --target 1.5 --out {tmp_path}"
    assert main(["experiment", "bandwidth", *words.split()]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert records[0]["kind"] == "sweep" and records[0]["rates"] == ["200mbit"]
    bucket = {r["way"]: r for r in records if r["kind"] == "bucket"}
    nbytes = 2 * (1 << 20)
    for name, wanted in (("fp32", nbytes), ("fp16", nbytes / 2), ("hadamard+lloyd:2", nbytes / 16)):
        # Two ranks send each other as much as there is; framing and headers come on top.
        assert 1.0 < bucket[name]["interface_bytes_per_rank"] / wanted < 1.1, name
        # No call may beat its own bytes on the link, but for the burst.
        assert all(s > 0.95 * wanted * 8 / 200e6 for s in bucket[name]["seconds"]), name
        assert bucket[name]["cluster"]["rate"] and len(bucket[name]["seconds"]) >= 1
    assert bucket["fp32"]["nmse"] < 1e-12 < bucket["fp16"]["nmse"] < 1e-4 < bucket["hadamard+lloyd:2"]["nmse"] < 0.5
    steps = {r["way"]: r for r in records if r["kind"] == "step"}
    assert set(steps) == {"skip", "fp32", "fp16", "hadamard+lloyd:2"}
    assert steps["skip"]["interface_bytes_per_rank"] < 10_000
    # Ten megabytes of gradients, one way, at 200 Mbit/s.
    assert steps["fp32"]["median_seconds"] > 0.38
    assert 1.0 < steps["fp32"]["interface_bytes_per_rank"] / (4 * steps["fp32"]["numel"]) < 1.1
    text = (tmp_path / "table.txt").read_text()
    assert "One bucket of 2 MiB, 2 ranks" in text and "A training step, 2.5 M parameters" in text
    assert ("The main job" in text) == ("loss" in parts)
    for name in ("fp32", "fp16", "hadamard+lloyd_2"):
        assert (tmp_path / f"{name}.jsonl").exists() == ("loss" in parts)
