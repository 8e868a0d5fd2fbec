"""The parts of a LocalSGD's round beside the exchange of differences: the outer optimiser, buffers, the record."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from commpress.codecs import Key
from commpress.codecs import codec as make_codec
from commpress.collectives import Communicator, Observer, Reducer
from commpress.errors import SpecError
from commpress.hooks._local_replica import Replica
from commpress.hooks._local_settings import LocalSettings
from commpress.hooks._step import Step
from commpress.telemetry import Sink

_EXACT = make_codec("none")


@final
@dataclasses.dataclass
class Round:
    """A round whose differences are under way, or that a checkpoint brought.

    Attributes:
        number: of the round. members: the buckets that take part.
        step, futures: of the exchange; none where a checkpoint brought the result.
        finite: known once the futures are done.
    """

    number: int
    members: list[int]
    step: Step | None = None
    futures: Sequence[torch.futures.Future[Any]] = ()
    finite: bool = True
    began: float = dataclasses.field(default_factory=time.perf_counter)


@final
class Outer:
    """What a round does to x_sync: adds the averaged difference, or hands it to an optimiser as minus a gradient.

    Args:
        replica: whose x_sync.
        settings: what was asked for.

    Attributes:
        optimizer: None for plain averaging.

    Raises:
        SpecError: the factory made no optimiser of the parameters that it was given.
    """

    def __init__(self, replica: Replica, settings: LocalSettings) -> None:
        self._replica = replica
        self.optimizer: torch.optim.Optimizer | None = None
        self._leaves: list[list[tuple[torch.nn.Parameter, slice]]] = []
        if settings.outer is None and settings.outer_lr == 1 and not settings.outer_momentum:
            return
        for bucket in replica.buckets:
            # Parameters that share x_sync's memory, in the shapes that an optimiser may look at.
            self._leaves.append(
                [(torch.nn.Parameter(replica.pieces[p.name]), slice(p.low, p.high)) for p in bucket.pieces]
            )
        leaves = [leaf for bucket in self._leaves for leaf, _ in bucket]
        if settings.outer is None:
            nesterov = settings.outer_momentum > 0 and settings.outer_nesterov
            self.optimizer = torch.optim.SGD(
                leaves, lr=settings.outer_lr, momentum=settings.outer_momentum, nesterov=nesterov
            )
            return
        made = settings.outer(leaves)
        if not isinstance(made, torch.optim.Optimizer):
            raise SpecError(f"outer must make a torch.optim.Optimizer, it made a {type(made).__name__}")
        taken = {id(p) for group in made.param_groups for p in group["params"]}
        if taken != {id(leaf) for leaf in leaves}:
            raise SpecError("outer must make an optimiser of all the parameters that it is given, and of no others")
        self.optimizer = made

    def identity(self) -> str:
        """What must be equal on all ranks."""
        if self.optimizer is None:
            return "plain averaging"
        defaults = {name: repr(value) for name, value in sorted(self.optimizer.defaults.items())}
        return f"{type(self.optimizer).__name__} {defaults}"

    def step(self, members: Sequence[int]) -> None:
        """Moves x_sync of these buckets. The averaged differences are used up."""
        if self.optimizer is None:
            self._replica.advance(members)
            return
        for i in members:
            gradient = self._replica.difference[i].neg_()
            for leaf, place in self._leaves[i]:
                leaf.grad = gradient[place].view(leaf.shape)
        with torch.enable_grad():  # optimisers choose for themselves; a closure is not used
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@final
class Buffers:
    """A model's floating-point buffers, such as BatchNorm's statistics: their exact mean at the end of every round.

    Args:
        tensors: by name, at least one.
        comm1, comm2: channels that are its own from now on.
        timeout: seconds that a wait for a peer may take.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], comm1: Communicator, comm2: Communicator, timeout: float
    ) -> None:
        self._tensors = tensors
        wide = any(b.dtype == torch.float64 for b in tensors.values())
        self._flat = torch.zeros(
            sum(b.numel() for b in tensors.values()), dtype=torch.float64 if wide else torch.float32
        )
        self._last = self._flat.clone()  # as they were after the last good round
        self._reducer = Reducer(comm1, comm2, timeout=timeout, plan="local SGD, buffers")
        self.begin()

    def begin(self) -> None:
        """What they are now is what a restore brings back."""
        self._read(self._last)

    def average(self, number: int, *, finite: bool) -> dict[str, int]:
        """Averages them; what it sent. Collective. `finite`: whether the round was, and what comes out may be restored."""
        sent: dict[str, int] = {}

        class Count(Observer):
            def complete(self, report: Any) -> None:
                sent["payload_bytes"] = report.bytes_payload1 + report.bytes_payload2
                sent["header_bytes"] = report.bytes_header
                sent["wire_bytes"] = report.wire_bytes
                sent["messages"] = report.messages

        self._read(self._flat)
        key = Key(step=number & 0xFFFFFFFF)
        self._reducer.run(self._flat, _EXACT, _EXACT, key, observer=Count())
        self._write(self._flat)
        if finite:
            self._last.copy_(self._flat)
        return sent

    def restore(self) -> None:
        """Back to what the last good round made of them."""
        self._write(self._last)

    def state(self) -> torch.Tensor:
        return self._last.clone()

    def load(self, state: torch.Tensor) -> None:
        self._last.copy_(state)

    def close(self) -> None:
        self._reducer.close()

    def _read(self, flat: torch.Tensor) -> None:
        pieces = flat.split([b.numel() for b in self._tensors.values()])
        for buffer, piece in zip(self._tensors.values(), pieces, strict=True):
            piece.view(buffer.shape).copy_(buffer)

    def _write(self, flat: torch.Tensor) -> None:
        pieces = flat.split([b.numel() for b in self._tensors.values()])
        for buffer, piece in zip(self._tensors.values(), pieces, strict=True):
            buffer.copy_(piece.view(buffer.shape))


@final
class RoundSink(Sink):
    """Between the exchange and the user's sink: holds a round's record until the round is over, and adds what the exchange does not know.

    Args:
        inner: the user's; None drops everything.
    """

    def __init__(self, inner: Sink | None) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._held: dict[int, Mapping[str, Any]] = {}
        self._told: dict[int, dict[str, Any]] = {}

    def open_round(self, number: int) -> None:
        """The record of this round is held."""
        with self._lock:
            self._open.add(number)

    def close_round(self, number: int, **told: Any) -> None:
        """The round is over: its record, if it is here already, goes out with ``"local_sgd": told``."""
        with self._lock:
            self._open.discard(number)
            self._told[number] = told
            held = self._held.pop(number, None)
        if held is not None:
            self.emit(held)

    def emit(self, record: Mapping[str, Any]) -> bool:
        if record.get("kind") != "step":
            return self._inner is None or self._inner.emit(record)
        number = record["step"]
        with self._lock:
            if number in self._open:
                self._held[number] = record
                return True
            told = self._told.pop(number, {})
        return self._inner is None or self._inner.emit({**record, "local_sgd": told})

    @property
    def dropped(self) -> int:
        return 0 if self._inner is None else self._inner.dropped

    def close(self, timeout: float = 5.0) -> None:
        with self._lock:
            rest, self._held = list(self._held.values()), {}
            self._open.clear()
        for record in rest:
            self.emit(record)
