"""Codes added on the way between real gloo ranks: all_reduce and the DDP hook."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from _homomorphic import mean_of
from _launch import launch
from _scenarios import STEPS, flat, net, train

import commpress
from commpress import collectives

NUMELS = (0, 1, 4095, 4097, 120_001)


def data(size: int, numel: int, seed: int) -> list[torch.Tensor]:
    return [torch.randn(numel, generator=torch.Generator().manual_seed(100 * seed + rank)) for rank in range(size)]


def reduce_worker(rank: int, size: int) -> dict:
    codec = commpress.codec("homomorphic:4")
    for i, numel in enumerate(NUMELS):
        for op in ("mean", "sum"):
            key, inputs = commpress.Key(seed=3, step=i), data(size, numel, i)
            got = commpress.all_reduce(inputs[rank].clone(), "homomorphic:4", op=op, key=key)
            assert torch.equal(got, mean_of(codec, inputs, key.replace(phase=1), op=op)[0]), (numel, op)
    ratios = []  # of the mean's squared error to step^2 / (12 n)
    for step in range(4):
        inputs = data(size, 200_000, step)
        got = commpress.all_reduce(inputs[rank].clone(), codec, key=commpress.Key(step=step))
        steps = mean_of(codec, inputs, commpress.Key())[1]
        error = (got.double() - torch.stack(inputs).double().mean(0)).square().mean()
        ratios.append(float(error) / float((steps**2 / (12 * size)).mean()))
    report = collectives.last_report()
    bad = torch.ones(9000, dtype=torch.bfloat16)
    if rank == size - 1:
        bad[4096] = float("nan")
    commpress.all_reduce(bad, codec)
    flights = [data(size, 30_000 + 4096 * i, i) for i in range(6)]
    futures = [
        commpress.all_reduce(x[rank].clone(), codec, key=commpress.Key(step=9, tensor=i), async_op=True)
        for i, x in enumerate(flights)
    ]
    for i, (future, x) in enumerate(zip(futures, flights, strict=True)):
        assert torch.equal(future.wait(), mean_of(codec, x, commpress.Key(step=9, tensor=i, phase=1))[0])
    common, *own = data(size + 1, 50_000, 7)
    alike = [0.9**0.5 * common + 0.1**0.5 * x for x in own]
    side = commpress.all_reduce(alike[rank].clone(), "modulo:2,rho=0.9", key=commpress.Key(step=1))
    error = float((side - torch.stack(alike).mean(0)).square().mean())
    return {"side": side, "side_error": error, "ratios": ratios, "payload": report.bytes_payload1 + report.bytes_payload2, "bad": bad.isnan().sum().item(), "got": got}  # fmt: skip


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_reduce(size):
    codec = commpress.codec("homomorphic:4")
    results = [r.ok().value for r in launch(__file__, "reduce_worker", size, timeout=100)]
    for rank, result in enumerate(results):
        assert torch.equal(result["got"], results[0]["got"])
        assert torch.equal(result["side"], results[0]["side"])
        assert 0.05 < result["side_error"] < 0.2  # phase 2's 0.13 times the mean's energy, and less from phase 1
        assert all(abs(ratio - 1) < 0.03 for ratio in result["ratios"]), result["ratios"]
        assert result["bad"] == 512
        start, stop = collectives.shard_bounds(200_000, size, rank)
        own = stop - start
        scales = codec.scales_nbytes(200_000) + (size - 2) * codec.scales_nbytes(own)
        codes = codec.codes_nbytes(200_000) - codec.codes_nbytes(own)
        assert result["payload"] == scales + codes + (size - 1) * codec.sums_nbytes(own, size)


def ddp_worker(rank: int, size: int) -> dict:
    runs = {"fp32": train(rank, None, hook=None), "codes": train(rank, "homomorphic:4")}
    ddp = DDP(net(), bucket_cap_mb=0.01)
    sink = commpress.telemetry.MemorySink()
    state = commpress.register(ddp, "homomorphic:6", telemetry=sink, telemetry_every=2, check_every=3, timeout=30)
    for step in range(6):
        ddp.zero_grad()
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(10 * step + rank))
        (ddp(x) - x[:, :9].sin()).square().mean().backward()
    state.close()
    dist.barrier()
    with pytest.raises(commpress.errors.SpecError, match="feedback"):
        commpress.HookState("homomorphic:4", feedback=True)
    with pytest.raises(commpress.errors.SpecError, match="all_reduce"):
        commpress.HookState("modulo:2,rho=0.9")
    return {"runs": runs, "records": json.dumps(sink.records)}


@pytest.mark.parametrize("size", [2, 3])
def test_ddp(size):
    results = [r.ok().value for r in launch(__file__, "ddp_worker", size, timeout=120)]
    start = flat(net())
    for result in results:
        run, fp32 = result["runs"]["codes"], result["runs"]["fp32"]["parameters"]
        assert torch.equal(run["parameters"], results[0]["runs"]["codes"]["parameters"])
        assert (run["counts"]["steps"], run["counts"]["nonfinite_steps"], run["feedback"]) == (STEPS, 0, False)
        assert run["buckets"] >= 3 and run["counts"]["compressed_numel"] > 0
        off = float((run["parameters"] - fp32).norm() / (fp32 - start).norm())
        assert 1e-4 < off < 0.5, off
        steps = [r for r in json.loads(result["records"]) if "payload_bytes" in r]
        assert len(steps) == 6
        measured = [r for r in steps if r.get("information")]
        assert measured
        for record in measured:
            assert record["information"]["phase2"]["captured"] == pytest.approx(1.0)  # sums are sent as they are
            assert 0.9 < record["information"]["phase1"]["captured"] < 1.0
            assert all(0 < layer["nmse"] < 0.2 for layer in record["layers"])
