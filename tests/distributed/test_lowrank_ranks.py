"""Low-rank factors on real gloo ranks: replicas equal to the bit, nothing lost, nothing counted twice, any number of buckets in flight."""

import torch
import torch.distributed as dist
from _lowrank_models import SHAPES, backward, gradients_of, matrix, mean_of, wrapped
from _scenarios import STEPS, Scenarios, flat, net, of, same, train
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import errors
from commpress.collectives import last_report

scenarios = Scenarios(
    __file__,
    three=("training", "conservation", "nonfinite", "unused", "plain", "restart"),
)
run_all = scenarios.run_all
two, three, ranks = scenarios.fixtures()

SPECS = ["lowrank:2", "lowrank:2,factors=none", "lowrank:2,factors=hadamard+lloyd:8", "lowrank:3,iterations=0,reset=0"]


# ---- training


@scenarios.add
def training(rank, world_size, folder):
    runs = {"fp32": train(rank, None, hook=None, steps=20)}
    for spec in SPECS:
        runs[spec] = train(rank, spec, steps=20, check_every=3)
    runs["explicit"] = train(rank, SPECS[0], steps=20, check_every=3, hook="explicit")
    views = {"gradient_as_bucket_view": True}
    runs["views"] = train(rank, SPECS[0], steps=20, check_every=3, ddp_options=views)
    runs["no feedback"] = train(rank, SPECS[0], steps=20, feedback=False)
    return {"runs": runs}


def test_replicas_agree_to_the_bit_with_several_buckets_in_flight(ranks):
    results = of(ranks, "training")
    start = flat(net())
    for spec in (*SPECS, "no feedback"):
        runs = [r["runs"][spec] for r in results]
        assert same(runs, "parameters"), spec
        for run in runs:
            counts = run["counts"]
            assert counts["steps"] == 20 and counts["nonfinite_steps"] == 0 and counts["compressed_numel"] > 0
            assert run["buckets"] >= 3
            assert run["feedback"] == (spec != "no feedback")
        fp32 = results[0]["runs"]["fp32"]["parameters"]
        off = float((runs[0]["parameters"] - fp32).norm() / (fp32 - start).norm())
        assert 1e-6 < off < (1.0 if spec == "no feedback" else 0.6), (spec, off)


def test_the_explicit_form_and_bucket_views_are_bit_identical(ranks):
    for result in of(ranks, "training"):
        for other in ("explicit", "views"):
            assert torch.equal(result["runs"][other]["parameters"], result["runs"][SPECS[0]]["parameters"])


# ---- conservation, exactness


@scenarios.add
def conservation(rank, world_size, folder):
    out = {}
    for spec in SPECS:
        ddp, state = wrapped(spec)
        got = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
        true = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
        exact, layouts = 0.0, set()
        for step in range(STEPS):
            backward(ddp, gradients_of(rank, step))
            means = mean_of(step, world_size)
            for i, w in enumerate(ddp.module.weights):
                got[i] += w.grad.double()
                true[i] += means[i]
                if f"weights.{i}" not in state._exchange.trackers:
                    exact = max(exact, float((w.grad - means[i]).abs().max()))
            layouts.add(len(state.state_dict()["layouts"]["current"]))
        owed = state._exchange.feedback.owed()
        out[spec] = {
            "got": torch.cat([x.flatten() for x in got]),
            "true": torch.cat([x.flatten() for x in true]),
            "owed": torch.cat([owed[f"weights.{i}"] for i in range(len(SHAPES))]).double(),
            "exact": exact,
            "matrices": sorted(state._exchange.trackers),
            "layouts": len(layouts),
            "exact_owed": max(
                float(owed[f"weights.{i}"].abs().max())
                for i in range(len(SHAPES))
                if f"weights.{i}" not in state._exchange.trackers
            ),
        }
        state.close()
    return out


def test_everything_that_was_a_gradient_arrives_or_is_owed_across_the_bucket_rebuild(ranks):
    results = of(ranks, "conservation")
    for spec in SPECS:
        runs = [r[spec] for r in results]
        assert runs[0]["matrices"] == [f"weights.{i}" for i in (0, 2, 5, 6)]
        assert runs[0]["layouts"] > 1, "the layout never changed: nothing was tested"
        assert same(runs, "got")
        owed = sum(r["owed"] for r in runs) / len(runs)
        assert float((runs[0]["got"] + owed - runs[0]["true"]).abs().max()) < 1e-3, spec
        assert float((runs[0]["got"] - runs[0]["true"]).abs().max()) > 0.05, "nothing was left out: nothing was tested"


def test_vectors_and_small_layers_go_exactly_and_owe_nothing(ranks):
    for result in of(ranks, "conservation"):
        for spec in SPECS:
            assert result[spec]["exact"] < 1e-6
            assert result[spec]["exact_owed"] == 0.0


# ---- what must leave no trace


