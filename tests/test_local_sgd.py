"""LocalSGD on ranks that are threads: against plain averages in fp64 and DDP's SGD."""

import copy

import pytest
import torch
from _local_sgd import LOSSY, close_to, name_of, reference, train
from _threads import flat, gradient_step, net, run_ranks, values

import commpress
from commpress.telemetry import MemorySink

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
