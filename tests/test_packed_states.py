"""Optimizers with their states in a codec's format: equal to torch's own where nothing is lost, near it where something is, restarts to the bit, and typed errors."""

import copy
import io

import pytest
import torch

import commpress
from commpress.errors import CommpressError, SpecError, StateError, TensorError
from commpress.optim import MantissaSchedule, PackedStates, mantissa_for_nearest, mantissa_for_stochastic

MAKERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True),
    "Muon": lambda p: torch.optim.Muon(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}
STATES = {"AdamW": 2, "AdamW fused": 2, "AdamW amsgrad": 3, "SGD": 1, "Muon": 1, "RMSprop": 2}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(48, 64, bias=False), torch.nn.Tanh(), torch.nn.Linear(64, 40, bias=False), torch.nn.Tanh(),
        torch.nn.Linear(40, 8, bias=False),
    )  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(128, 48, generator=generator)
    return x, torch.tanh(x @ torch.randn(48, 8, generator=generator) / 7)


def train(model, optimizer, steps):
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", MAKERS)
def test_without_loss_it_is_the_optimizer(name):
    plain, packed = model_of(), model_of()
    optimizer = PackedStates(MAKERS[name](packed.parameters()), "none", chunk=3000)
    assert train(plain, MAKERS[name](plain.parameters()), 20) == train(packed, optimizer, 20)
    assert torch.equal(flat(plain), flat(packed))
    assert optimizer.steps == 20


@pytest.mark.parametrize("name", MAKERS)
def test_packed(name):
    plain, packed = model_of(), model_of()
    wanted = train(plain, MAKERS[name](plain.parameters()), 80)
    optimizer = PackedStates(MAKERS[name](packed.parameters()), "float:e8m9")
    found = train(packed, optimizer, 80)
    assert not torch.equal(flat(plain), flat(packed))  # something was lost
    assert abs(found / wanted - 1) < 0.02
    # 18 bits in place of 32, and nothing of that size beside them
    numel = sum(p.numel() for p in packed.parameters())
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert all(v.numel() == 1 for v in kept)
    assert optimizer.nbytes <= STATES[name] * numel * 18 / 8 + 64
    assert optimizer.plain_nbytes >= STATES[name] * numel * 4
    p = next(packed.parameters())
    assert (
        sum(v.shape == p.shape for v in optimizer.unpacked(p).values() if isinstance(v, torch.Tensor)) == STATES[name]
    )


def test_memory_of_a_step_is_that_of_a_part():
    """While one part is stepped, the others stay packed."""
    model = model_of()
    seen = []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append((sum(len(s) > 1 for s in self.state.values()), [len(g["params"]) for g in self.param_groups]))
            return super().step(closure)

    optimizer = PackedStates(Spy(model.parameters(), lr=1e-2), chunk=1)
    train(model, optimizer, 2)
    assert seen == [(0, [1])] * 3 + [(1, [1])] * 3
    assert len(optimizer.param_groups[0]["params"]) == 3


