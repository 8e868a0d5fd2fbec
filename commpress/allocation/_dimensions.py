"""How many dimensions each matrix gets, where matrices travel as low-rank factors."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from commpress.allocation._objective import weights_from_gamma
from commpress.errors import SpecError

_MEMORY = 0.9  # weight of the past in the running spectra
_GAIN = 0.01  # of the captured energy, which a new choice must promise
_DECAY = 0.9  # a direction that was never sent has at most this part of the energy of the one before

Cost = Callable[[int, int], int]


def share_dimensions(
    spectra: Sequence[Sequence[float]], cost: Cost, budget_bytes: int, least: Sequence[int]
) -> list[int]:
    """Dimensions that capture the most within a budget: always the one with the most energy for its bytes.

    Args:
        spectra: for each matrix what its 1st, 2nd, ... dimension captures, not increasing; as many as it may have.
        cost: bytes of matrix i at r dimensions; its growth with r is about even.
        budget_bytes: of all matrices.
        least: dimensions that each matrix has in any case.

    Returns:
        One number for each matrix. With costs that grow evenly nothing captures more at the bytes that are spent (profiles are concave).

    Raises:
        SpecError: even `least` costs more than the budget.
    """
    found = list(least)
    left = budget_bytes - sum(cost(i, r) for i, r in enumerate(found))
    if left < 0:
        raise SpecError(f"the least dimensions {found} of the matrices need {-left} bytes more than the budget has")
    heap: list[tuple[float, int]] = []

    def offer(i: int) -> None:
        if found[i] < len(spectra[i]):
            heapq.heappush(heap, (-spectra[i][found[i]] / (cost(i, found[i] + 1) - cost(i, found[i])), i))

    for i in range(len(found)):
        offer(i)
    while heap:
        _, i = heapq.heappop(heap)
        price = cost(i, found[i] + 1) - cost(i, found[i])
        if price <= left:  # else this matrix has what it can have; a smaller one may still fit
            found[i], left = found[i] + 1, left - price
            offer(i)
    return found


def extended(spectrum: Sequence[float], total: float, most: int) -> list[float]:
    """A spectrum with guesses for dimensions that were not sent.

    Args:
        spectrum: energies of those that were, at least one.
        total: energy of the whole matrix.
        most: length of the result.

    The decay of the second half goes on, at least by a tenth from each to the next, and all guesses together stay below what was left out.
    """
    known = list(itertools.accumulate(spectrum, min))
    half = len(known) // 2
    ratio = _DECAY
    if known[half] > 0 and len(known) - 1 > half:
        # The mean ratio between neighbours, without a root (roots of other orders differ between machines): by their sums.
        ratio = min(_DECAY, math.fsum(known[half + 1 :]) / math.fsum(known[half:-1]))
    guesses = []
    value = known[-1]
    for _ in range(most - len(known)):
        value *= ratio
        guesses.append(value)
    rest, guessed = max(0.0, total - math.fsum(known)), math.fsum(guesses)
    scale = min(1.0, rest / guessed) if guessed > 0 else 0.0
    return (known + [guess * scale for guess in guesses])[:most]


@final
class Dimensions:
    """The running spectra of all matrices and the dimensions in use; equal on all ranks, because it is told reduced values only.

    Args:
        sizes: coordinates of each matrix.
        most: dimensions with which each would be no smaller than the matrix, less one.
        cost: bytes of matrix i at r dimensions.
        budget_bytes: of all matrices together.
        gamma: a matrix weighs s^-gamma, s its mean square: 0 counts errors, 1 relative errors. A multiple of 1/4.
        floor: every matrix has at least this part (rounded down, but one) of the dimension that all could have alike.

    Attributes:
        chosen: the dimension of each matrix.
        alike: the largest one that all could have.

    Raises:
        SpecError: the budget does not suffice for one dimension each.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        most: Sequence[int],
        cost: Cost,
        budget_bytes: int,
        *,
        gamma: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        self._sizes, self._most, self._cost, self._budget = list(sizes), list(most), cost, budget_bytes
        self._gamma = gamma
        self.alike = 0
        while self._affordable(self.alike + 1):
            self.alike += 1
        self._least = [min(m, max(1, int(floor * self.alike))) for m in self._most]
        flat = [[1.0] * min(m, self.alike + 1) for m in self._most]
        self.chosen = share_dimensions(flat, cost, budget_bytes, [1] * len(self._most))
        self._spectra: list[list[float]] = [[] for _ in self._most]
        self._totals = [0.0] * len(self._most)

    def _affordable(self, r: int) -> bool:
        if all(r > m for m in self._most):
            return False
        return sum(self._cost(i, min(r, m)) for i, m in enumerate(self._most)) <= self._budget

    @property
    def planned_bytes(self) -> int:
        """Of the dimensions in use."""
        return sum(self._cost(i, r) for i, r in enumerate(self.chosen))

    def observe(self, i: int, spectrum: Sequence[float], total: float) -> None:
        """A step's energies of matrix i by dimension, and of the whole matrix; not negative, finite."""
        held = self._spectra[i]
        if len(held) != len(spectrum):
            self._spectra[i], self._totals[i] = list(spectrum), total
            return
        self._spectra[i] = [_MEMORY * old + (1 - _MEMORY) * new for old, new in zip(held, spectrum, strict=True)]
        self._totals[i] = _MEMORY * self._totals[i] + (1 - _MEMORY) * total

    def replan(self) -> bool:
        """Chooses again, if all matrices were observed; whether anything changed. A matrix may double its dimension at once: more would be guesswork."""
        if not all(self._spectra) or not all(total > 0 for total in self._totals):
            return False
        weights = weights_from_gamma(np.array(self._totals) / np.array(self._sizes), self._gamma).tolist()
        profiles = [
            [float(w) * e for e in extended(held, total, min(m, max(2 * len(held), least)))]
            for held, total, m, w, least in zip(
                self._spectra, self._totals, self._most, weights, self._least, strict=True
            )
        ]
        found = share_dimensions(profiles, self._cost, self._budget, self._least)

        def captured(dimensions: Sequence[int]) -> float:
            return math.fsum(e for p, r in zip(profiles, dimensions, strict=True) for e in p[:r])

        if captured(found) <= (1 + _GAIN) * captured(self.chosen):
            return False
        self.chosen = found
        return True

    def state_dict(self) -> dict[str, Any]:
        """Lists of numbers."""
        return {"chosen": list(self.chosen), "spectra": [list(s) for s in self._spectra], "totals": list(self._totals)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave. Raises SpecError if it is of other matrices."""
        chosen = list(state["chosen"])
        if len(chosen) != len(self._most) or any(not 1 <= r <= m for r, m in zip(chosen, self._most, strict=True)):
            raise SpecError("the saved dimensions are those of other matrices")
        self.chosen = chosen
        self._spectra = [list(s) for s in state["spectra"]]
        self._totals = list(state["totals"])
