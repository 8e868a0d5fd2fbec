"""LocalSGD on quadratics, where theory says what must come out. Workers are threads of this process.

**Speed-up.** ``f(x) = |x - x*|^2 / 2`` with gradients that carry noise N(0, sigma^2) and steps 1/t: the mean of what M workers have after
K steps each has a mean squared error of sigma^2 / (M K) for each coordinate, however seldom they average. What quantisation adds
follows from the energy of what is encoded (`predicted_product`).

**Outer momentum.** A quadratic with eigenvalues from 1/100 to 1, no noise and constant steps: plain averaging and Nesterov's momentum on
x_sync are linear recursions in every eigendirection (`predicted_losses`).
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any

import torch

from commpress.codecs import Key
from commpress.codecs import codec as make_codec
from commpress.collectives import FakeGroup, Reducer
from commpress.hooks import LocalSGD

_TIMEOUT = 120.0
_SIGMA = 1.0
MODES = ("difference", "value", "alone")


@dataclasses.dataclass(frozen=True)
class SpeedUp:
    """One measurement. `mode`: "difference" (LocalSGD), or a control: "value" quantises x itself, "alone" never averages.

    Attributes:
        error: mean squared error of a coordinate. product: ``error * workers * steps / sigma^2``. predicted: of the product; None where there is none.
        payload_bytes: sent by one worker. share: of what an fp32 ring all-reduce in every step would send.
    """

    mode: str
    workers: int
    codec: str
    every: int
    parts: int
    steps: int
    d: int
    error: float
    predicted: float | None
    payload_bytes: int

    @property
    def product(self) -> float:
        return self.error * self.workers * self.steps / _SIGMA**2

    @property
    def share(self) -> float | None:
        fp32 = 2 * (self.workers - 1) / self.workers * 4 * self.d * self.steps
        return self.payload_bytes / fp32 if fp32 else None

    def record(self) -> dict[str, Any]:
        return {"kind": "speed-up", **dataclasses.asdict(self), "product": self.product, "share_of_fp32": self.share}


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Loss after each round of a run, and what the recursion says."""

    name: str
    codec: str
    losses: list[float]
    predicted: list[float]

    def record(self) -> dict[str, Any]:
        return {"kind": "outer-momentum", **dataclasses.asdict(self)}


