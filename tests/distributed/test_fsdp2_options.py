"""FSDP2 on real ranks: weights, replicas, bit budgets, restarts, and parameters without gradients."""

from __future__ import annotations

import json
import os
import pathlib
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _fsdp_models import PRELOAD, WIDTH, error, gradients, loss_of, mesh2d, plain, sharded, shards, train
from _launch import launch

import commpress

TIMEOUT = 120.0
NIGHTLY = pytest.mark.nightly


def run(name: str, size: int, **args) -> list:
    return [
        r.ok().value
        for r in launch(__file__, name, size, args=args, timeout=TIMEOUT, group_timeout=60.0, preload=PRELOAD)
    ]


# -- weights


def weights(rank: int, size: int) -> dict:
    found: dict = {}
    for name, options in {
        "resharded": {},
        "kept": {"reshard": False},
        "bf16": {"policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
    }.items():
        model = sharded(**options)
        state = commpress.register(model, codec="none", all_gather="uniform:8")
        seen: list[torch.Tensor] = []
        model[2].register_forward_pre_hook(lambda module, x, seen=seen: seen.append(module.weight.detach().clone()))
        grads = []
        for _ in range(2):
            model.zero_grad()
            loss_of(model, 0, rank=0).backward()
            grads.append(gradients(model))
        exact = model[2].weight.full_tensor()
        hashes = [None] * size
        dist.all_gather_object(hashes, float(seen[0].double().square().sum()))
        found[name] = {
            "error": error([seen[0].float()], [exact]),
            "alike": len(set(hashes)) == 1,
            "counts": state.counts,
            "bytes": state.traffic["all_gather"]["payload_bytes"],
        }
        state.close()
        if name == "resharded":
            # Forward and backward must see the same weights: with a linear model and one layer the gradient of the input tells.
            torch.manual_seed(0)
            line = torch.nn.Linear(64, 64, bias=False)
            fully_shard(line)
            state = commpress.register(line, codec="none", all_gather="uniform:8")
            x = torch.eye(64, requires_grad=True)
            y = line(x)
            y.diagonal().sum().backward()
            found["same"] = torch.equal(
                x.grad, y.detach().T
            )  # W as the backward pass has it, as the forward pass had it
            state.close()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=NIGHTLY)])
def test_weights_at_eight_bits(size):
    for value in run("weights", size):
        assert value.pop("same")
        for name, one in value.items():
            assert 1e-7 < one["error"] < 3e-4, (name, one)
            assert one["alike"]
            assert one["counts"]["all_gathers"] > 0 and one["counts"]["exact_all_gathers"] == 0
            assert one["bytes"] > 0
        assert value["kept"]["counts"]["all_gathers"] < value["resharded"]["counts"]["all_gathers"]


def partly(rank: int, size: int) -> dict:
    """reshard_after_forward=2 of 4 ranks: backward's all-gather over pairs sends the decoded weights as they are."""
    model = sharded(reshard=2)
    state = commpress.register(model, codec="none", all_gather="uniform:8")
    loss_of(model, 0).backward()
    counts, finite = state.counts, all(bool(torch.isfinite(g).all()) for g in gradients(model))
    state.close()
    return {"counts": counts, "finite": finite}


def test_weights_resharded_over_fewer_ranks():
    for value in run("partly", 4):
        assert value["finite"]
        assert value["counts"]["all_gathers"] == 3 and value["counts"]["exact_all_gathers"] > 0


# -- replicas


def replicated(rank: int, size: int, replicas: int, codec: str, factor: float | None) -> dict:
    mesh = mesh2d(replicas, size)
    torch.manual_seed(0)
    model, want_model = sharded(mesh=mesh["shard"]), plain()
    if factor is not None:
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(factor)
    state = commpress.register(model, codec=codec, replicate=mesh["replicate"])
    for other in range(size):
        (loss_of(want_model, 0, rank=other) / (factor or size)).backward()
    loss_of(model, 0).backward()
    wrong = error([p.grad.full_tensor() for p in model.parameters()], [p.grad for p in want_model.parameters()])
    model.zero_grad()
    train(model, 5, start=1)
    mine = torch.cat([s.flatten() for s in shards(model)])
    others = [torch.empty_like(mine) for _ in range(replicas)]
    dist.all_gather(others, mine, group=mesh["replicate"].get_group())
    found = {
        "wrong": wrong,
        "alike": all(torch.equal(mine, o) for o in others),
        "counts": state.counts,
        "traffic": state.traffic,
    }
    saved = state.state_dict()
    found["residuals"] = len(saved.get(f"rank {rank}", {}).get("replicas", {}))
    state.close()
    return found


