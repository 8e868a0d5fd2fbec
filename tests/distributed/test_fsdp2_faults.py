"""FSDP2: what is refused at registration, and faults: every rank ends with a typed error that names the trouble, in time, and the state refuses further use."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _fsdp_models import PRELOAD, loss_of, mesh2d, plain, sharded
from _launch import launch

import commpress
from commpress import errors
from commpress.hooks import FSDPHookState, HookState, _fsdp_step

TIMEOUT = 20.0


def caught(call) -> list:
    """What `call` raised, as [type's name, message, seconds]."""
    start = time.monotonic()
    try:
        call()
    except Exception as problem:
        kind = type(problem).__name__ if isinstance(problem, errors.CommpressError) else f"UNTYPED {problem!r}"
        return [kind, str(problem), time.monotonic() - start]
    return ["none", "", time.monotonic() - start]


def run(name: str, size: int, **args) -> list:
    return [
        r.ok().value for r in launch(__file__, name, size, args=args, timeout=120, group_timeout=60.0, preload=PRELOAD)
    ]


# -- registration


def refusals(rank: int, size: int) -> dict:
    register = commpress.register
    found = {}
    for name, options in {
        "predict": {"bits": 2.0, "predict": True},
        "shaping": {"shaping": 0.5},
        "check_every": {"check_every": 10},
        "lowrank": {"codec": "lowrank:4"},
        "budget of lowrank": {"codec": "lowrank", "bits": 1.0},
        "homomorphic": {"codec": "homomorphic:4"},
        "modulo": {"codec": "modulo:2,rho=0.9"},
        "four bits": {"all_gather": "uniform:4"},
        "bits": {"bits": 9.0},
        "objective": {"objective": "mse"},
        "spec": {"codec": "uniform:99"},
        "timeout": {"timeout": -1.0},
        "seed": {"seed": -1},
        "replicate": {"replicate": "everywhere"},
    }.items():
        found[name] = caught(lambda options=options: register(sharded(), **options))
    found["all_gather of DDP"] = caught(lambda: register(DistributedDataParallel(plain()), all_gather="uniform:8"))
    found["plain"] = caught(lambda: register(plain()))
    mesh = mesh2d(2, size)
    found["2-D"] = caught(lambda: register(sharded(mesh=mesh)))

    several = plain()
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult

    infos = [FSDPMeshInfo(mesh["shard"], shard_mesh_dim=0), FSDPMeshInfo(mesh["replicate"], shard_mesh_dim=0)]
    fully_shard(
        several,
        mesh=mesh["shard"],
        shard_placement_fn=lambda p: ShardPlacementResult(Shard(0), infos[p.shape[0] == 65]),
    )
    found["several groups"] = caught(lambda: register(several))
    mixed = plain()
    fully_shard(mixed[0], mesh=mesh["shard"])
    fully_shard(mixed[2], mesh=mesh["replicate"])
    found["two meshes"] = caught(lambda: register(mixed))
    odd = rank == size - 1
    found["codec"] = caught(lambda: register(sharded(), "uniform:3" if odd else "uniform:4", timeout=TIMEOUT))
    found["options"] = caught(lambda: register(sharded(), "uniform:4", feedback=odd, timeout=TIMEOUT))
    found["weights"] = caught(lambda: register(sharded(), all_gather="none" if odd else None, timeout=TIMEOUT))
    found["frozen"] = caught(lambda: register(sharded(frozen=odd), timeout=TIMEOUT))

    model = sharded()
    state = register(model, "uniform:4", predict=False, shaping=0.0, timeout=TIMEOUT)
    assert isinstance(state, FSDPHookState) and not isinstance(state, HookState)
    found["twice"] = caught(lambda: register(model, "uniform:4"))
    loss_of(model, 0).backward()
    compressed = state.counts["compressed_numel"]
    saved = state.state_dict()
    state.close()
    found["closed"] = caught(lambda: loss_of(model, 0).backward())
    found["saved when closed"] = caught(state.state_dict)
    model = sharded()
    register(model, "uniform:4").close()
    state = register(model, "uniform:5", all_gather="uniform:8")  # the closed one gave way
    loss_of(model, 0).backward()
    found["of another codec"] = caught(lambda: state.load_state_dict(saved))
    state.close()
    with torch.no_grad():
        assert bool(torch.isfinite(loss_of(model, 0)))  # weights still travel
    return {"found": found, "compressed": compressed}


def test_what_is_refused_at_registration():
    expected = {
        "predict": ("SpecError", ["predict", "FSDP2"]),
        "shaping": ("SpecError", ["shaping"]),
        "check_every": ("SpecError", ["check_every"]),
        "lowrank": ("SpecError", ["lowrank"]),
        "budget of lowrank": ("SpecError", ["lowrank"]),
        "homomorphic": ("SpecError", ["homomorphic:4"]),
        "modulo": ("SpecError", ["modulo"]),
        "four bits": ("SpecError", ["8 bits"]),
        "bits": ("SpecError", ["bits"]),
        "objective": ("SpecError", ["bits="]),
        "spec": ("SpecError", ["99"]),
        "timeout": ("SpecError", ["timeout"]),
        "seed": ("SpecError", ["seed"]),
        "replicate": ("SpecError", ["replicate", "DeviceMesh"]),
        "all_gather of DDP": ("SpecError", ["all_gather", "FSDP2"]),
        "plain": ("ModelError", ["fully_shard"]),
        "2-D": ("ModelError", ["module (root)", 'mesh["shard"]', "replicate="]),
        "several groups": ("ModelError", ["module (root)", "2 parameter groups"]),
        "two meshes": ("ModelError", ["module 0", "module 2"]),
        "codec": ("MismatchError", ["codec", "uniform:3", "uniform:4"]),
        "options": ("MismatchError", ["error feedback"]),
        "weights": ("MismatchError", ["codec of weights"]),
        "frozen": ("MismatchError", ["2.weight", "frozen"]),
        "twice": ("ModelError", ["already bound", "module (root)"]),
        "closed": ("StateError", ["closed"]),
        "saved when closed": ("StateError", ["closed"]),
        "of another codec": ("StateError", ["uniform:4", "uniform:5"]),
    }
    for value in run("refusals", 4):
        assert value["compressed"] > 0
        assert set(value["found"]) == set(expected)
        for name, (kind, texts) in expected.items():
            got, message, seconds = value["found"][name]
            assert got == kind, (name, got, message)
            assert all(text in message for text in texts), (name, message)
            assert seconds < 2 * TIMEOUT


def lacking(rank: int, size: int) -> list:
    model = sharded()
    sys.modules["torch.distributed.fsdp._fully_shard._fsdp_api"] = None  # as where torch has moved it
    return caught(lambda: commpress.register(model, "uniform:4"))


def test_a_torch_without_the_private_interface():
    ((kind, message, _),) = run("lacking", 1)
    assert kind == "ModelError" and torch.__version__ in message and "_fsdp_api" in message


# -- faults


def fault(rank: int, size: int, what: str, replicas: int) -> dict:
    mesh = mesh2d(replicas, size) if replicas > 1 else None
    model = sharded(
        mesh=None if mesh is None else mesh["shard"], reshard=False
    )  # no all-gather of FSDP's own in backward
    state = commpress.register(
        model, "topk:0.1", replicate=None if mesh is None else mesh["replicate"], timeout=TIMEOUT
    )
    loss_of(model, 0).backward()
    model.zero_grad()
    residuals = state.state_dict()[f"rank {rank}"]["residuals"]
    fired = []
    if rank == size - 1:
        if what == "raises in encode":

            def broken(*args, **more):
                fired.append(True)
                raise ValueError("broken on purpose")

            _fsdp_step.RowsFeedback.record = broken
        elif what == "raises before":

            def refuses(op):
                fired.append(True)
                raise ValueError("broken on purpose")

            state._exchange._operation = refuses
        elif what == "dies":
            loss_of(model, 1)  # the others' forward needs this rank
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    first = caught(lambda: loss_of(model, 1).backward())
    held = state._exchange.residuals.saved()["residuals"]
    again = caught(lambda: state._exchange.reduce_scatter(state._units[0], torch.zeros(1), torch.zeros(size), None))
    saved = caught(state.state_dict)
    found = {
        "first": first,
        "again": again,
        "saved": saved,
        "fired": bool(fired),
        "held": all(torch.equal(v, held[n]) for n, v in residuals.items()),
        "error": type(state.error).__name__,
    }
    state.close()
    return found


@pytest.mark.parametrize(
    ("what", "size", "replicas"),
    [
        ("raises in encode", 3, 1),
        pytest.param("raises before", 3, 1, marks=pytest.mark.nightly),
        pytest.param("raises in encode", 4, 2, marks=pytest.mark.nightly),
        ("raises before", 4, 2),
    ],
)
def test_a_failure_on_one_rank_raises_on_all(what, size, replicas):
    values = run("fault", size, what=what, replicas=replicas)
    assert values[-1]["fired"] and not any(value["fired"] for value in values[:-1])
    for rank, value in enumerate(values):
        kind, message, seconds = value["first"]
        assert kind in (("StateError",) if rank == size - 1 else ("PeerError", "MismatchError")), (rank, kind, message)
        assert "broken on purpose" in message
        assert seconds < TIMEOUT
        assert value["again"][0] == "StateError" and "refuses further use" in value["again"][1]
        assert value["saved"][0] == "StateError" and value["held"]
        assert value["error"] == kind


def test_a_rank_that_dies():
    results = launch(
        __file__,
        "fault",
        3,
        args={"what": "dies", "replicas": 1},
        timeout=120,
        group_timeout=60.0,
        preload=PRELOAD,
        destroy=False,
    )
    assert results[2].returncode == -signal.SIGKILL
    for result in results[:2]:
        value = result.ok().value
        kind, message, seconds = value["first"]
        assert kind == "PeerError" and "rank 2" in message and seconds < 2 * TIMEOUT, value["first"]
        assert value["again"][0] == "StateError" and value["held"]
