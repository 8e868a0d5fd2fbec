"""`register(ddp, codec="lowrank", bits=...)` on real gloo ranks: dimensions go where the energy is, within the budget, and nothing is lost when they change."""

import pytest
import torch
import torch.distributed as dist
from _launch import launch
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import errors
from commpress.telemetry import MemorySink

SHAPES = [(60, 80), (64, 64), (300,), (90, 50)]
RANKS_OF = [8, 1, 0, 1]  # of the common part of each
STEPS, EVERY, BITS = 40, 10, 3.0
NUMEL = 4800 + 4096 + 300 + 4500


class Given(torch.nn.Module):
    """Its gradients are the inputs."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(s) for s in SHAPES)

    def forward(self, gradients):
        return sum((w * g).sum() for w, g in zip(self.weights, gradients, strict=True))


def gradients_of(rank, step):
    common, own = torch.Generator().manual_seed(5), torch.Generator().manual_seed(1000 * step + rank + 1)
    found = []
    for shape, r in zip(SHAPES, RANKS_OF, strict=True):
        x = torch.randn(shape, generator=own) * 0.01
        if r:
            x += torch.randn(shape[0], r, generator=common) @ torch.randn(r, shape[1], generator=common)
        found.append(x)
    return found


def run(rank, steps, *, start=0, saved=None, sink=None, **options):
    ddp = DDP(Given(), bucket_cap_mb=0.03)
    options = {"codec": "lowrank", "bits": BITS, "plan_every": EVERY, "plan_floor": 0.5, "timeout": 30} | options
    state = commpress.register(ddp, telemetry=sink, **options)
    if saved is not None:
        state.load_state_dict(saved)
    got = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    plans = [state.plan]
    for step in range(start, steps):
        for w in ddp.module.weights:
            w.grad = None
        ddp(gradients_of(rank, step)).backward()
        for total, w in zip(got, ddp.module.weights, strict=True):
            total += w.grad.double()
        if state.plan != plans[-1]:
            plans.append(state.plan)
    return state, got, plans


def everything(rank, world_size):
    sink = MemorySink()
    state, got, plans = run(rank, STEPS, sink=sink, telemetry_every=1)
    owed = state._exchange.feedback.owed()
    lost = []
    for i in range(len(SHAPES)):
        mine = owed.get(f"weights.{i}", torch.zeros(SHAPES[i])).double().reshape(SHAPES[i])
        dist.all_reduce(mine)
        true = sum(gradients_of(r, s)[i].double() for s in range(STEPS) for r in range(world_size)) / world_size
        lost.append(float((got[i] + mine / world_size - true).abs().max() / true.abs().max()))
    steps = [r for r in sink.records if r["kind"] == "step"]
    out = {
        "got": torch.cat([g.flatten() for g in got]),
        "lost": lost,
        "plans": [p.to_dict() for p in plans],
        "payload": max((r["payload_bytes"] for r in steps), default=0),
        "dimensions": {m["name"]: m["dimension"] for m in steps[-1]["low_rank"]} if steps else {},
        "counted": state.counts["plans"],
        "records": len([r for r in sink.records if r["kind"] == "plan"]),
        "codec": str(state.codec),
    }
    state.close()
    whole, _, _ = run(rank, 25)
    expected = whole.state_dict()
    whole.close()
    first, _, _ = run(rank, 13)
    saved = first.state_dict()
    first.close()
    second, _, _ = run(rank, 25, start=13, saved=saved)
    again = second.state_dict()
    second.close()
    out["restart"] = all(
        torch.equal(expected["bases"][n]["basis"], again["bases"][n]["basis"]) for n in expected["bases"]
    ) and (expected["allocator"] == again["allocator"])
    return out


@pytest.fixture(scope="module", params=[2, 3])
def results(request):
    return [r.ok().value for r in launch(__file__, "everything", request.param, timeout=150)]


def test_dimensions_follow_the_energy_alike_on_all_ranks(results):
    for r in results:
        assert r["codec"] == "lowrank"
        assert torch.equal(r["got"], results[0]["got"])
        assert r["plans"] == results[0]["plans"] and len(r["plans"]) > 1
        assert r["counted"] == len(r["plans"]) - 1
    chosen = results[0]["dimensions"]
    first, last = results[0]["plans"][0], results[0]["plans"][-1]
    assert chosen["weights.0"] >= 8 and max(chosen["weights.1"], chosen["weights.3"]) <= 5
    assert last["rates"][0] > 1.5 * first["rates"][0] and last["rates"][3] < first["rates"][3]
    assert last["exact"] == [False, False, True, False] and last["rates"][2] == 32
    assert results[0]["records"] == results[0]["counted"]


def test_the_budget_holds_in_every_step_and_is_used(results):
    budget = int(BITS * NUMEL / 8)
    for plan in results[0]["plans"]:
        assert 0.93 * budget < plan["planned_bytes"] <= plan["budget_bytes"] == budget
    assert 0 < results[0]["payload"] <= 2 * budget  # both phases


def test_nothing_is_lost_when_dimensions_change(results):
    for r in results:
        assert max(r["lost"]) < 1e-4


def test_a_restart_over_a_change_is_bitwise_equal(results):
    assert all(r["restart"] for r in results)


def refusals(rank, world_size):
    ddp, found = DDP(Given()), {}
    for name, options in {
        "little": {"bits": 0.5},
        "dimension": {"codec": "lowrank:4"},
        "iterations": {"codec": "lowrank,iterations=2"},
        "objective": {"objective": "unbiased"},
        "gamma": {"gamma": 1.0},
        "none": {"bits": None},
    }.items():
        try:
            commpress.register(ddp, **{"codec": "lowrank", "bits": 4.0, "timeout": 20} | options)
            found[name] = "nothing"
        except errors.SpecError as problem:
            found[name] = str(problem)
    return found


def test_what_does_not_go_together_is_refused():
    for found in (r.ok().value for r in launch(__file__, "refusals", 2, timeout=100)):
        for name, text in {
            "little": "need",
            "dimension": "no dimension",
            "iterations": "power iterations",
            "objective": "mse, weighted",
            "gamma": "weighted",
            "none": "low-rank dimension",
        }.items():
            assert text in found[name], (name, found[name])
