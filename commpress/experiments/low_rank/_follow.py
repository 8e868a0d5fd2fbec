"""Matrices that change from step to step, sent as low-rank factors: by this library and by PowerSGD's iteration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import final

import torch

from commpress.codecs import Key, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.collectives import (
    FactorPlan,
    FactorReducer,
    FakeWorld,
    MatrixShape,
    Passage,
    PassageObserver,
    Reducer,
    Report,
)
from commpress.errors import SpecError
from commpress.lowrank import Tracker

SPECTRUM = (10.0, 8.0, 6.0, 5.0)
_TIMEOUT = 60.0


def drifting(
    steps: int,
    jump: int,
    generator: torch.Generator,
    *,
    ranks: int,
    n: int = 256,
    noise: float = 0.1,
    drift: float = 0.05,
) -> Iterator[list[torch.Tensor]]:
    """Matrices with the singular values of `SPECTRUM` in noise; the singular vectors turn by `drift` radians a step and are drawn anew at step `jump`.

    Yields:
        what each rank holds, (n, n) each: the same signal, and noise of its own, so that their mean has `noise` in each coordinate.
    """
    values = torch.tensor(SPECTRUM)

    def fresh() -> torch.Tensor:
        return _orthonormal(torch.randn(n, len(SPECTRUM), generator=generator))

    def turned(u: torch.Tensor) -> torch.Tensor:
        d = torch.randn(n, len(SPECTRUM), generator=generator)
        d -= u @ (u.T @ d)
        return _orthonormal(u * math.cos(drift) + d / d.norm(dim=0) * math.sin(drift))

    u, v = fresh(), fresh()
    for step in range(steps):
        if step == jump:
            u, v = fresh(), fresh()
        u, v = turned(u), turned(v)
        signal = (u * values) @ v.T
        yield [signal + math.sqrt(ranks) * noise * torch.randn(n, n, generator=generator) for _ in range(ranks)]


def best_fidelity(matrix: torch.Tensor, dimension: int) -> float:
    """Part of the energy of a matrix that is in its leading singular directions: no matrix of that rank comes nearer (Eckart and Young, 1936)."""
    squares = torch.linalg.svdvals(matrix).double().square()
    total = float(squares.sum())
    return float(squares[:dimension].sum()) / total if total else 1.0


def fidelity_of(matrix: torch.Tensor, approximation: torch.Tensor) -> float:
    """1 - |G - G^|^2 / |G|^2, measured on what arrived; 1 for a zero matrix."""
    energy = float(matrix.double().square().sum())
    return 1.0 - float((matrix - approximation).double().square().sum()) / energy if energy else 1.0


@dataclasses.dataclass(frozen=True)
class Followed:
    """One step of a `Follower`.

    Attributes:
        fidelity: of each matrix, of the mean over the ranks: the part of its energy that arrived. restarted: whether it began with power iterations.
        bits: payload of one rank in one phase over the coordinates of all matrices.
    """

    fidelity: list[float]
    restarted: list[bool]
    bits: float


@final
class Follower:
    """In-process ranks that reduce the same matrices in every step, by ``lowrank:r``: the library's own reducers, trackers and payloads, nothing simulated but the wire.

    Args:
        shapes: (rows, columns) of each matrix; factors must be fewer numbers than the matrix.
        codec: a ``lowrank`` codec or its spec.
        ranks: at least 2. seed: of the coins.

    Use it in a with statement.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], codec: str, *, ranks: int = 2, seed: int = 0) -> None:
        made = make_codec(codec)
        if not isinstance(made, LowRankCodec) or not made.dimension:
            raise SpecError(f"this follows matrices with lowrank:r, not with {codec!r}")
        if ranks < 2:
            raise SpecError(f"factors are averaged between at least 2 ranks, got {ranks}")
        places, start = [], 0
        for rows, columns in shapes:
            places.append(MatrixShape(start, rows, columns))
            start += rows * columns
        self._codec, self._seed, self._step, self._numel = made, seed, 0, start
        self._shapes = places
        self._plans = [FactorPlan(start, places, made) for _ in range(ranks)]
        reset = float(made.reset)
        self._trackers = [
            [Tracker(s.rows, s.columns, made.dimension, reset=reset) for s in places] for _ in range(ranks)
        ]
        worlds = [FakeWorld(ranks) for _ in range(4)]
        pairs = [[world.communicator(rank) for world in worlds] for rank in range(ranks)]
        self._reducers = [
            FactorReducer(Reducer(a, b, timeout=_TIMEOUT), Reducer(c, d, timeout=_TIMEOUT)) for a, b, c, d in pairs
        ]

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reducer in self._reducers:
            reducer.close()

    def step(self, ranks: Sequence[Sequence[torch.Tensor]]) -> Followed:
        """Reduces what each rank holds, a list of matrices each.

        Raises:
            CommpressError: the reduction failed.
        """
        flats = [torch.cat([matrix.reshape(-1) for matrix in matrices]) for matrices in ranks]
        mean = torch.stack(flats).mean(0)
        key = Key(seed=self._seed, step=self._step)
        self._step += 1
        passages = []
        for plan, trackers, flat in zip(self._plans, self._trackers, flats, strict=True):
            passages.append(
                Passage(
                    plan, trackers, flat, flat, key, op="mean", world_size=len(flats), left_out=False, observer=_AllUsed(len(trackers))
                )
            )  # fmt: skip
        futures = [reducer.submit(passage) for reducer, passage in zip(self._reducers, passages, strict=True)]
        for future in futures:
            future.wait()
        for passage in passages:
            passage.update_trackers()
        first = passages[0]
        report = first.report()
        fidelity = [
            fidelity_of(
                mean[s.start : s.stop].view(s.rows, s.columns), flats[0][s.start : s.stop].view(s.rows, s.columns)
            )
            for s in self._shapes
        ]
        # A rank sends its part of a payload to the others in phase 1, and its own part in phase 2.
        sent = (report.bytes_payload1 + report.bytes_payload2) / 2 * len(flats) / (len(flats) - 1)
        restarted = [i in first.restarted for i in range(len(self._shapes))]
        return Followed(fidelity, restarted, 8 * sent / self._numel)


@final
class _AllUsed(PassageObserver):
    def __init__(self, matrices: int) -> None:
        self._matrices = matrices

    def prepare(self) -> Sequence[bool]:
        return [True] * self._matrices

    def complete(self, report: Report) -> None:
        pass

    def failed(self, error: Exception) -> None:
        pass


@final
class PowerIteration:
    """PowerSGD's iteration as published (Vogels et al., 2019, algorithm 1, warm start), in fp32 and without error feedback.

    Both of its products are linear in the matrix, so that of the mean stands for the mean of the ranks'. Written without this library's parts, to compare them with.

    Args:
        columns: of the matrix. dimension: r. generator: of the first basis.
    """

    def __init__(self, columns: int, dimension: int, generator: torch.Generator) -> None:
        self._q = torch.randn(columns, dimension, generator=generator)

    def step(self, mean: torch.Tensor) -> torch.Tensor:
        """What stands for `mean` (rows, columns) on all ranks."""
        p = _orthonormal(mean @ self._q)
        self._q = mean.T @ p
        return p @ self._q.T


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Gram-Schmidt: the signs are those of the columns, so that what has turned a little does not turn about."""
    basis, upper = torch.linalg.qr(columns)
    signed: torch.Tensor = basis * upper.diagonal().sign()
    return signed
