"""Noise shaping under the hook: replicas agree, the error is smaller and where it belongs, restarts are bitwise, faults leave no trace."""

from __future__ import annotations

import pytest
import torch
from _launch import launch
from _scenarios import Given
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress.errors import MismatchError, SpecError, StateError
from commpress.telemetry import MemorySink

SIZES = [65_536, 20_000, 30_000, 100]  # sizes of coordinates differ in the first two layers
SPREAD = [1.0, 0.7, 0.0, 1.0]
STEPS, SAVED, NAN = 40, 26, 30


def scales():
    generator = torch.Generator().manual_seed(7)
    return [torch.exp(s * torch.randn(n, generator=generator)) for n, s in zip(SIZES, SPREAD, strict=True)]


def gradients(rank, step):
    generator = torch.Generator().manual_seed(1_000 * step + rank)
    found = [s * torch.randn(s.numel(), generator=generator) for s in scales()]
    if step == NAN and rank == 0:
        found[0][3] = float("nan")
    return found


def run(rank, world_size, first=0, last=STEPS, saved=None, **options):
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.3)
    sink = MemorySink()
    state = commpress.register(ddp, timeout=30, telemetry=sink, telemetry_every=4, **options)
    if saved is not None:
        state.load_state_dict(saved)
    errors, kept = [], None
    for step in range(first, last):
        if step == SAVED:
            kept = state.state_dict()
        ddp.zero_grad()
        ddp(gradients(rank, step)).backward()
        if step >= SAVED and step != NAN:
            exact = [sum(g) / world_size for g in zip(*(gradients(r, step) for r in range(world_size)), strict=True)]
            errors.append([(w.grad - e).square() for w, e in zip(ddp.module.weights, exact, strict=True)])
    total = [sum(each) / len(errors) for each in zip(*errors, strict=True)]
    info = [r["information"] for r in sink.records if r.get("information")]
    result = {
        "grad": torch.cat([w.grad for w in ddp.module.weights]),
        "errors": torch.stack([e.sum() for e in total]),
        "layer": total[0],
        "shaping": [i.get("shaping") for i in info][-1:],
        "binding": info[-1]["binding"] if info else None,
        "payload": sink.records[-1].get("payload_bytes"),
        "in use": state.shaping,
    }
    state.close()
    return result, kept


def worker(rank, world_size):
    found, saved = {}, None
    for name, options in {
        "off": {"shaping": 0},
        "half": {"shaping": 0.5},
        "default": {},
        "one": {"shaping": 1},
        "bits": {"bits": 2.0, "plan_every": 4},
    }.items():
        found[name], kept = run(rank, world_size, **options)
        saved = kept if name == "default" else saved
    found["resumed"], _ = run(rank, world_size, SAVED, saved=saved)
    return found


@pytest.fixture(scope="module", params=[2, 3])
def results(request):
    return [r.ok().value for r in launch(__file__, "worker", request.param, timeout=170)]


def test_replicas_agree_and_restart_bitwise(results):
    for name in results[0]:
        assert all(torch.equal(r[name]["grad"], results[0][name]["grad"]) for r in results), name
    assert torch.equal(results[0]["resumed"]["grad"], results[0]["default"]["grad"])


def test_the_error_is_smaller_at_the_same_bytes(results):
    mine = results[0]
    off, half = mine["off"]["errors"], mine["half"]["errors"]
    expected = [float(s.square().sqrt().mean() ** 2 / s.square().mean()) for s in scales()[:2]]  # about .37 and .61
    for layer in (0, 1):
        assert float(half[layer] / off[layer]) < expected[layer] + 0.12
    assert 0.9 < float(half[2] / off[2]) < 1.1  # nothing to gain, nothing done
    assert len({mine[name]["payload"] for name in ("off", "half", "default", "one")}) == 1


def test_the_error_is_where_it_belongs(results):
    """Of the tenth of smallest coordinates and the tenth of largest ones; the means that sizes are learnt from have noise themselves."""
    scale = scales()[0]
    small, large = scale < scale.quantile(0.1), scale > scale.quantile(0.9)

    def relative(name):
        errors = results[0][name]["layer"]
        return [float(errors[group].mean() / scale[group].square().mean()) for group in (small, large)]

    without, with_one = relative("off"), relative("one")
    assert without[0] / without[1] > 50
    assert with_one[0] / with_one[1] < 25
    assert with_one[0] < without[0] / 5


def test_telemetry(results):
    for name, exponent in (("half", 0.5), ("default", 0.75), ("one", 1.0)):
        found = results[0][name]
        assert found["in use"] == exponent
        (shaping,) = found["shaping"]
        assert shaping["exponent"] == exponent
        assert set(shaping["layers"]) == {"weights.0", "weights.1"}
        assert all(0 < ratio < 0.9 for ratio in shaping["layers"].values())
        assert "noise shaping" in found["binding"] or "prediction" in found["binding"]
    assert results[0]["off"]["shaping"] == [None] and results[0]["off"]["binding"] == "memoryless"


def refusals(rank, world_size):
    caught = {}
    for name, options in {
        "value": {"shaping": 0.3},
        "feedback": {"shaping": 0.5, "feedback": True},
        "ranks": {"shaping": 0.5 * rank},
    }.items():
        try:
            commpress.register(DDP(Given(SIZES)), "uniform:4", timeout=20, **options).close()
        except (SpecError, MismatchError) as error:
            caught[name] = f"{type(error).__name__}: {error}"
    for codec, options in (("lloyd:2", {}), ("topk:0.1", {}), ("none", {}), ("uniform:4", {"feedback": True})):
        state = commpress.HookState(codec, **options)
        caught[codec] = state.shaping
    state = commpress.HookState("uniform:4", shaping=0.5)
    saved = state.state_dict()
    caught["pickled"] = state.__getstate__()["config"]["shaping"]
    try:
        commpress.HookState("uniform:4", shaping=0.5).load_state_dict({**saved, "format": 3})
    except StateError as error:
        caught["format"] = str(error)
    return caught


def test_refusals_and_defaults():
    for result in (r.ok().value for r in launch(__file__, "refusals", 2, timeout=60)):
        assert "SpecError" in result["value"] and "SpecError" in result["feedback"]
        assert "MismatchError" in result["ranks"] and "shaping" in result["ranks"]
        assert [result[name] for name in ("lloyd:2", "topk:0.1", "none", "uniform:4")] == [0.0] * 4
        assert result["pickled"] == 0.5 and "format" in result["format"]
