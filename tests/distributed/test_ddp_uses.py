"""The DDP hook on real gloo ranks as programs use it: accumulation, join, several models, telemetry, torch.compile."""

import torch
import torch.distributed as dist
from _scenarios import SIZES, STEPS, Given, Scenarios, flat, given_gradients, net, of, same, train
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

scenarios = Scenarios(__file__, three=("join", "several"))
run_all = scenarios.run_all
two, three, ranks = scenarios.fixtures()


@scenarios.add
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


@scenarios.add
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


@scenarios.add
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


@scenarios.add
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


@scenarios.add
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


@scenarios.add
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