@pytest.mark.parametrize("name", MAKERS)
def test_restart_is_bitwise(name):
    whole, parts = model_of(), model_of()
    states = MantissaSchedule(5, 10, per_doubling=1.0)
    one = PackedStates(MAKERS[name](whole.parameters()), states, seed=3)
    train(whole, one, 33)
    first = PackedStates(MAKERS[name](parts.parameters()), states, seed=3)
    train(parts, first, 14)
    file = io.BytesIO()
    torch.save({"model": parts.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = model_of(seed=9)
    again.load_state_dict(saved["model"])
    second = PackedStates(MAKERS[name](again.parameters()), states, seed=3, chunk=100)
    second.load_state_dict(saved["optimizer"])
    assert second.steps == 14 and second.nbytes == first.nbytes
    train(again, second, 19)
    assert torch.equal(flat(again), flat(whole))
    # the control: another seed rounds otherwise
    other = model_of()
    train(other, PackedStates(MAKERS[name](other.parameters()), states, seed=4), 33)
    assert not torch.equal(flat(other), flat(whole))


def test_replicas_agree_whatever_the_chunk():
    found = []
    for chunk in (1, 5000, 1 << 22):
        model = model_of()
        train(model, PackedStates(MAKERS["AdamW"](model.parameters()), "float:e8m5", chunk=chunk), 12)
        found.append(flat(model))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_to_and_from_the_plain_optimizer():
    model = model_of()
    plain = MAKERS["AdamW"](model.parameters())
    train(model, plain, 10)
    packed = PackedStates(MAKERS["AdamW"](model.parameters()), "float:e8m12")
    packed.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert packed.nbytes < 0.7 * packed.plain_nbytes
    back = MAKERS["AdamW"](model.parameters())
    back.load_state_dict(packed.plain_state_dict())
    for p in model.parameters():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.allclose(back.state[p][name], plain.state[p][name], rtol=2**-12, atol=0)
        assert not torch.equal(back.state[p]["exp_avg"], plain.state[p]["exp_avg"])
    # states that an optimizer has already are packed when it is taken over
    taken = PackedStates(plain, "float:e8m12")
    assert taken.nbytes == packed.nbytes


def test_stochastic_rounding_follows_where_nearest_sticks():
    """A second moment with beta2 = .999 whose gradient falls: the average must fade."""
    found = {}
    for states in ("none", "float:e8m7", "float:e8m7,rounding=nearest"):
        p = torch.nn.Parameter(torch.zeros(4096))
        optimizer = PackedStates(torch.optim.Adam([p], lr=1e-3), {"exp_avg_sq": states})
        for step in range(1001):
            p.grad = torch.full_like(p, 1.0 if step == 0 else 0.0)
            optimizer.step()
        found[states] = float(optimizer.unpacked(p)["exp_avg_sq"].double().mean())
    exact, stochastic, nearest = found.values()
    assert exact == pytest.approx(1e-3 * 0.999**1000, rel=1e-3)
    assert stochastic == pytest.approx(exact, rel=0.01)
    assert nearest > 2 * exact  # the control


def test_formats_by_name_schedulers_closures_and_groups():
    model = model_of()
    first, second, third = model.parameters()
    optimizer = PackedStates(torch.optim.AdamW([first], lr=1e-2), {"exp_avg": "int8", "exp_avg_sq": "float:e8m5"})
    optimizer.add_param_group({"params": [second, third], "lr": 5e-3})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    x, y = data()
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(4):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert len(calls) == 4 and losses[-1] < losses[0]
    assert [g["lr"] for g in optimizer.param_groups] == [2.5e-3, 1.25e-3]
    payloads = optimizer.state_dict()["commpress"]["packed"]
    assert {(name, one["codec"]) for states in payloads.values() for name, one in states.items()} == {
        ("exp_avg", "int8"),
        ("exp_avg_sq", "float:e8m5"),
    }
    assert sorted(payloads) == [0, 1, 2]


def test_gradients_that_are_missing_or_not_finite():
    model = model_of()
    optimizer = PackedStates(MAKERS["SGD"](model.parameters()))
    optimizer.step()  # no gradient at all
    assert optimizer.nbytes == 0
    first, second, _ = model.parameters()
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert list(optimizer.state_dict()["commpress"]["packed"]) == [0]
    second.grad = torch.full_like(second, torch.nan)
    optimizer.step()
    assert bool(optimizer.unpacked(second)["momentum_buffer"].isnan().all())  # as torch's own would be
    empty = torch.nn.Parameter(torch.empty(0))
    small = torch.nn.Parameter(torch.ones(()))
    optimizer = PackedStates(torch.optim.AdamW([empty, small]))
    empty.grad, small.grad = torch.empty(0), torch.ones(())
    optimizer.step()
    assert small < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = model_of().to(dtype)
    optimizer = PackedStates(MAKERS["SGD"](model.parameters()), "float:e8m5")
    p = next(model.parameters())
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert optimizer.unpacked(p)["momentum_buffer"].dtype == dtype
    assert optimizer.nbytes * 8 < 15 * p.numel()


@pytest.mark.parametrize(
    ("make", "states", "error"),
    [
        ("AdamW", "int8", SpecError),  # additive: small second moments would become zero
        ("AdamW", "float:e4m3", SpecError),  # too few octaves
        ("AdamW", "hadamard+lloyd:8", SpecError),
        ("AdamW", "randk:0.5", SpecError),
        ("RMSprop", "uniform:8", SpecError),
        ("SGD", "lowrank:2", SpecError),
        ("SGD", "modulo:2,rho=0.9", SpecError),
        ("SGD", "nonsense", SpecError),
        ("SGD", {}, SpecError),
        ("SGD", {"momentum_buffer": "float:e9m1"}, SpecError),
    ],
)
def test_refused(make, states, error):
    with pytest.raises(error):
        PackedStates(MAKERS[make](model_of().parameters()), states)


def test_errors():
    model = model_of()
    adam = MAKERS["AdamW"](model.parameters())
    with pytest.raises(SpecError, match="one by one"):
        PackedStates(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(SpecError, match="one by one"):
        PackedStates(PackedStates(adam))
    with pytest.raises(SpecError, match="chunk"):
        PackedStates(adam, chunk=0)
    with pytest.raises(SpecError, match="Key.seed"):
        PackedStates(adam, seed=-1)
    complex_ = torch.nn.Parameter(torch.zeros(4, dtype=torch.complex64))
    optimizer = PackedStates(torch.optim.SGD([complex_], lr=0.1, momentum=0.9))
    complex_.grad = torch.ones_like(complex_)
    with pytest.raises(TensorError, match="complex64"):
        optimizer.step()
    optimizer = PackedStates(MAKERS["AdamW"](model.parameters()), seed=1)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    with pytest.raises(StateError, match="seed"):
        PackedStates(MAKERS["AdamW"](model.parameters()), seed=2).load_state_dict(saved)
    other = torch.nn.Linear(3, 3)
    with pytest.raises(CommpressError):
        PackedStates(MAKERS["AdamW"](other.parameters()), seed=1).load_state_dict(saved)


def test_a_failed_step_leaves_nothing_unpacked():
    model = model_of()
    optimizer = PackedStates(MAKERS["AdamW"](model.parameters()))
    train(model, optimizer, 2)
    before, size = optimizer.state_dict(), optimizer.nbytes
    inner = optimizer._inner
    inner.param_groups[0]["betas"] = None  # whatever makes torch raise
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.nbytes == size and optimizer.steps == 2
    assert len(optimizer.param_groups[0]["params"]) == 3
    for i, states in before["commpress"]["packed"].items():
        for name, one in states.items():
            assert torch.equal(optimizer.state_dict()["commpress"]["packed"][i][name]["payload"], one["payload"])


def test_mantissas():
    assert [mantissa_for_nearest(beta) for beta in (0.0, 0.9, 0.95, 0.99, 0.999)] == [0, 3, 4, 6, 9]
    # measured: an average's relative deviation with what the formula says, and with two bits fewer
    for beta, tolerance in ((0.99, 0.1), (0.999, 0.1)):
        bits = mantissa_for_stochastic(beta, tolerance)
        assert wander(beta, bits) <= tolerance * 1.05
        assert wander(beta, bits - 2) > tolerance  # the control
    for wrong in (-0.1, 1.0):
        with pytest.raises(SpecError):
            mantissa_for_nearest(wrong)
    with pytest.raises(SpecError):
        mantissa_for_stochastic(0.9, 0.0)


def wander(beta, bits):
    """Root mean square of the rounded average's difference from the exact one, where inputs are 0 or twice the mean."""
    codec = commpress.codec(f"float:e8m{bits}")
    generator = torch.Generator().manual_seed(1)
    target = torch.exp2(torch.rand(2048, generator=generator))
    v, exact = target.clone(), target.clone()
    for step in range(round(3 / (1 - beta))):
        key = commpress.Key(step=step)
        g = 2 * target * torch.randint(2, target.shape, generator=generator)
        exact = beta * exact + (1 - beta) * g
        codec.decode(codec.encode(beta * v + (1 - beta) * g, key), key, out=v)
    return float((v / exact - 1).square().mean().sqrt())


def test_schedule():
    schedule = MantissaSchedule(7, 1000, per_doubling=0.5, most=10)
    assert [schedule.bits(step) for step in (0, 1000, 3999, 4000, 15999, 16000, 64000, 10**9)] == [
        7,
        7,
        7,
        8,
        8,
        9,
        10,
        10,
    ]
    assert str(schedule.codec(4000)) == "float:e8m8"
    for wrong in ({"mantissa": 9, "most": 8}, {"horizon": 0}, {"per_doubling": -1.0}, {"exponent": 9}, {"most": 24}):
        with pytest.raises(SpecError):
            MantissaSchedule(**wrong)
    model = model_of()
    optimizer = PackedStates(MAKERS["AdamW"](model.parameters()), MantissaSchedule(4, 4, per_doubling=1.0))
    sizes = []
    for _ in range(17):
        train(model, optimizer, 1)
        sizes.append(optimizer.nbytes)
    assert sizes == sorted(sizes)
    assert len(set(sizes[1:])) == 3  # grew after 8 and after 16 steps


def test_linear_layers_as_users_write_them():
    """The example of the documentation, with clipping."""
    model = torch.nn.Linear(64, 64)
    optimizer = commpress.optim.PackedStates(torch.optim.AdamW(model.parameters(), lr=1e-3), "float:e8m9")
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 64)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert optimizer.nbytes < 0.6 * optimizer.plain_nbytes
