"""LocalSGD on ranks that are threads: against plain averages in fp64, DDP's SGD, and itself after a restart."""

import copy
import io
import pickle
import re

import pytest
import torch
from _threads import flat, gradient_step, net, run_ranks, values

import commpress
from commpress.errors import CommpressError, MismatchError, PeerError, SpecError, StateError, TensorError
from commpress.hooks import ModelError, merge_states
from commpress.telemetry import MemorySink, read_jsonl

LOSSY = "hadamard+lloyd:4"


def name_of(options):
    """For a test: the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(options))


def train(rank, group, steps, *, model=None, optimizer=None, rate=0.05, close=True, watch=None, **options):
    """Trains with LocalSGD; watch(step, ended, model, local) is called after every step."""
    model = net() if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), rate)
    local = commpress.LocalSGD(model, process_group=group, **options)
    seen = []
    for step in range(steps):
        gradient_step(model, optimizer, rank, step)
        ended = local.step()
        if watch is not None:
            seen.append(watch(step, ended, model, local))
    if not close:
        return model, optimizer, local
    local.close()
    return {"x": flat(model), "seen": seen, "counts": local.counts, "local": local}


def reference(size, steps, *, every, rate=0.05, outer=None, overlap=False, parts=1):
    """Independent: flat fp64 vectors, all ranks in one loop. Returns each rank's parameters and x_sync."""
    models = [net(dtype=torch.float64) for _ in range(size)]
    sgd = [torch.optim.SGD(m.parameters(), rate) for m in models]
    sync = flat(models[0]).clone()
    momentum = torch.zeros_like(sync)
    under_way = None
    rounds = 0

    def put(m, x):
        torch.nn.utils.vector_to_parameters(x, m.parameters())

    for step in range(steps):
        for rank, m in enumerate(models):
            gradient_step(m, sgd[rank], rank, step)
        if under_way is not None:
            new, old = under_way
            for m, x in zip(models, old, strict=True):
                put(m, new + flat(m) - x)
            under_way = None
        if (step + 1) % every:
            continue
        xs = [flat(m) for m in models]
        n = len(sync)
        chosen = torch.zeros(n, dtype=torch.bool)
        part = rounds % parts
        chosen[part * n // parts : (part + 1) * n // parts] = True
        rounds += 1
        mean = torch.stack([x - sync for x in xs]).mean(0)
        if outer is None:
            move = mean
        else:
            lr, mu = outer
            momentum = mu * momentum - mean
            move = -lr * (-mean + mu * momentum)
        sync = torch.where(chosen, sync + move, sync)
        if overlap:
            under_way = sync.clone(), xs
        else:
            for m, x in zip(models, xs, strict=True):
                put(m, torch.where(chosen, sync, x))
    return [flat(m) for m in models], sync


def close_to(x, y, tolerance=2e-6):
    return float((x - y).abs().max()) < tolerance


# ---- exact averaging


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("every", [1, 3])
def test_exact_codec_is_plain_averaging(size, every):
    found = values(size, lambda rank, group: train(rank, group, 7, codec="none", every=every))
    expected, _ = reference(size, 7, every=every)
    for mine, theirs in zip(found, expected, strict=True):
        assert close_to(mine["x"], theirs)
        assert mine["counts"]["rounds"] == 7 // every
        assert mine["counts"]["local_steps"] == 7
        assert mine["counts"]["compressed_numel"] == 0


def test_every_step_without_loss_is_ddp_to_the_bit():
    """On numbers whose sums and products are exact, x_sync + mean(-lr g) is DDP's x - lr mean(g), to the bit; in general up to the rounding of x - x_sync."""

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.arange(-5000, 5000).float() / 16)

    def gradient(rank, step):
        return torch.randint(-64, 64, (10000,), generator=torch.Generator().manual_seed(10 * step + rank)).float() / 8

    def work(rank, group):
        model = Exact()
        sgd = torch.optim.SGD(model.parameters(), 0.25)
        local = commpress.LocalSGD(model, codec="none", every=1, process_group=group)
        for step in range(10):
            model.w.grad = gradient(rank, step)
            sgd.step()
            assert local.step()
        local.close()
        return model.w.detach()

    model = Exact()
    sgd = torch.optim.SGD(model.parameters(), 0.25)
    for step in range(10):
        model.w.grad = (gradient(0, step) + gradient(1, step)) / 2
        sgd.step()
    for w in values(2, work):
        assert torch.equal(w, model.w.detach())
    # The same in fp64 with real gradients.
    found = values(2, lambda r, g: train(r, g, 6, model=net(dtype=torch.float64), codec="none", every=1))
    ddp = net(dtype=torch.float64)
    sgd = torch.optim.SGD(ddp.parameters(), 0.05)
    for step in range(6):
        sums = None
        for rank in range(2):
            grads = _gradients(ddp, rank, step)
            sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
        for p, g in zip(ddp.parameters(), sums, strict=True):
            p.grad = g / 2
        sgd.step()
    assert close_to(found[0]["x"], flat(ddp), 1e-14)
    assert torch.equal(found[0]["x"], found[1]["x"])


