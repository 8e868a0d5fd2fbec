"""`register(model, bits=...)`: the allocator under the DDP hook."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from _launch import launch
from _scenarios import Given, flat
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress.allocation import Plan
from commpress.errors import MismatchError, SpecError, StateError
from commpress.hooks._optimizer import adam_weights
from commpress.telemetry import MemorySink

SIZES = [200_000, 64, 90_000, 300, 150_003, 4096]
SIGMA = [1.0, 3.0, 0.05, 1.0, 8.0, 0.5]
BITS = 1.7


def gradients(rank, step, scale=1.0):
    generator = torch.Generator().manual_seed(9_973 * step + rank)
    return [scale * s * torch.randn(n, generator=generator) for n, s in zip(SIZES, SIGMA, strict=True)]


def train(rank, state, ddp, start, stop):
    sums = []
    for step in range(start, stop):
        ddp.zero_grad()
        ddp(gradients(rank, step)).backward()
        sums.append(torch.cat([w.grad for w in ddp.module.weights]).clone())
    return sums


def payload_of_all(state):
    """Payload bytes of one message with every coordinate, and what all ranks together send in a step at most."""
    planner = state._exchange._planner
    return sum(planner.codec(layout).payload_nbytes(layout.numel) for layout in state._layouts.current)


def worker(rank, world_size, folder, feedback=None, codec=None):
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.8)
    path = f"{folder}/run.jsonl"
    sink = MemorySink()
    options = {
        "telemetry": path if rank == 0 else sink,
        "telemetry_every": 4,
        "timeout": 30,
        "plan_every": 4,
        "plan_floor": 0.1,
        "feedback": feedback,
    }
    state = commpress.register(ddp, codec, bits=BITS, **options)
    first = state.plan
    sums = train(rank, state, ddp, 0, 8)
    saved = state.state_dict()
    sums += train(rank, state, ddp, 8, 14)
    result = {
        "sums": torch.stack([s.double().square().sum() for s in sums]),
        "last": sums[-1],
        "first": first.to_dict(),
        "plan": state.plan.to_dict(),
        "payload": payload_of_all(state),
        "counts": state.counts,
        "text": str(state.codec),
        "sent": [r["payload_bytes"] for r in sink.records if r["kind"] == "step"],
    }
    state.close()
    again = DDP(Given(SIZES), bucket_cap_mb=0.8)
    state = commpress.register(
        again, codec, bits=BITS, timeout=30, plan_every=4, plan_floor=0.1, feedback=feedback, telemetry_every=4
    )
    state.load_state_dict(saved)
    result["resumed"] = train(rank, state, again, 8, 14)[-1]
    if rank == 0:
        state.plan.save(f"{folder}/plan.json")
    dist.barrier()
    state.close()
    pinned = DDP(Given(SIZES), bucket_cap_mb=0.8)
    state = commpress.register(pinned, codec, bits=BITS, plan=f"{folder}/plan.json", timeout=30, feedback=feedback)
    train(rank, state, pinned, 0, 8)
    result["pinned"] = state.plan.digest(), state.counts["plans"]
    state.close()
    return result


CASES = {"two": (2, None, None), "three": (3, None, None), "feedback": (2, True, None)}
CASES["bitshift"] = (2, None, "hadamard+bitshift,length=8")


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def run(request, tmp_path_factory):
    size, feedback, codec = request.param
    folder = tmp_path_factory.mktemp("plan")
    results = launch(
        __file__, "worker", size, args={"folder": str(folder), "feedback": feedback, "codec": codec}, timeout=150
    )
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    return [r.ok().value for r in results], records, folder, size


def test_replicas_agree_and_the_plan_is_that_of_the_noisy_layers(run):
    results, _, _, _ = run
    assert all(torch.equal(r["last"], results[0]["last"]) for r in results)
    assert all(r["plan"] == results[0]["plan"] for r in results)
    plan, first = (Plan.from_dict(results[0][name]) for name in ("plan", "first"))
    assert results[0]["counts"]["plans"] >= 1 and len(set(first.rates)) == 1
    rate = dict(zip(plan.dims, plan.rates, strict=True))
    assert rate[150_003] >= rate[200_000] > rate[90_000]  # by their variances
    assert rate[150_003] > rate[200_000] or rate[150_003] == 2.0  # the most that the trellis of this length sends
    assert plan.exact[plan.dims.index(64)]


def test_the_budget_holds_to_the_byte_and_is_used(run):
    results, records, _, size = run
    budget = int(BITS * sum(SIZES) / 8)
    for result in results:
        plan = Plan.from_dict(result["plan"])
        assert 0.99 * budget <= plan.planned_bytes == result["payload"] <= budget == plan.budget_bytes
    for record in records:
        if record["kind"] == "step":
            assert record["payload_bytes"] <= 1.02 * 2 * (size - 1) / size * budget  # of this rank


def test_the_bytes_of_all_ranks_are_the_plan(run):
    """Each phase sends every coordinate's payload to, or from, all ranks but its owner."""
    results, records, _, size = run
    steps = [r for r in records if r["kind"] == "step"]
    assert len(steps) == 14 and all(r["achieved_rate"] < BITS * 1.1 for r in steps)
    sent = [r["payload_bytes"] for r in steps], *(r["sent"] for r in results[1:])
    assert [len(of_rank) for of_rank in sent] == [14] * size
    assert sum(of_rank[-1] for of_rank in sent) == 2 * (size - 1) * results[0]["payload"]


