"""What a LocalSGD was asked for, checked."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from commpress.codecs import Codec
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError
from commpress.hooks._dimensions import DimensionSettings, is_low_rank
from commpress.hooks._planner import PlanSettings, plan_settings
from commpress.telemetry import Sink

_DEFAULT_CODEC = "hadamard+lloyd:4"
BUFFERS = ("average", "local")
NONFINITE = ("propagate", "restore")


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """The arguments of :class:`commpress.LocalSGD`, which says what they mean.

    Raises:
        SpecError: one is malformed, or two do not go together.
    """

    codec: Any
    every: int
    bits: float | None
    objective: str | None
    plan_every: int
    feedback: bool | None
    warmup_steps: int
    parts: int
    overlap: bool
    outer_lr: float
    outer_momentum: float
    outer_nesterov: bool
    outer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None
    buffers: str
    nonfinite: str
    check: bool
    check_every: int
    seed: int
    telemetry: str | os.PathLike[str] | Sink | None
    telemetry_every: int
    timeout: float | None

    def __post_init__(self) -> None:
        for name, least in (
            ("every", 1),
            ("warmup_steps", 0),
            ("parts", 1),
            ("telemetry_every", 0),
            ("check_every", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"{name} must be an integer >= {least}, got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise SpecError(f"seed must be an integer in [0, 2^64), got {self.seed!r}")
        if self.timeout is not None and not self.timeout > 0:
            raise SpecError(f"timeout must be positive, got {self.timeout!r}")
        for name, known in (("buffers", BUFFERS), ("nonfinite", NONFINITE)):
            if getattr(self, name) not in known:
                raise SpecError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self._check_outer()
        base = self.base()
        if base.needs_side:
            raise SpecError(f"{base} is for commpress.all_reduce: here only the receiver could decode it")
        if self.parts > 1 and self.bits is not None:
            raise SpecError(
                "bits= needs parts=1: the allocator plans from rounds in which it sees every layer; "
                "with parts give a codec with its rate, such as 'hadamard+lloyd:4'"
            )
        if self.parts > 1 and is_low_rank(base):
            raise SpecError("lowrank needs parts=1: a part may begin or end within a matrix")

    def _check_outer(self) -> None:
        if not isinstance(self.outer_lr, (int, float)) or not 0 < self.outer_lr < math.inf:
            raise SpecError(f"outer_lr must be positive, got {self.outer_lr!r}")
        if not isinstance(self.outer_momentum, (int, float)) or not 0 <= self.outer_momentum < 1:
            raise SpecError(f"outer_momentum must be in [0, 1), got {self.outer_momentum!r}")
        if self.outer is None:
            return
        if not callable(self.outer) or isinstance(self.outer, torch.optim.Optimizer):
            raise SpecError(
                "outer must be a function that makes an optimiser of the parameters it is given, such as "
                "lambda parameters: torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)"
            )
        if self.outer_lr != 1.0 or self.outer_momentum:
            raise SpecError(
                "outer_lr and outer_momentum describe the built-in outer optimiser: leave them out with outer="
            )

    @property
    def budget(self) -> PlanSettings | DimensionSettings | None:
        """What the allocator is to do, or None without `bits`."""
        return plan_settings(self.codec, self.bits, self.objective, self.plan_every, None, 0.9, True, None, None)

    def base(self) -> Codec:
        """The codec as asked for."""
        budget = self.budget
        return budget.base() if budget is not None else make_codec(self.codec or _DEFAULT_CODEC)

    @property
    def with_feedback(self) -> bool:
        """Whether residuals are kept: by default for a codec that is neither unbiased nor lossless."""
        base = self.base()
        return not base.unbiased and not base.lossless if self.feedback is None else bool(self.feedback)

    def used_codec(self) -> Codec:
        """The codec in use."""
        return self.base().for_feedback() if self.with_feedback else self.base()

    def identity(self) -> dict[str, Any]:
        """What must be equal on all ranks, but for the model and the outer optimiser."""
        names = ("every", "warmup_steps", "parts", "overlap", "buffers", "nonfinite", "check", "check_every", "seed")
        return {
            "codec": str(self.used_codec()),
            "error feedback": self.with_feedback,
            **{name: getattr(self, name) for name in names},
        }

    def config(self) -> dict[str, Any]:
        """The arguments, for a pickle: a sink stays behind."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.telemetry, Sink):
            found["telemetry"] = None
        return found
