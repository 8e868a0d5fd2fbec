"""The DDP communication hook, and the one call that puts it under a model.

No `from __future__ import annotations` here: DDP reads the hook's annotations and refuses text.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from commpress.cluster import Calibration
from commpress.collectives import Hierarchical
from commpress.errors import SpecError, StateError
from commpress.hooks._state import HookState
from commpress.telemetry import Sink

_WRAPPERS = ("_orig_mod", "_forward_module")  # torch.compile's OptimizedModule, Lightning Fabric's _FabricModule


class ModelError(StateError, TypeError):
    """What was to be registered is no DistributedDataParallel model, or one that takes no hook."""


def ddp_hook(state: HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Communication hook for ``ddp_model.register_comm_hook(state, commpress.ddp_hook)``: the compressed mean over
    the ranks.

    The mean divides by the number of ranks, always: with uneven last batches every rank's mean gradient weighs the
    same, and
    under ``DDP.join`` a rank that has no more data counts as a zero gradient (as with
    ``divide_by_initial_world_size=True``).

    Raises:
        TensorError: the bucket is sparse, neither on the CPU nor on a CUDA device, or not floating-point.
        StateError: the state is closed, failed before, or belongs to another model.
        MismatchError, PeerError: see :func:`register`; ``backward()`` raises them, too, when they come up later.

    On a CUDA device what goes wrong in a step is raised by the next one (docs/cuda.md).
    """
    if not isinstance(bucket, dist.GradBucket):
        raise ModelError(
            'commpress needs buckets; torch._dynamo.config.optimize_ddp="python_reducer" hands a hook one gradient '
            "at a time: set another mode"
        )
    return state.reduce(bucket)


def register(
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
    predict: bool | None = None,
    shaping: float | None = None,
    feedback: bool | None = None,
    seed: int = 0,
    telemetry: str | os.PathLike[str] | Sink | None = None,
    telemetry_every: int = 100,
    check_every: int = 0,
    agreement_every: int = 0,
    timeout: float | None = None,
    calibration: Calibration | None = None,
    trials: bool = True,
    hierarchical: Hierarchical = None,
    all_gather: Any = None,
    replicate: Any = None,
) -> Any:
    """Compresses the gradient communication of a DDP or FSDP2 model. Collective: all ranks of the model's group call it alike.

    A DDP model gets the hook :func:`ddp_hook`, with all of :class:`HookState`. In a model that holds `fully_shard` modules each of them gets a compressed reduce-scatter and, where they are
    asked for, an all-gather of weights and an all-reduce between replicas (docs/fsdp2.md); predict, shaping, check_every, agreement_every, hierarchical and "auto" are for DDP alone, and lowrank codecs too.

    Args:
        model: DistributedDataParallel, bare or wrapped by torch.compile or Lightning Fabric; or a module that fully_shard was applied to, or to parts of it.
        codec: see :class:`HookState`, as for all arguments that are not named here. (predict: None means True for DDP.)
        all_gather: FSDP2 only: codec of the weights, of at least 8 bits, such as "uniform:8"; None: they travel as they are.
        replicate: FSDP2 only: DeviceMesh of one dimension, or process group, of the ranks that hold the same shard of a model with several replicas; their all-reduce is
            compressed with `codec`, too.

    Returns:
        The state, a HookState or :class:`FSDPHookState`: counters, checkpoints (`state_dict`, `load_state_dict`) and `close`.

    Raises:
        ModelError: neither a DDP model nor one with fully_shard modules; or one that has a hook, DDP's Python reducer, or a module that cannot be served, which is named.
        MismatchError: the ranks differ in commpress version, codec, options or parameters: raised on every rank, and naming the difference.
        PeerError: a rank did not take part within the timeout.
        SpecError: the codec's spec or an option is malformed, or the option is not for this kind of model.
        TopologyError: `hierarchical` demands what the nodes do not allow.
        TensorError, StateError: the parameters are on several devices, or on a CUDA device that the group's backend or this build does not serve (docs/cuda.md).
    """
    given = {"predict": predict, "shaping": shaping, "check_every": check_every, "agreement_every": agreement_every}
    sharded = _sharded(model)
    if sharded is not None:
        from commpress.hooks._fsdp import register_fsdp  # which needs private parts of torch

        _refuse([name for name, value in given.items() if value], "FSDP2", "DistributedDataParallel")
        return register_fsdp(
            sharded,
            codec,
            bits=bits,
            objective=objective,
            plan=plan,
            plan_every=plan_every,
            plan_floor=plan_floor,
            gamma=gamma,
            optimizer=optimizer,
            feedback=feedback,
            seed=seed,
            telemetry=telemetry,
            telemetry_every=telemetry_every,
            timeout=timeout,
            all_gather=all_gather,
            replicate=replicate,
        )
    given = {"all_gather": all_gather, "replicate": replicate}
    _refuse([name for name, value in given.items() if value is not None], "DistributedDataParallel", "FSDP2")
    ddp = _find_ddp(model)
    state = HookState(
        codec,
        process_group=ddp.process_group,
        bits=bits,
        objective=objective,
        plan=plan,
        plan_every=plan_every,
        plan_floor=plan_floor,
        gamma=gamma,
        optimizer=optimizer,
        predict=predict is not False,
        shaping=shaping,
        feedback=feedback,
        seed=seed,
        telemetry=telemetry,
        telemetry_every=telemetry_every,
        check_every=check_every,
        agreement_every=agreement_every,
        timeout=timeout,
        hierarchical=hierarchical,
        calibration=calibration,
        trials=trials,
    )
    ignored = set(ddp.parameters_to_ignore)
    named = {n: p for n, p in ddp.module.named_parameters() if p.requires_grad and n not in ignored}
    state.bind(named, ddp.process_group)
    try:
        ddp.register_comm_hook(state, ddp_hook)
        _check_effect(ddp, state, ddp_hook)
    except Exception:
        state.close()
        raise
    return state


