"""codec="auto" on real ranks: what is chosen on links that a made-up calibration describes, and that the choice is one and the same everywhere."""

import dataclasses
import io
import logging
import os
import pathlib
import sys

import pytest
import torch
import torch.distributed as dist
from _cluster_state import need_cluster
from _launch import launch
from _scenarios import Scenarios, flat, of, same
from torch.nn.parallel import DistributedDataParallel as DDP

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from _calibrations import calibration

import commpress
from commpress import collectives
from commpress.cluster import Cluster, Topology
from commpress.hooks._auto import FIRST_TRIAL, ROUNDS, TRIAL_STEPS
from commpress.telemetry import MemorySink

scenarios = Scenarios(__file__, three=("fast", "slow"))
run_all = scenarios.run_all
two, three, ranks = scenarios.fixtures()

CODEC_NAMES = ("hadamard+lloyd:4", "uniform:4", "hadamard+lloyd:2")
FAST = {"link": 1e13, "codec_seconds": 1e-6, "latency": 1e-3}  # codecs lose
SLOW = {"link": 1e5, "codec_seconds": 1e-10, "torch_latency": 1.0}  # and win, even in a bucket of a few bytes


class Net(torch.nn.Module):
    """A large layer in a bucket of its own, and small ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.small = torch.nn.Linear(8, 16)
        self.large = torch.nn.Linear(16, 20_000, bias=False)

    def forward(self, x):
        return self.large(self.small(x)).square().mean() * 100


class Run:
    """A model under a hook, stepped with inputs that only the step and the rank decide."""

    def __init__(self, rank, codec="auto", hook=True, **options):
        self.rank = rank
        self.model = DDP(Net(), bucket_cap_mb=0.01)
        self.state = commpress.register(self.model, codec, **options) if hook else None
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.step_number = 0

    def step(self, count=1, value=None):
        for _ in range(count):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * self.step_number + self.rank))
            if value is not None and self.rank == 0:
                x[0, 0] = value
            self.optimizer.zero_grad()
            self.model(x).backward()
            self.optimizer.step()
            self.step_number += 1
        return self

    def outcome(self):
        found = {"parameters": flat(self.model)}
        if self.state is not None:
            auto = self.state.auto
            found |= {
                "counts": self.state.counts,
                "auto": None if auto is None else dataclasses.asdict(auto),
                "ways": [] if auto is None else [bucket.way for bucket in auto.buckets],
            }
            self.state.close()
        return found


@scenarios.add
def fast(rank, world_size, folder):
    """Codecs would lose: everything goes as it is."""
    known = calibration(world_size, codecs=(*((name, 4.0) for name in CODEC_NAMES), ("hadamard+lloyd:1", 1.0)), **FAST)
    runs = {"plain": Run(rank, hook=False).step(9).outcome()}
    for name, options in (("auto", {}), ("feedback", {"feedback": True}), ("budget", {"bits": 1.0})):
        run = Run(rank, calibration=known, trials=False, check_every=2, **options).step(9)
        saved = run.state.state_dict()
        residuals = saved["residuals"]
        owed = None
        if residuals is not None:
            owed = max(
                float(t.abs().max()) for e in residuals["residuals"].values() for t in e.values() if torch.is_tensor(t)
            )
        runs[name] = run.outcome() | {"owed": owed}
    return {"runs": runs}


def test_compression_is_off_where_it_would_lose(ranks):
    for result in of(ranks, "fast"):
        runs = result["runs"]
        for name in ("auto", "feedback", "budget"):
            run = runs[name]
            assert set(run["ways"]) == {"fp32"} and len(run["ways"]) >= 2, name
            assert run["counts"]["compressed_numel"] == 0 and run["counts"]["steps"] == 9
            assert torch.allclose(run["parameters"], runs["plain"]["parameters"], rtol=1e-5, atol=1e-7), name
            assert all("fastest by the model" in bucket["reason"] for bucket in run["auto"]["buckets"])
        assert runs["feedback"]["owed"] == 0.0 and runs["auto"]["owed"] is None
    for name in ("auto", "feedback", "budget"):
        assert same([result["runs"][name] for result in of(ranks, "fast")], "parameters")


@scenarios.add
def slow(rank, world_size, folder):
    """Codecs win by far."""
    known = calibration(world_size, **SLOW)
    runs = {}
    for name, options in (("auto", {}), ("feedback", {"feedback": True})):
        runs[name] = Run(rank, calibration=known, trials=False, check_every=2, **options).step(9).outcome()
    runs["fixed"] = Run(rank, "hadamard+lloyd:2", shaping=0.0).step(9).outcome()
    few = calibration(world_size, codecs=(("hadamard+lloyd:1", 1.0),), **SLOW)
    budget = Run(rank, calibration=few, trials=False, bits=1.0).step(9)
    rates = budget.state.plan.rates
    runs["budget"] = budget.outcome() | {"rates": [float(rate) for rate in rates]}
    return {"runs": runs}


def test_compression_is_on_where_it_wins(ranks):
    for result in of(ranks, "slow"):
        for name, way in (
            ("auto", "hadamard+lloyd:2"),
            ("feedback", "hadamard+lloyd:2"),
            ("budget", "hadamard+lloyd:1"),
        ):
            run = result["runs"][name]
            assert set(run["ways"]) == {way}, name
            assert run["counts"]["compressed_numel"] > 0
        assert torch.equal(result["runs"]["auto"]["parameters"], result["runs"]["fixed"]["parameters"])
        assert all(rate > 0 for rate in result["runs"]["budget"]["rates"])
    for name in ("auto", "feedback", "budget"):
        assert same([result["runs"][name] for result in of(ranks, "slow")], "parameters")


def mixed_calibration(world_size):
    """A call of a codec costs so much that the small bucket is better off without."""
    known = calibration(world_size, link=1e7, codec_seconds=1e-10, latency=1e-3)
    return dataclasses.replace(known, call=2e-3)


@scenarios.add
def mixed(rank, world_size, folder):
    runs, sink = {}, MemorySink()
    known = mixed_calibration(world_size)
    run = Run(rank, calibration=known, trials=False, telemetry=sink, telemetry_every=1).step(9)
    runs["auto"] = run.outcome()
    steps = [record for record in sink.records if record["kind"] == "step"]
    choices = [record for record in sink.records if record["kind"] == "auto"]
    nan = Run(rank, calibration=known, trials=False).step(3)
    nan.step(1, value=float("nan"))
    gradients = [bool(torch.isfinite(p.grad).any()) for p in nan.model.parameters()]
    return {"runs": runs, "steps": steps[-1], "choices": choices, "nan": nan.outcome(), "finite": gradients}


def test_each_bucket_goes_its_own_way(two):
    for result in of(two, "mixed"):
        run = result["runs"]["auto"]
        assert set(run["ways"]) == {"fp32", "hadamard+lloyd:2"}
        by_size = {bucket["numel"]: bucket for bucket in run["auto"]["buckets"]}
        assert by_size[320_000]["compressed"] and not by_size[min(by_size)]["compressed"]
        assert 0 < run["counts"]["compressed_numel"] < 9 * 2 * sum(by_size)
        for bucket in by_size.values():
            assert set(bucket["seconds"]) == {"fp32", "bf16", *CODEC_NAMES}
            limit = min(bucket["seconds"].values())
            assert bucket["seconds"][bucket["way"]] <= 1.03 * limit
    assert same([result["runs"]["auto"] for result in of(two, "mixed")], "parameters")


def test_telemetry_has_the_choice_and_the_bytes_of_both_ways(two):
    for result in of(two, "mixed"):
        assert result["choices"], "no record of the choice"
        last = result["choices"][-1]
        assert {bucket["way"] for bucket in last["buckets"]} == {"fp32", "hadamard+lloyd:2"}
        assert all(bucket["predicted_seconds"] and bucket["reason"] for bucket in last["buckets"])
        by_numel = {bucket["numel"]: bucket["payload_bytes"] for bucket in result["steps"]["buckets"]}
        small = min(by_numel)
        assert by_numel[small] == 4 * small  # 2 (n-1)/n of 4 bytes at two ranks
        assert by_numel[320_000] < 0.1 * 4 * 320_000
        nmse = {layer["name"]: layer["nmse"] for layer in result["steps"]["layers"]}
        assert nmse["small.bias"] == 0.0 and nmse["large.weight"] > 0.01


def test_a_nan_reaches_every_rank_both_ways(two):
    for result in of(two, "mixed"):
        assert result["nan"]["counts"]["nonfinite_steps"] == 1
        assert not any(result["finite"])


@scenarios.add
def trials(rank, world_size, folder):
    """Four ways that the model finds nearly alike: steps decide."""
    known = calibration(world_size, link=1e9, codec_seconds=0.0, codecs=tuple((name, 16.0) for name in CODEC_NAMES))
    assert max(known.predict(n, 320_000) for n in known.candidates) < 3.3 * min(
        known.predict(n, 320_000) for n in known.candidates
    )
    run = Run(rank, calibration=known)
    decided, ways = [], []
    chosen = 0
    while chosen < 3:
        run.step()
        decided.append(run.state.auto.decided)
        ways.append(run.state._exchange._auto.ways)
        chosen += decided[-1] == "measured"
        assert len(decided) < FIRST_TRIAL + 4 * TRIAL_STEPS * ROUNDS + 4
    saved = run.state.state_dict()["auto"]
    return run.outcome() | {"decided": decided, "steps": ways, "saved": saved}


def test_timed_steps_decide_and_the_choice_stays(two):
    first, second = of(two, "trials")
    assert first["decided"] == second["decided"] and first["steps"] == second["steps"]
    chosen, times = first["saved"]["chosen"], first["saved"]["times"]
    plans = list(times)
    assert 1 < len(plans) <= 4 and set(first["saved"]["plans"]) <= set(plans)
    end = len(first["decided"]) - 3
    assert end >= FIRST_TRIAL + TRIAL_STEPS * len(plans)
    assert set(first["decided"][:FIRST_TRIAL]) == {"model"}
    assert set(first["decided"][FIRST_TRIAL:end]) == {"trial"}
    assert set(first["decided"][end:]) == {"measured"}
    tried = [ways[0] for ways in first["steps"][FIRST_TRIAL:end]]
    assert all(tried.count(plan) >= TRIAL_STEPS for plan in plans if plan != "by bucket")
    assert times[chosen] <= 1.1 * min(times.values())  # pairs of steps decide, not medians
    assert len({tuple(ways) for ways in first["steps"][end:]}) == 1
    assert same([first, second], "parameters")


@scenarios.add
def restarts(rank, world_size, folder):
    """A checkpoint goes on bitwise, with the saved choice, whatever this cluster looks like now."""
    known = mixed_calibration(world_size)
    whole = Run(rank, calibration=known, trials=False, feedback=True).step(16)
    first = Run(rank, calibration=known, trials=False, feedback=True).step(8)
    buffer = io.BytesIO()
    torch.save({"model": first.model.module.state_dict(), "hook": first.state.state_dict()}, buffer)
    first.outcome()
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    log = logging.getLogger("commpress.hooks")
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    log.addHandler(handler)
    again = Run(rank, calibration=calibration(world_size, **FAST), trials=False, feedback=True)
    again.model.module.load_state_dict(saved["model"])
    again.state.load_state_dict(saved["hook"])
    again.step_number = 8
    again.step(8)
    log.removeHandler(handler)
    return {
        "whole": whole.outcome(),
        "again": again.outcome(),
        "heard": [text for text in heard if "saved choice" in text],
    }


def test_a_restart_is_bitwise_equal_and_keeps_the_choice(two):
    for result in of(two, "restarts"):
        whole, again = result["whole"], result["again"]
        assert set(whole["ways"]) == {"fp32", "hadamard+lloyd:2"}
        assert whole["counts"]["compressed_numel"] > 0
        assert torch.equal(whole["parameters"], again["parameters"])
        assert again["ways"] == whole["ways"]
        assert len(result["heard"]) == 1 and "a fresh probe here would have led to fp32" in result["heard"][0]


def refuses(rank, world_size, case):
    options = {"calibration": calibration(world_size, **SLOW), "trials": False}
    if case == "codec" and rank:
        Run(rank, "hadamard+lloyd:2")
    if case == "calibration" and rank:
        options["calibration"] = calibration(world_size, **FAST)
    if case == "ranks":
        options["calibration"] = calibration(world_size + 1, **SLOW)
    Run(rank, **options)


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        ("codec", "MismatchError", "auto"),
        ("calibration", "MismatchError", "calibration"),
        ("ranks", "SpecError", "ranks"),
    ],
)
def test_ranks_that_differ(case, error, text):
    for result in launch(__file__, "refuses", 2, args={"case": case}, timeout=90):
        assert text in result.failed(error).message


def dies(rank, world_size):
    run = Run(rank, calibration=calibration(world_size, **FAST), trials=False, timeout=20.0).step(6)
    assert run.state.auto.buckets[0].way == "fp32"
    if rank == 1:
        os._exit(17)
    run.step()


def test_a_rank_that_dies_is_an_error_on_the_other():
    first, second = launch(__file__, "dies", 2, timeout=90, destroy=False)
    assert second.returncode == 17
    assert "a rank is gone" in first.failed("PeerError").message


def hook_fails(rank, world_size):
    run = Run(rank, calibration=calibration(world_size, **FAST), trials=False, timeout=60.0).step(6)
    if rank == 1:
        run.state._exchange._auto.dtype = None  # the hook raises a TypeError on this rank
    run.step()


def test_a_hook_that_fails_tells_the_others_before_the_timeout():
    first, second = launch(__file__, "hook_fails", 2, timeout=90, destroy=False)
    assert "NoneType" in second.failed("TypeError").message
    first.failed("PeerError")
    assert first.seconds < 50


def probes(rank, world_size, numel):
    found = collectives.probe(["hadamard+lloyd:2"], torch_dtypes=("fp32", "bf16"))
    everybody = [None] * world_size
    dist.all_gather_object(everybody, found.to_dict())
    model = DDP(torch.nn.Linear(numel, 1, bias=False))
    state = commpress.register(model, "auto", trials=False)
    for _ in range(2):
        model(torch.randn(2, numel)).sum().backward()
    auto = state.auto
    state.close()
    return {"found": found.to_dict(), "same": all(one == everybody[0] for one in everybody), "way": auto.buckets[0].way}


@pytest.mark.parametrize(("rate", "numel"), [("10mbit", 500_000), ("10gbit", 10)])
def test_a_real_probe_chooses_by_the_link(rate, numel):
    need_cluster()
    with Cluster(Topology(2, rate)) as cluster:
        results = launch(__file__, "probes", 2, args={"numel": numel}, timeout=100, cluster=cluster)
    for result in results:
        value = result.ok().value
        assert value["same"]
        link = 8 * value["found"]["link"]
        if rate == "10mbit":
            assert 0.5e7 < link < 1.5e7 and value["way"] == "hadamard+lloyd:2"
        else:
            assert link > 5e7 and value["way"] == "fp32"
