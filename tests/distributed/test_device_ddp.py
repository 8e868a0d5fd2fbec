"""The DDP hook on a device's streams: real DDP on real gloo ranks, a stand-in for the device. The CPU hook's bits; no race, no wait; and what is left out is noticed."""

import json
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from _device_stand_in import ALL, Race, StandIn
from _launch import launch

import commpress
from commpress.errors import CommpressError

STEPS = 8


class Run:
    """A small model under DDP with several buckets, and its hook: on a stand-in, or with `drop=None` and `cpu=True` the CPU's."""

    def __init__(self, codec="hadamard+lloyd:2", *, cpu=False, drop=None, dtype=torch.float32, frozen=False, **options):
        torch.manual_seed(3)
        net = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((40, 120), (120, 130), (130, 20), (20, 3))))
        self.ddp = DDP(net.to(dtype), bucket_cap_mb=0.02, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(self.ddp.parameters(), lr=0.05)
        options = {"shaping": 0.0, "feedback": False, "predict": False} | options
        self.state = commpress.HookState(codec, **options)
        self.ops = None if cpu else StandIn(dist.group.WORLD, drop)
        self.frozen = frozen
        self.rank, self.dtype, self.steps, self.poison = dist.get_rank(), dtype, 0, None
        self.state.bind(dict(self.ddp.module.named_parameters()), dist.group.WORLD, self.ops)
        run = self

        def hook(state: commpress.HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            if run.poison is not None and bucket.index() == 1:
                bucket.buffer()[7] = run.poison
            if run.ops is None:
                return commpress.ddp_hook(state, bucket)
            run.ops.writes(bucket.buffer())  # the backward pass
            with run.ops.watching():
                return commpress.ddp_hook(state, bucket)

        self.ddp.register_comm_hook(self.state, hook)

    def step(self):
        generator = torch.Generator().manual_seed(100 * self.steps + self.rank)
        x = torch.randn(16, 40, generator=generator).to(self.dtype)
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.ddp(x).float().square().mean()
        if self.frozen and self.steps >= 3:
            handle = next(iter(self.ddp.parameters())).register_hook(torch.zeros_like)
        loss.backward()
        if self.frozen and self.steps >= 3:
            handle.remove()
        if self.ops is not None:
            self.ops.wait_for_futures()
            self.ops.reads(*(p.grad for p in self.ddp.parameters()))
        finite = all(bool(torch.isfinite(p.grad).all()) for p in self.ddp.parameters())
        if finite:
            self.optimizer.step()
        if self.ops is not None:
            self.ops.next_step()
        self.steps += 1
        return finite

    def parameters(self):
        return torch.cat([p.detach().flatten() for p in self.ddp.parameters()])

    def train(self, steps=STEPS):
        for _ in range(steps):
            self.step()
        found = self.parameters()
        self.state.close()
        return found


def parity(rank: int, size: int, folder: str) -> dict:
    lossless = None
    for codec, dtype in (
        ("none", torch.float32),
        ("uniform:4", torch.float32),
        ("hadamard+lloyd:2", torch.float32),
        ("hadamard+lloyd:3", torch.bfloat16),
        ("lloyd:3", torch.float16),
        ("hadamard+ecsq:2", torch.bfloat16),
        ("topk:0.1,values=4", torch.float32),
        ("cast:bf16", torch.float64),
    )[: 8 if size < 3 else 3]:
        want = Run(codec, dtype=dtype, cpu=True).train()
        run = Run(codec, dtype=dtype)
        got = run.train()
        if dtype == torch.float64 and size > 1:  # in fp32 here, in fp64 on the CPU
            assert float((got - want).norm() / want.norm()) < 1e-2
        else:
            assert torch.equal(got, want), codec
        run.ops.verify()
        counts = run.state.counts
        assert (counts["steps"], counts["nonfinite_steps"]) == (STEPS, 0)
        assert counts["repacked_steps"] > 0 and counts["buckets"] > STEPS  # DDP rebuilt its buckets
        assert (counts["compressed_numel"] > 0) == (size > 1 and codec != "none")
        lossless = got if codec == "none" else lossless
    # With error feedback, and a layer that nobody has a gradient for from step 3 on.
    for codec in ("lloyd:3", "hadamard+lloyd:4", "hadamard+lloyd:1"):
        runs = [Run(codec, cpu=cpu, feedback=True, frozen=True) for cpu in (True, False)]
        want, got = (run.train() for run in runs)
        assert torch.equal(got, want), codec
        runs[1].ops.verify()
        counts = [{name: run.state.counts[name] for name in ("held", "steps", "compressed_numel")} for run in runs]
        if size > 1:
            assert counts[0] == counts[1] and counts[0]["held"] > 0
            assert not torch.equal(want, Run(codec, frozen=True).train())
    # A plan of the allocator, with a rate for each layer.
    planned = Run("hadamard+lloyd", bits=3.0, cpu=True)
    planned.train()
    path = os.path.join(folder, f"plan{rank}.json")
    planned.state.plan.save(path)
    options = {"bits": 3.0, "plan": path}
    want = Run("hadamard+lloyd", cpu=True, **options).train()
    run = Run("hadamard+lloyd", telemetry=os.path.join(folder, "records"), telemetry_every=1, **options)
    assert torch.equal(run.train(), want)
    assert size == 1 or not torch.equal(want, lossless)
    assert run.state.plan.digest() == planned.state.plan.digest()
    run.ops.verify()
    return {"parameters": want, "sent": run.ops.sent_nbytes, "buckets": run.state.counts["buckets"]}


@pytest.mark.parametrize("size", [1, 2, 3, pytest.param(4, marks=pytest.mark.nightly)])
def test_the_bits_are_the_cpu_hooks(size, tmp_path):
    values = [r.ok().value for r in launch(__file__, "parity", size, args={"folder": str(tmp_path)}, timeout=150)]
    assert all(torch.equal(value["parameters"], values[0]["parameters"]) for value in values)
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    records = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in records] == list(range(STEPS))
    assert sum(len(record["buckets"]) for record in records) == values[0]["buckets"]
    if size > 1:
        findings = 16 * values[0]["buckets"] * (size - 1)
        headers = 512 * (size - 1) * STEPS
        claimed = sum(record["payload_bytes"] + record["header_bytes"] for record in records)
        assert claimed + findings - headers == values[0]["sent"] > 0  # on the device's collectives
        assert all(record["times"]["encode1"] > 0 and record["achieved_rate"] > 2 for record in records)


def behaviour(rank: int, size: int) -> dict:
    found = {}
    # An infinity on one rank reaches all, and leaves no trace, not in the residuals either.
    run = Run("hadamard+lloyd:2", feedback=True)
    finite = []
    for number in range(4):
        run.poison = float("inf") if number == 2 and rank == size - 1 else None
        finite.append(run.step())
    run.poison = None
    found["finite"], found["parameters"] = finite, run.parameters()
    run.state.state_dict()  # reads what the last step left
    found["nonfinite_steps"] = run.state.counts["nonfinite_steps"]
    # A restart is bitwise equal.
    run.step()
    saved = run.state.state_dict()
    weights = {name: value.clone() for name, value in run.ddp.state_dict().items()}
    want = run.train(4)
    assert all(bool(torch.isfinite(entry["sent"]).all()) for entry in saved["residuals"]["residuals"].values())
    assert any(bool(entry["sent"].any()) for entry in saved["residuals"]["residuals"].values())
    again = Run("hadamard+lloyd:2", feedback=True)
    again.ddp.load_state_dict(weights)
    entries = saved["residuals"]["residuals"].values()
    again.ops.on_host(*(value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)))
    again.state.load_state_dict(saved)
    again.steps = 5
    found["restart"] = bool(torch.equal(again.train(4), want))
    again.ops.verify()

    def error(call) -> str:
        try:
            call()
        except (CommpressError, RuntimeError) as problem:
            return f"{type(problem).__name__}: {problem}"
        return ""

    # What was corrupted is an error of the next step on every rank, and the state refuses further use.
    run = Run("hadamard+lloyd:4")
    run.step()
    if rank == 1:

        def spoil(received: torch.Tensor) -> None:
            received[:4] = torch.tensor([0, 0, 0x80, 0x7F], dtype=torch.uint8)

        run.ops.corrupt = spoil
    found["corrupt"] = [error(run.step), error(run.step), error(run.state.state_dict)]
    found["registration"] = error(lambda: Run("uniform:4" if rank else "uniform:5"))
    options = ({"shaping": 0.5}, {"check_every": 5}, {"agreement_every": 5}, {"hierarchical": True})
    refused = [error(lambda given=given: Run(**given)) for given in options]
    refused += [error(lambda codec=codec: Run(codec)) for codec in ("lowrank:2", "randk:0.1")]
    found["refused"] = [*refused, error(lambda: Run("hadamard+lloyd", bits=2.0))]
    return found


