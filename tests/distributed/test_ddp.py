"""The DDP hook on real gloo ranks: one launch per world size runs every scenario, each test looks at one of them."""

import traceback

import pytest
import torch
import torch.distributed as dist
from _launch import launch
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

SCENARIOS = {}
STEPS = 9  # the rebuilt bucket layout is in use from step 5 on


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


FOR_THREE = ("codecs", "conservation", "nonfinite", "unused", "join", "several")


def run_all(rank, world_size, folder):
    results = {}
    for name, function in SCENARIOS.items():
        if world_size > 2 and name not in FOR_THREE:
            continue
        try:
            results[name] = function(rank, world_size, folder=folder)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    return results


def start(world_size, folder):
    results = launch(__file__, "run_all", world_size, args={"folder": str(folder)}, timeout=170)
    return [r.ok().value for r in results]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """results[rank][scenario] of two ranks"""
    return start(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same of three, for the scenarios in which three are another case."""
    return start(3, tmp_path_factory.mktemp("three"))


@pytest.fixture(params=["two", "three"])
def ranks(request):
    return request.getfixturevalue(request.param)


def of(ranks, name):
    """Every rank's result of a scenario that must have run to its end."""
    found = [r[name] for r in ranks]
    for rank, result in enumerate(found):
        assert "error" not in result, f"rank {rank}: {result['error']}"
    return found


def same(results, key):
    return all(torch.equal(r[key], results[0][key]) for r in results)


# ---- workers


def net(seed=0):
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(24, 130), nn.ReLU(), nn.Linear(130, 70), nn.ReLU(), nn.Linear(70, 40), nn.Linear(40, 9)
    )


def flat(module):
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def train(rank, codec, *, steps=STEPS, hook="register", seed=0, ddp_options=None, batch=8, **options):
    ddp = DDP(net(), bucket_cap_mb=0.01, **(ddp_options or {}))
    state = None
    if hook == "register":
        state = commpress.register(ddp, codec, seed=seed, timeout=30, **options)
    elif hook == "explicit":
        state = commpress.HookState(codec, seed=seed, timeout=30, **options)
        ddp.register_comm_hook(state, commpress.ddp_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(batch, 24, generator=generator)
        optimizer.zero_grad()
        (ddp(x) - x[:, :9].sin()).square().mean().backward()
        optimizer.step()
    result = {"parameters": flat(ddp), "buckets": 0, "counts": {}, "feedback": False}
    if state is not None:
        layouts = state.state_dict()["layouts"]["current"]
        result |= {"counts": dict(state.counts), "buckets": len(layouts), "feedback": state.feedback}
        state.close()
    return result


CODECS = ["none", "cast:bf16", "uniform:4", "hadamard+lloyd:2", "lloyd:3"]


@scenario
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


@scenario
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


class Given(torch.nn.Module):
    """Its gradients are the inputs: parameter i gets exactly x[i]; those whose x is None are unused."""

    def __init__(self, sizes, dtype=torch.float32):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(s, dtype=dtype) for s in sizes)

    def forward(self, gradients):
        return sum((w * g).sum() for w, g in zip(self.weights, gradients, strict=True) if g is not None)


SIZES = [5000, 300, 4500, 7000, 1, 130]


def given_gradients(rank, step, sizes=SIZES):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=generator) * (1 + i) for i, s in enumerate(sizes)]


# Feedback needs codecs whose error is smaller than what they encode: uniform:2, for one, would make it grow.
CONTRACTING = ("uniform:4", "hadamard+lloyd:1", "lloyd:1")


@scenario
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


@scenario
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


@scenario
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


@scenario
def accumulation(rank, world_size, folder):
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.01)
    state = commpress.register(ddp, "none", timeout=30)
    for step in range(4):
        ddp.zero_grad()
        with ddp.no_sync():
            ddp(given_gradients(rank, 2 * step)).backward()
        ddp(given_gradients(rank, 2 * step + 1)).backward()
    both = [
        [a + b for a, b in zip(given_gradients(r, 6), given_gradients(r, 7), strict=True)] for r in range(world_size)
    ]
    want = torch.cat([sum(g[i] for g in both) / world_size for i in range(len(SIZES))])
    got = torch.cat([w.grad for w in ddp.module.weights])
    counts = dict(state.counts)
    state.close()
    return {"off": float((got - want).abs().max()), "counts": counts}


def test_no_sync_compresses_once_per_synchronisation(two):
    for result in of(two, "accumulation"):
        assert result["off"] < 1e-4
        assert result["counts"]["steps"] == 4


@scenario
def join(rank, world_size, folder):
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.01)
    state = commpress.register(ddp, "uniform:4", feedback=True, timeout=30)
    optimizer = torch.optim.SGD(ddp.parameters(), 1.0)
    with ddp.join():
        for step in range(3 + 4 * rank):
            optimizer.zero_grad()
            ddp(given_gradients(rank, step)).backward()
            optimizer.step()
    result = {"parameters": flat(ddp), "steps": state.counts["steps"], "compressed": state.counts["compressed_numel"]}
    last = given_gradients(world_size - 1, 2 + 4 * (world_size - 1))
    result["grad"] = torch.cat([w.grad for w in ddp.module.weights])
    result["alone"] = torch.cat(last) / world_size
    state.close()
    return result


