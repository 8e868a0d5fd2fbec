"""The worker-agreement monitor of the DDP hook, and a common scale, on real ranks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from _launch import ROOT, launch
from _scenarios import Given
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress.collectives import common_scale, make_channel
from commpress.hooks._layer_scales import NOTE_NBYTES
from commpress.hooks._worker_agreement import NBYTES

SIZES = [120_000, 1000, 33_001, 7]
STEPS = 5
PRELOAD = ("torch.nn.parallel.distributed", "commpress")


def gradients(rank, step, kind, bad):
    """A signal that all ranks share and a noise of their own; the bad rank's is replaced."""
    shared = torch.Generator().manual_seed(1000 + step)
    own = torch.Generator().manual_seed(100_003 * (step + 1) + rank)
    found = []
    for n in SIZES:
        signal = torch.randn(n, generator=shared)
        noise = torch.randn(n, generator=own)
        if rank == bad and kind == "replaced":
            signal = torch.zeros(n)
        if rank == bad and kind == "negated":
            signal = -signal
        found.append(signal + 0.5 * noise)
    if rank == bad and kind == "scaled":
        found = [100 * g for g in found]
    if rank == bad and kind == "nan":
        found[2][5] = float("nan")
    if rank == bad and kind == "zero":
        found = [torch.zeros_like(g) for g in found]
    if rank == bad and kind == "layer":
        found[1] *= 0.02
    return found


def monitored(rank, world_size, folder, kind, bad=2, codec="hadamard+lloyd:4", every=2, explicit=False, **options):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("commpress.hooks").addHandler(handler)
    ddp = DDP(Given(SIZES), bucket_cap_mb=0.3)
    options |= {"telemetry": f"{folder}/run.jsonl", "timeout": 30, "agreement_every": every}
    if explicit:
        state = commpress.HookState(codec, **options)
        ddp.register_comm_hook(state, commpress.ddp_hook)
    else:
        state = commpress.register(ddp, codec, **options)
    for step in range(STEPS):
        ddp.zero_grad()
        ddp(gradients(rank, step, kind, bad)).backward()
    state.close()
    logging.getLogger("commpress.hooks").removeHandler(handler)
    last = state.agreement
    if last is None:
        return None
    return {
        "step": last.step,
        "cosines": torch.from_numpy(last.cosines),
        "norms": torch.from_numpy(last.norms),
        "unlike": [[one.rank, one.why] for one in last.unlike],
        "scales": last.scales is not None,
        "messages": messages,
    }


def several(rank, world_size, runs):
    return [monitored(rank, world_size, **one) for one in runs]


def run(tmp_path, size, *runs):
    """For each of `runs`, one after the other on the same ranks: every rank's value, and the records."""
    folders = [tmp_path / str(i) for i in range(len(runs))]
    for folder in folders:
        folder.mkdir()
    args = {"runs": [{"folder": str(folder), **one} for folder, one in zip(folders, runs, strict=True)]}
    results = launch(__file__, "several", size, args=args, timeout=150, preload=PRELOAD)
    values = zip(*[r.ok().value for r in results], strict=True)
    files = [(folder / "run.jsonl").read_text().splitlines() for folder in folders]
    return [(found, [json.loads(line) for line in lines]) for found, lines in zip(values, files, strict=True)]


def exact(kind, size, step, bad=2):
    rows = np.array([torch.cat(gradients(r, step, kind, bad)).double().numpy() for r in range(size)])
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(all="ignore"):
        return rows @ rows.T / np.outer(norms, norms), norms


def test_a_replaced_gradient_shows_and_a_good_one_does_not(tmp_path):
    """With `register`, in the explicit form, and the negative control."""
    one, two, control = run(
        tmp_path, 4, {"kind": "replaced"}, {"kind": "replaced", "explicit": True}, {"kind": "none", "every": 1}
    )
    check_replaced(*one)
    check_replaced(*two)
    check_control(*control)