@pytest.mark.parametrize(
    ("size", "replicas", "codec", "factor", "limit"),
    [
        pytest.param(4, 2, "none", None, 1e-11, marks=NIGHTLY),
        (4, 2, "none", 6.0, 1e-11),
        pytest.param(4, 2, "uniform:4", None, 0.3, marks=NIGHTLY),
        (4, 2, "topk:0.2", None, 0.9),
        (2, 2, "uniform:4", None, 0.3),
    ],
)
def test_replicas_are_alike_to_the_bit(size, replicas, codec, factor, limit):
    """The last case has replicas alone: shards of one rank, whose reduce-scatter FSDP leaves out."""
    for value in run("replicated", size, replicas=replicas, codec=codec, factor=factor):
        assert value["wrong"] < limit and value["alike"]
        assert value["counts"]["all_reduces"] == 18 and value["counts"]["steps"] == 6
        assert value["counts"]["reduce_scatters"] == (18 if size > replicas else 0)
        assert (value["counts"]["compressed_numel"] > 0) == (codec != "none")
        assert value["traffic"]["all_reduce"]["payload_bytes"] > 0
        assert value["residuals"] == (3 if codec.startswith("topk") else 0)


# -- a bit budget


def budget(rank: int, size: int, replicas: int, folder: str, feedback: bool) -> dict:
    mesh = mesh2d(replicas, size) if replicas > 1 else None
    model = sharded(mesh=None if mesh is None else mesh["shard"])
    path = pathlib.Path(folder) / "run.jsonl"
    state = commpress.register(
        model,
        bits=2.0,
        plan_every=3,
        plan_floor=0.0,
        objective="mse" if feedback else None,
        feedback=feedback,
        replicate=None if mesh is None else mesh["replicate"],
        telemetry=path,
        telemetry_every=2,
    )
    losses, payloads = [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(12):
        before = state.traffic["reduce_scatter"]["payload_bytes"]
        losses += train(model, 1, start=step, optimizer=optimizer)
        payloads.append(state.traffic["reduce_scatter"]["payload_bytes"] - before)
    plan = state.plan
    found = {
        "losses": losses,
        "payloads": payloads,
        "digest": plan.digest(),
        "rates": list(plan.rates),
        "rows": sum(plan.dims),
        "planned": plan.planned_bytes,
        "counts": state.counts,
    }
    state.close()
    return found


@pytest.mark.parametrize(
    ("size", "replicas", "feedback"), [pytest.param(2, 1, False, marks=NIGHTLY), (3, 1, True), (4, 2, False)]
)
def test_a_bit_budget_is_shared_out_and_kept(size, replicas, feedback, tmp_path):
    values = run("budget", size, replicas=replicas, folder=str(tmp_path), feedback=feedback)
    shard = size // replicas
    assert len({value["digest"] for value in values}) == 1
    for value in values:
        assert value["counts"]["plans"] >= 1 and len(set(value["rates"])) > 1
        assert all(payload <= (shard - 1) * 2.0 * value["rows"] / 8 for payload in value["payloads"])
        assert min(value["payloads"]) > 0.9 * (shard - 1) * 2.0 * value["rows"] / 8
        assert value["losses"][-1] < value["losses"][0]
        assert value["counts"]["by_module"] == 0
    files = sorted(tmp_path.glob("*"))
    records = [json.loads(line) for line in files[0].read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(12))
    assert any(r["kind"] == "plan" for r in records)
    for record, payload in zip(steps, values[0]["payloads"], strict=True):
        assert record["payload_bytes"] == payload
        assert record["achieved_rate"] <= 2.0
        assert {layer["name"] for layer in record["layers"]} == {
            f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")
        }
        assert sum(layer["payload_bytes"] for layer in record["layers"]) == payload
    assert "nmse" in steps[0]["layers"][0]


# -- restarts


def restarts(rank: int, size: int, options: dict, folder: str) -> dict:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def make() -> tuple:
        model = sharded()
        state = commpress.register(model, **options)
        return model, state, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, state, optimizer = make()
    train(model, 7, optimizer=optimizer)
    mine = state.state_dict()
    torch.save(mine, f"{folder}/own{rank}.pt")
    parts = get_state_dict(model, optimizer)
    dcp.save({"model": parts[0], "optimizer": parts[1], "communication": state}, checkpoint_id=f"{folder}/dcp")
    train(model, 6, start=7, optimizer=optimizer)
    want = shards(model)
    state.close()
    same = {}
    for way in ("dcp", "own"):
        model, state, optimizer = make()
        parts = get_state_dict(model, optimizer)
        loaded = {"model": parts[0], "optimizer": parts[1]}
        if way == "dcp":
            loaded["communication"] = state
        dcp.load(loaded, checkpoint_id=f"{folder}/dcp")
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        if way == "own":
            state.load_state_dict(torch.load(f"{folder}/own{rank}.pt", weights_only=True))
        train(model, 6, start=7, optimizer=optimizer)
        same[way] = all(map(torch.equal, want, shards(model)))
        state.close()
    model, state, optimizer = make()  # a negative control: without its state it goes another way
    dcp.load(loaded := {"model": get_state_dict(model, optimizer)[0]}, checkpoint_id=f"{folder}/dcp")
    set_state_dict(
        model, optimizer, model_state_dict=loaded["model"], optim_state_dict=get_state_dict(model, optimizer)[1]
    )
    train(model, 6, start=7, optimizer=optimizer)
    same["control"] = all(map(torch.equal, want, shards(model)))
    state.close()
    return same


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "topk:0.1"},
        pytest.param({"bits": 2.0, "plan_every": 3, "all_gather": "uniform:8"}, marks=NIGHTLY),
        {"bits": 1.0, "plan_every": 3, "feedback": True},
    ],
)
def test_a_restart_is_bitwise_equal(options, tmp_path):
    """By torch.distributed.checkpoint, whose tensors of the same name on all ranks become one, and by a file for each rank."""
    for value in run("restarts", 2, options=options, folder=str(tmp_path)):
        assert value == {"dcp": True, "own": True, "control": False}


