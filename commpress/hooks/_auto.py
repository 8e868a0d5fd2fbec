"""``codec="auto"``: which way each bucket travels, by the cost model first and by measured steps then."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, final

from commpress.cluster import Calibration
from commpress.errors import SpecError, StateError
from commpress.feedback import Layout
from commpress.hooks._layout import SETTLED

_log = logging.getLogger("commpress.hooks")

EXACT = "fp32"
"""torch's own all-reduce; the other names are "bf16", the same in 16 bits, and codec specs."""
TORCH_WAYS = (EXACT, "bf16")
CODECS = ("hadamard+lloyd:4", "uniform:4", "hadamard+lloyd:2")
"""Tried without a bit budget, the most exact first. None distorts more than the default codec does, hadamard+lloyd:2 (NMSE .1175 on a Gaussian)."""
BY_BUCKET = "by bucket"
TIE = 0.03
"""Ways that the model sees no further apart are equally fast to it, and the more exact one is taken."""
MEASURED_TIE = 0.005
"""The same of ways whose steps were timed."""
FIRST_TRIAL = SETTLED + 2
"""DDP's buckets are settled by then, and the steps that are repacked are over."""
TRIAL_STEPS = 6
"""Of each plan in a round. The first of all does not count: it makes buffers."""
ROUNDS = 4
"""At most: those that scatter too much to tell apart are tried again."""
_HOPELESS = 1.6
_MOST_PLANS = 4


@final
@dataclasses.dataclass(frozen=True)
class BucketChoice:
    """What was chosen for one bucket.

    Attributes:
        parameters, numel: of the bucket.
        way: "fp32" or "bf16", torch's own all-reduce, or a codec's spec. compressed: whether it is a codec.
        seconds: of its all-reduce alone by the cost model, for every candidate.
        reason: in words.
    """

    parameters: tuple[str, ...]
    numel: int
    way: str
    compressed: bool
    seconds: dict[str, float]
    reason: str


@final
@dataclasses.dataclass(frozen=True)
class AutoPlan:
    """What ``codec="auto"`` does.

    Attributes:
        name: a candidate that serves all buckets, or "by bucket".
        decided: "model" as long as no step was timed, "trial" during the timed steps, "measured" after them, "checkpoint" where it was loaded.
        step_seconds: median seconds of a training step under each plan that was tried, of the slowest rank.
        buckets: by bucket.
    """

    name: str
    decided: str
    step_seconds: dict[str, float]
    buckets: tuple[BucketChoice, ...]


