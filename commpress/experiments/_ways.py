"""How gradients travel in a run: by a codec of this library, or by one of the peers that it is compared with."""

from __future__ import annotations

import abc
import contextlib
import math
import re
from collections.abc import Sequence
from typing import Any, final

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from commpress.codecs import codec
from commpress.errors import SpecError, StateError
from commpress.experiments._bf16_hook import bfloat16_hook
from commpress.experiments._one_bit_adam import OneBitAdam, exact_steps
from commpress.hooks import LocalSGD, default_family, register
from commpress.telemetry import Sink

PEERS = ("fp32", "fp16", "bf16", "powersgd:R", "1bit-adam")
"""What is compared with: DDP's own all-reduce, torch's two 16-bit hooks, PowerSGD of low-rank dimension R, 1-bit Adam."""

SKIP = "skip"
"""No exchange at all, for times only: the replicas drift apart."""

AUTO = "auto"
"""The library measures the link and chooses."""

POWER_SGD = re.compile(r"powersgd:([1-9]\d*)")
_BITS = re.compile(r"(?:(?P<codec>\S+) )?bits=(?P<bits>[\d.]+)")
_MIN_COMPRESSION = 2  # PowerSGD's default: a matrix is left exact unless that makes it smaller by this factor


class Way(abc.ABC):
    """One way for gradients to travel, for one model on one rank.

    Args:
        name: as the user wrote it.

    Attributes:
        state: the hook's state, or None where no codec of this library is in use.
        clips: whether the caller should clip what ``grad`` holds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None

    def wrap(self, model: torch.nn.Module) -> DistributedDataParallel:
        """The model under DDP, which must be alike on all ranks already: sending it to them takes two minutes at 10 Mbit/s."""
        return DistributedDataParallel(model, init_sync=False)

    @abc.abstractmethod
    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        """Puts itself under a wrapped model. Collective."""

    def optimizer(
        self,
        ddp: DistributedDataParallel,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        steps: int,
    ) -> torch.optim.Optimizer:
        """What updates the model in a run of so many steps; after :meth:`connect`."""
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    @property
    def clips(self) -> bool:
        return True

    warm_up: int = 2
    """Steps before one is like all that follow: DDP rebuilds its buckets after the first."""

    @property
    def settled(self) -> bool:
        """Whether, after `warm_up` steps, the next one is like all that follow. Equal on all ranks."""
        return True

    agreement_every: int = 0
    """Steps between two comparisons of the ranks' gradients, where a codec of this library is in use; set before :meth:`connect`."""

    def sync(self, ddp: DistributedDataParallel) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward."""
        return contextlib.nullcontext()

    def after_step(self, *, last: bool) -> None:  # noqa: B027  (most ways have nothing to do)
        """After the optimiser's step; `last`: it was the run's last one."""

    def textbook_bytes(self, shapes: Sequence[torch.Size], ranks: int) -> float:
        """Bytes that a rank sends in a step by the textbook, without framing; 0 where the state's telemetry knows."""
        return 0.0

    def stateful(self) -> dict[str, Any]:
        """What a checkpoint must hold beside model and optimiser.

        Raises:
            StateError: its state cannot be saved.
        """
        return {} if self.state is None else {"communication": self.state}

    def close(self) -> None:
        """Ends what :meth:`connect` began."""
        if self.state is not None:
            self.state.close()


@final
class Compressed(Way):
    """A codec, or a bit budget that the allocator shares out."""

    def __init__(self, name: str, codec: str | None, bits: float | None) -> None:
        super().__init__(name)
        # The first steps repack buckets, make the first plan, and measure the link; "auto" tries up to four plans, and again those in doubt.
        self.warm_up = 32 if codec == AUTO else 6
        self._codec, self._bits = codec, bits

    @property
    def settled(self) -> bool:
        auto = None if self.state is None else self.state.auto
        return auto is None or auto.decided != "trial"

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        every = self.agreement_every
        self.state = register(ddp, self._codec, bits=self._bits, seed=seed, telemetry=telemetry, agreement_every=every)


@final
class LocalRounds(Way):
    """Local steps, whose differences are averaged now and then; see :class:`commpress.LocalSGD` for the options."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name)
        self._options = options

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        spec, bits = codec_and_bits(self.name)
        self.state = LocalSGD(ddp, spec, bits=bits, seed=seed, telemetry=telemetry, **self._options)

    def after_step(self, *, last: bool) -> None:
        self.state.step()
        if last:
            self.state.synchronize()


@final
class Ring(Way):
    """DDP's own all-reduce, exact or in 16 bits."""

    warm_up = 1  # the second step has the rebuilt buckets already, and at 10 Mbit/s each takes a minute
    _HOOKS = {"fp16": default_hooks.fp16_compress_hook, "bf16": bfloat16_hook}

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        if self.name in self._HOOKS:
            ddp.register_comm_hook(None, self._HOOKS[self.name])

    def textbook_bytes(self, shapes: Sequence[torch.Size], ranks: int) -> float:
        return ring_bytes(sum(s.numel() for s in shapes) * (2 if self.name in self._HOOKS else 4), ranks)


