"""The DDP hook on real gloo ranks: replicas equal to the bit, nearness to fp32, nothing lost or made non-finite."""

import pytest
import torch
from _scenarios import SIZES, STEPS, Given, Scenarios, flat, given_gradients, net, of, same, train
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

scenarios = Scenarios(__file__, three=("codecs", "conservation", "nonfinite", "unused"))
run_all = scenarios.run_all
two, three, ranks = scenarios.fixtures()

CODECS = ["none", "cast:bf16", "uniform:4", "hadamard+lloyd:2", "lloyd:3"]


@scenarios.add
def codecs(rank, world_size, folder):
    results = {"fp32": train(rank, None, hook=None)} | {codec: train(rank, codec) for codec in CODECS}
    return {"runs": results}


def test_replicas_agree_to_the_bit_and_compression_happened(ranks):
    results = of(ranks, "codecs")
    for codec in CODECS:
        runs = [r["runs"][codec] for r in results]
        assert same(runs, "parameters"), codec
        for run in runs:
            counts = run["counts"]
            assert (counts["steps"], counts["nonfinite_steps"]) == (STEPS, 0)
            assert run["buckets"] >= 3
            assert (counts["compressed_numel"] == 0) == (codec == "none")


def test_the_result_is_near_fp32_and_only_lossless_is_equal(ranks):
    for result in of(ranks, "codecs"):
        fp32 = result["runs"]["fp32"]["parameters"]
        start = flat(net())
        for codec in CODECS:
            off = float((result["runs"][codec]["parameters"] - fp32).norm() / (fp32 - start).norm())
            if codec == "none":
                assert off < 1e-5
            else:
                assert 1e-7 < off < 1.0, codec


def test_feedback_is_on_by_default_exactly_where_the_codec_is_biased(ranks):
    runs = of(ranks, "codecs")[0]["runs"]
    assert {c: runs[c]["feedback"] for c in CODECS} == {
        "none": False,
        "cast:bf16": True,
        "uniform:4": False,
        "hadamard+lloyd:2": False,
        "lloyd:3": True,
    }


@scenarios.add
def configurations(rank, world_size, folder):
    runs = {}
    spec = "uniform:4"
    for feedback in (False, True):
        runs[f"plain {feedback}"] = train(rank, spec, feedback=feedback)
        runs[f"explicit {feedback}"] = train(rank, spec, feedback=feedback, hook="explicit")
        for option in ("gradient_as_bucket_view", "static_graph"):
            runs[f"{option} {feedback}"] = train(rank, spec, feedback=feedback, ddp_options={option: True})
    runs["seed"] = train(rank, spec, seed=1)
    return {"runs": runs}


@pytest.mark.parametrize("feedback", [False, True])
def test_static_graph_bucket_views_and_the_explicit_form_are_bit_identical_to_the_plain_one(two, feedback):
    for result in of(two, "configurations"):
        plain = result["runs"][f"plain {feedback}"]
        assert plain["counts"]["compressed_numel"] > 0
        assert plain["feedback"] == feedback
        for other in ("explicit", "gradient_as_bucket_view", "static_graph"):
            run = result["runs"][f"{other} {feedback}"]
            assert torch.equal(run["parameters"], plain["parameters"]), other
        assert not torch.equal(result["runs"]["seed"]["parameters"], plain["parameters"]), (
            "the seed makes no difference"
        )


# Feedback needs codecs whose error is smaller than what they encode: uniform:2, for one, would make it grow.
CONTRACTING = ("uniform:4", "hadamard+lloyd:1", "lloyd:1")


