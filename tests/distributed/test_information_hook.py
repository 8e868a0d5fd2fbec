"""Information logged by the DDP hook against exact figures and against a direct estimate with a known mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from _launch import launch
from _scenarios import Given
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import information

SIZES = [294_912, 4096, 118_784, 4096]  # whole blocks: the tail of a bucket is coded less well
SIGMA = [1.0, 0.3, 2.0, 5.0]
THETA = 0.4  # root mean square of the true mean, in units of sigma
CAPTURED = {1: 0.63662, 2: 0.88252, 3: 0.96545, 4: 0.99050}
ETA = {1: 0.8488, 2: 0.9414, 3: 0.9808, 4: 0.9944}


def truth(i):
    generator = torch.Generator().manual_seed(77 + i)
    return THETA * SIGMA[i] * torch.randn(SIZES[i], generator=generator)


def gradients(rank, step, mean):
    generator = torch.Generator().manual_seed(100_003 * step + rank)
    noise = [s * torch.randn(n, generator=generator) for n, s in zip(SIZES, SIGMA, strict=True)]
    return [z + truth(i) for i, z in enumerate(noise)] if mean else noise


def worker(rank, world_size, folder, bits, mean, feedback=None, steps=6):
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.6)
    path = f"{folder}/run.jsonl"
    options = {"telemetry": path, "telemetry_every": 1, "timeout": 30, "seed": 11, "feedback": feedback}
    state = commpress.register(ddp, f"hadamard+lloyd:{bits}", **options)
    sums = torch.zeros(len(SIZES), dtype=torch.float64)
    for step in range(steps):
        ddp.zero_grad()
        ddp(gradients(rank, step, mean)).backward()
    state.close()
    if rank:
        return None
    # Directly: the decode of one rank's gradient scatters about the true mean with variance d / information.
    codec = commpress.codec(f"hadamard+lloyd:{bits}")
    for step in range(4):
        for i, x in enumerate(gradients(0, 1000 + step, mean)):
            key = commpress.Key(5, step, tensor=i)
            decoded = codec.decode(codec.encode(x, key), key, out=torch.empty_like(x))
            sums[i] += (decoded - (truth(i) if mean else 0)).double().square().mean() / 4
    return [n / float(v) for n, v in zip(SIZES, sums, strict=True)]


def run(tmp_path, size, **args):
    results = launch(__file__, "worker", size, args={"folder": str(tmp_path), **args}, timeout=120)
    direct = results[0].ok().value
    [r.ok() for r in results]
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    return direct, [line for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_captured_and_eta_of_gaussian_gradients(tmp_path, bits):
    _, records = run(tmp_path, 2, bits=bits, mean=False, steps=2)
    assert [r["step"] for r in records] == [0, 1]
    for record in records:
        found = record["information"]
        assert found["label"] == "of the Gaussian limit" and found["binding"] == "memoryless"
        for phase in ("phase1", "phase2"):
            assert found[phase]["captured"] == pytest.approx(CAPTURED[bits], rel=0.005)
            assert found[phase]["eta"] == pytest.approx(ETA[bits], rel=0.016)
        # Two ranks pass their contributions on, and nothing is quantised twice; from four bits on the mean is.
        twice = 1 / (2 - CAPTURED[bits]) if bits >= 4 else 1
        assert found["together"]["captured"] == pytest.approx(CAPTURED[bits] * twice, rel=0.005)
        assert found["together"]["eta"] == pytest.approx(ETA[bits] * twice, rel=0.016)
        assert bits < found["rate_payload"] < bits + 0.035 and found["rate_payload"] + 0.005 < found["rate_wire"]
        assert found["extra_bytes"] == 96 * len(SIZES)
        assert record["header_bytes"] > found["extra_bytes"]
        for layer, n in zip(found["layers"], SIZES, strict=True):
            assert layer["numel"] == n
            payload = commpress.codec(f"hadamard+lloyd:{bits}").payload_nbytes(n)
            assert layer["bits"] == pytest.approx(8 * payload / n)


@pytest.mark.parametrize(("bits", "mean", "size"), [(1, False, 2), (2, True, 2), (1, True, 3), (4, True, 2)])
def test_logged_information_is_that_of_a_direct_estimate(tmp_path, bits, mean, size):
    direct, records = run(tmp_path, size, bits=bits, mean=mean)
    logged = np.mean([r["information"]["achieved"] for r in records])
    assert logged == pytest.approx(sum(direct), rel=0.02)
    variances = np.mean([[layer["variance"] for layer in r["information"]["layers"]] for r in records], axis=0)
    assert variances[:3] == pytest.approx(np.square(SIGMA)[:3], rel=0.05)
    if mean and bits == 1:  # (d/s) G, which leaves the mean's energy out, would not do
        naive = sum(n / s**2 * CAPTURED[bits] for n, s in zip(SIZES, SIGMA, strict=True))
        assert abs(naive / sum(direct) - 1) > 0.05
    found = records[-1]["information"]
    limit = information.total_limit(SIZES, variances, [layer["bits"] for layer in found["layers"]])
    assert found["allocated"] == pytest.approx(limit, rel=0.05)
    assert found["achieved"] < found["allocated"] <= found["optimum"]
    assert found["eta_alloc"] < 1


def test_feedback_names_the_limit_that_binds(tmp_path):
    _, records = run(tmp_path, 2, bits=1, mean=False, feedback=True, steps=3)
    assert all(r["information"]["binding"] == "with memory (error feedback)" for r in records)
