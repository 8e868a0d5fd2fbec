"""One tensor on its way through the rounds of a reduction by factors: what each round sends, and what becomes of it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch

from commpress.collectives._accounting import Report
from commpress.collectives._factor_plan import FactorPlan, Round
from commpress.lowrank import Tracker, orthonormal, product, squares

if TYPE_CHECKING:
    from commpress.codecs import Key

_GAIN = 1.01  # a power iteration that adds less to the captured energy was the last one
_SIDES = 1024  # tensor numbers (of the key) between two exchanges of one passage
NAN = float("nan")


class PassageObserver(abc.ABC):
    """What the owner of a passage does at both ends of it. An exception in one method fails the passage on every rank."""

    @abc.abstractmethod
    def prepare(self) -> Sequence[bool]:
        """Fills the passage's `work`, before anything is read from it. Returns for each matrix whether this rank has a gradient. On a worker thread."""

    @abc.abstractmethod
    def complete(self, report: Report) -> None:
        """All went well on every rank: `out` and `left_out` are final, `report` covers all rounds. On a worker thread."""

    @abc.abstractmethod
    def failed(self, error: Exception) -> None:
        """Instead of `complete`; must not raise. May be told more than once."""


@final
class Passage:
    """Args:
        plan: of the tensor.
        trackers: one for each matrix of the plan; they are read, not changed.
        work: flat fp32 tensor, what is reduced, filled by `observer.prepare`; a copy, or `out` itself.
        out: flat fp32 tensor for the result.
        key: equal on all ranks.
        op: "mean" or "sum".
        world_size: ranks.
        left_out: whether `work` shall become what this rank's part of the result leaves out; it must not be `out` then.
        observer: see there.

    Attributes:
        held: matrices for which no rank has a gradient: their result is 0, and `work` stays as it is.
        restarted: matrices that began with power iterations.
        nmse: of each matrix, after `measure`: squared error over energy of what this rank's factors stand for.
        reports: of all submissions so far, left and right.
    """

    def __init__(
        self,
        plan: FactorPlan,
        trackers: Sequence[Tracker],
        work: torch.Tensor,
        out: torch.Tensor,
        key: Key,
        *,
        op: str,
        world_size: int,
        left_out: bool,
        observer: PassageObserver,
    ) -> None:
        self.plan = plan
        self.op = op
        self.out = out
        self.observer = observer
        self.future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self.held: list[int] = []
        self.reports: list[Report] = []
        self.nmse: list[float] = []
        self._measure = False
        self._trackers = trackers
        self._work = work
        self._key = key
        self._world_size = world_size
        self._left_out = left_out
        self._matrices = [work[s.start : s.stop].view(s.rows, s.columns) for s in plan.shapes]
        self._prepared = False
        self._norms: list[float] = []
        self._used: Sequence[bool] = ()
        self._bases: dict[int, torch.Tensor] = {}
        self._orthonormal: dict[
            int, torch.Tensor
        ] = {}  # this round's left factors; a matrix that is not finite has none
        self._sent: torch.Tensor | None = None
        self._captured: dict[int, float] = {}
        self._energies: list[float] = []
        self._iterations = 0
        self.restarted = [i for i, tracker in enumerate(trackers) if tracker.lost and plan.limit(i) > 0]
        self._active: tuple[int, ...] | None = tuple(self.restarted) or None

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self._world_size

    def measure(self) -> None:
        """Asks for `nmse`, before the final round."""
        self._measure = True

    @property
    def is_final(self) -> bool:
        """Whether the round under way is the last one."""
        return self._active is None

    @property
    def round(self) -> Round:
        """The round under way."""
        return self.plan.final() if self._active is None else self.plan.iteration(self._active)

    def key(self, *, right: bool) -> Key:
        """Of one exchange of the round under way: no two of a step share randomness (with up to 1024 tensors)."""
        number = 2 * (0 if self.is_final else 1 + self._iterations) + right
        return self._key.replace(tensor=self._key.tensor + _SIDES * number)

    @property
    def _indices(self) -> Sequence[int]:
        return range(len(self.plan.shapes)) if self._active is None else self._active

    # -- one round

    def fill_left(self) -> None:
        """G Q of every matrix of the round, from this rank's own G."""
        if not self._prepared:
            self._prepared = True
            self._used = self.observer.prepare()
            self._norms = [_norm(matrix) for matrix in self._matrices]
        here = self.round
        for place, i in enumerate(self._indices):
            here.facts[place, 0], here.facts[place, 1] = self._norms[i], float(self._used[i])
            if i not in self._bases:
                self._bases[i] = self._trackers[i].start(self._coins(i))
            if self._norms[i] - self._norms[i] == 0:
                torch.mm(self._bases[i], self._matrices[i].T, out=here.lefts[place])
            else:
                here.lefts[place].fill_(NAN)
        if here.exact.numel():
            torch.cat([self._work[a:b] for a, b in self.plan.exact], out=here.exact)

    def fill_right(self) -> None:
        """P = orth of the averaged G Q, the same on all ranks, and G^T P from this rank's own G."""
        here = self.round
        self._orthonormal = {}
        if self._measure and self.is_final:
            self.nmse = [NAN] * len(self._trackers)
        for place, i in enumerate(self._indices):
            left, right = here.lefts[place], here.rights[place]
            if not bool(torch.isfinite(left).all()) or not bool(torch.isfinite(here.facts[place]).all()):
                right.fill_(NAN)
                continue
            self._orthonormal[i] = orthonormal(left)
            torch.mm(self._orthonormal[i], self._matrices[i], out=right)
            if self._measure and self.is_final and not self._left_out:
                self.nmse[place] = self._part(i, self._norms[i] ** 2 - _norm(right) ** 2)
        if self.is_final and self._left_out:
            self._sent = here.right.clone()

    def record(self, start: int, stop: int, decoded: torch.Tensor, *, mean: bool) -> None:
        """`decoded` is what coordinates [start, stop) of the right factors were sent as: by this rank, or (`mean`) by it as their owner to all."""
        if self._sent is not None:
            left_out = self.round.right[start:stop] - decoded
            self._sent[start:stop].sub_(left_out, alpha=self._world_size if mean else 1)

    def end_iteration(self) -> None:
        """After a round that was not final: the next bases, and which matrices go on."""
        here = self.round
        active = []
        self._iterations += 1
        for place, i in enumerate(self._indices):
            right = here.rights[place]
            if i not in self._orthonormal or not bool(torch.isfinite(right).all()):
                continue
            captured = squares(right)
            self._bases[i] = self._trackers[i].full(right, self._coins(i))
            if captured > _GAIN * self._captured.get(i, 0.0) and self._iterations < self.plan.limit(i):
                active.append(i)
            self._captured[i] = captured
        self._active = tuple(active) or None

    def finish(self) -> None:
        """After the final round: the result to `out`, and what it leaves out to `work`."""
        here = self.round
        share = 1.0 if self.op == "mean" else 1.0 / self._world_size
        sent = here.rights if self._sent is None else self._sent_views(here)
        for place, shape in enumerate(self.plan.shapes):
            out = self.out[shape.start : shape.stop].view(shape.rows, shape.columns)
            right, left = here.rights[place], self._orthonormal.get(place)
            self._energies.append((float(here.facts[place, 0]) * share) ** 2)
            if left is None or not bool(torch.isfinite(right).all()):
                out.fill_(NAN)
                continue
            if float(here.facts[place, 1]) == 0:
                self.held.append(place)
                out.zero_()
                if self._measure:
                    self.nmse[place] = 0.0
                continue
            if self._left_out:
                self._matrices[place].addmm_(left.T, sent[place], alpha=-1.0)
                if self._measure:
                    self.nmse[place] = self._part(place, _norm(self._matrices[place]) ** 2)
            product(left, right, out)
        start = 0
        for a, b in self.plan.exact:
            self.out[a:b].copy_(here.exact[start : start + b - a])
            if self._left_out:
                self._work[a:b].zero_()
            start += b - a

    def report(self) -> Report:
        """Of all rounds."""
        return Report.merged(self.reports, self.plan.numel, str(self.plan.codec))

    def update_trackers(self) -> list[float | None]:
        """Tells the trackers how the step went, if it is known to be good on all ranks.

        Returns:
            The fidelity of each matrix; None where no rank had a gradient.
        """
        share = 1.0 if self.op == "mean" else 1.0 / self._world_size
        found: list[float | None] = []
        for i, tracker in enumerate(self._trackers):
            if i in self.held:
                found.append(None)
            else:
                found.append(tracker.update(self.plan.final().rights[i] * share, self._energies[i], self._coins(i)))
        return found

    def _part(self, i: int, error: float) -> float:
        energy = self._norms[i] ** 2
        return max(0.0, error / energy) if energy else 0.0

    def _sent_views(self, here: Round) -> list[torch.Tensor]:
        assert self._sent is not None
        parts = self._sent.split([view.numel() for view in here.rights])
        return [part.view_as(view) for part, view in zip(parts, here.rights, strict=True)]

    def _coins(self, i: int) -> Key:
        return self._key.of_layer((i + 1) << 16)


def _norm(x: torch.Tensor) -> float:
    """Euclidean; fp32's range does not limit it."""
    norm = float(torch.linalg.vector_norm(x))
    return norm if norm - norm == 0 else float(torch.linalg.vector_norm(x, dtype=torch.float64))
