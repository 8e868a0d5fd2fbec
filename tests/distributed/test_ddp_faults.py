"""Faults: every rank ends with a typed error that names the trouble, in time, and the state refuses further use."""

import os
import time
import traceback

import pytest
import torch
import torch.distributed as dist
from _launch import launch
from _scenarios import SIZES, Given, flat, given_gradients, net
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import errors

TIMEOUT = 20.0


def caught(call):
    """What `call` raised, as [type's name, message, seconds]."""
    start = time.monotonic()
    try:
        call()
    except Exception as problem:
        kind = (
            type(problem).__name__
            if isinstance(problem, errors.CommpressError)
            else f"UNTYPED {traceback.format_exc()}"
        )
        return [kind, str(problem), time.monotonic() - start]
    return ["none", "", time.monotonic() - start]


def model(**options):
    return DDP(Given(SIZES), bucket_cap_mb=0.01, **options)


def registered(spec="uniform:4", **options):
    ddp = model()
    return ddp, commpress.register(ddp, spec, **{"timeout": TIMEOUT, **options})


def backward(ddp, rank, step=0):
    return lambda: ddp(given_gradients(rank, step)).backward()


# ---- ranks that disagree at registration


def mismatches(rank, world_size):
    odd = rank == world_size - 1
    out = {}
    ddp = model()
    out["codec"] = caught(lambda: commpress.register(ddp, "uniform:3" if odd else "uniform:4", timeout=TIMEOUT))
    out["options"] = caught(lambda: commpress.register(ddp, "lloyd:2", feedback=not odd, timeout=TIMEOUT))
    out["seed"] = caught(lambda: commpress.register(ddp, "lloyd:2", seed=int(odd), timeout=TIMEOUT))
    version, commpress.__version__ = commpress.__version__, "9.9.9" if odd else commpress.__version__
    out["version"] = caught(lambda: commpress.register(ddp, timeout=TIMEOUT))
    commpress.__version__ = version

    class Named(torch.nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                self.register_parameter(name, torch.nn.Parameter(torch.zeros(50)))

    named = DDP(Named(["a", "c", "b"] if odd else ["a", "b", "c"]))
    out["order"] = caught(lambda: commpress.register(named, timeout=TIMEOUT))
    state = commpress.register(ddp, timeout=TIMEOUT)  # the model is as good as new
    out["after"] = caught(backward(ddp, rank))
    out["compressed"] = state.counts["compressed_numel"]
    state.close()
    lazy = commpress.HookState("uniform:3" if odd else "uniform:4", timeout=TIMEOUT)
    ddp = model()
    ddp.register_comm_hook(lazy, commpress.ddp_hook)
    out["explicit"] = caught(backward(ddp, rank))
    out["explicit again"] = caught(lambda: lazy.state_dict())
    return out


def check_mismatches(results):
    last = len(results) - 1
    others = "rank 0" if last == 1 else f"ranks {', '.join(map(str, range(last)))}"
    for r in results:
        for name, texts in {
            "codec": ["codec", "uniform:3", "uniform:4", f"rank {last}", others],
            "options": ["error feedback", "True", "False"],
            "seed": ["seed"],
            "version": ["version", "9.9.9"],
            "order": ["parameter 1", "'b'", "'c'"],
            "explicit": ["codec", "uniform:3", "uniform:4"],
        }.items():
            kind, message, seconds = r[name]
            assert kind == "MismatchError", (name, kind)
            assert all(text in message for text in texts), message
            assert seconds < TIMEOUT
        assert r["after"][0] == "none"
        assert r["compressed"] > 0
        assert r["explicit again"][0] == "StateError"


def test_every_rank_names_what_differs():
    check_mismatches([r.ok().value for r in launch(__file__, "mismatches", 3, timeout=100)])


def absent(rank, world_size):
    ddp = model()
    if rank == 0:
        return {"error": caught(lambda: commpress.register(ddp, timeout=1.0))}
    time.sleep(4)
    return {}


def test_a_rank_that_does_not_register_is_missed_at_the_timeout():
    kind, message, seconds = launch(__file__, "absent", 2, timeout=60)[0].ok().value["error"]
    assert kind == "PeerError"
    assert "registration" in message
    assert 0.5 < seconds < 20


# ---- misuse on one rank alone or on all: no peer is needed


def misuse(rank, world_size):
    out = {"not ddp": caught(lambda: commpress.register(torch.nn.Linear(2, 2)))}
    out["is TypeError"] = isinstance(commpress.hooks.ModelError(""), TypeError)

    ddp, state = registered()
    out["twice"] = caught(lambda: commpress.register(ddp, timeout=TIMEOUT))
    backward(ddp, rank)()
    state.close()
    out["closed"] = caught(backward(ddp, rank))

    foreign = model()
    foreign.register_comm_hook(None, lambda state, bucket: None)
    out["other hook"] = caught(lambda: commpress.register(foreign, timeout=TIMEOUT))

    class Swallows(DDP):
        def register_comm_hook(self, state, hook):
            pass

    swallows = Swallows(Given(SIZES))
    out["swallowed"] = caught(lambda: commpress.register(swallows, timeout=TIMEOUT))

    shared = commpress.HookState("uniform:4", timeout=TIMEOUT)
    first, second = model(), model()
    first.register_comm_hook(shared, commpress.ddp_hook)
    second.register_comm_hook(shared, commpress.ddp_hook)
    backward(first, rank)()
    out["shared"] = caught(backward(second, rank))
    shared.close()

    torch._dynamo.config.optimize_ddp = "python_reducer"
    python = DDP(torch.nn.Linear(3, 3))
    torch._dynamo.config.optimize_ddp = True
    out["python reducer"] = caught(lambda: commpress.register(python, timeout=TIMEOUT))
    out["pair"] = caught(lambda: commpress.ddp_hook(shared, (torch.zeros(3), torch.zeros(3))))

    sparse = DDP(torch.nn.Embedding(10, 4, sparse=True))
    commpress.register(sparse, "uniform:4", timeout=TIMEOUT)
    out["sparse"] = caught(lambda: sparse(torch.tensor([1, 2])).sum().backward())

    class Wrapper(torch.nn.Module):  # as Lightning Fabric's
        def __init__(self, inner):
            super().__init__()
            self._forward_module = inner

        def forward(self, *args):
            return self._forward_module(*args)

    inner = model()
    wrapped = commpress.register(Wrapper(inner), "uniform:4", timeout=TIMEOUT)
    backward(inner, rank)()
    out["wrapped"] = wrapped.counts["compressed_numel"]
    wrapped.close()
    for name, options in {
        "timeout": {"timeout": 0},
        "every": {"telemetry_every": -1},
        "seed": {"seed": 1 << 64},
    }.items():
        out[name] = caught(lambda options=options: commpress.HookState(**options))
    return out


def test_misuse_is_refused_by_name():
    for r in (r.ok().value for r in launch(__file__, "misuse", 2, timeout=100)):
        for name, kind, text in (
            ("not ddp", "ModelError", "Linear"),
            ("twice", "ModelError", "already bound"),
            ("closed", "StateError", "closed"),
            ("other hook", "ModelError", "already has a hook"),
            ("swallowed", "ModelError", "did not take the hook"),
            ("shared", "StateError", "already bound to another model"),
            ("python reducer", "ModelError", "python_reducer"),
            ("pair", "ModelError", "python_reducer"),
            ("sparse", "TensorError", "sparse"),
            ("timeout", "SpecError", "timeout"),
            ("every", "SpecError", "telemetry_every"),
            ("seed", "SpecError", "seed"),
        ):
            assert r[name][0] == kind, (name, r[name])
            assert text in r[name][1], (name, r[name])
            assert r[name][2] < TIMEOUT, name
        assert r["is TypeError"]
        assert r["wrapped"] > 0


# ---- trouble in the middle of training


def raised_in_the_hook(rank, world_size, where):
    """Rank 1 alone fails: in the hook itself, in an encode, or in a decode."""
    ddp, state = registered("lloyd:3")
    for step in range(6):
        backward(ddp, rank, step)()
        ddp.zero_grad()
    fired = []
    if rank == 1:

        def fault(*args, **kwargs):
            fired.append(where)
            raise RuntimeError("a fault on purpose")

        if where == "hook":
            state._submit_at_once = fault
        elif where == "feedback":
            state._exchange.feedback.bucket(1).record_mean = fault
        else:

            class Codec:
                def __getattr__(self, name):
                    return fault if name == where else getattr(codec, name)

                def __str__(self):
                    return str(codec)

            codec, state._exchange._codec = state._exchange._codec, Codec()
    error = caught(backward(ddp, rank, 6))
    again = caught(backward(ddp, rank, 7)) if where != "hook" or rank != 1 else caught(lambda: state.state_dict())
    saving = caught(state.state_dict)
    state.close()
    return {"error": error, "again": again, "saving": saving, "fired": len(fired)}


def all_raised(rank, world_size):
    out = {}
    for where in ("hook", "encode", "decode", "feedback"):
        out[where] = raised_in_the_hook(rank, world_size, where)
        dist.barrier()
    return out


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_failure_on_one_rank_is_an_error_on_every_rank(world_size):
    results = [r.ok().value for r in launch(__file__, "all_raised", world_size, timeout=120)]
    for where in ("hook", "encode", "decode", "feedback"):
        for rank, r in enumerate(result[where] for result in results):
            assert (r["fired"] > 0) == (rank == 1), where
            kind, message, seconds = r["error"]
            assert seconds < 2 * TIMEOUT, (where, rank)
            assert "a fault on purpose" in message or "rank 1" in message, (where, rank, message)
            if rank != 1:
                assert kind in ("PeerError", "MismatchError"), (where, rank, kind, message)
            assert r["saving"][0] == "StateError"
            assert r["again"][0] != "none"


def crashing(rank, world_size, how):
    ddp, state = registered("uniform:4", timeout=4.0)
    for step in range(6):
        backward(ddp, rank, step)()
    if rank == 1:
        if how == "crash":
            os._exit(7)
        time.sleep(12)
        return {}
    return {"error": caught(backward(ddp, rank, 6)), "again": caught(lambda: state.state_dict())}


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_survivors_of_a_dead_or_hung_rank_raise_an_error_that_names_rank_and_step(how):
    results = launch(__file__, "crashing", 3, args={"how": how}, timeout=60, destroy=False)
    assert results[1].returncode == (7 if how == "crash" else 0)
    named = 0
    for r in (results[0], results[2]):
        kind, message, seconds = r.ok().value["error"]
        assert kind == "PeerError", message
        assert "step 6" in message
        named += "rank 1" in message
        assert seconds < 11
        assert r.value["again"][0] == "StateError"
    assert named >= 1


# ---- replicas that drift apart


def drifting(rank, world_size, check_every):
    torch.manual_seed(0)
    ddp = DDP(net(), bucket_cap_mb=0.01)
    state = commpress.register(ddp, "uniform:4", timeout=TIMEOUT, check_every=check_every)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.01)
    error, step = ["none", "", 0.0], 0
    for step in range(14):
        optimizer.zero_grad()
        x = torch.ones(4, 24) * (rank + 1)
        error = caught(lambda x=x: ddp(x).square().sum().backward())
        if error[0] != "none":
            break
        optimizer.step()
        if rank == 1 and step == 6:
            with torch.no_grad():
                ddp.module[2].weight[3, 4] += 1e-6
    parameters = flat(ddp)
    state.close()
    return {"error": error, "step": step, "parameters": parameters}


