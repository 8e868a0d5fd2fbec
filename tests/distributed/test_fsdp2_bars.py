"""FSDP2 where figures are claimed: bytes at the interface of an emulated cluster, the loss of a language model after 300 steps, the example."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import need_cluster
from _fsdp_models import PRELOAD
from _launch import launch
from test_wire_bytes import FRAME_NBYTES, sent_again, settled

import commpress
from commpress.cluster import Cluster, Topology
from commpress.experiments import ByteGPT, Shape, standard_library
from commpress.experiments._model import loss_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTH, STEPS = 700, 3


def counted(rank: int, size: int, codec: str) -> dict:
    """Backward passes alone: the weights stay gathered, so that the interface carries reduce-scatters only."""
    counter = pathlib.Path(f"/sys/class/net/{os.environ['GLOO_SOCKET_IFNAME']}/statistics/tx_bytes")
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(3)])
    for module in (*model, model):
        fully_shard(module, reshard_after_forward=False)
    state = commpress.register(model, codec=codec)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(rank))
    model.set_reshard_after_backward(False)
    for _ in range(2):  # connections, and the size of frames
        model(x).square().mean().backward()
    dist.barrier()
    before = settled(counter)
    dist.barrier()
    idle = settled(counter) - before
    before += idle
    again, claimed = sent_again(), state.traffic["reduce_scatter"]
    for _ in range(STEPS):
        model(x).square().mean().backward()
    sent = settled(counter) - before - FRAME_NBYTES * (sent_again() - again)
    now = state.traffic["reduce_scatter"]
    dist.barrier()
    numel = sum(p.numel() for p in model.parameters())
    state.close()
    return {"counted": sent, "numel": numel} | {name: now[name] - claimed[name] for name in now}


@pytest.mark.parametrize("size", [2, 4])
def test_claimed_bytes_are_those_counted(size):
    need_cluster()
    with Cluster(Topology(size, "1gbit")) as cluster:
        results = launch(__file__, "counted", size, args={"codec": "uniform:4"}, timeout=120, cluster=cluster)
    for result in results:
        value = result.ok().value
        assert value["calls"] == 3 * STEPS
        payload = value["payload_bytes"]
        assert 4.0 < 8 * payload / (STEPS * (size - 1) / size * value["numel"]) < 4.1
        assert payload / value["counted"] < 0.99  # there is framing, and it was counted
        assert 0.97 < value["wire_bytes"] / value["counted"] < 1.03, value


def language(rank: int, size: int, codec: str | None, steps: int, width: int = 128, seed: int = 0) -> dict:
    """A byte-level GPT on the standard library's source; the same model, data and steps whatever the codec."""
    torch.manual_seed(seed)
    shape = Shape(width=width, layers=2, heads=4, context=48)
    model = ByteGPT(shape)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    options = {"all_gather": "uniform:8"} if codec and codec.endswith("+weights") else {}
    state = None if codec is None else commpress.register(model, codec=codec.removesuffix("+weights"), **options)
    corpus = standard_library()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 30, (steps - step) / (0.4 * steps))
        windows = corpus.batch(16, shape.context, seed=seed, step=step)[rank::size]
        loss_of(model, windows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    held_out = corpus.held_out_windows(512, shape.context)
    total = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        for part in held_out[rank::size].split(64):
            total += loss_of(model, part, reduction="sum").double()
    dist.all_reduce(total)
    found = {"loss": float(total) / (held_out.shape[0] * (held_out.shape[1] - 1))}
    if state is not None:
        found |= {"counts": state.counts, "traffic": state.traffic}
        state.close()
    return found


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("size", "width"), [(2, 64), (4, 64)])
def test_loss_after_300_steps(size, width):
    """4-bit gradients cost less than one percent, and so do 8-bit weights on top; without learning there would be nothing to lose."""
    losses = {}
    for codec in (None, "hadamard+lloyd:4", "uniform:4", "hadamard+lloyd:4+weights"):
        values = [
            r.ok().value
            for r in launch(
                __file__,
                "language",
                size,
                args={"codec": codec, "steps": 300, "width": width},
                timeout=280,
                preload=PRELOAD,
            )
        ]
        losses[codec] = values[0]["loss"]
        assert len({value["loss"] for value in values}) == 1
        if codec is not None:
            assert values[0]["counts"]["compressed_numel"] > 0 and values[0]["counts"]["steps"] == 300
    print(losses)
    assert losses[None] < 0.75 * standard_library().unigram_loss()
    for codec, loss in losses.items():
        assert loss < 1.01 * losses[None], (codec, losses)


@pytest.mark.parametrize("options", [["--compress", "--weights"], ["--compress", "--replicas", "2"]])
def test_the_example(options):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    size = 4 if "--replicas" in options else 2
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={size}",
        "examples/fsdp2.py",
    ]
    done = subprocess.run(
        [*command, *options, "--steps", "60"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"step \d+: loss ([\d.]+)", done.stdout)]
    sent = {leg: float(n) for leg, n in re.findall(r"(\w+): ([\d.]+) MB", done.stdout)}
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert sent["reduce_scatter"] > 0 and (sent["all_gather"] > 0) == ("--weights" in options)
    assert (sent["all_reduce"] > 0) == ("--replicas" in options)