def check_replaced(values, records):
    found = [r for r in records if r["kind"] == "agreement"]
    assert [r["step"] for r in found] == [0, 2, 4]
    for record in found:
        cosines, norms = exact("replaced", 4, record["step"])
        # 1/(m I) at most, and so many entries: five standard errors
        assert np.abs(np.array(record["cosines"]) - cosines).max() < 5 * record["standard_error"]
        assert record["norms"] == pytest.approx(list(norms), rel=1e-4)
        assert [one["rank"] for one in record["standing_out"]] == [2] and record["standing_out"][0]["why"] == "cosine"
        assert abs(record["standing_out"][0]["others"] - 0.8) < 0.1
    assert any("rank 2 stands out" in message for message in values[0]["messages"])
    assert not values[1]["messages"]  # told by rank 0 and by the rank itself
    for value in values:  # the same everywhere
        assert torch.equal(value["cosines"], values[0]["cosines"]) and value["unlike"] == [[2, "cosine"]]


def check_control(values, records):
    found = [r for r in records if r["kind"] == "agreement"]
    assert [r["scales"] is None for r in found] == [False] * 4 + [
        True
    ]  # the last look has no step after it that could ask
    for record in found[:-1]:
        assert record["scales"]["far"] == [] and record["scales"]["far_layers"] == [0, 0, 0, 0]
        check_scales(record, "none")
    assert max(r["scales"]["rounds"] for r in found[1:-1]) <= 6 < found[0]["scales"]["rounds"]  # a hint is worth rounds
    assert len(found) == STEPS and all(not r["standing_out"] for r in found)
    assert all(not value["messages"] and not value["unlike"] for value in values)
    off = np.array(found[-1]["cosines"])[~np.eye(4, dtype=bool)]
    assert np.abs(off - 0.8).max() < 0.1  # 1 / (1 + 0.25)