# -- parameters that get no gradient


class Half(torch.nn.Module):
    """Uses one of its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def unused(rank: int, size: int, told: bool) -> dict:
    torch.manual_seed(0)
    model = Half()
    fully_shard(model)
    if told:
        model.set_reduce_scatter_unused_params(True)
    state = commpress.register(model, codec="topk:0.1")
    found = []
    for _step in range(6):
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(rank))
        model(x).square().mean().backward()
        found.append(bool(torch.isfinite(model.used.weight.grad.to_local()).all()))
    names = list(state.state_dict()[f"rank {rank}"]["modules"].values())
    counts = state.counts
    state.close()
    return {"finite": all(found), "counts": counts, "modules": [list(m) for m in names]}


@pytest.mark.parametrize("told", [False, True])
def test_parameters_without_gradients(told):
    """FSDP leaves them out of what it reduces and does not say which: feedback then is the module's, and that is counted."""
    for value in run("unused", 2, told=told):
        assert value["finite"]
        assert value["counts"]["by_module"] == (0 if told else 6)
        assert len(value["modules"]) == (0 if told else 1)


def thawed(rank: int, size: int) -> dict:
    """Frozen for some steps: its residual waits."""
    model = sharded()
    state = commpress.register(model, codec="topk:0.1")
    loss_of(model, 0).backward()
    name = "2.weight"
    before = state.state_dict()[f"rank {rank}"]["residuals"][name]
    model[2].weight.requires_grad_(False)
    loss_of(model, 1).backward()
    frozen = state.state_dict()[f"rank {rank}"]["residuals"][name]
    model[2].weight.requires_grad_(True)
    loss_of(model, 2).backward()
    after = state.state_dict()[f"rank {rank}"]["residuals"][name]
    counts = state.counts
    state.close()
    return {
        "kept": torch.equal(before, frozen),
        "moved": not torch.equal(before, after),
        "some": bool(before.any()),
        "by_module": counts["by_module"],
    }


def test_a_parameter_that_is_frozen_for_a_while():
    for value in run("thawed", 2):
        assert value == {"kept": True, "moved": True, "some": True, "by_module": 0}


def one_rank(rank: int, size: int) -> dict:
    model = sharded()
    state = commpress.register(model, codec="uniform:4", all_gather="uniform:8")
    losses = train(model, 3)
    counts, saved = state.counts, state.state_dict()
    state.load_state_dict(saved)
    state.close()
    return {"losses": losses, "counts": sum(counts.values())}


def test_one_rank_sends_nothing_and_says_so():
    (result,) = launch(__file__, "one_rank", 1, timeout=TIMEOUT, preload=PRELOAD)
    assert result.ok().value["counts"] == 0
    assert "FSDP2 calls no reduce-scatter" in result.stderr


def twice(rank: int, size: int) -> list:
    """A module that is used twice in one forward pass, with weights that are gathered twice."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())
    fully_shard(model[0])
    fully_shard(model)
    state = commpress.register(model, codec="topk:0.1")
    for _ in range(2):
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(rank), requires_grad=True)
        model[0](model(x)).square().mean().backward()
    found = [state.counts["reduce_scatters"], state.counts["steps"], state.counts["abandoned_steps"]]
    state.close()
    return found


def test_a_module_that_is_used_twice():
    for calls, steps, abandoned in run("twice", 2):
        assert calls >= 2 and steps == 2 and abandoned == 0