@scenarios.add
def nonfinite(rank, world_size, folder):
    runs = {}
    for spec, bad, place in (
        ("lowrank:2", "nan", 0),
        ("lowrank:2,factors=none", "inf", 5),
        ("lowrank:2,factors=hadamard+lloyd:8", "-inf", 1),
    ):
        ddp, state = wrapped(spec)
        seen, held = [], []
        for step in range(STEPS):
            poisoned = step in (2, 6)
            if poisoned:
                gradients = gradients_of(rank, 50)
                if rank == world_size - 1:
                    gradients[place].view(-1)[17] = float(bad)
                before = state.state_dict()
                backward(ddp, gradients)
                after = state.state_dict()
                seen.append([bool(torch.isfinite(w.grad).all()) for w in ddp.module.weights])
                held.append(
                    all(
                        torch.equal(a["basis"], after["bases"][n]["basis"]) and a["peak"] == after["bases"][n]["peak"]
                        for n, a in before["bases"].items()
                    )
                    and all(
                        torch.equal(a["sent"], after["residuals"]["residuals"][n]["sent"])
                        for n, a in before["residuals"]["residuals"].items()
                    )
                )
                continue
            backward(ddp, gradients_of(rank, step))
            seen.append([bool(torch.isfinite(w.grad).all()) for w in ddp.module.weights])
        runs[spec] = {"seen": seen, "held": held, "place": place, "counts": dict(state.counts)}
        state.close()
    return runs


def test_a_gradient_that_is_not_finite_reaches_all_ranks_and_leaves_no_trace(ranks):
    for result in of(ranks, "nonfinite"):
        for spec, run in result.items():
            for step, finite in enumerate(run["seen"]):
                assert finite[run["place"]] == (step not in (2, 6)), (spec, step)
                if step not in (2, 6):
                    assert all(finite), (spec, step)
            assert run["held"] == [True, True]
            assert run["counts"]["nonfinite_steps"] == 2


@scenarios.add
def unused(rank, world_size, folder):
    """Matrix 0 is unused everywhere and matrix 5 on rank 0, from step 3 on."""
    ddp, state = wrapped("lowrank:2", unused=True)
    before = None
    for step in range(7):
        gradients = gradients_of(rank, step)
        if step >= 3:
            gradients[0] = None
            if rank == 0:
                gradients[5] = None
            before = before or state.state_dict()
        backward(ddp, gradients)
    after = state.state_dict()

    def kept(name):
        bases = before["bases"][name]["basis"], after["bases"][name]["basis"]
        sent = [s["residuals"]["residuals"][name]["sent"] for s in (before, after)]
        return [torch.equal(*bases), torch.equal(*sent), float(sent[0].abs().max()) > 0]

    out = {
        "none": ddp.module.weights[0].grad is None,
        "kept": kept("weights.0"),
        "others": kept("weights.5"),
        "held": state.counts["held"],
    }
    state.close()
    return out


def test_a_matrix_unused_everywhere_keeps_basis_and_residual(ranks):
    for result in of(ranks, "unused"):
        assert result["none"] and result["kept"] == [True, True, True]
        assert result["others"] == [False, False, True]
        assert result["held"] == 4


@scenarios.add
def zeros(rank, world_size, folder):
    out = {}
    for spec in SPECS:
        ddp, state = wrapped(spec)
        for _ in range(3):
            backward(ddp, [torch.zeros(s) for s in SHAPES])
        out[spec] = max(float(w.grad.abs().max()) for w in ddp.module.weights)
        backward(ddp, gradients_of(rank, 0))
        out[spec + " after"] = max(float(w.grad.abs().max()) for w in ddp.module.weights)
        state.close()
    return out


def test_zero_gradients_give_exact_zeros(two):
    for result in of(two, "zeros"):
        for spec in SPECS:
            assert result[spec] == 0.0 and result[spec + " after"] > 0.1


@scenarios.add
def dtypes(rank, world_size, folder):
    out = {}
    for name in ("float16", "bfloat16", "float64", "complex64"):
        dtype = getattr(torch, name)
        ddp, state = wrapped("lowrank:2,factors=none", dtype=dtype)
        backward(ddp, gradients_of(rank, 0, dtype=dtype))
        errors_of = []
        for w in ddp.module.weights:
            want = torch.stack([gradients_of(r, 0, dtype=dtype)[len(errors_of)] for r in range(world_size)]).to(
                torch.complex128 if dtype.is_complex else torch.float64
            )
            want = want.mean(0)
            errors_of.append(float((w.grad.to(want.dtype) - want).abs().max() / want.abs().max()))
        out[name] = {"dtype": all(w.grad.dtype == dtype for w in ddp.module.weights), "off": max(errors_of)}
        state.close()
    return out


def test_dtypes_come_out_as_they_went_in(two):
    for result in of(two, "dtypes"):
        for name, run in result.items():
            assert run["dtype"] and run["off"] < 0.3, (name, run)


# ---- restart