def _gradients(model, rank, step):
    model = copy.deepcopy(model)
    gradient_step(model, torch.optim.SGD(model.parameters(), 0.0), rank, step)
    return [p.grad for p in model.parameters()]


def test_negative_control_of_the_reference():
    """Without averaging the ranks go apart by far more than the tolerance."""
    found = values(2, lambda rank, group: train(rank, group, 7, codec="none", every=100))
    expected, _ = reference(2, 7, every=3)
    assert not close_to(found[0]["x"], expected[0], 1e-3)
    assert not close_to(found[0]["x"], found[1]["x"], 1e-3)


# ---- compressed averaging


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"codec": LOSSY},
        {"codec": "uniform:4"},
        {"codec": "topk:0.1"},
        {"codec": "randk:0.2"},
        {"codec": "sign"},
        {"codec": "homomorphic:4"},
        {"bits": 2.0, "plan_every": 2},
        {"codec": "lowrank:2"},
        {"codec": LOSSY, "feedback": True},
        {"codec": "none", "feedback": True},
        {"codec": LOSSY, "parts": 3},
        {"codec": "topk:0.1", "parts": 2},
        {"codec": LOSSY, "outer_lr": 0.7, "outer_momentum": 0.9},
    ],
    ids=name_of,
)
def test_replicas_are_equal_after_every_round(size, options):
    def watch(step, ended, model, local):
        sync = torch.cat([t.flatten() for t in local.synchronized.values()])
        return ended, flat(model), sync

    def work(rank, group):
        model, _, local = train(rank, group, 6, every=2, close=False, **options)
        state = [watch(0, True, model, local)]
        for step in range(6, 13):
            gradient_step(model, torch.optim.SGD(model.parameters(), 0.05), rank, step)
            state.append(watch(step, local.step(), model, local))
        local.synchronize()
        state.append(watch(0, True, model, local))
        local.close()
        return state, local.counts, local.feedback

    found = values(size, work)
    for entries in zip(*(states for states, _, _ in found), strict=True):
        ended, x, sync = entries[0]
        for other in entries[1:]:
            assert torch.equal(other[2], sync), "x_sync differs"
            if ended and "parts" not in options:
                assert torch.equal(other[1], x)
            elif not ended:
                assert not torch.equal(other[1], x)
    for states, counts, _ in found:
        assert torch.equal(states[-1][1], found[0][0][-1][1]), "not equal after synchronize"
        assert torch.isfinite(states[-1][1]).all()
        if options.get("codec") not in ("lowrank:2", "none"):
            assert counts["compressed_numel"] > 0
    unbiased = {LOSSY, "uniform:4", "randk:0.2", "homomorphic:4", None}
    assert found[0][2] == options.get("feedback", options.get("codec") not in unbiased)


