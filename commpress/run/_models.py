"""Finds the DDP models that a script makes, registers them, and says at the end what became of each."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from commpress.hooks import HookState, register
from commpress.run._tally import Tally


def say(line: str) -> None:
    """One line on standard error."""
    print(f"commpress run: {line}", file=sys.stderr, flush=True)


@final
class _Model:
    """One DDP model: what it is called, its state once it has one, or why it has none."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self.name = ""
        self.number = 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.handle: Any = None
        self.state: HookState | None = None
        self.tally: Tally | None = None
        self.settled = False
        self.ddp = weakref.ref(ddp)


@final
class _FirstForward:
    """Forward pre-hook of one DDP model. A copy of the model keeps it; in a file it is a hook that does nothing."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, ddp: DistributedDataParallel, _: Any) -> None:
        # Evaluation may run on one rank alone, and without a synchronised backward pass there is nothing to compress.
        if torch.is_grad_enabled() and ddp.require_backward_grad_sync:
            self._models.take(ddp)

    def __deepcopy__(self, memo: dict[int, Any]) -> _FirstForward:
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _Nothing, ()


@final
class _Nothing:
    """What a saved model has in place of `_FirstForward`."""

    def __call__(self, ddp: Any, _: Any) -> None:
        return None


@final
class Models:
    """All DDP models made while the block is entered.

    Args:
        options: keyword arguments for :func:`commpress.register`.
        telemetry: file for the first model's records, or None; the second model's go to ``name.2.jsonl`` and so on.
        quiet: no summary.
    """

    def __init__(self, options: Mapping[str, Any], *, telemetry: Path | None, quiet: bool) -> None:
        HookState(**options)  # a wrong option is an error now, not in the first forward pass
        self._options = dict(options)
        self._telemetry = telemetry
        self._quiet = quiet
        self._models: list[_Model] = []
        self._found: weakref.WeakKeyDictionary[DistributedDataParallel, _Model] = weakref.WeakKeyDictionary()
        self._handle: Any = None

    def __enter__(self) -> Models:
        self._handle = register_module_module_registration_hook(self._assigned)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _assigned(self, module: torch.nn.Module, name: str, submodule: torch.nn.Module | None) -> None:
        """torch tells that `submodule` becomes `module.name`."""
        if name == "module" and isinstance(module, DistributedDataParallel) and module not in self._found:
            self._add(module, type(submodule).__name__)

    def _add(self, ddp: DistributedDataParallel, name: str) -> _Model:
        model = _Model(ddp)
        model.number = len(self._models) + 1
        model.name = f"{name} (model {model.number})" if self._models else name
        model.handle = ddp.register_forward_pre_hook(_FirstForward(self), prepend=True)
        self._models.append(model)
        self._found[ddp] = model
        return model

    def take(self, ddp: DistributedDataParallel) -> None:
        """Registers a model before its first training pass, unless it has a hook of its own. Collective."""
        model = self._found.get(ddp)
        if model is None:  # a copy of a model
            model = self._add(ddp, type(ddp.module).__name__)
        model.handle.remove()
        if model.settled:
            return
        model.settled = True
        own = _own_hook(ddp)
        if own is not None:
            if model.rank == 0:
                say(
                    f"{model.name}: the script registers a communication hook of its own, {own}, and DDP takes one only: "
                    "this model's gradients travel as that hook sends them"
                )
            return
        group = ddp.process_group
        sink = Tally(self._path_of(model.number), group.rank(), group.size())
        options = dict(self._options)
        if self._telemetry is None:
            options["telemetry_every"] = 0  # figures of each step are enough for the summary
        model.tally = sink
        model.state = register(ddp, telemetry=sink, **options)

    def _path_of(self, number: int) -> Path | None:
        if self._telemetry is None or number == 1:
            return self._telemetry
        return self._telemetry.with_name(f"{self._telemetry.stem}.{number}{self._telemetry.suffix}")

    def close(self, *, completed: bool) -> None:
        """Closes the states. `completed`: the script came to its end, so that what it did not do is worth a word."""
        if completed and not self._models and int(os.environ.get("RANK", "0")) == 0:
            say(
                "the script made no DistributedDataParallel model in this process, so nothing was compressed. If it starts its "
                "ranks itself, let torchrun start them; if it wraps its model otherwise, see docs/run.md"
            )
        for model in self._models:
            if model.state is not None and model.tally is not None:
                error = model.state.error
                model.state.close()
                model.tally.close()
                if model.tally.rank == 0 and (completed or error is not None):
                    self._summarise(model, model.state, model.tally, error)
            elif completed and not model.settled and model.rank == 0:
                say(f"{model.name}: no forward pass of training went through it, so nothing was compressed")

    def _summarise(self, model: _Model, state: HookState, tally: Tally, error: Exception | None) -> None:
        if error is not None:
            say(f"{model.name}: failed in step {state.step}: {type(error).__name__}: {error}")
        elif tally.world_size > 1 and tally.steps and not state.counts["compressed_numel"]:
            why = ", as this codec is lossless" if state.codec.lossless else ""
            say(f"{model.name}: {tally.summary(state.codec)}; nothing was compressed{why}")
        elif not self._quiet:
            say(f"{model.name}: {tally.summary(state.codec)}")


def _own_hook(ddp: DistributedDataParallel) -> str | None:
    """Name of the communication hook that a model has, or None."""
    for hook, _ in getattr(ddp, "_comm_hooks", []):
        return str(getattr(hook, "__qualname__", hook))
    # A hook of torch's that is built into C++ leaves its name there only.
    return str(ddp._get_ddp_logging_data().get("comm_hook") or "") or None