def _sharded(model: torch.nn.Module) -> torch.nn.Module | None:
    """The model inside wrappers if it holds fully_shard modules, and is no DDP model."""
    found: Any = model
    while not isinstance(found, DistributedDataParallel):
        inner = [getattr(found, name) for name in _WRAPPERS if isinstance(getattr(found, name, None), torch.nn.Module)]
        if not inner:
            break
        found = inner[0]
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it nothing was sharded
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is None or isinstance(found, DistributedDataParallel):
        return None
    return found if any(isinstance(module, kind) for module in found.modules()) else None


def _refuse(options: list[str], kind: str, other: str) -> None:
    """Raises SpecError if there are options that this kind of model cannot honour."""
    if options:
        raise SpecError(f"{', '.join(options)} cannot be had with {kind}, only with {other}: leave it out")


def _find_ddp(model: torch.nn.Module) -> DistributedDataParallel:
    found: Any = model
    while not isinstance(found, DistributedDataParallel):
        inner = [getattr(found, name) for name in _WRAPPERS if isinstance(getattr(found, name, None), torch.nn.Module)]
        if not inner:
            raise ModelError(
                f"expected a DistributedDataParallel model, or one with fully_shard modules, got {type(model).__name__}: wrap it first, "
                "commpress.register(DistributedDataParallel(model), ...)"
            )
        found = inner[0]
    if getattr(found, "_use_python_reducer", False):
        raise ModelError(
            'this model uses torch._dynamo.config.optimize_ddp="python_reducer", which hands a hook one gradient '
            "at a time and no bucket: set another mode before DistributedDataParallel(model)"
        )
    if found._comm_hooks:
        hook, state = found._comm_hooks[0]
        bound = "is already bound to a commpress HookState" if isinstance(state, HookState) else "already has a hook"
        raise ModelError(f"the model {bound} ({getattr(hook, '__qualname__', hook)}), and DDP takes one only")
    return found


def _check_effect(ddp: DistributedDataParallel, state: HookState, hook: Callable[..., Any]) -> None:
    """DDP's own record must name the hook: a subclass or wrapper may swallow the registration."""
    seen = ddp._get_ddp_logging_data().get("comm_hook")
    if [(h, s) for h, s in ddp._comm_hooks if s is state] != [(hook, state)] or seen != hook.__qualname__:
        raise ModelError(f"DDP did not take the hook (it says {seen!r}): gradients would go uncompressed")