@pytest.mark.parametrize("size", [2, 4])
def test_error_of_a_round_is_the_codecs(size):
    """The mean of one round misses the exact mean by what theory says of two quantisations, and not by nothing."""

    def work(rank, group, codec):
        model, _, local = train(rank, group, 4, every=4, codec=codec, close=False)
        local.close()
        return flat(model)

    exact = values(size, lambda r, g: work(r, g, "none"))[0]
    lossy = values(size, lambda r, g: work(r, g, "hadamard+lloyd:3"))[0]
    start = flat(net())
    nmse = float((lossy - exact).square().sum() / (exact - start).square().sum())
    assert 0.002 < nmse < 0.12


def test_bytes_are_those_on_the_wires():
    def work(rank, group):
        sink = MemorySink()
        result = train(rank, group, 8, every=2, codec=LOSSY, telemetry=sink, telemetry_every=2)
        return result["counts"], sink.records

    found, worlds = run_ranks(3, work)
    # The first two wires carry payloads and headers; before them the handshake. Statistics and the start have wires of their own.
    claimed = sum(c["payload_bytes"] + c["header_bytes"] for c, _ in found)
    for counts, records in found:
        rounds = [r for r in records if r["kind"] == "step"]
        assert [r["step"] for r in rounds] == [0, 1, 2, 3]
        assert [r["local_sgd"]["local_steps"] for r in rounds] == [2, 2, 2, 2]
        assert [r["local_sgd"]["step"] for r in rounds] == [2, 4, 6, 8]
        assert all(r["local_sgd"]["seconds_round"] > 0 for r in rounds)
        for name in ("payload_bytes", "wire_bytes", "messages"):
            assert counts[name] == sum(r[name] for r in rounds)
        assert all(r["layers"][0].get("nmse", 1) > 0 for r in rounds)
        assert ["nmse" in r["layers"][0] for r in rounds] == [True, False, True, False]
    start = 4 * len(flat(net())) * 2  # rank 0's model to two ranks
    sent = sum(sum(world.nbytes_sent) for world in worlds)
    handshake = sent - claimed - start
    assert 0 < handshake < 12_000  # text, once


def test_four_bits_every_eight_steps_are_a_sixty_fourth():
    counts = values(2, lambda r, g: train(r, g, 8, every=8, codec=LOSSY, model=torch.nn.Sequential(net(), torch.nn.Linear(9, 9)), watch=None))  # fmt: skip
    numel = len(flat(net())) + 90
    fp32 = 8 * 4 * numel  # a ring of two ranks, for eight steps
    assert 1 / 66 < counts[0]["counts"]["payload_bytes"] / fp32 < 1 / 60


# ---- variants, against the independent loop


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_take_turns(parts):
    def watch(step, ended, model, local):
        return flat(model)

    found = values(2, lambda r, g: train(r, g, 10, codec="none", every=2, parts=parts, watch=watch))
    expected, _ = reference(2, 10, every=2, parts=parts)
    for mine, theirs in zip(found, expected, strict=True):
        assert close_to(mine["x"], theirs)
    n = len(found[0]["x"])
    for i in range(5):  # after round i exactly its part is equal
        same = found[0]["seen"][2 * i + 1] == found[1]["seen"][2 * i + 1]
        part = i % parts
        low, high = part * n // parts, (part + 1) * n // parts
        assert same[low:high].all()
        assert not same[:low].all() or low == 0
        assert not same[high:].all() or high == n


def test_parts_divide_the_bytes():
    numel = [values(2, lambda r, g, p=p: train(r, g, 4, every=1, parts=p, codec=LOSSY))[0]["counts"]["payload_bytes"] for p in (1, 4)]  # fmt: skip
    assert 0.24 < numel[1] / numel[0] < 0.27


