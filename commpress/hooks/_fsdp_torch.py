"""All that commpress touches of FSDP2's private parts; what else is used of FSDP2 is public. Written against torch 2.10 to 2.13.

`set_custom_reduce_scatter`, `set_custom_all_gather` and `set_all_reduce_hook` are public methods, but the classes of what they take, and where a module's parameters and their
padded shards are kept, are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.errors import TensorError
from commpress.hooks._ddp import ModelError

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    for _name in ("set_custom_reduce_scatter", "set_custom_all_gather", "set_all_reduce_hook", "_get_fsdp_state"):
        getattr(FSDPModule, _name)
except (ImportError, AttributeError) as error:
    raise ModelError(
        f"this torch ({torch.__version__}) lacks what compressed FSDP2 needs ({error}); versions 2.10 to 2.13 have it"
    ) from error


@final
class ScatterComm(ReduceScatter):
    """What FSDP calls to reduce one module's gradients. `reduce(output, input, op)` does it before it returns: the work is done where FSDP reads the output."""

    def __init__(self, reduce: Callable[[torch.Tensor, torch.Tensor, Any], None]) -> None:
        self._reduce = reduce
        self.released = False  # its state is closed: another one may take its place

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        self._reduce(output_tensor, input_tensor, op)


@final
class GatherComm(AllGather):
    """What FSDP calls to get one module's weights; `gather(output, input, group)`."""

    def __init__(self, gather: Callable[[torch.Tensor, torch.Tensor, Any], None]) -> None:
        self._gather = gather

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> None:
        self._gather(output_tensor, input_tensor, group)