@final
class PowerSGD(Way):
    """torch's own hook, in one bucket: with several its nested collectives collide on gloo and it hangs or fails (pytorch#48478)."""

    warm_up = 3  # two of them exact

    def __init__(self, name: str, dimension: int) -> None:
        super().__init__(name)
        self._dimension = dimension

    def wrap(self, model: torch.nn.Module) -> DistributedDataParallel:
        mib = sum(p.numel() * p.element_size() for p in model.parameters()) / (1 << 20)
        return DistributedDataParallel(model, bucket_cap_mb=math.ceil(mib) + 1, init_sync=False)

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        # Two exact steps are the least that DDP's rebuilding of buckets allows.
        options = {"start_powerSGD_iter": 2, "min_compression_rate": _MIN_COMPRESSION, "random_seed": seed % (1 << 32)}
        state = powerSGD_hook.PowerSGDState(None, self._dimension, **options)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def textbook_bytes(self, shapes: Sequence[torch.Size], ranks: int) -> float:
        values = 0
        for shape in shapes:
            rows, columns = (shape[0], shape.numel() // shape[0]) if len(shape) > 1 else (0, 0)
            factors = (rows + columns) * self._dimension
            compressed = len(shape) > 1 and factors * _MIN_COMPRESSION < shape.numel()
            values += factors if compressed else shape.numel()
        return ring_bytes(4 * values, ranks)

    def stateful(self) -> dict[str, Any]:
        raise StateError(
            "torch's PowerSGD keeps its state by bucket and loads it by pickle only: such a run has no checkpoints"
        )


@final
class Signs(Way):
    """1-bit Adam."""

    warm_up = 6  # two of them exact, see _bandwidth_rank

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._options: dict[str, Any] = {}
        self._adam: OneBitAdam | None = None

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        self._options = {"seed": seed, "telemetry": telemetry}

    def optimizer(
        self,
        ddp: DistributedDataParallel,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        steps: int,
    ) -> torch.optim.Optimizer:
        warm_up = exact_steps(steps)
        self._adam = OneBitAdam(groups, ddp, lr=lr, betas=betas, warm_up=warm_up, **self._options)
        self.state = self._adam.exchange
        return self._adam

    @property
    def clips(self) -> bool:
        """A momentum is no gradient: only the exact steps are clipped."""
        return self._adam is None or self._adam.warming_up


@final
class Skip(Way):
    """Nothing is exchanged."""

    def connect(self, ddp: DistributedDataParallel, *, seed: int, telemetry: Sink | None) -> None:
        pass

    def sync(self, ddp: DistributedDataParallel) -> contextlib.AbstractContextManager[Any]:
        return ddp.no_sync()


def ring_bytes(nbytes: float, ranks: int) -> float:
    """Bytes that one rank sends in a ring all-reduce of `nbytes`, without any framing."""
    return 2 * (ranks - 1) / ranks * nbytes


def way(text: str) -> Way:
    """A way by its name: one of `PEERS`, `SKIP`, `AUTO`, a codec's spec, ``bits=B`` or ``SPEC bits=B``.

    Raises:
        SpecError: there is no such way.
    """
    name, bits = codec_and_bits(text)
    if bits is not None:
        return Compressed(text, name, bits)
    if name in ("fp32", "fp16", "bf16"):
        return Ring(name)
    if name == "1bit-adam":
        return Signs(name)
    if name == SKIP:
        return Skip(name)
    if found := POWER_SGD.fullmatch(name):
        return PowerSGD(name, int(found[1]))
    if name != AUTO:
        codec(name)  # raises SpecError
    return Compressed(name, name, None)


def codec_and_bits(text: str) -> tuple[str, float | None]:
    """``SPEC bits=B`` taken apart; the family of ``bits=B`` alone is the default one.

    Raises:
        SpecError: B is no number.
    """
    text = text.strip()
    if not (found := _BITS.fullmatch(text)):
        return text, None
    try:
        bits = float(found["bits"])
    except ValueError:
        raise SpecError(f"bits= needs a number, got {text!r}") from None
    return found["codec"] or default_family(bits), bits


def is_peer(text: str) -> bool:
    """Whether it is one of `PEERS`."""
    return text in ("fp32", "fp16", "bf16", "1bit-adam") or POWER_SGD.fullmatch(text) is not None