class Vector(torch.nn.Module):
    """A model that is one vector."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(d))


def speed_up(
    workers: int,
    codec: str,
    *,
    mode: str = "difference",
    d: int = 16384,
    steps: int = 512,
    every: int = 8,
    parts: int = 1,
    seed: int = 0,
) -> SpeedUp:
    """Measures one point. Parameters: see :class:`SpeedUp`."""
    goal = torch.randn(d, generator=_generator(seed, 0))

    def work(rank: int, group: FakeGroup) -> tuple[torch.Tensor, int]:
        model = Vector(d)
        noise = _generator(seed, 1 + rank)
        apart = mode == "alone"
        local = LocalSGD(model, codec, every=steps + 1 if apart else every, parts=parts, seed=seed, process_group=group)
        values = _Values(group, codec, seed) if mode == "value" else None
        with torch.no_grad():
            for t in range(1, steps + 1):
                gradient = model.x - goal + _SIGMA * torch.randn(d, generator=noise)
                model.x.sub_(gradient / t)
                if values is None:
                    local.step()
                elif t % every == 0:
                    values.average(model.x)
        if mode == "difference":
            local.synchronize()
        sent = local.counts["payload_bytes"] if values is None else values.payload_bytes
        local.close()
        if values is not None:
            values.close()
        return model.x.detach(), sent

    found = _threads(workers, work)
    error = sum(float((x - goal).double().square().mean()) for x, _ in found) / workers
    predicted = None
    if mode == "difference":
        predicted = predicted_product(workers, codec, steps=steps, every=every, parts=parts)
    elif mode == "alone":
        predicted = float(workers)
    sent = sum(nbytes for _, nbytes in found) // workers
    return SpeedUp(mode, workers, str(make_codec(codec)), every, parts, steps, d, error, predicted, sent)


def predicted_product(workers: int, codec: str, *, steps: int, every: int, parts: int = 1) -> float | None:
    """Error times M K over sigma^2, by the exact recursion of x_sync's mean squared error E over the rounds.

    From t to t + p a worker's error becomes A e + noise of variance V; the differences have energy (1-A)^2 E + V, their mean
    (1-A)^2 E + V / M, and a code adds omega times the energy of what it encodes, at the owners of the shards a second time.
    A part's rounds begin later and are further apart, and the last is that of `synchronize`. None for codecs that are not unbiased.
    """
    if not make_codec(codec).unbiased:
        return None
    omega = vnmse(codec)
    errors = [
        _error_after([*range((part + 1) * every, steps, parts * every), steps], workers, codec, omega)
        for part in range(parts)
    ]
    return sum(errors) / parts * workers * steps / _SIGMA**2


def _error_after(rounds: list[int], m: int, codec: str, omega: float) -> float:
    """E after rounds at these steps, from x_sync = 0 and a goal of variance 1."""
    made = make_codec(codec)
    error, t = 1.0, 0
    for last in rounds:
        a, v = 1.0, 0.0
        for i in range(t + 1, last + 1):
            a *= 1 - 1 / i
            v = v * (1 - 1 / i) ** 2 + _SIGMA**2 / i**2
        one, mean = (1 - a) ** 2 * error + v, (1 - a) ** 2 * error + v / m
        if m == 1:
            added = 0.0
        elif made.passes_on(m):
            added = omega * one / m
        else:
            first = omega * (m - 1) / m**2 * one
            added = first + omega * (mean + first)
        error = a * a * error + v / m + added
        t = last
    return error


def vnmse(codec: str, d: int = 1 << 16) -> float:
    """Squared error over energy on N(0,1), measured."""
    made = make_codec(codec)
    if made.lossless:
        return 0.0
    x = torch.randn(d, generator=torch.Generator().manual_seed(20_261_127))
    y = made.decode(made.encode(x, Key(seed=11)), Key(seed=11), out=torch.empty_like(x))
    return float((y - x).double().square().sum() / x.double().square().sum())


def outer_momentum(
    codec: str, *, momentum: float, rate: float, workers: int = 2, d: int = 4096, rounds: int = 30, every: int = 8
) -> Momentum:
    """Runs LocalSGD with an outer optimiser, and its recursion beside it."""
    curvature = _curvature(d)
    goal = torch.randn(d, generator=_generator(5, 0))

    def work(rank: int, group: FakeGroup) -> list[float]:
        model = Vector(d)
        local = LocalSGD(model, codec, every=every, outer_lr=rate, outer_momentum=momentum, process_group=group)
        losses = []
        with torch.no_grad():
            for _ in range(rounds * every):
                model.x.sub_(0.5 * curvature * (model.x - goal))
                if local.step():
                    losses.append(float((curvature * (model.x - goal).square()).double().sum() / 2))
        local.close()
        return losses

    name = f"outer momentum {momentum:g}" if momentum else "plain averaging"
    losses = _threads(workers, work)[0]
    predicted = predicted_losses(
        curvature.double(), goal.double(), momentum=momentum, rate=rate, rounds=rounds, every=every
    )
    return Momentum(name, str(make_codec(codec)), losses, predicted)


def predicted_losses(
    curvature: torch.Tensor, goal: torch.Tensor, *, momentum: float, rate: float, rounds: int, every: int
) -> list[float]:
    """With exact averaging: e <- e - rate (g + momentum v) with v <- momentum v + g, where g = (1 - (1 - h/2)^p) e."""
    error, velocity = -goal, torch.zeros_like(goal)
    shrink = 1 - (1 - 0.5 * curvature) ** every
    found = []
    for _ in range(rounds):
        gradient = shrink * error
        velocity = momentum * velocity + gradient
        error = error - rate * (gradient + momentum * velocity if momentum else gradient)
        found.append(float((curvature * error.square()).sum() / 2))
    return found


def _curvature(d: int) -> torch.Tensor:
    return torch.logspace(math.log10(0.01), 0.0, d)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


class _Values:
    """The control: the parameters themselves go through the codec, not their differences."""

    def __init__(self, group: FakeGroup, codec: str, seed: int) -> None:
        self._reducer = Reducer(*group.channels(), timeout=_TIMEOUT)
        self._codec = make_codec(codec)
        self._key = Key(seed=seed)
        self._nbytes = self._codec.payload_nbytes
        self._size = group.size()
        self.payload_bytes = 0

    def average(self, x: torch.Tensor) -> None:
        self._reducer.run(x.detach(), self._codec, self._codec, self._key)
        self._key = self._key.replace(step=self._key.step + 1)
        self.payload_bytes += round(2 * (self._size - 1) / self._size * self._nbytes(x.numel()))

    def close(self) -> None:
        self._reducer.close()


def _threads(size: int, work: Callable[[int, FakeGroup], Any]) -> list[Any]:
    """What `work` gives on each of so many ranks; the first of their errors is raised."""
    groups = FakeGroup.ranks(size, _TIMEOUT)
    found: list[Any] = [None] * size
    errors: list[Exception] = []

    def go(rank: int) -> None:
        try:
            found[rank] = work(rank, groups[rank])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