@pytest.mark.parametrize(("every", "steps"), [(3, 8), (1, 4), (2, 7)])
def test_overlap_applies_a_round_one_step_later(every, steps):
    def watch(step, ended, model, local):
        return ended

    found = values(2, lambda r, g: train(r, g, steps, codec="none", every=every, overlap=True, watch=watch))
    expected, _ = reference(2, steps, every=every, overlap=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert close_to(mine["x"], theirs)
        assert mine["seen"] == [step > 0 and step % every == 0 for step in range(steps)]
    plain, _ = reference(2, steps, every=every)
    assert not close_to(found[0]["x"], plain[0], 1e-4)  # it is another algorithm


def test_overlap_with_parts_and_loss_ends_equal():
    def work(rank, group):
        model, _, local = train(rank, group, 9, codec=LOSSY, every=2, parts=2, overlap=True, close=False)
        assert local.synchronize()
        assert not local.synchronize()  # nothing is left to do
        local.close()
        return flat(model)

    first, second = values(2, work)
    assert torch.equal(first, second)


def test_outer_momentum_is_nesterov_on_the_mean():
    found = values(2, lambda r, g: train(r, g, 9, codec="none", every=3, outer_lr=0.7, outer_momentum=0.9))
    expected, _ = reference(2, 9, every=3, outer=(0.7, 0.9))
    assert close_to(found[0]["x"], expected[0])
    plain, _ = reference(2, 9, every=3)
    assert not close_to(found[0]["x"], plain[0], 1e-3)


def test_outer_factory():
    def work(rank, group, **options):
        return train(rank, group, 9, codec="none", every=3, **options)["x"]

    def sgd(parameters):
        assert [list(p.shape) for p in parameters] == [list(p.shape) for p in net().parameters()]
        return torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)

    mine = values(2, lambda r, g: work(r, g, outer=sgd))
    built_in = values(2, lambda r, g: work(r, g, outer_lr=0.7, outer_momentum=0.9))
    assert torch.equal(mine[0], built_in[0])
    adam = values(2, lambda r, g: work(r, g, outer=lambda ps: torch.optim.Adam(ps, lr=0.01)))
    assert torch.equal(adam[0], adam[1])
    assert not torch.equal(adam[0], mine[0])


def test_the_optimizer_is_not_touched():
    """Momentum and gradients are what they would be if nobody averaged after the last step."""

    def work(rank, group):
        model = net()
        sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        train(rank, group, 4, model=model, optimizer=sgd, codec="none", every=4)
        return [sgd.state[p]["momentum_buffer"] for p in model.parameters()], [p.grad for p in model.parameters()]

    model = net()
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(4):
        gradient_step(model, sgd, 1, step)
    momenta, gradients = values(2, work)[1]
    for p, momentum, gradient in zip(model.parameters(), momenta, gradients, strict=True):
        assert torch.equal(sgd.state[p]["momentum_buffer"], momentum)
        assert torch.equal(p.grad, gradient)


# ---- kinds of parameters and buffers