def test_divergence_is_found_within_n_steps_and_named():
    results = [r.ok().value for r in launch(__file__, "drifting", 3, args={"check_every": 4}, timeout=60)]
    for r in results:
        kind, message, _ = r["error"]
        assert kind == "MismatchError", message
        assert "'2.weight'" in message
        assert "rank 1" in message
        assert r["step"] == 8
    quiet = [r.ok().value for r in launch(__file__, "drifting", 2, args={"check_every": 0}, timeout=60)]
    assert all(r["error"][0] == "none" for r in quiet)
    assert not torch.equal(quiet[0]["parameters"], quiet[1]["parameters"]), "the fault did not fire"


def forgetful(rank, world_size):
    """Rank 0 alone loads a checkpoint."""
    ddp, state = registered("uniform:4")
    for step in range(2):
        backward(ddp, rank, step)()
    saved = state.state_dict()
    state.close()
    ddp, state = registered("uniform:4")
    if rank == 0:
        state.load_state_dict(saved)
    return {"error": caught(backward(ddp, rank))}


def test_a_checkpoint_that_one_rank_alone_loads_is_a_mismatch():
    for r in (r.ok().value for r in launch(__file__, "forgetful", 2, timeout=60)):
        kind, message, _ = r["error"]
        assert kind == "MismatchError", message
        assert "step" in message
