"""LocalSGD with all kinds of parameters and buffers, and with values that are not finite."""

import copy

import pytest
import torch
from _local_sgd import LOSSY, Kinds, train
from _threads import flat, gradient_step, values

import commpress
from commpress.telemetry import MemorySink

# ---- kinds of parameters and buffers


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
