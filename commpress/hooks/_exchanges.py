"""Which reduction serves a HookState."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from commpress.codecs import LowRankCodec
from commpress.collectives import Asked
from commpress.hooks._exchange import Exchange
from commpress.hooks._low_rank import LowRankReduction
from commpress.hooks._options import Coding
from commpress.hooks._planner import PlanSettings
from commpress.hooks._reduction import Reduction
from commpress.telemetry import Sink


def make_reduction(
    coding: Coding,
    parameters: dict[str, torch.Tensor],
    group: dist.ProcessGroup,
    identity: dict[str, Any],
    *,
    hierarchical: Asked,
    timeout: float | None,
    telemetry: str | os.PathLike[str] | Sink | None,
    telemetry_every: int,
    check_every: int,
) -> Reduction:
    """Factors are summed, payloads exchanged. Collective; arguments and errors as in :class:`Exchange`."""
    options: dict[str, Any] = {
        "feedback": coding.feedback,
        "timeout": timeout,
        "telemetry": telemetry,
        "telemetry_every": telemetry_every,
        "check_every": check_every,
    }
    if isinstance(coding.codec, LowRankCodec):
        assert not isinstance(coding.plan, PlanSettings)
        return LowRankReduction(coding.codec, parameters, group, identity, budget=coding.plan, **options)
    assert coding.plan is None or isinstance(coding.plan, PlanSettings)
    options |= {"plan": coding.plan, "shaping": coding.shaping, "auto": coding.auto, "hierarchical": hierarchical}
    return Exchange(coding.codec, parameters, group, identity, **options)
