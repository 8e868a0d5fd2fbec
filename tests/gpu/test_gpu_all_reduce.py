"""The all-reduce and the DDP hook over NCCL, one process for each CUDA device: the bits of the CPU path over gloo, on any stream, without waiting. Run by `make gpu`; no GPU has run it yet."""

import os
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import Key, collectives, ops
from commpress.errors import CommpressError

if not (torch.cuda.is_available() and ops.cuda_built() and dist.is_nccl_available()):
    reason = "no CUDA device" if not torch.cuda.is_available() else "this build has no CUDA kernels, or torch no NCCL"
    pytest.skip(f"GPU tests are left out: {reason}", allow_module_level=True)

WORLDS = sorted({1, min(2, torch.cuda.device_count()), torch.cuda.device_count()})
SPECS = ("none", "cast:bf16", "uniform:4", "lloyd:3", "hadamard+lloyd:2", "hadamard+lloyd:4.5")
SPECS += ("mxfp8", "topk:0.1", "bitshift:1,length=8", "hadamard+ecsq:2", "trellis:4,substream=8")


def _rank(rank, size, rendezvous, name, answers):
    torch.cuda.set_device(rank)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    try:
        answer = {"value": globals()[name](rank, size)}
    except Exception:
        answer = {"error": traceback.format_exc()}
    torch.save(answer, os.path.join(answers, f"{rank}.pt"))
    collectives.close()
    dist.destroy_process_group()


def launch(name, size, folder):
    """What the function of that name returns on every rank."""
    torch.multiprocessing.spawn(_rank, (size, str(folder / "meet"), name, str(folder)), nprocs=size)
    answers = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for answer in answers:
        assert "error" not in answer, answer.get("error")
    return [answer["value"] for answer in answers]


def same(a, b):
    a, b = a.cpu(), b.cpu()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def compare_results(rank, size):
    lossy = 0
    for step, spec in enumerate(SPECS):
        for numel in (0, 1, 4097, 100_001, 1 << 20):
            for kind in ("fp32", "bf16", "not finite"):
                generator = torch.Generator().manual_seed(100 * step + rank)
                x = torch.randn(numel, generator=generator)
                x = x.bfloat16() if kind == "bf16" else x
                if kind == "not finite" and numel:
                    x[numel // 2] = float("nan")
                key = Key(seed=3, step=step)
                want = collectives.all_reduce(x.clone(), spec, key=key, hierarchical=False)
                got = collectives.all_reduce(x.cuda(), spec, key=key)
                assert same(got, want), (spec, numel, kind)
                future = collectives.all_reduce(x.cuda(), spec, key=key, async_op=True)
                assert same(future.wait(), want)
                lossy += size > 1 and numel > 1 and not same(want, x)
    report = collectives.last_report()
    assert report is not None and (size == 1 or report.seconds_encode1 > 0)
    return lossy


@pytest.mark.parametrize("size", WORLDS)
def test_the_bits_are_the_cpu_paths(size, tmp_path):
    assert all((lossy > 50) == (size > 1) for lossy in launch("compare_results", size, tmp_path))


def streams(rank, size):
    x = torch.randn(1 << 22, device="cuda")
    want = commpress.all_reduce(x.clone(), "hadamard+lloyd:2", key=Key(step=1))
    commpress.all_reduce(x.clone(), "hadamard+lloyd:2", key=Key(step=2))
    torch.cuda.synchronize()
    side, y = torch.cuda.Stream(), x.clone()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            y.mul_(1.0)
            commpress.all_reduce(y, "hadamard+lloyd:2", key=Key(step=1))
            z = y.clone()  # behind the result, on this stream
        waited = side.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert same(z, want)
    assert not waited  # the call was back while the device slept
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    for step in range(20):
        commpress.all_reduce(x, "hadamard+lloyd:2", key=Key(step=step))
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocated_bytes.all.current"] <= before + (1 << 20)
    return True


@pytest.mark.parametrize("size", WORLDS)
def test_another_stream_and_no_waiting(size, tmp_path):
    assert all(launch("streams", size, tmp_path))


def train(device, codec, dtype, seed_of_rank, plan=None):
    torch.manual_seed(3)
    net = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((40, 120), (120, 130), (130, 20), (20, 3))))
    ddp = DDP(net.to(device, dtype), bucket_cap_mb=0.02)
    state = commpress.register(ddp, codec, feedback=False, shaping=0.0, hierarchical=False)
    gradients = []

    def given(parameter, number):  # the same on both devices, whose own sums may differ in the last bit
        generator = torch.Generator().manual_seed(1000 * number + seed_of_rank)
        return lambda g: torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)

    for number, parameter in enumerate(ddp.parameters()):
        parameter.register_hook(given(parameter, number))
    for _ in range(8):
        ddp.zero_grad()
        ddp(torch.ones(4, 40, device=device, dtype=dtype)).float().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in ddp.parameters()]).cpu())
    saved = state.state_dict()
    assert saved["step"] == 8 and state.counts["steps"] == 8
    state.close()
    return torch.stack(gradients)


def compare_hooks(rank, size):
    for codec in ("uniform:4", "hadamard+lloyd:2", "none"):
        for dtype in (torch.float32, torch.bfloat16):
            assert same(train("cuda", codec, dtype, rank), train("cpu", codec, dtype, rank)), (codec, dtype)
    try:
        train("cuda", "lowrank:2", torch.float32, rank)
    except CommpressError as error:
        return str(error)


@pytest.mark.parametrize("size", WORLDS)
def test_the_hook_gives_the_cpu_hooks_gradients(size, tmp_path):
    assert all("on CPUs so far" in text for text in launch("compare_hooks", size, tmp_path))