@final
class Chooser:
    """Equal on all ranks, which give it the same calibration and the same table of times.

    Args:
        candidates: names that `calibration` knows, the most exact first.
        calibration: of the group.
        trials: whether steps are timed.

    Raises:
        SpecError: the calibration is of another number of ranks, or does not know a candidate.
    """

    def __init__(self, candidates: Sequence[str], calibration: Calibration, world_size: int, *, trials: bool) -> None:
        if calibration.ranks != world_size:
            raise SpecError(f"the calibration is of {calibration.ranks} ranks, the group has {world_size}")
        unknown = [name for name in candidates if name not in calibration.candidates]
        if unknown:
            raise SpecError(
                f"the calibration does not know {unknown[0]!r}: probe it with the candidates {list(candidates)}"
            )
        self.candidates = tuple(candidates)
        self.calibration = calibration
        self._trials = trials and world_size > 1
        self._plans: list[str] = []  # on trial
        self._start: int | None = None  # the first step of this process
        self._first = FIRST_TRIAL
        self._round = 0
        self._samples: dict[str, list[float]] = {}  # by turn; 0 where a step was not timed
        self._chosen: str | None = None
        self._times: dict[str, float] = {}
        self._loaded = False
        self._last: tuple[int, str, float] | None = None

    @property
    def digest(self) -> str:
        """Stands for the calibration and the candidates."""
        text = json.dumps([self.candidates, self.calibration.to_dict()], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    # -- by the model

    def ways(self, plan: str, layouts: Sequence[Layout]) -> list[str]:
        """Of each bucket under a plan."""
        if plan != BY_BUCKET:
            return [plan] * len(layouts)
        return [self._fastest(self._seconds(layout.numel)) for layout in layouts]

    def _seconds(self, numel: int) -> dict[str, float]:
        return {name: self.calibration.predict(name, numel) for name in self.candidates}

    def _fastest(self, seconds: dict[str, float]) -> str:
        """The most exact of those within the tie of the fastest."""
        limit = min(seconds.values()) * (1 + TIE)
        return next(name for name in self.candidates if seconds[name] <= limit)

    def _total(self, plan: str, layouts: Sequence[Layout]) -> float:
        ways = self.ways(plan, layouts)
        return sum(self._seconds(lay.numel)[way] for way, lay in zip(ways, layouts, strict=True))

    def _worth_trying(self, layouts: Sequence[Layout]) -> list[str]:
        """Plans that the model does not rule out, the most exact first. The model knows an all-reduce, not what of it a backward pass hides."""
        mixed = self.ways(BY_BUCKET, layouts)
        plans = list(self.candidates) + ([BY_BUCKET] if len(set(mixed)) > 1 else [])
        totals = {plan: self._total(plan, layouts) for plan in plans}
        best = min(totals.values())
        kept = sorted((p for p in plans if totals[p] <= _HOPELESS * best), key=lambda p: totals[p])[:_MOST_PLANS]
        return [plan for plan in plans if plan in kept]

    # -- in steps

    def plan_of(self, step: int, layouts: Sequence[Layout]) -> str:
        """The plan of step number `step`, whose buckets are `layouts`."""
        if self._chosen is not None:
            return self._chosen
        if self._start is None:
            self._start = step
            if not self._plans:  # DDP rebuilds the buckets of a process that goes on without a saved choice, too
                self._first = step + FIRST_TRIAL
        if not self._trials or step < self._first:
            return BY_BUCKET
        if not self._plans:
            self._plans = self._worth_trying(layouts)
            if len(self._plans) == 1:
                self._decide(self._plans[0])
                return self._plans[0]
            _log.info("auto: steps %d to %d try %s", self._first, self._end - 1, ", ".join(self._plans))
        turn, place = divmod(step - self._first, len(self._plans))
        return self._plans[(place + turn) % len(self._plans)]  # none always follows the same one

    @property
    def _end(self) -> int:
        return self._first + TRIAL_STEPS * len(self._plans)

    def saw(self, step: int, plan: str, now: float) -> None:
        """Step number `step` begins at time `now`: what the one before took is known. On this rank."""
        if self._last is not None and self._plans and self._chosen is None and self._last[0] == step - 1 >= self._first:
            _, tried, began = self._last
            times = self._samples.setdefault(tried, [])
            turn = self._round * TRIAL_STEPS + (step - 1 - self._first) // len(self._plans)
            times.extend([0.0] * (turn - len(times)))
            times.append(now - began)
        self._last = step, plan, now

    def due(self, step: int) -> bool:
        """Whether a round of trials is over as step number `step` begins: :meth:`table` of all ranks is wanted for :meth:`settle`."""
        return self._chosen is None and bool(self._plans) and step >= self._end

    def table(self) -> list[list[float]]:
        """This rank's seconds by turn, for each plan on trial."""
        return [self._samples.get(plan, [])[1:] for plan in self._plans]

    def settle(self, step: int, tables: Sequence[Sequence[Sequence[float]]]) -> None:
        """Decides by the tables of all ranks, in rank order, or begins another round as step number `step` begins.

        Plans are compared turn by turn, with the one that has the least median: what slows the machine for a while slows all plans of a turn.
        """
        turns = []  # each the seconds of every plan, of the slowest rank
        for turn in itertools.zip_longest(*(times for table in tables for times in table), fillvalue=0.0):
            if min(turn) > 0:
                by_rank = [turn[i : i + len(self._plans)] for i in range(0, len(turn), len(self._plans))]
                turns.append([max(times) for times in zip(*by_rank, strict=True)])
        if len(turns) < 2:  # a restart in the middle lost them
            self._decide(BY_BUCKET)
            return
        medians = [statistics.median(times) for times in zip(*turns, strict=True)]
        self._times |= dict(zip(self._plans, medians, strict=True))
        plans = range(len(medians))
        best = medians.index(min(medians))
        ratios = [_ratio([turn[i] / turn[best] for turn in turns]) for i in plans]
        taken = next(i for i, (_, middle, _) in enumerate(ratios) if middle <= 1 + MEASURED_TIE)
        # The best of a few turns is one that was lucky, too: it has to be held against each of the others.
        sure = all(_ratio([turn[taken] / turn[i] for turn in turns])[2] <= 1 + TIE for i in plans)
        self._round += 1
        if sure or self._round == ROUNDS:
            self._decide(self._plans[taken])
            return
        self._plans = [plan for plan, (low, _, _) in zip(self._plans, ratios, strict=True) if low <= 1 + TIE]
        self._first = step
        _log.info("auto: steps %d to %d try %s again", step, self._end - 1, ", ".join(self._plans))

    def _decide(self, plan: str) -> None:
        self._chosen = plan
        self._samples = {}

    # -- what was chosen

    @property
    def decided(self) -> str:
        """See :class:`AutoPlan`."""
        if self._loaded and self._chosen is not None:
            return "checkpoint"
        if self._chosen is not None:
            return "measured" if self._times else "model"
        return "trial" if self._plans else "model"

    def describe(self, plan: str, layouts: Sequence[Layout]) -> AutoPlan:
        """Everything about a plan."""
        chosen = []
        for layout, way in zip(layouts, self.ways(plan, layouts), strict=True):
            seconds = self._seconds(layout.numel)
            chosen.append(
                BucketChoice(
                    layout.parameters,
                    layout.numel,
                    way,
                    way not in TORCH_WAYS,
                    seconds,
                    self._reason(plan, way, seconds),
                )
            )
        return AutoPlan(plan, self.decided, dict(self._times), tuple(chosen))

    def _reason(self, plan: str, way: str, seconds: dict[str, float]) -> str:
        fastest = self._fastest(seconds)
        model = f"the model gives it {1e3 * seconds[way]:.2f} ms and {fastest} {1e3 * seconds[fastest]:.2f} ms"
        if self._times:
            return f"steps took {1e3 * self._times[plan]:.1f} ms with it, the fastest of the plans tried or within {MEASURED_TIE:.1%} of it; {model}"
        if self.decided == "trial":
            return f"on trial; {model}"
        return f"fastest by the model, or the most exact within {TIE:.0%} of it; {model}"

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text and lists."""
        return {
            "candidates": list(self.candidates),
            "calibration": self.calibration.to_dict(),
            "plans": list(self._plans),
            "first": self._first,
            "round": self._round,
            "samples": {plan: list(times) for plan, times in self._samples.items()},
            "chosen": self._chosen,
            "times": dict(self._times),
        }

    def load_state_dict(self, state: dict[str, Any], layouts: Sequence[Layout]) -> None:
        """Goes on with the saved calibration and choice; says so where this cluster's own would lead to another. Raises StateError."""
        if tuple(state["candidates"]) != self.candidates:
            raise StateError(
                f"the saved choice is between {state['candidates']}, this one between {list(self.candidates)}"
            )
        saved = Calibration.from_dict(state["calibration"])
        if saved.ranks != self.calibration.ranks:
            _log.warning(
                "auto: the saved choice is of %d ranks; this group of %d chooses anew",
                saved.ranks,
                self.calibration.ranks,
            )
            return
        fresh = self.ways(BY_BUCKET, layouts)
        self.calibration = saved
        self._plans, self._first, self._round = list(state["plans"]), int(state["first"]), int(state["round"])
        self._samples = {plan: list(times) for plan, times in state["samples"].items()}
        self._chosen, self._times = state["chosen"], dict(state["times"])
        self._loaded, self._last = True, None
        kept = self.ways(self._chosen or BY_BUCKET, layouts)
        if fresh != kept:
            _log.warning(
                "auto: the saved choice is kept (%s); a fresh probe here would have led to %s",
                ", ".join(dict.fromkeys(kept)),
                ", ".join(dict.fromkeys(fresh)),
            )


def _ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median between the ends of an interval that holds it with 95 %, or as near to it as so few values allow (94 % of 5): order statistics, whatever the steps' distribution is.

    Source: a value is below the median with probability 1/2, so how many are is binomial (Thompson, 1936).
    """
    ordered, n = sorted(ratios), len(ratios)
    outside = 0  # values beyond each end
    below = 0.5**n  # the probability that no more than so many are below the median
    while outside + 1 < n / 2 and below + math.comb(n, outside + 1) * 0.5**n <= 0.025:
        outside += 1
        below += math.comb(n, outside) * 0.5**n
    return ordered[outside], statistics.median(ordered), ordered[n - 1 - outside]
