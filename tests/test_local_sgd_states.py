"""LocalSGD: restarts, agreement between the ranks, and failures."""

import copy
import io
import pickle

import pytest
import torch
from _local_sgd import LOSSY, Kinds, name_of, train
from _threads import flat, gradient_step, net, run_ranks, values

import commpress
from commpress.errors import CommpressError, MismatchError, PeerError, SpecError, StateError, TensorError
from commpress.hooks import ModelError, merge_states
from commpress.telemetry import read_jsonl

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
