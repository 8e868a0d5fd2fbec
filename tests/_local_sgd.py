"""LocalSGD on ranks that are threads, and its independent reference."""

import re

import torch
from _threads import flat, gradient_step, net

import commpress

LOSSY = "hadamard+lloyd:4"


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