def test_not_finite_restarts_and_errors():
    values = [r.ok().value for r in launch(__file__, "behaviour", 2, timeout=120)]
    for value in values:
        assert value["finite"] == [True, True, False, True] and value["nonfinite_steps"] == 1
        assert bool(torch.isfinite(value["parameters"]).all()) and value["restart"]
        assert torch.equal(value["parameters"], values[0]["parameters"])
        now, late, later = value["corrupt"]
        assert (
            now == ""
            and "rank 1 met an invalid payload from rank 0" in late
            and later.startswith("StateError: this HookState failed earlier")
        )
        assert "ranks disagree on codec" in value["registration"]
        names = ("shaping", "check_every", "agreement_every", "hierarchical", "lowrank", "randk")
        for text, name in zip(value["refused"], (*names, "plan= that is kept"), strict=True):
            assert text.startswith("SpecError") and name in text, (text, name)


def omissions(rank: int, size: int) -> dict:
    def run(drop) -> tuple[dict, str]:
        run = Run("lloyd:2", feedback=True, drop=drop)
        run.train(7)
        try:
            run.ops.verify()
        except Race as race:
            return dict(run.ops.calls), str(race)
        return dict(run.ops.calls), ""

    counts, wrong = run(None)
    assert wrong == "" and counts["complete"] > 6
    drops = [("wait", n) for n in range(counts["wait"])]
    # A step's last completion is behind all others of it, so it alone is missed; or all.
    drops += [("complete", counts["complete"] - 1), ("complete", ALL), ("keep", ALL)]
    return {f"{kind} {n}": run((kind, n))[1] for kind, n in drops}


def test_every_wait_is_needed():
    for result in launch(__file__, "omissions", 2, timeout=150):
        caught = result.ok().value
        for what, found in caught.items():
            expected = "without record_stream" if what.startswith("keep") else "has not waited"
            assert expected in found, (what, found)