@scenarios.add
def conservation(rank, world_size, folder):
    """Everything that was ever a gradient arrives or is owed, across DDP's bucket rebuild."""
    result = {}
    for spec in CONTRACTING:
        ddp = DDP(Given(SIZES), bucket_cap_mb=0.01)
        state = commpress.register(ddp, spec, feedback=True, timeout=30)
        got = [torch.zeros(s, dtype=torch.float64) for s in SIZES]
        true = [torch.zeros(s, dtype=torch.float64) for s in SIZES]
        layouts = []
        for step in range(STEPS):
            ddp.zero_grad()
            ddp(given_gradients(rank, step)).backward()
            for i, w in enumerate(ddp.module.weights):
                got[i] += w.grad.double()
                true[i] += sum(given_gradients(r, step)[i].double() for r in range(world_size)) / world_size
            layouts.append(len(state.state_dict()["layouts"]["current"]))
        owed = state._exchange.feedback.owed()
        result[spec] = {
            "got": torch.cat(got),
            "true": torch.cat(true),
            "owed": torch.cat([owed[f"weights.{i}"] for i in range(len(SIZES))]).double(),
            "layouts": layouts,
        }
        state.close()
    return result


def test_feedback_conserves_the_sum_across_the_bucket_rebuild(ranks):
    results = of(ranks, "conservation")
    for spec in CONTRACTING:
        runs = [r[spec] for r in results]
        assert len(set(runs[0]["layouts"])) > 1, "the layout never changed: nothing was tested"
        owed = sum(r["owed"] for r in runs) / len(runs)
        true, got = runs[0]["true"], runs[0]["got"]
        assert float((got + owed - true).abs().max()) < 1e-3
        assert float((got - true).abs().max()) > 0.1, "nothing was left out: nothing was tested"


@scenarios.add
def nonfinite(rank, world_size, folder):
    runs = {}
    for spec, feedback, bad in (
        ("uniform:4", False, "inf"),
        ("hadamard+lloyd:2", True, "nan"),
        ("lloyd:2", True, "-inf"),
    ):
        ddp = DDP(Given(SIZES), bucket_cap_mb=0.01)
        state = commpress.register(ddp, spec, feedback=feedback, timeout=30)
        parameters = ddp.module.parameters()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        optimizer = torch.optim.SGD(parameters, 1.0)
        seen, scales, before, after = [], [], None, None
        for step in range(STEPS):
            gradients = given_gradients(rank, step)
            if step in (2, 6) and rank == world_size - 1:
                gradients[2][17] = float(bad)
            if feedback and step == 6:
                before = {k: v.clone() for k, v in state._exchange.feedback.owed().items()}
            optimizer.zero_grad()
            scaler.scale(ddp(gradients)).backward()
            if feedback and step == 6:
                after = state._exchange.feedback.owed()
            seen.append([bool(torch.isfinite(w.grad).all()) for w in ddp.module.weights])
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        kept = before is None or all(torch.equal(before[k], after[k]) for k in before)
        runs[spec] = {
            "finite": seen,
            "scales": scales,
            "kept": kept,
            "counts": dict(state.counts),
            "parameters": flat(ddp),
        }
        state.close()
    return runs


def test_a_nan_on_one_rank_reaches_all_and_the_step_after_is_clean(ranks):
    results = of(ranks, "nonfinite")
    for spec in ("uniform:4", "hadamard+lloyd:2", "lloyd:2"):
        for run in [r[spec] for r in results]:
            for step, finite in enumerate(run["finite"]):
                assert finite[2] == (step not in (2, 6)), (spec, step)
                if step not in (2, 6):
                    assert all(finite), (spec, step)
            assert run["counts"]["nonfinite_steps"] == 2
            assert run["kept"]
            assert run["scales"] == [4.0, 4.0] + [2.0] * 4 + [1.0] * 3, "GradScaler saw it on every rank"
        assert same([r[spec] for r in results], "parameters")
        assert bool(torch.isfinite(results[0][spec]["parameters"]).all())