@final
@dataclasses.dataclass(eq=False)
class Unit:
    """One `fully_shard` module: its parameters travel together.

    Attributes:
        index: its place among the model's. name: of the module in the model ("(root)" for the model itself). names: of its parameters, in the order in which they travel.
    """

    index: int
    name: str
    names: tuple[str, ...]
    module: Any
    group: Any

    @property
    def shard_group(self) -> dist.ProcessGroup:
        """The ranks between which the module is sharded."""
        return self.group.mesh_info.shard_process_group

    @property
    def divide_factor(self) -> float | None:
        """Of `set_gradient_divide_factor`."""
        return self.group.gradient_divide_factor

    @property
    def all_reduces(self) -> bool:
        """False after `set_requires_all_reduce(False)`."""
        return bool(self.group.all_reduce_grads)

    def layers(self, *, trained: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names and sizes of the padded shards, of which every row of a reduce-scatter or an all-gather has one after the other.

        Args:
            trained: only those that require a gradient, as they do now.
        """
        kept = [
            (name, int(p.padded_sharded_param_size.numel()))
            for name, p in zip(self.names, self.group.fsdp_params, strict=True)
            if not trained or p.sharded_param.requires_grad
        ]
        return tuple(n for n, _ in kept), tuple(s for _, s in kept)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The sharded parameters by name."""
        return {n: p.sharded_param for n, p in zip(self.names, self.group.fsdp_params, strict=True)}

    def exact_gather(self, output: torch.Tensor, input: torch.Tensor, group: Any) -> None:
        """As FSDP itself would."""
        DefaultAllGather()(output_tensor=output, input_tensor=input, group=group)

    def attach(
        self,
        scatter: ScatterComm,
        gather: GatherComm | None,
        hook: Callable[[torch.Tensor], None] | None,
    ) -> None:
        """Puts the communication under the module. Raises ModelError if FSDP did not take it."""
        self.module.set_custom_reduce_scatter(scatter)
        if gather is not None:
            self.module.set_custom_all_gather(gather)
        if hook is not None:
            self.module.set_all_reduce_hook(hook)
        taken = (
            self.group._reduce_scatter_comm is scatter
            and (gather is None or self.group._all_gather_comm is gather)
            and (hook is None or self.group._all_reduce_hook is hook)
        )
        if not taken:
            raise ModelError(f"FSDP did not take the communication of module {self.name}: it would go uncompressed")

    def detach(self) -> None:
        """Gives the module torch's own communication back."""
        self.group._reduce_scatter_comm = DefaultReduceScatter()
        self.detach_gather()
        self.group._all_reduce_hook = None

    def release(self) -> None:
        """The state is closed: weights travel as ever, so that the model can be evaluated and saved; a backward pass finds the closed state."""
        self.group._reduce_scatter_comm.released = True
        self.detach_gather()

    def detach_gather(self) -> None:
        """Gives the all-gather alone back."""
        if isinstance(self.group._all_gather_comm, GatherComm):
            self.group._all_gather_comm = DefaultAllGather()


def find_units(model: torch.nn.Module, *, gathers: bool, replicates: bool) -> list[Unit]:
    """All modules under `model` that fully_shard has been applied to, with parameters.

    Args:
        gathers: their all-gather will be replaced, too. replicates: an all-reduce hook will be set.

    Raises:
        ModelError: one cannot be served; it is named. Or there is none.
    """
    names = {id(module): name for name, module in model.named_modules()}
    units: list[Unit] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        name, state = name or "(root)", module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # before torch 2.12 there was one, or none
            groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
        if len(groups) > 1:
            raise ModelError(
                f"module {name} has {len(groups)} parameter groups (a shard_placement_fn gave its parameters several meshes), "
                "and FSDP takes one communication for each module: apply fully_shard to the parts apart"
            )
        for group in groups:
            if id(group) not in seen and group.fsdp_params:
                seen.add(id(group))
                _check_group(name, group, gathers=gathers, replicates=replicates)
                found = tuple(_name_of(p, names) for p in group.fsdp_params)
                units.append(Unit(len(units), name, found, module, group))
    if not units:
        raise ModelError(f"{type(model).__name__} holds no fully_shard module with parameters: fully_shard it first")
    ranks = dist.get_process_group_ranks(units[0].shard_group)
    for unit in units[1:]:
        others = dist.get_process_group_ranks(unit.shard_group)
        if others != ranks:
            raise ModelError(
                f"module {units[0].name} is sharded over ranks {ranks}, and module {unit.name} over {others}: register the modules of each mesh by themselves"
            )
    return units


def _name_of(fsdp_param: Any, names: dict[int, str]) -> str:
    info = fsdp_param._module_info
    prefix = names.get(id(info.module), "")
    return f"{prefix}.{info.param_name}" if prefix else str(info.param_name)


def _check_group(name: str, group: Any, *, gathers: bool, replicates: bool) -> None:
    mesh_info = group.mesh_info
    if not hasattr(mesh_info, "shard_process_group"):
        raise ModelError(f"module {name} is not sharded: commpress serves fully_shard, and DistributedDataParallel")
    if hasattr(mesh_info, "replicate_process_group"):
        raise ModelError(
            f"module {name} is on a 2-D mesh, where FSDP's own all-reduce between the replicas cannot be replaced: use "
            'fully_shard(..., mesh=mesh["shard"]) and commpress.register(model, replicate=mesh["replicate"], ...)'
        )
    if group.device.type != "cpu":
        raise TensorError(f"module {name} is on {group.device}: only CPU gradients so far")
    comm, gather, hook = group._reduce_scatter_comm, group._all_gather_comm, group._all_reduce_hook
    if isinstance(comm, ScatterComm):
        if not comm.released:
            raise ModelError(f"module {name} is already bound to a commpress state: close that one first")
        comm, hook = DefaultReduceScatter(), None
        group._all_reduce_hook = None
    if type(comm) is not DefaultReduceScatter or (gathers and type(gather) is not DefaultAllGather):
        raise ModelError(
            f"module {name} already has a communication of its own ({type(comm).__name__}, {type(gather).__name__})"
        )
    if replicates and hook is not None:
        raise ModelError(f"module {name} already has an all-reduce hook ({getattr(hook, '__qualname__', hook)})")


def operation(op: Any) -> tuple[str, float | None]:
    """("mean" or "sum", gain of a sum's contributions if there is one) of what FSDP asks for: SUM, AVG or PREMUL_SUM. Raises TensorError."""
    if op == dist.ReduceOp.AVG:
        return "mean", None
    if op == dist.ReduceOp.SUM:
        return "sum", None
    if op == dist.ReduceOp.PREMUL_SUM:
        factor = op.__getstate__()[1]
        if isinstance(factor, torch.Tensor) and factor.numel() == 1:
            factor = factor.item()
        if isinstance(factor, (int, float)) and factor > 0:
            return "sum", float(factor)
        raise TensorError(f"PREMUL_SUM with {factor!r}: the factor must be one positive number")
    raise TensorError(f"a gradient reduction is SUM, AVG or PREMUL_SUM, got {op}")
