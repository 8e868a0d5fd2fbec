"""A mean from one bit of each sample: sequential estimation by threshold queries (Lau and Scarlett).

First the mean is located: majority votes on thresholds halve [-lambda, lambda] until it is known to within sigma, at a constant number of questions for each halving. Then it is refined,
in epochs that double, each around the estimate of those before:

* noise "gaussian": one threshold for the epoch, and the maximum-likelihood estimate from all bits so far; ``n MSE -> (pi/2) sigma^2``, the least for one bit.
* noise "subgaussian", or the order k > 1 of a moment with ``E|X - mu|^k <= sigma^k``: random thresholds of a `ThresholdDensity`, an unbiased mean of whatever distribution. The error falls like
  n^-1/2 for k > 2, with a factor sqrt(log n) for k = 2, and n^-(1 - 1/k) below, which is that of unquantised samples: thresholds reach ``sigma n^(1/k)``.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import final

import numpy as np
from numpy.typing import NDArray

from commpress.errors import SpecError, StateError, TensorError
from commpress.estimation._density import ThresholdDensity, order_of
from commpress.estimation._normal import Array
from commpress.estimation._probit import ProbitTable
from commpress.estimation._queries import Queries

_FIRST = 32  # questions of the first epoch
_VOTES = 7
_TWO_STAGE_VOTES = 15
_SCALE_VOTES = 64
_INSIDE = 0.3173  # share of a normal variable beyond one standard deviation
_GRID = 33  # thresholds of the second of two stages
_Asking = Generator[Queries, NDArray[np.bool_], None]


@final
class OneBitMean:
    """Says what to ask next and takes the answers; many independent `streams` (tensors, layers, repetitions) at once::

        mean = OneBitMean(half_width=1024.0, sigma=1.0, budget=4000)
        while (queries := mean.next_queries()) is not None:
            mean.tell(queries.answer(next_samples(queries.count)))      # (streams, count) bits
        mean.estimate()

    Args:
        half_width: lambda > 0: the means are in [-lambda, lambda].
        sigma: > 0, the noise's scale: standard deviation, or k-th root of the k-th central moment; or bounds (low, high) of a scale that is not known, which is then found from
            a few hundred more questions, as the distance from the middle beyond which 32 % of the samples lie.
        noise: "gaussian", "subgaussian" or k, as in the module's text.
        budget: questions for each stream, at least those of the location; None: not known beforehand, `next_queries` never ends, and the estimate is good at any time (epochs double).
        streams: how many.
        two_stages: only two rounds of questions: all of the first are asked at once, and all of the second. The first asks for bits of the Gray code of the sample's cell, not for
            thresholds (those would take lambda / sigma questions). Needs `budget` and `sigma`.
        seed: of the thresholds.

    Raises:
        SpecError: an argument makes no sense, or the budget is too small.
    """

    def __init__(
        self,
        half_width: float,
        *,
        sigma: float | tuple[float, float],
        noise: str | float = "gaussian",
        budget: int | None = None,
        streams: int = 1,
        two_stages: bool = False,
        seed: int = 0,
    ) -> None:
        self._low, self._high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        if not 0 < self._low <= self._high < math.inf or not 0 < half_width < math.inf:
            raise SpecError(f"half_width and sigma must be positive and finite, got {half_width} and {sigma}")
        if streams < 1 or (budget is not None and budget < 1):
            raise SpecError(f"streams and budget must be at least 1, got {streams} and {budget}")
        if two_stages and (budget is None or self._low < self._high):
            raise SpecError("two_stages needs to know the budget and sigma")
        self._order = order_of(noise)
        self._gaussian = noise == "gaussian"
        self._half_width, self._budget, self.streams = half_width, budget, streams
        self._two_stages = two_stages
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self.sigma: Array = np.full((streams, 1), self._low)
        self._table = ProbitTable(streams)
        self._centre: Array = np.zeros((streams, 1))
        self._sum: Array = np.zeros((streams, 1))
        self._weight = 0.0
        self.asked = 0
        self.located_after: int | None = None
        self.rounds = 0
        self._plan = self._asking()
        self._open: Queries | None = next(self._plan)

    def next_queries(self) -> Queries | None:
        """What to ask now; None once the budget is used up. The same until `tell`."""
        return self._open

    def tell(self, answers: NDArray[np.bool_]) -> None:
        """Takes the answers to the queries. Raises StateError without open queries, TensorError for another shape or dtype."""
        if self._open is None:
            raise StateError("there are no open queries: the budget is used up")
        if answers.shape != (self.streams, self._open.count) or answers.dtype != np.bool_:
            wanted = (self.streams, self._open.count)
            raise TensorError(f"expected booleans of shape {wanted}, got {answers.dtype} of shape {answers.shape}")
        self.asked += self._open.count
        self.rounds += 1
        try:
            self._open = self._plan.send(answers)
        except StopIteration:
            self._open = None

    def estimate(self) -> Array:
        """The means as they are known now: float64, one for each stream."""
        found: Array = np.clip(self._now(), -self._half_width, self._half_width)[:, 0]
        return found

    def _now(self) -> Array:
        if self.located_after is None or (self._weight == 0 and not self._gaussian):
            return self._centre
        return self._table.fit(self._centre, self.sigma) if self._gaussian else self._sum / self._weight

    # -- what is asked

    def _asking(self) -> _Asking:
        if self._two_stages:
            yield from self._gray_code()
            self.located_after = self.asked
            yield from self._second_stage(self._left())
            return
        yield from self._bisect()
        if self._low < self._high:
            yield from self._find_scale()
        self.located_after = self.asked
        count, first = _FIRST, True
        while (left := self._left()) > 0:
            # The rest of the budget is one epoch rather than a whole and a stump.
            last = self._budget is not None and left <= 2 * count
            count = int(left) if last else count
            yield from self._epoch(count, rough=first and not last)
            count, first = 2 * count, False

    def _left(self) -> float:
        return math.inf if self._budget is None else self._budget - self.asked

    def _bisect(self) -> _Asking:
        """Until the interval is 2 sigma wide. Where only a moment is bounded a vote near the middle says less, and the half that lost keeps a margin."""
        margin, votes = self._margin() * self._low, self._votes()
        width = 2.0 * self._half_width
        narrow = 2.0 * self._low if margin == 0 else 2.5 * margin
        steps = max(0, math.ceil(math.log2((width - 2 * margin) / (narrow - 2 * margin)))) if width > narrow else 0
        self._enough(steps * votes)
        low, high = np.full((self.streams, 1), -self._half_width), np.full((self.streams, 1), self._half_width)
        for _ in range(steps):
            middle = 0.5 * (low + high)
            answers = yield Queries(votes, middle)
            yes = answers.sum(1, keepdims=True)
            self._table.add(middle, votes, yes)
            right = 2 * yes > votes
            low, high = np.where(right, middle - margin, low), np.where(right, high, middle + margin)
            self._centre = 0.5 * (low + high)

    def _votes(self) -> int:
        """Odd. A bounded moment leaves 1/4 of the samples on the wrong side at the margin: P(Bin(v, 1/4) > v/2) < 1 % at 31."""
        return _VOTES if math.isinf(self._order) else 31

    def _margin(self) -> float:
        """In sigma: beyond it at most a quarter of the samples lie. 0 for normal tails, where a wrong vote is off by little, and what follows finds back."""
        return 0.0 if math.isinf(self._order) else 4.0 ** (1.0 / self._order)

    def _enough(self, needed: int) -> None:
        if self._budget is not None and self._budget < needed + self.asked:
            raise SpecError(
                f"a budget of {self._budget} questions is too small: finding the mean in +-{self._half_width:g} takes {needed + self.asked} of them"
            )

    def _find_scale(self) -> _Asking:
        """Bisects a ladder of scales for the one beyond which about 32 % of the samples lie."""
        ladder = 0.5 * math.log2(self._high / self._low)
        rungs = max(1, math.ceil(4 * ladder))  # steps of sqrt(2)
        below, above = np.zeros((self.streams, 1)), np.full((self.streams, 1), float(rungs))
        steps = math.ceil(math.log2(rungs)) + 2
        self._enough(steps * _SCALE_VOTES)
        half = _SCALE_VOTES // 2
        for _ in range(steps):
            rung = 0.5 * (below + above)
            scale = self._low * 2.0 ** (0.5 * rung)
            sides = self._centre - scale, self._centre + scale
            answers = yield Queries(_SCALE_VOTES, np.repeat(np.concatenate(sides, 1), half, axis=1))
            left, right = answers[:, :half].sum(1, keepdims=True), answers[:, half:].sum(1, keepdims=True)
            for side, yes in zip(sides, (left, right), strict=True):
                self._table.add(side, half, yes)
            outside = (half - left + right) / half
            wider = outside > _INSIDE
            below, above = np.where(wider, rung, below), np.where(wider, above, rung)
        self.sigma = self._low * 2.0 ** (0.25 * (below + above))

    def _epoch(self, count: int, *, rough: bool) -> _Asking:
        centre = np.clip(self._now(), -self._half_width, self._half_width)
        if self._gaussian:
            answers = yield Queries(count, centre)
            self._table.add(centre, count, answers.sum(1, keepdims=True))
            return
        yield from self._random_thresholds(count, centre)
        if rough:  # around a centre that is off by sigma, and not worth its share of the mean
            self._centre, self._sum, self._weight = self._sum / self._weight, np.zeros_like(self._sum), 0.0

    def _random_thresholds(self, count: int, centre: Array, widened: float = 0.0) -> _Asking:
        density = self._density(count, widened)
        thresholds, weights = density.draw(self._generator.random((self.streams, count)))
        answers = yield Queries(count, centre + self.sigma * thresholds)
        weights *= answers.astype(np.float64) - (thresholds < 0)
        self._sum = self._sum + weights.sum(1, keepdims=True) * self.sigma + count * centre
        self._weight += count

    def _density(self, count: int, widened: float) -> ThresholdDensity:
        """In units of sigma."""
        if math.isinf(self._order):
            return ThresholdDensity.gaussian(1.0 + widened)
        share = self._budget if self._budget is not None else count
        return ThresholdDensity.moment(
            self._order, 1.0 + widened, (1.0 + widened) * max(4.0, share ** (1.0 / self._order))
        )

    # -- two stages

    def _cell(self) -> float:
        """In sigma: at most a quarter of the samples miss the mean's cell and the nearer of its neighbours, each of which differs from it in one bit."""
        return 2.0 if math.isinf(self._order) else 2.0 * self._margin()

    def _gray_code(self) -> _Asking:
        cell = self._cell() * self._low
        cells = max(2, math.ceil(2.0 * self._half_width / cell))
        number = (cells - 1).bit_length()
        votes = _TWO_STAGE_VOTES if math.isinf(self._order) else 31
        self._enough(number * votes)
        bits = np.repeat(np.arange(number), votes)
        answers = yield Queries(number * votes, None, cell, -self._half_width, bits)
        gray = (2 * answers.reshape(self.streams, number, votes).sum(2) > votes).astype(np.int64)
        place = np.zeros(self.streams, dtype=np.int64)
        last = np.zeros(self.streams, dtype=np.int64)
        for bit in range(number - 1, -1, -1):
            last = last ^ gray[:, bit]
            place |= last << bit
        self._centre = np.clip((place + 0.5) * cell - self._half_width, -self._half_width, self._half_width)[:, None]

    def _second_stage(self, left: float) -> _Asking:
        count = int(left)
        if count < 1:
            return
        if not self._gaussian:
            yield from self._random_thresholds(count, self._centre, widened=0.5 * self._cell())
            return
        # The mean may be in the next cell, if hardly: the likelihood finds it there.
        offsets = second_stage_thresholds() * self._low
        which = np.arange(count) % _GRID
        answers = yield Queries(count, self._centre + offsets[which])
        for i, offset in enumerate(offsets):
            mine = answers[:, which == i]
            if mine.shape[1]:
                self._table.add(self._centre + offset, mine.shape[1], mine.sum(1, keepdims=True))


def second_stage_thresholds() -> Array:
    """Around the middle of the cell, in sigma: what the second of two stages asks for Gaussian noise."""
    return np.linspace(-2.2, 2.2, _GRID)