class Kinds(torch.nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        nn = torch.nn
        self.half_ = nn.Parameter(torch.randn(5000, generator=g).bfloat16())
        self.double_ = nn.Parameter(torch.randn(70, generator=g).double())
        self.complex_ = nn.Parameter(torch.randn(33, generator=g, dtype=torch.complex64))
        self.turned = nn.Parameter(torch.randn(40, 30, generator=g).t())
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0))
        self.frozen = nn.Parameter(torch.randn(100, generator=g), requires_grad=False)
        self.register_buffer("running", torch.zeros(7))
        self.register_buffer("number", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("nothing", torch.zeros(0))


def test_kinds_of_parameters():
    names = ("half_", "double_", "complex_", "turned", "scalar")

    def work(rank, group, codec):
        model = Kinds()
        before = {n: getattr(model, n).detach().clone() for n in (*names, "frozen")}
        local = commpress.LocalSGD(model, codec=codec, every=1, process_group=group)
        moves = {}
        with torch.no_grad():
            for n in names:
                g = torch.Generator().manual_seed(10 + rank)
                move = torch.randn(getattr(model, n).shape, generator=g, dtype=getattr(model, n).dtype) / 8
                getattr(model, n).add_(move)
                moves[n] = getattr(model, n).detach() - before[n]
            model.running += rank + 1
            model.number += rank + 1
        assert local.step()
        after = {n: getattr(model, n).detach().clone() for n in (*names, "frozen")}
        local.close()
        return before, moves, after, model.running.clone(), model.number.clone()

    found = values(3, lambda r, g: work(r, g, "none"))
    before = found[0][0]
    for n in names:
        mean = sum(moves[n] for _, moves, _, _, _ in found) / 3
        tolerance = 0.02 if n == "half_" else 1e-6
        for _, _, after, _, _ in found:
            assert torch.equal(after[n], found[0][2][n])
            assert after[n].dtype == before[n].dtype
            assert float((after[n] - before[n] - mean).abs().max()) < tolerance
    for rank, (_, _, after, running, number) in enumerate(found):
        assert torch.equal(after["frozen"], before["frozen"])
        assert torch.equal(running, torch.full((7,), 2.0))
        assert number.tolist() == [rank + 1] * 3
    for _, _, after, _, _ in values(2, lambda r, g: work(r, g, LOSSY)):
        assert all(torch.isfinite(torch.view_as_real(v) if v.is_complex() else v).all() for v in after.values())


def test_bf16_gathers_in_x_sync_what_it_would_round_away():
    """Each round moves one rank of four by one unit in the last place: a quarter of it on average."""
    unit = 2.0**-7

    def work(rank, group):
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        local = commpress.LocalSGD(model, codec="none", every=1, process_group=group)
        for _ in range(8):
            if rank == 0:
                with torch.no_grad():
                    model.w += unit
            local.step()
        local.close()
        return model.w.detach().float(), local.synchronized["w"]

    for w, sync in values(4, work):
        assert torch.equal(sync, torch.full((64,), 1 + 8 * unit / 4))
        assert torch.equal(w, sync)


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_batch_norm(buffers):
    def work(rank, group):
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5))  # rank 0's, soon
        local = commpress.LocalSGD(model, codec=LOSSY, every=1, buffers=buffers, process_group=group)
        before = None
        for step in range(3):
            model(torch.randn(16, 6, generator=torch.Generator().manual_seed(10 * step + rank)))
            before = model[1].running_mean.clone()
            local.step()
        local.close()
        return before, model[1].running_mean.clone(), int(model[1].num_batches_tracked)

    found = values(2, work)
    means = [after for _, after, _ in found]
    assert torch.equal(means[0], means[1]) == (buffers == "average")
    if buffers == "average":
        assert torch.equal(means[0], (found[0][0] + found[1][0]) / 2)
    assert [n for _, _, n in found] == [3, 3]


# ---- NaN


@pytest.mark.parametrize("nonfinite", ["propagate", "restore"])
@pytest.mark.parametrize("codec", ["none", LOSSY, "topk:0.1"])
def test_a_nan_reaches_all_ranks_and_leaves_no_trace(codec, nonfinite):
    def work(rank, group, poisoned):
        options = {"outer_lr": 0.7, "outer_momentum": 0.9, "nonfinite": nonfinite, "telemetry": MemorySink()}
        model, sgd, local = train(rank, group, 4, every=2, codec=codec, close=False, **options)
        before = local.synchronized, copy.deepcopy(local.outer.state_dict())
        shown = None
        if poisoned:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01)
                if rank == 1:
                    next(model.parameters())[0, 0] = torch.nan
            local.step()
            assert local.step()
            shown = flat(model)
            for name, t in local.synchronized.items():
                assert torch.equal(t, before[0][name])
            after = local.outer.state_dict()["state"]
            for i, entry in before[1]["state"].items():
                assert torch.equal(entry["momentum_buffer"], after[i]["momentum_buffer"])
            if nonfinite == "propagate":
                local.restore()
            sgd = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(4, 8):
            gradient_step(model, sgd, rank, step)
            local.step()
        local.close()
        residuals = {}
        if local.feedback:
            residuals = local.state_dict()["residuals"]["residuals"]
        return flat(model), shown, local.counts, residuals

    clean = values(2, lambda r, g: work(r, g, False))
    hurt = values(2, lambda r, g: work(r, g, True))
    for (x, shown, counts, residuals), (y, _, _, expected) in zip(hurt, clean, strict=True):
        assert counts["nonfinite_rounds"] == 1
        assert counts["restored_rounds"] == (nonfinite == "restore")
        assert bool(torch.isnan(shown).any()) == (nonfinite == "propagate")
        assert torch.isfinite(x).all()
        for name, entry in residuals.items():
            assert torch.isfinite(entry["sent"]).all()
            assert entry["sent"].shape == expected[name]["sent"].shape
        if codec == "none":
            assert torch.equal(x, y), "the poisoned round left a trace"


