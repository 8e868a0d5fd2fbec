"""A HookState's arguments: checked, and turned into what it works with."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, final

import torch

from commpress.codecs import Codec, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.collectives import Asked, Hierarchical, asked_of
from commpress.errors import SpecError
from commpress.hooks._auto_lane import AutoSettings, auto_settings
from commpress.hooks._dimensions import DimensionSettings
from commpress.hooks._handshake import library_version
from commpress.hooks._planner import PlanSettings, plan_settings
from commpress.hooks._shaping import exponent_of

_log = logging.getLogger("commpress.hooks")
AUTO = "auto"
DEFAULT = "hadamard+lloyd:2"


@final
@dataclasses.dataclass(frozen=True)
class Coding:
    """How gradients are coded.

    Attributes:
        codec: in use, with feedback its ``for_feedback()``; with "auto" and no budget the least exact that may be chosen.
        name: what is compared between ranks, and with checkpoints.
        feedback: whether error feedback is on. shaping: exponent of noise shaping. plan: of a bit budget, or None. auto: of "auto", or None.
    """

    codec: Codec
    name: str
    feedback: bool
    shaping: float
    plan: PlanSettings | DimensionSettings | None
    auto: AutoSettings | None

    def arguments(self) -> dict[str, Any]:
        """Of the HookState that was asked for. Raises StateError if they cannot be pickled."""
        found: dict[str, Any] = {"codec": self.codec} if self.plan is None else self.plan.arguments()
        if self.auto is not None:
            found |= {"codec": AUTO, "calibration": self.auto.calibration, "trials": self.auto.trials}
        return found | {"feedback": self.feedback, "shaping": self.shaping}


def coding(
    codec: Any, feedback: bool | None, shaping: float | None, calibration: Any, trials: bool, **budget: Any
) -> Coding:
    """From a HookState's arguments; `budget`: those of :func:`plan_settings` but the codec. Raises SpecError."""
    automatic = isinstance(codec, str) and codec == AUTO
    if calibration is not None and not automatic:
        raise SpecError('calibration= belongs to codec="auto"')
    plan = plan_settings(None if automatic else codec, **budget)
    base = plan.base() if plan is not None else make_codec(DEFAULT if automatic else codec or DEFAULT)
    if base.needs_side:
        raise SpecError(
            f"{base} is for commpress.all_reduce: a hook measures what its codec sends, and here only the receiver can decode it"
        )
    with_feedback = not base.unbiased and not base.lossless if feedback is None else bool(feedback)
    auto = None
    if automatic:
        auto = auto_settings(None if plan is None else base, with_feedback, calibration, trials)
        if plan is None and shaping is None:
            shaping = 0.0  # it would have to follow from the codec, and that may change from step to step
    used = base.for_feedback() if with_feedback else base
    name = str(used) if auto is None else AUTO if plan is None else f"{AUTO}, {used}"
    return Coding(used, name, with_feedback, exponent_of(shaping, base, with_feedback), plan, auto)


def levels(hierarchical: Hierarchical, chosen: Coding) -> Asked:
    """Whether an exchange has two levels, as `commpress.collectives.asked_of` has it. Raises SpecError: the codec knows only one."""
    asked = asked_of(hierarchical)
    if asked and isinstance(chosen.codec, LowRankCodec):
        raise SpecError(f"{chosen.codec} knows no hierarchical exchange: leave hierarchical out, or set it to False")
    if asked and chosen.auto is not None:
        raise SpecError('the choice of "auto" is between flat exchanges: name a codec, or leave hierarchical out')
    return asked if chosen.auto is None else False


def on_device(chosen: Coding, shaping: float | None, hierarchical: Asked, every: dict[str, int]) -> Coding:
    """The same where the parameters are on a CUDA device: without noise shaping, if none was asked for.

    Args:
        shaping, every: as they were asked for; `every`: intervals by name, of which only that of telemetry is to be had there.

    Raises:
        SpecError: something was asked for that is not to be had there.
    """
    missing = [name for name, steps in every.items() if steps and name != "telemetry_every"]
    missing += [name for name, wanted in (("shaping", shaping), ("hierarchical=True", hierarchical)) if wanted]
    if missing:
        raise SpecError(f"{', '.join(missing)} cannot be had with parameters on a CUDA device yet: leave it out")
    if chosen.auto is not None or isinstance(chosen.codec, LowRankCodec):
        raise SpecError(
            f'{AUTO if chosen.auto is not None else chosen.codec} is for parameters on CPUs so far; on a CUDA device name a codec such as "hadamard+lloyd:2"'
        )
    if chosen.shaping:
        _log.info("noise shaping is off: it is for parameters on CPUs so far")
    return dataclasses.replace(chosen, shaping=0.0)


def check_numbers(timeout: Any, seed: Any, **intervals: Any) -> None:
    """Raises SpecError if one is out of its range; `intervals`: numbers of steps, by their names."""
    if timeout is not None and not timeout > 0:
        raise SpecError(f"timeout must be positive, got {timeout!r}")
    for name, value in intervals.items():
        if not isinstance(value, int) or value < 0:
            raise SpecError(f"{name} must be an integer >= 0, got {value!r}")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise SpecError(f"seed must be an integer in [0, 2^64), got {seed!r}")


def identity_of(
    chosen: Coding, seed: int, check_every: int, world_size: int, parameters: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """What must be equal on all ranks, whatever the codec."""
    return {
        "commpress version": library_version(),
        "codec": chosen.name,
        "error feedback": chosen.feedback,
        "shaping": chosen.shaping,
        "seed": seed,
        "check_every": check_every,
        "world size": world_size,
        "parameters": [
            [repr(name), str(list(p.shape)), str(p.dtype).removeprefix("torch.")] for name, p in parameters.items()
        ],
    }
