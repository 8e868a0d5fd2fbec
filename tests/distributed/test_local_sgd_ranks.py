"""LocalSGD on real ranks over gloo: DDP and its warm-up, the same bits as among threads, a rank that dies."""

import os
import pathlib
import sys

import pytest
import torch
from _launch import launch
from _scenarios import Scenarios, of, same

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from _threads import flat, gradient_step, net, values
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress.errors import MismatchError, StateError
from commpress.telemetry import MemorySink

scenarios = Scenarios(__file__, three=("plain",))
run_all = scenarios.run_all
two, three, ranks = scenarios.fixtures()


def train_plain(rank, group=None):
    """Moves that are sums alone: those of a product of matrices depend on the number of threads."""
    model = net()
    with commpress.LocalSGD(model, codec="hadamard+lloyd:3", every=3, process_group=group) as local:
        for step in range(8):
            generator = torch.Generator().manual_seed(100 * step + rank)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=generator), alpha=0.01)
            local.step()
    return flat(model), local.counts


@scenarios.add
def plain(rank, world_size, folder):
    x, counts = train_plain(rank)
    return {"x": x, "payload_bytes": counts["payload_bytes"], "compressed_numel": counts["compressed_numel"]}


@scenarios.add
def post_local(rank, world_size, folder):
    """Four steps of DDP, then local ones; beside it a DDP that goes on as it is."""
    ddp, other = DDP(net()), DDP(net())
    sgd, other_sgd = (torch.optim.SGD(m.parameters(), 0.05) for m in (ddp, other))
    local = commpress.LocalSGD(ddp, codec="hadamard+lloyd:4", every=3, warmup_steps=4, timeout=30)
    result = {"ended": [], "x": [], "ddp": [], "gradient": []}
    for step in range(10):
        gradient_step(ddp, sgd, rank, step)
        gradient_step(other, other_sgd, rank, step)
        result["gradient"].append(next(ddp.parameters()).grad.clone())
        result["ended"].append(local.step())
        result["x"].append(flat(ddp))
        result["ddp"].append(flat(other))
    result["on"] = ddp.require_backward_grad_sync
    local.close()
    result["given_back"] = ddp.require_backward_grad_sync
    gradient_step(ddp, sgd, rank, 10)
    result["last_gradient"] = next(ddp.parameters()).grad.clone()
    return result | {"counts": local.counts}