@scenarios.add
def restart(rank, world_size, folder):
    def run(steps, state_of=None, start=0):
        torch.manual_seed(0)
        ddp = DDP(net(), bucket_cap_mb=0.01)
        state = commpress.register(ddp, "lowrank:2", timeout=30)
        if state_of is not None:
            ddp.load_state_dict(state_of["model"])
            state.load_state_dict(state_of["communication"])
        for step in range(start, steps):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(31 * step + rank))
            ddp.zero_grad()
            (ddp(x) - x[:, :9].sin()).square().mean().backward()
            with torch.no_grad():
                for p in ddp.parameters():
                    p -= 0.05 * p.grad
        saved = {"model": {k: v.clone() for k, v in ddp.state_dict().items()}, "communication": state.state_dict()}
        state.close()
        return saved

    whole = run(12)
    out = {"parameters": torch.cat([v.flatten() for v in whole["model"].values()])}
    for cut in (1, 4, 8):
        torch.save(run(cut), f"{folder}/{rank}-{cut}.pt")
        saved = torch.load(f"{folder}/{rank}-{cut}.pt", weights_only=True)
        again = run(12, saved, cut)
        out[f"cut {cut}"] = torch.cat([v.flatten() for v in again["model"].values()])
        bases, others = whole["communication"]["bases"], again["communication"]["bases"]
        out[f"bases {cut}"] = all(torch.equal(bases[n]["basis"], others[n]["basis"]) for n in bases)
    # Another rank's residuals are refused; all ranks' merged ones are taken by anybody.
    states: list = [None] * world_size
    dist.all_gather_object(states, saved["communication"])
    out["merged"] = len(commpress.hooks.merge_states(states)["bases"])
    try:
        run(8, {**saved, "communication": states[(rank + 1) % world_size]}, 8)
        out["refused"] = "no"
    except errors.StateError as problem:
        out["refused"] = str(problem)
    dist.barrier()
    return out


def test_a_restart_is_bitwise_equal_to_the_run_that_was_never_interrupted(ranks):
    for rank, result in enumerate(of(ranks, "restart")):
        for cut in (1, 4, 8):
            assert torch.equal(result[f"cut {cut}"], result["parameters"]), cut
            assert result[f"bases {cut}"]
        assert result["merged"] == 4
        assert f"not {rank}" in result["refused"]


# ---- plain tensors


@scenarios.add
def plain(rank, world_size, folder):
    want = sum(matrix(r) for r in range(world_size)) / world_size
    out = {"want": want}
    for spec in ("lowrank:3", "lowrank:3,factors=none", "lowrank:2,iterations=0"):
        x = matrix(rank)
        assert commpress.all_reduce(x, spec) is x
        out[spec] = x
    x = matrix(rank).T.double()
    commpress.all_reduce(x, "lowrank:3,factors=none", op="sum")
    out["strided sum"] = x.clone()
    x = matrix(rank).view(60, 9, 10)
    futures = [commpress.all_reduce(x.clone() + i, "lowrank:4", async_op=True) for i in range(5)]
    out["async"] = torch.stack([f.wait() - i for i, f in enumerate(futures)])
    for key in (0, 1):
        x = matrix(rank)
        commpress.all_reduce(x, "lowrank:1,iterations=0", key=commpress.Key(seed=key))
        out[f"key {key}"] = x
    vector = torch.arange(5.0) + rank
    commpress.all_reduce(vector, "lowrank:2", op="sum")
    out["vector"] = vector
    for shape in ((0,), (0, 5), (1,), ()):
        commpress.all_reduce(torch.ones(shape), "lowrank:2")
    x = matrix(rank)
    if rank == 1:
        x[3, 4] = float("nan")
    commpress.all_reduce(x, "lowrank:3")
    out["nonfinite"] = bool(torch.isfinite(x).any())
    out["report"] = last_report().nonfinite
    x = matrix(rank)
    commpress.all_reduce(x, "uniform:8")  # the plain reducer beside it
    out["plain"] = float((x - want).norm() / want.norm())
    commpress.collectives.close()
    return out


def test_all_reduce_of_a_matrix(ranks):
    results = of(ranks, "plain")
    n, want = len(results), results[0]["want"]
    for name in ("lowrank:3", "lowrank:3,factors=none", "strided sum", "async", "vector", "key 0"):
        assert same(results, name), name
    for r in results:
        assert float((r["lowrank:3"] - want).norm() / want.norm()) < 0.01
        assert float((r["lowrank:3,factors=none"] - want).norm() / want.norm()) < 0.006
        assert 0.05 < float((r["lowrank:2,iterations=0"] - want).norm() / want.norm()) < 1
        assert float((r["strided sum"].T / n - want).norm() / want.norm()) < 0.006
        assert float((r["async"].view(5, 60, 90) - want).norm(dim=(1, 2)).max() / want.norm()) < 0.01
        assert torch.equal(r["vector"], n * torch.arange(5.0) + n * (n - 1) / 2)
        assert not torch.equal(r["key 0"], r["key 1"]), "the key makes no difference"
        assert not r["nonfinite"] and r["report"]
        assert r["plain"] < 0.02


# ---- against torch's own hook