def check_scales(record, kind):
    """Each layer's is the (lower) median of the ranks' rms, rounded up to two binary digits."""
    n = record["world_size"]
    layers = record["scales"]["layers"]
    assert [one["numel"] for one in layers] == SIZES
    for i, layer in enumerate(layers):
        rms = sorted(float(gradients(r, record["step"], kind, 2)[i].square().mean().sqrt()) for r in range(n))
        middle = rms[(n - 1) // 2]
        assert middle * (1 - 1e-5) <= layer["rms"] <= middle * 1.25 * (1 + 1e-5)


def test_a_layer_that_the_norm_and_the_cosine_hide(tmp_path):
    """A fiftieth of its size on one rank: 0.6 percent of the coordinates."""
    ((values, records),) = run(tmp_path, 4, {"kind": "layer", "every": 1})
    found = [r for r in records if r["kind"] == "agreement"]
    for record in found[:-1]:
        assert not record["standing_out"]
        check_scales(record, "layer")
        (far,) = record["scales"]["far"]
        assert (far["rank"], far["layer"]) == (2, "weights.1") and 0.02 / 1.4 < far["ratio"] < 0.02 * 1.1
        assert record["scales"]["far_layers"] == [0, 0, 1, 0]
    for rank, value in enumerate(values):
        said = [message for message in value["messages"] if "has not the size" in message]
        assert len(said) == (rank in (0, 2)), said  # once, by rank 0 and by itself
        assert all("step 0: the gradient of rank 2 " in m and "weights.1 (0.0" in m for m in said)


FAULTS = {"negated": "cosine", "scaled": "norm", "nan": "not finite", "zero": "norm"}


def test_other_faults(tmp_path):
    found = run(tmp_path, 3, *({"kind": kind} for kind in FAULTS))
    for (kind, why), (values, records) in zip(FAULTS.items(), found, strict=True):
        for value in values:
            assert value["unlike"] == [[2, why]], value
        scales = [r["scales"] for r in records if r["kind"] == "agreement"][:-1]
        if kind == "nan":
            assert scales == [None, None]  # nothing to compare
            cosines = [r for r in records if r["kind"] == "agreement"][-1]["cosines"]
            assert cosines[2] == [None, None, None] and cosines[0][1] == pytest.approx(0.8, abs=0.1)
            continue
        # All layers, but the one of 7 coordinates is too small to judge.
        assert all(one["far_layers"] == [0, 0, 3 * (kind in ("scaled", "zero")), 0][:3] for one in scales)
        if kind == "zero":
            assert [one["ratio"] for one in scales[0]["far"]] == [0, 0, 0]
        last = [r for r in records if r["kind"] == "agreement"][-1]
        if kind == "zero":
            assert last["cosines"][2] == [None, None, None] and last["cosines"][0][1] == pytest.approx(0.8, abs=0.1)


def test_bytes_are_counted(tmp_path):
    (_, with_monitor), (_, without) = run(tmp_path, 3, {"kind": "none"}, {"kind": "none", "every": 0})
    assert not [r for r in without if r["kind"] == "agreement"]
    steps = [[r for r in records if r["kind"] == "step"] for records in (with_monitor, without)]
    # What a look leads to is asked for when the next step begins; the first step's buckets begin when all are known, after the look.
    looks = {r["step"]: r["scales"] for r in with_monitor if r["kind"] == "agreement" and r["scales"]}
    assert set(looks) == {0, 2}
    asked = {0: looks[0], 3: looks[2]}
    for a, b in zip(*steps, strict=True):
        scales, looked = asked.get(a["step"]), a["step"] % 2 == 0
        nbytes, messages = (NBYTES, 1) if looked else (0, 0)
        if scales is not None:
            # Four layers: a byte for each round, and a head.
            assert scales["bytes_each"] == 1 + scales["rounds"] + NOTE_NBYTES
            nbytes, messages = nbytes + scales["bytes_each"], messages + scales["rounds"] + 2
        assert a["header_bytes"] - b["header_bytes"] == 2 * nbytes
        assert a["messages"] - b["messages"] == 2 * messages
        assert (a["wire_bytes"] > b["wire_bytes"] + 2 * nbytes) == (looked or scales is not None)
        assert a["payload_bytes"] == b["payload_bytes"]
    assert NBYTES < 300


def test_other_exchanges(tmp_path):
    kinds = {"codec": "lowrank:2"}, {"codec": "hadamard+lloyd:2", "hierarchical": [[0, 1], [2, 3]]}
    for values, _ in run(tmp_path, 4, *({"kind": "replaced", **options} for options in kinds)):
        cosines, _ = exact("replaced", 4, 4)
        assert np.abs(values[0]["cosines"].numpy() - cosines).max() < 0.2 and values[0]["unlike"] == [[2, "cosine"]]


def disagreeing(rank, world_size):
    commpress.register(DDP(Given(SIZES)), "uniform:4", agreement_every=1 + rank, timeout=20)


def test_ranks_must_want_the_same():
    for result in launch(__file__, "disagreeing", 2, timeout=90, preload=PRELOAD):
        result.failed("MismatchError")
        assert "agreement_every" in result.message


CASES = [("max", None), ("median", None), ("median", 3), ("max", 3)]


def scaled(rank, world_size):
    found = []
    for across, bad in CASES:
        x = (1.0 + rank) * torch.linspace(-1, 1, 1001)
        if rank == bad:
            x = x * 1e6
        one = common_scale(x, across=across)
        channel = make_channel()
        again = common_scale(x, across=across, near=one.value, group=channel, timeout=20)
        channel.close()
        assert again.value == one.value
        found.append([one.value, one.own, one.rounds, one.bits, one.bytes_sent, one.wire_bytes, again.rounds])
    return found


def test_a_scale_common_to_all_ranks():
    ranks = [r.ok().value for r in launch(__file__, "scaled", 4, timeout=90, preload=PRELOAD)]
    for (across, bad), values in zip(CASES, zip(*ranks, strict=True), strict=True):
        own = sorted(value[1] for value in values)
        exact_scale = own[-1] if across == "max" else own[1]
        for value in values:
            assert value[0] == values[0][0] and exact_scale <= value[0] <= exact_scale * (1 + 2**-7)
            assert value[2:5] == [15, 15, 45] and value[5] > 45 and value[6] == 2
        if bad is not None:
            assert (values[0][0] < 10) == (across == "median")  # the majority does not follow one rank


def broken_scale(rank, world_size):
    x = torch.ones(10)
    if rank == 1:
        x[3] = float("inf")
    common_scale(x)


def other_digits(rank, world_size):
    common_scale(torch.ones(10), digits=7 + (rank == 1), timeout=20)


def test_a_scale_cannot_be_had():
    for result in launch(__file__, "broken_scale", 3, timeout=90, preload=PRELOAD):
        result.failed("TensorError")
        assert "rank 1 holds" in result.message
    for result in launch(__file__, "other_digits", 2, timeout=90, preload=PRELOAD):
        result.failed("PeerError")
        assert "other options" in result.message


def test_example():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, "examples/common_scale.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "the majority was not moved: True" in done.stdout
