"""FSDP2 on real ranks: gradients, against torch's own communication and against exact formulas."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _fsdp_models import PRELOAD, WIDTH, error, gradients, loss_of, plain, sharded
from _launch import launch

import commpress

TIMEOUT = 120.0
NIGHTLY = pytest.mark.nightly


def run(name: str, size: int, **args) -> list:
    return [
        r.ok().value
        for r in launch(__file__, name, size, args=args, timeout=TIMEOUT, group_timeout=60.0, preload=PRELOAD)
    ]


# -- lossless


def lossless(rank: int, size: int) -> dict:
    found: dict = {}
    for name, options in {
        "plain": {},
        "kept": {"reshard": False},
        "bf16": {"policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
        "frozen": {"frozen": True},
    }.items():
        want_model, got_model = sharded(**options), sharded(**options)
        state = commpress.register(got_model, codec="none")
        for step in range(3):
            for model in (want_model, got_model):
                loss_of(model, step).backward()
                with torch.no_grad():
                    for p in model.parameters():
                        if p.grad is not None:
                            p.sub_(p.grad, alpha=0.3)
        want, got = gradients(want_model), gradients(got_model)  # of three steps: they accumulate
        found[name] = [all(map(torch.equal, want, got)), error(got, want)]
        assert state.counts["reduce_scatters"] == 9 and state.counts["steps"] == 3
        assert state.counts["compressed_numel"] == 0 and state.counts["by_module"] == 0
        state.close()
    return found


@pytest.mark.parametrize("size", [2, 3, pytest.param(4, marks=NIGHTLY)])
def test_none_is_torchs_own_reduce_scatter(size):
    """To the bit at two ranks, up to the order of summation at more."""
    for value in run("lossless", size):
        for name, (same, wrong) in value.items():
            assert same or size > 2, name
            assert wrong < 1e-11, (name, wrong)


# -- operations and dtypes


def operations(rank: int, size: int) -> dict:
    """Against the gradients of all ranks' data, added up here in fp64."""
    exact = plain().double()
    total = [torch.zeros_like(p) for p in exact.parameters()]
    for other in range(size):
        x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(other)).double()
        exact.zero_grad()
        (exact(x) - x[:, :7].tanh()).square().mean().backward()
        for t, p in zip(total, exact.parameters(), strict=True):
            t += p.grad
    found = {}
    cases = {
        "mean": (1 / size, {}, None, False),
        "factor": (1 / 5, {}, 5.0, False),
        "factor, mean": (1 / size, {}, float(size), False),
        "sums": (1 / size, {}, None, True),
        "factor and sums": (1 / 5, {}, 5.0, True),
        "bf16": (1 / size, {"reduce_dtype": torch.bfloat16}, None, False),
        "fp16": (1 / size, {"reduce_dtype": torch.float16}, None, False),
    }
    for name, (scale, policy, factor, sums) in cases.items():
        for codec in ("none", "uniform:8"):
            model = sharded(policy=MixedPrecisionPolicy(**policy))
            for module in model.modules():
                if hasattr(module, "set_gradient_divide_factor"):
                    if factor is not None:
                        module.set_gradient_divide_factor(factor)
                    module.set_force_sum_reduction_for_comms(sums)
            state = commpress.register(model, codec=codec)
            loss_of(model, 0).backward()
            got = [p.grad.full_tensor() for p in model.parameters()]
            found[f"{name}, {codec}"] = error(got, [t * scale for t in total])
            assert (state.counts["compressed_numel"] > 0) == (codec != "none")
            state.close()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=NIGHTLY)])
def test_operations_and_dtypes(size):
    """SUM, AVG and PREMUL_SUM with divide factors, and gradients reduced in 16 bits: the sum is fp32, rounded once."""
    for value in run("operations", size):
        for name, wrong in value.items():
            limit = 1e-11
            if "uniform" in name:
                limit = 1e-3
            elif "bf16" in name:
                limit = 2e-5  # gradients and the result are rounded to 2^-9 each
            elif "fp16" in name:
                limit = 1e-6
            assert wrong < limit, (name, wrong)
            assert wrong > 0


