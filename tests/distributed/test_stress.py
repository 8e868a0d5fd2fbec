"""Many steps, many buckets, two models, and ranks that dawdle at random: same parameters to the bit, and no hang."""

import gc
import os
import random
import threading
import time

import pytest
import torch
from _launch import launch
from _scenarios import flat
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress


def mlp(seed):
    torch.manual_seed(seed)
    nn = torch.nn
    layers = [nn.Linear(32, 96)]
    for _ in range(6):
        layers += [nn.ReLU(), nn.Linear(96, 96)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(96, 8))


def resources():
    gc.collect()
    with open("/proc/self/status") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return {"fds": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "rss": rss}


def stress(rank, world_size, steps, delay):
    start = resources()
    dawdle = random.Random(rank)
    generator = torch.Generator().manual_seed(rank)
    models = [DDP(mlp(s), bucket_cap_mb=0.03) for s in (1, 2)]
    specs = [("uniform:4", {}), ("hadamard+lloyd:2", {"feedback": True})]
    states = [commpress.register(m, c, timeout=60, **o) for m, (c, o) in zip(models, specs, strict=True)]
    optimizers = [torch.optim.SGD(m.parameters(), 0.02, momentum=0.9) for m in models]
    middle = None
    for step in range(steps):
        x = torch.randn(16, 32, generator=generator)
        for o in optimizers:
            o.zero_grad()
        time.sleep(dawdle.random() * delay)
        loss = [(m(x) - x[:, :8].sin()).square().mean() for m in models]
        if step % 2:
            sum(loss).backward()
        else:
            loss[0].backward()
            time.sleep(dawdle.random() * delay)
            loss[1].backward()
        for o in optimizers:
            o.step()
        if step == steps // 2:
            middle = resources()
    end = resources()
    result = {
        "parameters": [flat(m) for m in models],
        "start": [flat(mlp(s)) for s in (1, 2)],
        "buckets": [len(s.state_dict()["layouts"]["current"]) for s in states],
        "counts": [dict(s.counts) for s in states],
        "resources": [middle, end],
    }
    for s in states:
        s.close()
    closed = resources()
    result["left"] = closed["threads"] - start["threads"]
    return result


def check(world_size, steps, delay, timeout):
    args = {"steps": steps, "delay": delay}
    results = [r.ok().value for r in launch(__file__, "stress", world_size, args=args, timeout=timeout)]
    for r in results:
        for i in range(2):
            assert torch.equal(r["parameters"][i], results[0]["parameters"][i])
            assert bool(torch.isfinite(r["parameters"][i]).all())
            assert not torch.equal(r["parameters"][i], r["start"][i])
            assert r["buckets"][i] >= 6
            counts = r["counts"][i]
            assert counts["steps"] == steps
            assert counts["compressed_numel"] > steps * 50_000
            assert counts["repacked_steps"] == 4
        middle, end = r["resources"]
        assert end["fds"] <= middle["fds"] + 2
        assert end["threads"] <= middle["threads"]
        assert end["rss"] < middle["rss"] + 20_000
        assert r["left"] <= 0


@pytest.mark.parametrize(("world_size", "steps"), [(2, 60), (3, 30)])
def test_replicas_stay_identical_under_random_delays(world_size, steps):
    check(world_size, steps, delay=0.005, timeout=170)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_replicas_stay_identical_for_500_steps(world_size):
    check(world_size, steps=500, delay=0.02, timeout=1100)
