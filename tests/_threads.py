"""Ranks that are threads of one process, on commpress's in-process communicators."""

import threading

import torch

from commpress.collectives import FakeGroup


def run_ranks(size, work, timeout=60.0):
    """``work(rank, group)`` on every rank at once: the values, or the exceptions, in rank order; and the group's wires."""
    groups = FakeGroup.ranks(size, timeout)
    found = [None] * size

    def go(rank):
        try:
            found[rank] = work(rank, groups[rank])
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=go, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * timeout)
        assert not thread.is_alive(), "a rank is stuck"
    return found, groups[0].worlds


def values(size, work, timeout=60.0):
    """The values; the first exception is raised."""
    found, _ = run_ranks(size, work, timeout)
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


_making = threading.Lock()  # torch's generator is the process's


def net(seed=0, dtype=torch.float32):
    with _making, torch.random.fork_rng():
        torch.manual_seed(seed)
        nn = torch.nn
        return nn.Sequential(nn.Linear(24, 130), nn.ReLU(), nn.Linear(130, 70), nn.ReLU(), nn.Linear(70, 9)).to(dtype)


def flat(module):
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def gradient_step(model, optimizer, rank, step, batch=8):
    """One step on data that follow from rank and step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(batch, 24, generator=generator).to(next(model.parameters()).dtype)
    optimizer.zero_grad()
    (model(x) - x[:, :9].sin()).square().mean().backward()
    optimizer.step()