@scenarios.add
def from_the_start(rank, world_size, folder):
    """Without a warm-up DDP never exchanges a gradient, with gradient accumulation under no_sync neither, nor broadcasts buffers."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5))
    ddp = DDP(model)
    calls = []

    def hook(state, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        calls.append(1)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp.register_comm_hook(None, hook)
    sgd = torch.optim.SGD(ddp.parameters(), 0.05)
    local = commpress.LocalSGD(ddp, codec="hadamard+lloyd:4", every=2, buffers="local", timeout=30)
    for step in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + rank))
        with ddp.no_sync():
            ddp(x).square().sum().backward()
        ddp(x).square().sum().backward()
        sgd.step()
        sgd.zero_grad()
        local.step()
    during = len(calls)
    local.close()
    ddp(torch.ones(8, 6)).sum().backward()
    return {"x": flat(ddp), "running": model[1].running_mean.clone(), "during": during, "after": len(calls)}


@scenarios.add
def hook_in_the_warm_up(rank, world_size, folder):
    ddp = DDP(net())
    state = commpress.register(ddp, "hadamard+lloyd:2", timeout=30)
    local = commpress.LocalSGD(ddp, codec="hadamard+lloyd:4", every=2, warmup_steps=3, timeout=30)
    sgd = torch.optim.SGD(ddp.parameters(), 0.05)
    for step in range(7):
        gradient_step(ddp, sgd, rank, step)
        local.step()
    local.close()
    state.close()
    return {"x": flat(ddp), "hook": state.step, "rounds": local.counts["rounds"]}


@scenarios.add
def restart_of_ddp(rank, world_size, folder):
    """In the warm-up, and between two rounds."""
    found = {}
    for stop in (2, 6):
        finals = []
        for restart in (False, True):
            ddp = DDP(net())
            sgd = torch.optim.SGD(ddp.parameters(), 0.05)
            options = {"codec": "topk:0.2", "every": 3, "warmup_steps": 4, "timeout": 30}
            local = commpress.LocalSGD(ddp, **options)
            for step in range(11):
                if restart and step == stop:
                    saved, kept = local.state_dict(), {n: t.clone() for n, t in ddp.state_dict().items()}
                    local.close()
                    ddp = DDP(net(seed=3))
                    sgd = torch.optim.SGD(ddp.parameters(), 0.05)
                    local = commpress.LocalSGD(ddp, **options)
                    ddp.load_state_dict(kept)
                    local.load_state_dict(saved)
                gradient_step(ddp, sgd, rank, step)
                local.step()
            local.close()
            finals.append(flat(ddp))
        found[f"stop {stop}"] = torch.equal(*finals)
    return found


@scenarios.add
def what_goes_wrong(rank, world_size, folder):
    found = {}
    ddp = DDP(net())
    local = commpress.LocalSGD(ddp, every=1, timeout=30)
    ddp.require_backward_grad_sync = True
    with pytest.raises(StateError) as caught:
        local.step()
    found["switched on"] = str(caught.value)
    local.close()
    ddp = DDP(net())
    local = commpress.LocalSGD(ddp, every=1, warmup_steps=1, timeout=30)
    if rank == 1:
        with torch.no_grad():
            next(ddp.parameters())[0, 0] += 1
    with pytest.raises(MismatchError) as caught:
        local.step()
    found["warm-up"] = str(caught.value)
    local.close()
    return found


@scenarios.add
def telemetry(rank, world_size, folder):
    model, sink = net(), MemorySink()
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    with commpress.LocalSGD(model, bits=2.0, every=2, telemetry=sink, telemetry_every=1) as local:
        for step in range(6):
            gradient_step(model, sgd, rank, step)
            local.step()
    rounds = [r for r in sink.records if r["kind"] == "step"]
    return {
        "rounds": [r["local_sgd"]["round"] for r in rounds],
        "information": all(bool(r["information"]) for r in rounds if "information" in r),
        "measured": sum("information" in r for r in rounds),
    }


def test_the_same_bits_as_among_threads(ranks):
    found = of(ranks, "plain")
    assert same(found, "x")
    expected = values(len(found), train_plain)
    for mine, (x, counts) in zip(found, expected, strict=True):
        assert torch.equal(mine["x"], x)
        assert mine["payload_bytes"] == counts["payload_bytes"]
        assert mine["compressed_numel"] > 0


def test_post_local_sgd(two):
    found = of(two, "post_local")
    first, second = found
    assert first["ended"] == [False] * 6 + [True, False, False, True]
    for step in range(10):
        warm = step < 4
        assert torch.equal(first["gradient"][step], second["gradient"][step]) == warm
        assert torch.equal(first["x"][step], first["ddp"][step]) == warm
        assert torch.equal(first["x"][step], second["x"][step]) == (warm or first["ended"][step])
    for one in found:
        assert not one["on"]
        assert one["given_back"]
        assert one["counts"]["local_steps"] == 6
        assert one["counts"]["rounds"] == 2
        assert one["counts"]["compressed_numel"] > 0
    assert torch.equal(first["last_gradient"], second["last_gradient"])


def test_ddp_exchanges_nothing_meanwhile(two):
    found = of(two, "from_the_start")
    assert same(found, "x")
    for one in found:
        assert one["during"] == 0
        assert one["after"] >= 1
    assert not torch.equal(found[0]["running"], found[1]["running"]), "DDP has broadcast buffers"


def test_the_hook_serves_the_warm_up_alone(two):
    found = of(two, "hook_in_the_warm_up")
    assert same(found, "x")
    assert [one["hook"] for one in found] == [3, 3]
    assert [one["rounds"] for one in found] == [2, 2]


def test_restart(two):
    for one in of(two, "restart_of_ddp"):
        assert one == {"stop 2": True, "stop 6": True}


def test_errors_say_what_is_wrong(two):
    for one in of(two, "what_goes_wrong"):
        assert "require_backward_grad_sync" in one["switched on"]
        assert "after the warm-up" in one["warm-up"] and "0.weight" in one["warm-up"]


def test_records_of_real_ranks(two):
    for one in of(two, "telemetry"):
        assert one["rounds"] == [0, 1, 2]
        assert one["information"]
        assert one["measured"] == 3


def die(rank, world_size):
    model = net()
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    local = commpress.LocalSGD(model, every=2, timeout=20)
    for step in range(4):
        gradient_step(model, sgd, rank, step)
        if rank == 1 and step == 3:
            os._exit(7)
        local.step()


def test_a_rank_dies():
    first, second = launch(__file__, "die", 2, timeout=90, destroy=False)
    assert second.returncode == 7
    first.failed("PeerError")
    assert "rank 1" in first.message