@scenarios.add
def unused(rank, world_size, folder):
    """Parameter 1 is unused everywhere, parameter 3 on rank 0 only, from step 3 on."""
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.01, find_unused_parameters=True)
    state = commpress.register(ddp, "uniform:4", feedback=True, timeout=30)
    before = None
    for step in range(7):
        gradients = given_gradients(rank, step)
        if step >= 3:
            gradients[1] = None
            if rank == 0:
                gradients[3] = None
            if before is None:
                before = state._exchange.feedback.owed()
        for w in ddp.module.weights:
            w.grad = None
        ddp(gradients).backward()
    after = state._exchange.feedback.owed()
    result = {
        "none": ddp.module.weights[1].grad is None,
        "kept": torch.equal(before["weights.1"], after["weights.1"]),
        "nonzero": float(before["weights.1"].abs().max()),
        "others_kept": torch.equal(before["weights.3"], after["weights.3"]),
        "local": ddp.module.weights[3].grad.clone(),
        "expected": sum(given_gradients(r, 6)[3] for r in range(1, world_size)) / world_size,
        "counts": dict(state.counts),
    }
    state.close()
    return result


def test_a_globally_unused_parameter_keeps_its_residual_and_a_locally_unused_one_sends_it(ranks):
    for result in of(ranks, "unused"):
        assert result["none"]
        assert result["nonzero"] > 0.01
        assert result["kept"]
        assert not result["others_kept"]
        assert result["counts"]["held"] == 4
        error = float((result["local"] - result["expected"]).norm() / result["expected"].norm())
        assert 0 < error < 2


def real(x):
    return torch.view_as_real(x) if x.is_complex() else x


@scenarios.add
def dtypes(rank, world_size, folder):
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("float32", "float16", "bfloat16", "float64", "complex64"):
                setattr(self, f"a_{name}", torch.nn.Parameter(torch.zeros(4500, dtype=getattr(torch, name))))

        def forward(self, scale):
            return sum(real(p).sum().double() * scale for p in self.parameters())

    out = {}
    for spec, feedback in (("none", None), ("uniform:8", False), ("uniform:4", True)):
        ddp = DDP(Mixed())
        state = commpress.register(ddp, spec, feedback=feedback, timeout=30)
        for _ in range(STEPS - 2):
            ddp.zero_grad()
            ddp(float(rank + 1)).backward()
        want = (world_size + 1) / 2
        out[spec] = {
            "dtypes": [str(p.grad.dtype) == str(p.dtype) for p in ddp.parameters()],
            "off": max(float((real(p.grad).double() - want).abs().max()) for p in ddp.parameters()),
            "buckets": len(state.state_dict()["layouts"]["current"]),
            "compressed": state.counts["compressed_numel"],
        }
        state.close()
    # Finite on every rank, but beyond fp16 as a sum: the mean must come through.
    ddp = DDP(Given([4500], torch.float16))
    state = commpress.register(ddp, "uniform:8", timeout=30)
    ddp([torch.full((4500,), 60000.0, dtype=torch.float16)]).backward()
    out["large"] = float(ddp.module.weights[0].grad.min())
    state.close()
    return out


def test_mixed_dtypes_come_out_as_they_went_in(two):
    for result in of(two, "dtypes"):
        for spec, off in (("none", 0.01), ("uniform:8", 0.1), ("uniform:4", 1.5)):
            assert all(result[spec]["dtypes"])
            assert result[spec]["off"] < off
            assert result[spec]["buckets"] >= 5
            assert (result[spec]["compressed"] > 0) == (spec != "none")
        assert 59000 < result["large"] < 61000


@scenarios.add
def zeros(rank, world_size, folder):
    out = {}
    for spec in CODECS:
        ddp = DDP(Given(SIZES), bucket_cap_mb=0.01)
        state = commpress.register(ddp, spec, timeout=30)
        for _ in range(3):
            ddp.zero_grad()
            ddp([torch.zeros(s) for s in SIZES]).backward()
        out[spec] = max(float(w.grad.abs().max()) for w in ddp.module.weights)
        ddp.zero_grad()
        ddp(given_gradients(rank, 0)).backward()
        out[spec + " after"] = max(float(w.grad.abs().max()) for w in ddp.module.weights)
        state.close()
    return out


def test_zero_gradients_give_exact_zeros(two):
    for result in of(two, "zeros"):
        for spec in CODECS:
            assert result[spec] == 0.0
            assert result[spec + " after"] > 0.1
