"""Scenarios on real gloo ranks: one launch per world size runs all those of a module, each test looks at one of them.

    scenarios = Scenarios(__file__, three=("averages",))
    run_all = scenarios.run_all  # by this name the launcher finds it
    two, three, ranks = scenarios.fixtures()

    @scenarios.add
    def averages(rank, world_size, folder):  # runs on every rank
        return {"mean": ...}

    def test_averages(ranks):  # with two ranks, and with three
        assert same(of(ranks, "averages"), "mean")

Below are the models that scenarios, and other tests of the hook, train.
"""

import traceback

import pytest
import torch
from _launch import launch
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress

STEPS = 9  # the rebuilt bucket layout is in use from step 5 on
SIZES = [5000, 300, 4500, 7000, 1, 130]


class Scenarios:
    """The scenarios of one test module.

    Args:
        file: the module's.
        three: names of those in which three ranks are another case than two.
    """

    def __init__(self, file, three=()):
        self._file, self._three = file, three
        self._functions = {}

    def add(self, function):
        self._functions[function.__name__] = function
        return function

    def run_all(self, rank, world_size, folder):
        results = {}
        for name, function in self._functions.items():
            if world_size > 2 and name not in self._three:
                continue
            try:
                results[name] = function(rank, world_size, folder=folder)
            except Exception:
                results[name] = {"error": traceback.format_exc()}
        return results

    def _start(self, world_size, folder):
        results = launch(self._file, "run_all", world_size, args={"folder": str(folder)}, timeout=170)
        return [r.ok().value for r in results]

    def fixtures(self):
        """Fixtures `two`, `three` and `ranks` (one after the other), which give results[rank][scenario]."""

        @pytest.fixture(scope="module")
        def two(tmp_path_factory):
            return self._start(2, tmp_path_factory.mktemp("two"))

        @pytest.fixture(scope="module")
        def three(tmp_path_factory):
            return self._start(3, tmp_path_factory.mktemp("three"))

        @pytest.fixture(params=["two", "three"])
        def ranks(request):
            return request.getfixturevalue(request.param)

        return two, three, ranks


def of(ranks, name):
    """Every rank's result of a scenario that must have run to its end."""
    found = [r[name] for r in ranks]
    for rank, result in enumerate(found):
        assert "error" not in result, f"rank {rank}: {result['error']}"
    return found


def same(results, key):
    return all(torch.equal(r[key], results[0][key]) for r in results)


# ---- models


def net(seed=0):
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(24, 130), nn.ReLU(), nn.Linear(130, 70), nn.ReLU(), nn.Linear(70, 40), nn.Linear(40, 9)
    )


def flat(module):
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def train(rank, codec, *, steps=STEPS, hook="register", seed=0, ddp_options=None, batch=8, **options):
    ddp = DDP(net(), bucket_cap_mb=0.01, **(ddp_options or {}))
    state = None
    if hook == "register":
        state = commpress.register(ddp, codec, seed=seed, timeout=30, **options)
    elif hook == "explicit":
        state = commpress.HookState(codec, seed=seed, timeout=30, **options)
        ddp.register_comm_hook(state, commpress.ddp_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(batch, 24, generator=generator)
        optimizer.zero_grad()
        (ddp(x) - x[:, :9].sin()).square().mean().backward()
        optimizer.step()
    result = {"parameters": flat(ddp), "buckets": 0, "counts": {}, "feedback": False}
    if state is not None:
        layouts = state.state_dict()["layouts"]["current"]
        result |= {"counts": dict(state.counts), "buckets": len(layouts), "feedback": state.feedback}
        state.close()
    return result


class Given(torch.nn.Module):
    """Its gradients are the inputs: parameter i gets exactly x[i]; those whose x is None are unused."""

    def __init__(self, sizes, dtype=torch.float32):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(s, dtype=dtype) for s in sizes)

    def forward(self, gradients):
        return sum((w * g).sum() for w, g in zip(self.weights, gradients, strict=True) if g is not None)


def given_gradients(rank, step, sizes=SIZES):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=generator) * (1 + i) for i, s in enumerate(sizes)]