# ---- checkpoints


VARIANTS = [
    {"codec": LOSSY},
    {"codec": "topk:0.1"},
    {"codec": LOSSY, "parts": 3},
    {"codec": "topk:0.2", "parts": 2},
    {"codec": LOSSY, "overlap": True},
    {"codec": "topk:0.1", "overlap": True, "outer_lr": 0.7, "outer_momentum": 0.9},
    {"bits": 2.0, "plan_every": 1},
    {"codec": "lowrank:2"},
]


@pytest.mark.parametrize("stop", [3, 4, 5])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_restart_is_bitwise_equal(options, stop):
    def work(rank, group, restart):
        saved = None
        model, sgd, local = train(rank, group, stop, every=3, close=False, optimizer=None, rate=0.05, **options)
        if restart:
            saved = io.BytesIO()
            torch.save({"model": model.state_dict(), "local": local.state_dict()}, saved)
            local.close()
            saved.seek(0)
            loaded = torch.load(saved, weights_only=True)
            model = net(seed=5)
            sgd = torch.optim.SGD(model.parameters(), 0.05)
            local = commpress.LocalSGD(model, every=3, process_group=group, **options)
            model.load_state_dict(loaded["model"])
            local.load_state_dict(loaded["local"])
        for step in range(stop, 11):
            gradient_step(model, sgd, rank, step)
            local.step()
        local.close()
        return flat(model), local.counts, torch.cat([t.flatten() for t in local.synchronized.values()])

    straight = values(2, lambda r, g: work(r, g, False))
    restarted = values(2, lambda r, g: work(r, g, True))
    for (x, counts, sync), (y, again, other) in zip(straight, restarted, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(sync, other)
        assert {n: c for n, c in counts.items() if n != "wire_bytes"} == {n: c for n, c in again.items() if n != "wire_bytes"}  # fmt: skip


@pytest.mark.parametrize("options", [VARIANTS[1], VARIANTS[4]], ids=str)
def test_pickle(options):
    def work(rank, group):
        model, sgd, local = train(rank, group, 5, every=2, close=False, **options)
        kept = copy.deepcopy(model)
        text = pickle.dumps(local)
        for step in range(5, 9):
            gradient_step(model, sgd, rank, step)
            local.step()
        local.close()
        again = pickle.loads(text)
        with pytest.raises(StateError, match="bind"):
            again.step()
        again.bind(kept, group)
        sgd = torch.optim.SGD(kept.parameters(), 0.05)
        for step in range(5, 9):
            gradient_step(kept, sgd, rank, step)
            again.step()
        again.close()
        return flat(model), flat(kept)

    for straight, pickled in values(2, work):
        assert torch.equal(straight, pickled)


def test_another_number_of_ranks():
    """Merged residuals are the mean of what the old ranks owed."""

    def save(rank, group):
        model, _, local = train(rank, group, 4, every=2, codec="topk:0.1", close=False)
        local.close()
        return local.state_dict(), model.state_dict()

    saved = values(3, save)
    merged = merge_states([state for state, _ in saved])
    owed = {name: entry["sent"] for name, entry in merged["residuals"]["residuals"].items()}
    assert any(t.any() for t in owed.values())

    def resume(rank, group):
        model = net()
        local = commpress.LocalSGD(model, codec="topk:0.1", every=2, process_group=group)
        model.load_state_dict(saved[0][1])
        local.load_state_dict(merged)
        gradient_step(model, torch.optim.SGD(model.parameters(), 0.05), rank, 4)
        gradient_step(model, torch.optim.SGD(model.parameters(), 0.05), rank, 5)
        local.step()
        assert local.step()
        local.close()
        return flat(model)

    first, second = values(2, resume)
    assert torch.equal(first, second)
    with pytest.raises(StateError, match="differ in"):
        merge_states([saved[0][0], {**saved[1][0], "step": 7}])


def test_states_of_other_settings_are_refused():
    def work(rank, group):
        _, _, local = train(rank, group, 3, every=2, close=False, codec=LOSSY)
        state = local.state_dict()
        for name in ("every", "codec", "parts", "format"):
            with pytest.raises(StateError, match=name):
                local.load_state_dict({**state, name: 77})
        with pytest.raises(StateError, match="shape"):
            local.load_state_dict({**state, "synchronized": {}})
        with pytest.raises(StateError, match="outer"):
            local.load_state_dict({**state, "outer": {"state": {}, "param_groups": []}})
        local.close()
        return True

    assert values(1, work) == [True]


# ---- agreement and failure


@pytest.mark.parametrize(
    ("option", "values_", "named"),
    [
        ("every", (2, 3), "every"),
        ("codec", ("uniform:4", "uniform:5"), "codec"),
        ("seed", (0, 1), "seed"),
        ("parts", (1, 2), "parts"),
        ("overlap", (False, True), "overlap"),
        ("outer_lr", (0.5, 0.7), "outer optimiser"),
        ("nonfinite", ("propagate", "restore"), "nonfinite"),
        ("check", (False, True), "check"),
    ],
)
def test_ranks_agree_on_everything(option, values_, named):
    found, _ = run_ranks(2, lambda r, g: commpress.LocalSGD(net(), process_group=g, **{option: values_[r]}))
    for error in found:
        assert isinstance(error, MismatchError), error
        assert named in str(error)


def test_ranks_agree_on_parameters():
    def work(rank, group):
        model = net()
        if rank == 1:
            model[2].weight.requires_grad_(False)
        return commpress.LocalSGD(model, process_group=group)

    found, _ = run_ranks(2, work)
    for error in found:
        assert isinstance(error, MismatchError)
        assert "parameter 2" in str(error) and "left alone" in str(error)


def test_the_start_is_rank_0s_or_checked():
    def work(rank, group, check):
        model = net(seed=rank)
        commpress.LocalSGD(model, process_group=group, check=check).close()
        return flat(model)

    for x in values(3, lambda r, g: work(r, g, False)):
        assert torch.equal(x, flat(net(seed=0)))
    found, _ = run_ranks(3, lambda r, g: work(r, g, True))
    for error in found:
        assert isinstance(error, MismatchError)
        assert "'0.weight'" in str(error) and "at the start" in str(error)
    same, _ = run_ranks(2, lambda r, g: commpress.LocalSGD(net(), process_group=g, check=True).close())
    assert same == [None, None]


def test_the_start_of_all_kinds_of_tensors():
    def work(rank, group):
        model = Kinds()
        if rank:
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(7)
                model.number.fill_(3)
        commpress.LocalSGD(model, process_group=group).close()
        return model.state_dict()

    expected = Kinds().state_dict()
    for state in values(2, work):
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name]), name