def test_join_does_not_hang_and_divides_by_the_whole_world(ranks):
    results = of(ranks, "join")
    assert same(results, "parameters")
    n = len(results)
    assert {r["steps"] for r in results} == {3 + 4 * (n - 1)}
    assert all(r["compressed"] > 0 for r in results)
    last = results[-1]
    slope = float(last["grad"] @ last["alone"] / (last["alone"] @ last["alone"]))
    assert 0.8 < slope < 1.25


def real(x):
    return torch.view_as_real(x) if x.is_complex() else x


@scenario
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


@scenario
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


@scenario
def several(rank, world_size, folder):
    """Two models in one backward pass, and one on a smaller group, interleaved with it."""
    a, b = DDP(net(1), bucket_cap_mb=0.01), DDP(net(2), bucket_cap_mb=0.02)
    states = [commpress.register(a, "uniform:4", timeout=30), commpress.register(b, "hadamard+lloyd:2", timeout=30)]
    pair = dist.new_group([0, 1])
    small = small_state = None
    if rank < 2:
        small = DDP(net(3), process_group=pair, bucket_cap_mb=0.01)
        small_state = commpress.register(small, "uniform:2", timeout=30)
    generator = torch.Generator().manual_seed(rank)
    models = [m for m in (a, b, small) if m is not None]
    optimizers = [torch.optim.SGD(m.parameters(), 0.01) for m in models]
    for _ in range(STEPS):
        x = torch.randn(8, 24, generator=generator)
        for o in optimizers:
            o.zero_grad()
        (a(x).square().mean() + b(x).square().mean()).backward()
        if small is not None:
            small(x).square().mean().backward()
        for o in optimizers:
            o.step()
    result = {"a": flat(a), "b": flat(b), "counts": [dict(s.counts) for s in states]}
    if small is not None:
        result["small"] = flat(small)
        result["moved"] = not torch.equal(flat(small), flat(net(3)))
        small_state.close()
    for s in states:
        s.close()
    return result


def test_several_models_and_groups_at_once(ranks):
    results = of(ranks, "several")
    assert same(results, "a")
    assert same(results, "b")
    assert torch.equal(results[0]["small"], results[1]["small"])
    assert results[0]["moved"]
    for r in results:
        assert all(c["steps"] == STEPS and c["compressed_numel"] > 0 for c in r["counts"])


@scenario
def telemetry(rank, world_size, folder):
    path = f"{folder}/run.{world_size}.jsonl"
    run = train(rank, "uniform:4", telemetry=path, telemetry_every=3)
    sink = commpress.telemetry.JsonlSink("/dev/full")
    other = train(rank, "uniform:4", telemetry=sink)
    sink.close()
    return run | {
        "path": path,
        "same": torch.equal(run["parameters"], other["parameters"]),
        "dropped": sink.dropped,
    }


def test_telemetry_says_what_was_sent_and_never_stops_training(two):
    results = of(two, "telemetry")
    records = commpress.telemetry.read_jsonl(results[0]["path"])
    assert [r["step"] for r in records] == list(range(STEPS))
    names = [name for name, _ in net().named_parameters()]
    numel = sum(p.numel() for p in net().parameters())
    for r in records:
        assert r["rank"] == 0
        assert r["codec"] == "uniform:4"
        assert r["finite"] is True
        assert sorted(layer["name"] for layer in r["layers"]) == sorted(names)
        assert sum(layer["payload_bytes"] for layer in r["layers"]) == r["payload_bytes"] > 0
        assert r["numel"] == numel
        assert r["requested_rate"] == 4
        assert 4 <= r["achieved_rate"] < 4.2
        assert r["wire_bytes"] > r["payload_bytes"] + r["header_bytes"]
        assert r["times"]["total"] > 0
        sampled = r["step"] % 3 == 0
        assert all(("nmse" in layer) == sampled for layer in r["layers"])
        if sampled:
            assert all(0 < layer["nmse"] < 1 for layer in r["layers"] if layer["numel"] > 1000)
    assert len(records[-1]["buckets"]) == results[0]["buckets"] >= 3
    for r in results:
        assert r["same"]
        assert r["dropped"] == STEPS


@scenario
def streams(rank, world_size, folder):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    ddp = train(rank, "uniform:2", steps=6)
    torch.manual_seed(7)
    model = DDP(Given(SIZES))
    state = commpress.register(model, "hadamard+lloyd:1", timeout=30)
    for step in range(3):
        model(given_gradients(rank, step)).backward()
    state.close()
    return {"same": torch.equal(before, torch.get_rng_state()), "compressed": ddp["counts"]["compressed_numel"]}


def test_the_users_random_stream_is_untouched(two):
    for result in of(two, "streams"):
        assert result["same"]
        assert result["compressed"] > 0


@scenario
def compiled(rank, world_size, folder):
    torch._dynamo.reset()
    model = torch.compile(DDP(net()), backend="aot_eager")
    state = commpress.register(model, "uniform:4", timeout=30)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(3):
        x = torch.randn(8, 24, generator=generator)
        optimizer.zero_grad()
        (model(x) - x[:, :9].sin()).square().mean().backward()
        optimizer.step()
    result = {"parameters": flat(model), "counts": dict(state.counts)}
    state.close()
    return result


def test_torch_compile_calls_the_hook_each_step(two):
    results = of(two, "compiled")
    assert same(results, "parameters")
    assert all(r["counts"]["steps"] == 3 and r["counts"]["compressed_numel"] > 0 for r in results)
