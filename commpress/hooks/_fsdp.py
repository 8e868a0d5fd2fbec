"""Registration of an FSDP2 model: options checked, modules found, ranks agreed, communication put under every module."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import torch
import torch.distributed as dist

from commpress.codecs import LinearCodec, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError
from commpress.hooks._fsdp_exchange import ShardExchange
from commpress.hooks._fsdp_state import FSDPHookState
from commpress.hooks._fsdp_torch import GatherComm, ScatterComm, find_units, operation
from commpress.hooks._handshake import library_version
from commpress.hooks._options import check_numbers
from commpress.hooks._planner import PlanSettings, plan_settings
from commpress.telemetry import Sink

_log = logging.getLogger("commpress.hooks")
_LEAST_GATHER_BITS = 8


def register_fsdp(
    model: torch.nn.Module,
    codec: Any = None,
    *,
    bits: float | None = None,
    objective: str | None = None,
    plan: Any = None,
    plan_every: int = 10,
    plan_floor: float = 0.9,
    gamma: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    feedback: bool | None = None,
    seed: int = 0,
    telemetry: str | os.PathLike[str] | Sink | None = None,
    telemetry_every: int = 100,
    timeout: float | None = None,
    all_gather: Any = None,
    replicate: Any = None,
) -> FSDPHookState:
    """See :func:`commpress.register`."""
    settings = None
    if bits is not None or plan is not None or objective is not None or gamma is not None or optimizer is not None:
        found = plan_settings(codec, bits, objective, plan_every, plan, plan_floor, False, gamma, optimizer)
        if not isinstance(found, PlanSettings):
            raise SpecError("lowrank is for DDP: FSDP2's shards are no matrices")
        settings = found
    chosen = make_codec(codec or "hadamard+lloyd:2") if settings is None else settings.base()
    _check_codec(chosen, "codec")
    gather = None if all_gather is None else make_codec(all_gather)
    if gather is not None:
        _check_codec(gather, "all_gather")
        if not gather.lossless and (gather.bits is None or gather.bits < _LEAST_GATHER_BITS):
            raise SpecError(
                f"all_gather={str(gather)!r}: weights need at least {_LEAST_GATHER_BITS} bits, such as 'uniform:8'"
            )
    check_numbers(timeout, seed, telemetry_every=telemetry_every)
    with_feedback = not chosen.unbiased and not chosen.lossless if feedback is None else bool(feedback)
    group = replicate.get_group() if hasattr(replicate, "get_group") else replicate
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise SpecError(f"replicate must be a 1-D DeviceMesh or a process group of this rank, got {replicate!r}")
    units = find_units(model, gathers=gather is not None, replicates=group is not None)
    shard = units[0].shard_group
    if len(units) >= 1 << 16:
        raise SpecError(f"{len(units)} modules; the limit is 65535")
    in_use = chosen.for_feedback() if with_feedback else chosen
    identity = {
        "commpress version": library_version(),
        "codec": str(in_use),
        "codec of weights": str(gather),
        "error feedback": with_feedback,
        "seed": seed,
        "world size": shard.size(),
        "replicas": 1 if group is None else group.size(),
        "modules": [unit.name for unit in units],
        "parameters": [
            [repr(name), str(list(p.shape)), str(p.dtype).removeprefix("torch."), "" if p.requires_grad else "frozen"]
            for unit in units
            for name, p in unit.parameters().items()
        ],
    }
    exchange = ShardExchange(
        units,
        in_use,
        gather=gather,
        shard=shard,
        replicate=group,
        identity=identity,
        operation=operation,
        feedback=with_feedback,
        plan=settings,
        seed=seed,
        telemetry=telemetry,
        telemetry_every=telemetry_every,
        timeout=timeout,
    )
    try:
        for unit in units:
            unit.attach(
                ScatterComm(functools.partial(exchange.reduce_scatter, unit)),
                None if gather is None else GatherComm(functools.partial(exchange.all_gather, unit)),
                None if group is None else functools.partial(exchange.all_reduce, unit),
            )
    except Exception:
        for unit in units:
            unit.detach()
        exchange.close()
        raise
    if shard.size() == 1:
        _log.warning(
            "the modules are sharded over one rank, where FSDP2 calls no reduce-scatter and no all-gather: %s is compressed",
            "nothing" if group is None else "the all-reduce between replicas alone",
        )
    return FSDPHookState(exchange, units, feedback=with_feedback, gather=gather)


def _check_codec(codec: Any, option: str) -> None:
    if isinstance(codec, (LinearCodec, LowRankCodec)) or codec.needs_side:
        raise SpecError(f"{option}={str(codec)!r} is for all-reduces: FSDP2 takes a codec such as 'hadamard+lloyd:4'")