def test_a_rank_that_fails_tells_the_others():
    """One rank's model has changed: it gets a StateError, the others an error that says so, before any timeout."""

    def work(rank, group):
        model, _, local = train(rank, group, 3, every=2, codec=LOSSY, close=False)
        if rank == 1:
            model[0].weight = torch.nn.Parameter(model[0].weight.detach().clone())
        try:
            local.step()
        finally:
            with pytest.raises(StateError, match="failed earlier"):
                local.step()
            with pytest.raises(StateError, match="failed earlier"):
                local.state_dict()
            local.close()

    found, _ = run_ranks(3, work)
    assert isinstance(found[1], StateError)
    assert "replaced" in str(found[1])
    for rank in (0, 2):
        assert isinstance(found[rank], (MismatchError, PeerError)), found[rank]
        assert "replaced" in str(found[rank])


def test_a_rank_that_vanishes():
    def work(rank, group):
        _, _, local = train(rank, group, 3, every=2, codec=LOSSY, close=False)
        if rank == 1:
            for world in group.worlds:
                world.kill(1)
            return None
        local.step()

    found, _ = run_ranks(2, work)
    assert isinstance(found[0], PeerError)


def test_rounds_at_different_steps_are_a_mismatch():
    def work(rank, group):
        _, _, local = train(rank, group, 4 + rank, every=3, codec=LOSSY, close=False)
        local.synchronize()

    found, _ = run_ranks(2, work)
    for error in found:
        assert isinstance(error, MismatchError)
        assert "after 4 steps" in str(error) and "after 5 steps" in str(error)


