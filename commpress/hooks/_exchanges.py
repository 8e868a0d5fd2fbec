"""Which reduction serves a HookState."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from commpress.codecs import LowRankCodec
from commpress.collectives import Asked, CudaOps, DeviceOps, group_timeout
from commpress.errors import TensorError
from commpress.hooks._device_exchange import DeviceExchange
from commpress.hooks._exchange import Exchange
from commpress.hooks._low_rank import LowRankReduction
from commpress.hooks._options import Coding
from commpress.hooks._planner import PlanSettings
from commpress.hooks._reduction import Reduction
from commpress.hooks._worker_agreement import WorkerAgreement
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
    agreement_every: int,
    seed: int,
    device: DeviceOps | None = None,
) -> Reduction:
    """Factors are summed, payloads exchanged. Collective; arguments and errors as in :class:`Exchange`, `agreement_every` and `seed` as in :class:`HookState`. `device`: where the parameters are, if not on the CPU."""
    if device is not None:
        assert coding.plan is None or isinstance(coding.plan, PlanSettings)
        return DeviceExchange(
            coding.codec,
            parameters,
            group,
            identity,
            feedback=coding.feedback,
            timeout=timeout,
            telemetry=telemetry,
            plan=coding.plan,
            ops=device,
        )
    options: dict[str, Any] = {
        "feedback": coding.feedback,
        "timeout": timeout,
        "telemetry": telemetry,
        "telemetry_every": telemetry_every,
        "check_every": check_every,
    }
    if isinstance(coding.codec, LowRankCodec):
        assert not isinstance(coding.plan, PlanSettings)
        found: Reduction = LowRankReduction(coding.codec, parameters, group, identity, budget=coding.plan, **options)
        return _watched(found, parameters, group, timeout, agreement_every, seed)
    assert coding.plan is None or isinstance(coding.plan, PlanSettings)
    options |= {"plan": coding.plan, "shaping": coding.shaping, "auto": coding.auto, "hierarchical": hierarchical}
    found = Exchange(coding.codec, parameters, group, identity, **options)
    return _watched(found, parameters, group, timeout, agreement_every, seed)


def device_of(parameters: dict[str, torch.Tensor], group: dist.ProcessGroup) -> DeviceOps | None:
    """The CUDA device that the parameters are on; None: the CPU.

    Raises:
        TensorError: they are on several devices, or on another kind. StateError: the group, or this build, cannot do CUDA.
    """
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1 and any(device.type != "cpu" for device in devices):
        raise TensorError(
            f"the parameters are on {', '.join(sorted(map(str, devices)))}, and commpress reduces those of one device"
        )
    device = next(iter(devices), torch.device("cpu"))
    return CudaOps(device, group) if device.type == "cuda" else None


def _watched(
    reduction: Reduction,
    parameters: dict[str, torch.Tensor],
    group: dist.ProcessGroup,
    timeout: float | None,
    every: int,
    seed: int,
) -> Reduction:
    """With a monitor, if there is to be one and anybody to compare with."""
    if every and group.size() > 1:
        near = 0 if reduction.nodes is None else reduction.nodes.per_node - 1
        wait = timeout or group_timeout(group)
        reduction.monitor = WorkerAgreement(
            list(parameters), group, wait, every=every, seed=seed, sink=reduction.sink, near=near
        )
    return reduction
