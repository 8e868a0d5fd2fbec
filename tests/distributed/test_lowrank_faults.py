"""Low-rank factors on real gloo ranks: failures of a rank, ranks that differ, one rank, and the main job."""

import time
import traceback

import pytest
import torch
from _launch import launch
from _lowrank_models import Shaped, backward, gradients_of, matrix, wrapped
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress import errors
from commpress.telemetry import MemorySink

TIMEOUT = 15.0


def caught(call):
    start = time.monotonic()
    try:
        call()
    except Exception as problem:
        typed = isinstance(problem, errors.CommpressError)
        return [type(problem).__name__ if typed else traceback.format_exc(), str(problem), time.monotonic() - start]
    return ["none", "", time.monotonic() - start]


def fails(rank, world_size, where):
    """Rank 1 alone fails in step 6: in the hook, in what fills a factor, or at a passage's end."""
    ddp, state = wrapped("lowrank:2", timeout=TIMEOUT)
    for step in range(6):
        backward(ddp, gradients_of(rank, step))
    fired = []

    def fault(*args, **kwargs):
        fired.append(where)
        raise RuntimeError("a fault on purpose")

    if rank == 1:
        if where == "hook":
            state._submit_at_once = fault
        else:
            from commpress.collectives._passage import Passage

            setattr(Passage, where, fault)
    error = caught(lambda: backward(ddp, gradients_of(rank, 6)))
    saving, again = caught(state.state_dict), caught(lambda: backward(ddp, gradients_of(rank, 7)))
    state.close()
    return {"error": error, "saving": saving, "again": again, "fired": len(fired)}


@pytest.mark.parametrize(
    "where",
    [
        "hook",
        "fill_right",
        "update_trackers",
        *(pytest.param(w, marks=pytest.mark.nightly) for w in ("fill_left", "finish")),
    ],
)
def test_a_failure_on_one_rank_is_an_error_on_every_rank(where):
    results = [r.ok().value for r in launch(__file__, "fails", 3, args={"where": where}, timeout=100)]
    for rank, r in enumerate(results):
        kind, message, seconds = r["error"] if r["error"][0] != "none" else r["again"]
        assert (r["fired"] > 0) == (rank == 1)
        assert seconds < 2 * TIMEOUT
        assert "a fault on purpose" in message or "rank 1" in message, (rank, message)
        if rank != 1:
            assert kind in ("PeerError", "MismatchError", "StateError"), (kind, message)
        if where != "update_trackers":
            assert r["error"][0] != "none" and r["saving"][0] == "StateError"
        assert r["again"][0] != "none"


def dies(rank, world_size, how):
    import os

    ddp, state = wrapped("lowrank:2", timeout=4.0)
    for step in range(6):
        backward(ddp, gradients_of(rank, step))
    if rank == 1:
        if how == "crash":
            os._exit(7)
        time.sleep(12)
        return {}
    return {"error": caught(lambda: backward(ddp, gradients_of(rank, 6))), "again": caught(state.state_dict)}


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_survivors_of_a_dead_or_hung_rank_name_rank_and_step(how):
    results = launch(__file__, "dies", 3, args={"how": how}, timeout=60, destroy=False)
    named = 0
    for r in (results[0], results[2]):
        kind, message, seconds = r.ok().value["error"]
        assert kind == "PeerError" and "step 6" in message, message
        named += "rank 1" in message
        assert seconds < 11
        assert r.value["again"][0] == "StateError"
    assert named >= 1


def differs(rank, world_size):
    odd = rank == world_size - 1
    out = {}
    ddp = DDP(Shaped())
    out["codec"] = caught(lambda: commpress.register(ddp, "lowrank:3" if odd else "lowrank:2", timeout=TIMEOUT))
    out["family"] = caught(lambda: commpress.register(ddp, "uniform:3" if odd else "lowrank:2", timeout=TIMEOUT))
    ddp, state = wrapped("lowrank:2", timeout=TIMEOUT)
    backward(ddp, gradients_of(rank, 0))
    saved = state.state_dict()
    state.close()
    ddp, state = wrapped("lowrank:2", timeout=TIMEOUT)
    if odd:
        state.load_state_dict(saved)
    out["checkpoint"] = caught(lambda: backward(ddp, gradients_of(rank, 0)))
    state.close()
    ddp, state = wrapped("lowrank:2", timeout=TIMEOUT, check_every=4)
    for step in range(6):
        out["drift"] = caught(lambda step=step: backward(ddp, gradients_of(rank, step)))
        if out["drift"][0] != "none":
            break
        if rank == 0 and step == 2:
            with torch.no_grad():
                ddp.module.weights[5][3, 4] += 1e-6
    out["drift step"] = step
    state.close()
    return out


def test_ranks_that_differ_are_told_what_differs():
    for r in (r.ok().value for r in launch(__file__, "differs", 2, timeout=100)):
        for name, text in {
            "codec": "lowrank:3",
            "family": "uniform:3",
            "checkpoint": "step",
            "drift": "'weights.5'",
        }.items():
            assert r[name][0] == "MismatchError" and text in r[name][1], (name, r[name])
        assert r["drift step"] == 4


def one_rank(rank, world_size):
    sink = MemorySink()
    ddp, state = wrapped("lowrank:2", telemetry=sink, telemetry_every=1)
    for step in range(3):
        backward(ddp, gradients_of(rank, step))
    exact = all(torch.equal(w.grad, g) for w, g in zip(ddp.module.weights, gradients_of(rank, 2), strict=True))
    owed = max(float(x.abs().max()) for x in state._exchange.feedback.owed().values())
    x = matrix(0)
    commpress.all_reduce(x, "lowrank:2")
    state.close()
    return {
        "exact": exact,
        "owed": owed,
        "plain": torch.equal(x, matrix(0)),
        "payload": sink.records[-1]["payload_bytes"],
    }


def test_one_rank_keeps_its_gradient():
    result = launch(__file__, "one_rank", 1, timeout=60)[0].ok().value
    assert result == {"exact": True, "owed": 0.0, "plain": True, "payload": 0}


# ---- the main job


def main_job(rank, world_size):
    from commpress.experiments import QUICK, MainJob, RunWriter, Settings

    found = {}
    for codec in ("fp32", "lowrank:4"):
        job = MainJob(Settings(**{**QUICK, "codec": codec, "probes": 2, "steps": 80}), writer=RunWriter(None))
        try:
            found[codec] = job.run()
        finally:
            job.close()
    return found


def test_the_main_job_trains():
    for found in (r.ok().value for r in launch(__file__, "main_job", 2, timeout=150)):
        fp32, ours = found["fp32"], found["lowrank:4"]
        assert ours["held_out_loss"] < ours["unigram_loss"]
        assert ours["held_out_loss"] < fp32["held_out_loss"] + 0.05
        assert 0 < 8 * ours["payload_bytes_per_step"] < fp32["claimed_bytes_per_step_per_rank"]