def test_diverged_x_sync_is_found():
    def work(rank, group):
        _, _, local = train(rank, group, 2, every=2, codec=LOSSY, check_every=1, close=False)
        if rank == 1:
            local._engine.replica.sync[0][7] += 1  # what no program error should bring about
        local.step()
        local.step()

    found, _ = run_ranks(2, work)
    for error in found:
        assert isinstance(error, MismatchError)
        assert "0.weight" in str(error)


def test_context_manager():
    def work(rank, group):
        model = net()
        with commpress.LocalSGD(model, codec=LOSSY, every=10, process_group=group) as local:
            gradient_step(model, torch.optim.SGD(model.parameters(), 0.05), rank, 0)
            assert not local.step()
        with pytest.raises(StateError, match="closed"):
            local.step()
        return flat(model), local.counts["rounds"]

    (first, rounds), (second, _) = values(2, work)
    assert rounds == 1
    assert torch.equal(first, second)

    def leave(rank, group):
        with pytest.raises(KeyError), commpress.LocalSGD(net(), process_group=group) as local:
            raise KeyError
        return local.counts["rounds"]

    assert values(2, leave) == [0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0}, {"every": 2.5}, {"parts": 0}, {"warmup_steps": -1}, {"outer_lr": 0}, {"outer_momentum": 1.0}, {"buffers": "sum"},
        {"nonfinite": "hide"}, {"seed": -1}, {"timeout": 0}, {"codec": "nonsense"}, {"bits": 2.0, "parts": 2}, {"codec": "lowrank:2", "parts": 2},
        {"outer": 3}, {"outer": lambda ps: torch.optim.SGD(ps, 0.1), "outer_lr": 0.5}, {"codec": "modulo:2,rho=0.9"}, {"objective": "mse"},
        {"outer": lambda ps: None}, {"outer": lambda ps: torch.optim.SGD(ps[:1], 0.1)}, {"warmup_steps": 3}, {"parts": 10**9},
    ],
    ids=name_of,
)  # fmt: skip
def test_malformed_options(options):
    found, _ = run_ranks(1, lambda r, g: commpress.LocalSGD(net(), process_group=g, **options))
    assert isinstance(found[0], SpecError), found[0]


def test_models_that_cannot_be_averaged():
    frozen = net().requires_grad_(False)
    on_meta = net().to("meta")
    unfrozen = net()
    unfrozen[0].bias.requires_grad_(False)

    def work(rank, group):
        with pytest.raises(ModelError, match="trained"):
            commpress.LocalSGD(frozen, process_group=group)
        with pytest.raises(TensorError, match="meta"):
            commpress.LocalSGD(on_meta, process_group=group)
        with pytest.raises(ModelError, match="Module"):
            commpress.LocalSGD(list(frozen.parameters()), process_group=group)
        local = commpress.LocalSGD(unfrozen, every=1, process_group=group)
        unfrozen[0].bias.requires_grad_(True)
        with pytest.raises(StateError, match="0.bias"):
            local.step()
        local.close()
        return True

    assert values(1, work) == [True]
    with pytest.raises(StateError, match="init_process_group"):
        commpress.LocalSGD(net())


def test_telemetry_file(tmp_path):
    def work(rank, group):
        train(rank, group, 4, every=2, codec=LOSSY, parts=2, telemetry=tmp_path / "rounds.jsonl")

    values(2, work)
    records = read_jsonl(tmp_path / "rounds.jsonl")
    assert [r["local_sgd"]["part"] for r in records if r["kind"] == "step"] == [0, 1]
    assert all(r["compressed_numel"] > 0 for r in records)


def test_every_error_is_a_commpress_error():
    assert issubclass(ModelError, CommpressError)
