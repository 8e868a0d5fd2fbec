"""The DDP hook on nodes: 2 x 2 ranks over gloo, with what torchrun would tell them."""

from __future__ import annotations

import json
import os
import pathlib
import sys

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _launch import launch

import commpress
from commpress.errors import CommpressError, MismatchError, SpecError, TopologyError

SHAPES = ((70, 300), (9000,), (5,), (200, 101), (3, 40, 40))


def as_torchrun(rank: int) -> None:
    os.environ |= {"GROUP_RANK": str(rank // 2), "LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}


class Given(torch.nn.Module):
    """A model whose gradients are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.zeros(shape) for shape in SHAPES])

    def forward(self, gradients):
        return sum((w * g).sum() for w, g in zip(self.weights, gradients, strict=True))


def gradients(rank: int, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    common = torch.Generator().manual_seed(step)
    return [
        0.3 * torch.randn(shape, generator=common) + torch.randn(shape, generator=generator) * (i + 1)
        for i, shape in enumerate(SHAPES)
    ]


def mean(size: int, step: int) -> list[torch.Tensor]:
    return [
        torch.stack(all_ranks).mean(0) for all_ranks in zip(*(gradients(r, step) for r in range(size)), strict=True)
    ]


def train(ddp, rank: int, steps) -> list[torch.Tensor]:
    """The sums of the reduced gradients."""
    sums = [torch.zeros(shape) for shape in SHAPES]
    for step in steps:
        ddp.zero_grad()
        ddp(gradients(rank, step)).backward()
        for total, weight in zip(sums, ddp.module.weights, strict=True):
            total += weight.grad
    return sums


def wrapped() -> DistributedDataParallel:
    return DistributedDataParallel(Given(), bucket_cap_mb=0.1)  # several buckets, rebuilt after the first step


def exact_worker(rank: int, size: int) -> dict:
    as_torchrun(rank)
    ddp = wrapped()
    state = commpress.register(ddp, codec="none")
    sums = train(ddp, rank, range(3))
    for total, *means in zip(sums, *(mean(size, step) for step in range(3)), strict=True):
        assert torch.allclose(total, torch.stack(means).sum(0), atol=1e-4)
    found = {"nodes": state.nodes.as_lists(), "refused": []}
    state.close()
    for options in ({"codec": "lowrank:2", "hierarchical": True}, {"hierarchical": "yes"}):
        try:
            commpress.register(wrapped(), **options)
        except SpecError as error:
            found["refused"].append(str(error))
    try:
        commpress.register(wrapped(), hierarchical=None if rank == 2 else True)
    except MismatchError as error:
        found["refused"].append(str(error))
    os.environ["LOCAL_WORLD_SIZE"] = str(rank + 2)
    try:
        commpress.register(wrapped(), hierarchical=True)
    except TopologyError as error:
        found["refused"].append(str(error))
    return found


def test_exact_codec_and_options():
    for result in launch(__file__, "exact_worker", 4, timeout=90):
        value = result.ok().value
        assert value["nodes"] == [[0, 1], [2, 3]] and len(value["refused"]) == 4
        assert "hierarchical" in value["refused"][0] and "disagree on hierarchical" in value["refused"][2]
        assert "LOCAL_WORLD_SIZE" in value["refused"][3]


def feedback_worker(rank: int, size: int, codec: str) -> dict:
    as_torchrun(rank)
    ddp, steps = wrapped(), 6
    state = commpress.register(ddp, codec=codec, feedback=True, check_every=1)
    sums = train(ddp, rank, range(steps))
    assert state.counts["compressed_numel"] > 0 and state.nodes is not None
    owed = state._exchange.feedback.owed()
    names = {id(p): name for name, p in ddp.module.named_parameters()}
    saved = state.state_dict()
    # From the saved state the next step is the same to the bit.
    twin = wrapped()
    other = commpress.register(twin, codec=codec, feedback=True)
    train(twin, rank, range(2))
    other.load_state_dict(saved)
    following = [train(model, rank, range(steps, steps + 1)) for model in (ddp, twin)]
    assert all(torch.equal(a, b) for a, b in zip(*following, strict=True))
    state.close()
    other.close()
    return {
        "sums": sums,
        "owed": [owed[names[id(w)]].view(w.shape) for w in ddp.module.weights],
        "next": following[0],
    }


@pytest.mark.parametrize("codec", ["uniform:2", "uniform:4", pytest.param("topk:0.1", marks=pytest.mark.nightly)])
def test_feedback_loses_nothing(codec):
    """What was applied and what is owed make the exact sum of all steps' means, through DDP's rebuild; replicas are equal to the bit."""
    values = [r.ok().value for r in launch(__file__, "feedback_worker", 4, args={"codec": codec}, timeout=110)]
    for value in values[1:]:
        for name in ("sums", "next"):
            assert all(torch.equal(a, b) for a, b in zip(value[name], values[0][name], strict=True))
    for i in range(len(SHAPES)):
        exact = torch.stack([mean(4, step)[i] for step in range(6)]).sum(0)
        owed = torch.stack([value["owed"][i] for value in values]).mean(0)
        applied = values[0]["sums"][i]
        assert torch.allclose(applied + owed, exact, atol=2e-3), (i, (applied + owed - exact).abs().max())
        if exact.numel() > 5000:
            assert not torch.allclose(applied, exact, atol=0.05)  # something was left out


def budget_worker(rank: int, size: int, directory: str) -> dict:
    as_torchrun(rank)
    ddp = wrapped()
    path = pathlib.Path(directory) / "telemetry.jsonl"
    state = commpress.register(ddp, bits=1.0, plan_every=2, telemetry=path, telemetry_every=2, check_every=1)
    sums = train(ddp, rank, range(9))
    found = {"sums": sums, "plan": state.plan.digest(), "counts": state.counts}
    state.close()
    return found


def test_a_budget(tmp_path):
    results = launch(__file__, "budget_worker", 4, args={"directory": str(tmp_path)}, timeout=110)
    values = [r.ok().value for r in results]
    for value in values:
        assert value["plan"] == values[0]["plan"] and value["counts"]["plans"] > 0
        assert value["counts"]["compressed_numel"] > 0
        assert all(torch.equal(a, b) for a, b in zip(value["sums"], values[0]["sums"], strict=True))
    exact = [torch.stack([mean(4, step)[i] for step in range(9)]).sum(0) for i in range(len(SHAPES))]
    error = sum(float((a - b).square().sum()) for a, b in zip(values[0]["sums"], exact, strict=True))
    assert 0 < error < 1.5 * sum(float(e.square().sum()) for e in exact)
    records = [json.loads(line) for line in next(tmp_path.glob("telemetry*")).read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    numel = sum(torch.Size(shape).numel() for shape in SHAPES)
    assert len(steps) == 9
    for record in steps:
        # Inside a node half of the gradient goes and half of it comes back, in fp32; between nodes a bit for each coordinate of the half, twice.
        assert record["node_bytes"] > 4 * numel and record["node_wire_bytes"] > record["node_bytes"]
        assert record["payload_bytes"] < numel / 8 * 1.3 and record["payload_bytes"] < record["wire_bytes"] < numel
        assert record["achieved_rate"] == pytest.approx(1.0, rel=0.25)
    told = [r["information"] for r in steps if r.get("information")]
    assert told and told[-1]["world_size"] == 2


def failing_worker(rank: int, size: int) -> dict:
    as_torchrun(rank)
    ddp = wrapped()
    state = commpress.register(ddp, codec="uniform:4", feedback=False)
    train(ddp, rank, range(2))
    if rank == 3:
        encode = type(state.codec)._encode

        def broken(self, *args, **kwargs):
            raise ArithmeticError("sabotaged")

        type(state.codec)._encode = broken
        assert encode is not broken
    try:
        train(ddp, rank, range(2, 5))
    except (CommpressError, RuntimeError) as error:
        return {"error": str(error), "state": type(state.error).__name__}
    return {"error": "none"}


def test_a_rank_that_fails_is_an_error_on_all_nodes():
    values = [r.ok().value for r in launch(__file__, "failing_worker", 4, timeout=90, destroy=False)]
    for rank, value in enumerate(values):
        assert "sabotaged" in value["error"] and (rank == 3 or "rank 3" in value["error"]), value