def overflow(rank: int, size: int) -> list:
    """bf16 and fp32 gradients whose sum, but not mean, is beyond the dtype."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 6, bias=False)
        fully_shard(model, mp_policy=MixedPrecisionPolicy(reduce_dtype=dtype))
        state = commpress.register(model, codec="uniform:8")
        (model(torch.full((1, 8), 1e19)).sum() * 2.5e19).backward()  # 2.5e38 of at most 3.4e38
        found.append(float(model.weight.grad.to_local().abs().max()))
        assert state.counts["nonfinite_steps"] == 0
        state.close()
    return found


def test_division_comes_before_the_sum():
    for value in run("overflow", 2):
        assert all(2.4e38 < x < 2.6e38 for x in value), value


# -- gradient accumulation


def accumulation(rank: int, size: int) -> dict:
    found = {}
    for sync in (True, False):
        want_model, got_model = sharded(), sharded()
        state = commpress.register(got_model, codec="none")
        for model in (want_model, got_model):
            for step in range(3):
                model.set_requires_gradient_sync(sync or step == 2)
                loss_of(model, step).backward()
        found[str(sync)] = [error(gradients(got_model), gradients(want_model)), state.step]
        state.close()
    # With feedback, as DDP: one compression for each synchronised backward pass.
    model = sharded()
    state = commpress.register(model, codec="topk:0.1")
    for step in range(2):
        model.set_requires_gradient_sync(step == 1)
        loss_of(model, step).backward()
    found["calls"] = state.counts["reduce_scatters"]
    state.close()
    return found


def test_gradient_accumulation():
    for value in run("accumulation", 2):
        assert value["True"][0] < 1e-12 and value["True"][1] == 3
        assert value["False"][0] < 1e-12 and value["False"][1] == 1
        assert value["calls"] == 3


# -- loss, errors, feedback


def lossy(rank: int, size: int) -> dict:
    found = {}
    cases = ("hadamard+lloyd:2", None), ("topk:0.1", None), ("uniform:3", True), ("topk:0.1", False)
    for spec, feedback in cases:
        want_model, got_model = sharded(), sharded()
        state = commpress.register(got_model, codec=spec, feedback=feedback)
        for model in (want_model, got_model):
            loss_of(model, 0).backward()
        first = error(
            [p.grad.full_tensor() for p in got_model.parameters()],
            [p.grad.full_tensor() for p in want_model.parameters()],
        )
        for model in (want_model, got_model):
            for _ in range(24):  # the same data: residuals come round, noise averages out
                loss_of(model, 0).backward()
        whole = error(
            [p.grad.full_tensor() for p in got_model.parameters()],
            [p.grad.full_tensor() for p in want_model.parameters()],
        )
        found[f"{spec}, none" if feedback is False else spec] = [
            first,
            whole,
            state.feedback,
            state.counts["compressed_numel"],
        ]
        state.close()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=NIGHTLY)])
def test_errors_average_out(size):
    """The noise of unbiased codecs falls with the number of steps, and so does the bias of others with feedback, whose residuals stay bounded. Without it a bias stays: topk's."""
    for value in run("lossy", size):
        for spec, (first, whole, feedback, compressed) in value.items():
            assert compressed > 0 and 1e-3 < first < 2.0, (spec, first)
            if spec == "topk:0.1, none":
                assert not feedback and whole > first / 3, (spec, first, whole)
            else:
                assert whole < first / 12, (spec, first, whole)


# -- what is not finite


def not_finite(rank: int, size: int) -> dict:
    """A NaN in the last layer's bias gradient, of one rank and coordinate."""
    model = sharded()
    state = commpress.register(model, codec="lloyd:4")
    loss_of(model, 0).backward()
    model.zero_grad()
    before = state.state_dict()[f"rank {rank}"]["residuals"]
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(rank))
    scale = torch.ones(7)
    if rank == 1:
        scale[1] = float("nan")
    (model(x) * scale).square().mean().backward()
    finite = {n: bool(torch.isfinite(p.grad.full_tensor()).all()) for n, p in model.named_parameters()}
    held = state.state_dict()[f"rank {rank}"]["residuals"]
    same = all(torch.equal(before[n], held[n]) for n in before)
    counts = state.counts
    model.zero_grad()
    loss_of(model, 1).backward()
    clean = all(bool(torch.isfinite(p.grad.to_local()).all()) for p in model.parameters())
    moved = not all(torch.equal(before[n], v) for n, v in state.state_dict()[f"rank {rank}"]["residuals"].items())
    state.close()
    return {
        "finite": finite,
        "same": same,
        "counts": counts,
        "clean": clean,
        "moved": moved,
        "some": any(bool(v.any()) for v in before.values()),
    }


def test_a_nonfinite_step_leaves_no_trace():
    for value in run("not_finite", 3):
        assert not value["finite"]["4.bias"] and not value["finite"]["4.weight"]
        assert value["same"] and value["some"]
        assert value["counts"]["nonfinite_steps"] == 1 and value["counts"]["steps"] == 2
        assert value["clean"] and value["moved"]