def test_plans_and_information_are_logged(run):
    results, records, _, _ = run
    plans = [r for r in records if r["kind"] == "plan"]
    assert len(plans) == results[0]["counts"]["plans"]
    assert {layer["numel"] for layer in plans[-1]["layers"]} == set(SIZES)
    assert all(p["planned_bytes"] <= p["budget_bytes"] for p in plans)
    found = [r for r in records if r["kind"] == "step" and "information" in r]
    assert [r["step"] for r in found] == [0, 4, 8, 12]
    assert all(0 < r["information"]["eta_alloc"] <= 1 for r in found)


def test_a_restart_goes_on_with_the_same_plan(run):
    results, _, _, _ = run
    for result in results:
        assert torch.equal(result["resumed"], result["last"])


def test_a_pinned_plan_stays(run):
    results, _, folder, _ = run
    assert {r["pinned"] for r in results} == {(Plan.load(folder / "plan.json").digest(), 0)}


def disagree(rank, world_size):
    ddp = DDP(Given(SIZES))
    try:
        commpress.register(ddp, bits=2.0 + rank / 2, timeout=10)
    except MismatchError as error:
        return str(error)
    return "registered"


def test_ranks_with_other_budgets_are_told():
    for result in launch(__file__, "disagree", 2, timeout=60):
        assert "plan settings" in result.ok().value


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 2, "codec": "hadamard+lloyd:2"},
        {"bits": 2, "objective": "best"},
        {"plan": "x.json"},
        {"objective": "mse"},
        {"bits": 2, "plan_every": 0},
        {"bits": 2, "plan_floor": 1},
        {"bits": 2, "objective": "weighted"},
        {"bits": 2, "gamma": 0.5},
        {"gamma": 0.5},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError):
        commpress.HookState(**options)


def with_adam(rank, world_size):
    rates = {}
    for weighted in (False, True):
        ddp = DDP(Given(SIZES), bucket_cap_mb=0.8)
        adam = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
        optimizer = adam if weighted else None
        state = commpress.register(ddp, bits=BITS, timeout=30, plan_every=4, plan_floor=0.1, optimizer=optimizer)
        for step in range(14):
            ddp.zero_grad()
            ddp(gradients(rank, step)).backward()
            adam.step()
        if weighted:
            with pytest.raises(StateError, match="state_dict"):
                pickle.dumps(state)
        rates[str(weighted)] = dict(zip(map(str, state.plan.dims), state.plan.rates, strict=True))
        rates["digest"] = state.plan.digest()
        state.close()
    return rates


def test_adams_second_moments_weigh_the_layers():
    """Adam divides by sqrt(v), so the error of a loud layer costs in proportion to its deviation, not to its variance."""
    first, second = (r.ok().value for r in launch(__file__, "with_adam", 2, timeout=90))
    assert first == second
    plain, weighted = first["False"], first["True"]
    assert plain["150003"] > weighted["150003"] > weighted["200000"] > plain["200000"]
    # Without weights bits fall by log2 of the ratio of deviations, with them by half of that.
    assert plain["150003"] - plain["200000"] == pytest.approx(2 * (weighted["150003"] - weighted["200000"]), rel=0.5)


def test_weights_from_adam():
    weights = adam_weights(np.array([4.0 * 10, 0.25 * 8, 0.0]), np.array([10, 8, 5]))
    assert weights == pytest.approx([0.5, 2.0, 0.0])
    assert adam_weights(np.zeros(3), np.array([10, 8, 5])) is None, "before the first step"
    with pytest.raises(SpecError, match="AdamW"):
        commpress.HookState(bits=2, optimizer=torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1))


def small(rank, world_size):
    torch.manual_seed(1)
    ddp = DDP(torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3)))
    state = commpress.register(ddp, bits=3.0, timeout=30)
    for step in range(7):
        ddp.zero_grad()
        ddp(torch.randn(8, 20, generator=torch.Generator().manual_seed(10 * step + rank))).square().mean().backward()
    result = {"parameters": flat(ddp), "plans": state.counts["plans"], "gradient": float(flat(ddp).norm())}
    state.close()
    return result


def test_a_small_model():
    results = [r.ok().value for r in launch(__file__, "small", 2, timeout=60)]
    assert torch.equal(results[0]["parameters"], results[1]["parameters"])
