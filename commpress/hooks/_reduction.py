"""What a bound HookState works with: the way in which one model's buckets are reduced on one rank."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.collectives import Asked, Communicator, FakeGroup, NodeMap, agree_on_nodes, make_channel, make_channels
from commpress.errors import CommpressError, PeerError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks import _handshake
from commpress.hooks._auto import AutoPlan
from commpress.hooks._futures import settle
from commpress.hooks._step import Step
from commpress.telemetry import FORMAT, JsonlSink, Sink, json_values

if TYPE_CHECKING:
    from commpress.hooks._worker_agreement import WorkerAgreement

_log = logging.getLogger("commpress.hooks")

COUNTS = ("steps", "buckets", "compressed_numel", "nonfinite_steps", "held", "repacked_steps", "plans", "resets")


class Reduction(abc.ABC):
    """Made collectively. Keeps counters, the first error and the telemetry; how gradients travel is for the subclass.

    Args:
        parameters: name to tensor, all that DDP reduces.
        group: DDP's process group, or a FakeGroup.
        telemetry: see :class:`HookState`.

    Attributes:
        feedback: the residuals, or None without error feedback.
        sink: where records go, or None.
        monitor: compares the ranks' gradients, or None.
        on_device: whether futures are done when `submit` returns, and a stream is what waits for the values.
    """

    on_device = False

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup | FakeGroup,
        telemetry: str | os.PathLike[str] | Sink | None,
    ) -> None:
        self.rank, self.world_size = group.rank(), group.size()
        self.parameters = parameters
        self.counts = dict.fromkeys(COUNTS, 0)
        self.error: Exception | None = None
        self.feedback: ErrorFeedback | None = None
        self.monitor: WorkerAgreement | None = None
        self._lock = threading.Lock()
        self._owns_sink = telemetry is not None and not isinstance(telemetry, Sink)
        self.sink: Sink | None = None
        if isinstance(telemetry, Sink):
            self.sink = telemetry
        elif telemetry is not None:
            self.sink = JsonlSink(telemetry, rank=self.rank)

    @abc.abstractmethod
    def open_step(self, number: int, layouts: Sequence[Layout], members: Sequence[int] | None = None) -> Step:
        """Begins a step whose buckets have these layouts; :meth:`submit` follows for each, or for the `members` alone."""

    @abc.abstractmethod
    def submit(
        self, step: Step, index: int, layout: Layout, buffer: torch.Tensor, seed: int
    ) -> torch.futures.Future[Any]:
        """Starts the reduction of a bucket, in place; returns at once."""

    def deliver(
        self,
        waiting: Sequence[torch.futures.Future[Any]],
        futures: Sequence[torch.futures.Future[Any]],
        unpack: Callable[[], None] | None,
        buffers: Sequence[torch.Tensor],
    ) -> None:
        """Ends all `waiting` once all `futures` are done and `unpack` was called: with None, or on a device with the `buffers` that DDP waits for."""
        settle(waiting, futures, unpack)

    @abc.abstractmethod
    def give_up(self, error: Exception) -> None:
        """The hook itself failed on this rank: tells the others, so that they do not wait for the timeout.

        They are about to exchange a bucket. What they meet instead is a header that differs from theirs and says why.
        """

    @abc.abstractmethod
    def saved(self) -> dict[str, Any]:
        """The parts of a checkpoint that are this reduction's, each None if there is nothing: "residuals", and more."""

    @abc.abstractmethod
    def load(self, saved: dict[str, Any]) -> None:
        """Goes on from what :meth:`saved` gave. Raises StateError."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends threads, process groups and the telemetry that came as a path."""

    @property
    def nodes(self) -> NodeMap | None:
        """The nodes of an exchange in two levels, or None for a flat one."""
        return None

    @property
    def plan(self) -> Plan | None:
        """How the bit budget is shared out, or None without one."""
        return None

    @property
    def auto(self) -> AutoPlan | None:
        """What ``codec="auto"`` chose, or None without it, or before the first step."""
        return None

    def look(self, step: int, seen: Sequence[tuple[Layout, torch.Tensor]], *, last: bool) -> None:
        """Lets the monitor see buckets as this rank's backward pass left them; `last`: no more will follow in this step. Raises PeerError."""
        if self.monitor is not None:
            self.monitor.look(step, seen, last=last)

    def fail(self, error: Exception) -> None:
        """Remembers the first failure of an exchange."""
        with self._lock:
            first = self.error is None
            if first:
                self.error = error
        if first:
            _log.error("rank %d: %s: %s", self.rank, type(error).__name__, error)

    def _log_plan(self, plan: Plan, step: int, reason: str) -> None:
        """Counts a new plan, and tells the log and the telemetry."""
        _log.info(
            "step %d: new plan %s (%s), %d of %d bytes",
            step,
            plan.digest(),
            reason,
            plan.planned_bytes,
            plan.budget_bytes,
        )
        with self._lock:
            self.counts["plans"] += 1
        if self.sink is not None:
            self.sink.emit(
                json_values({"format": FORMAT, "time": time.time()} | plan_record(plan, step, self.rank, reason))
            )

    def _close_rest(self) -> None:
        """What every reduction has: the monitor, and the telemetry that came as a path."""
        if self.monitor is not None:
            self.monitor.close(failed=self.error is not None)
        if self._owns_sink and self.sink is not None:
            self.sink.close()

    def _load_residuals(self, residuals: dict[str, Any] | None, codec_of: Callable[[Layout], Any] | None) -> None:
        """Those that another number of ranks saved are dropped, with a warning. Raises StateError: they are another rank's."""
        if residuals is None:
            return
        assert self.feedback is not None
        if residuals["world_size"] in (0, self.world_size):
            self.feedback.load_state_dict(residuals, codec_of)
            return
        text = (
            f"the state was saved by {residuals['world_size']} ranks and is loaded by {self.world_size}: its "
            "error-feedback residuals are dropped (commpress.hooks.merge_states would keep them)"
        )
        _log.warning(text)
        warnings.warn(text, RuntimeWarning, stacklevel=5)  # at who called the HookState


def agree(
    group: dist.ProcessGroup | FakeGroup, identity: dict[str, Any], wanted: int, timeout: float
) -> tuple[tuple[Communicator, Communicator], list[int]]:
    """A pair of channels on which all ranks found that they have the same `identity`, and what each of them `wanted`. Collective.

    Raises:
        MismatchError: the ranks differ.
        PeerError: a rank did not take part within the timeout.
    """
    pair = make_pair(group, timeout)
    try:
        said = _handshake.gather(pair[0], {"identity": identity, "wanted": wanted}, timeout, "registration")
        _handshake.compare([one["identity"] for one in said])
    except Exception:
        for channel in pair:
            channel.close()
        raise
    return pair, [one["wanted"] for one in said]


def nodes_of(pair: tuple[Communicator, Communicator], asked: Asked, timeout: float) -> NodeMap | None:
    """The nodes of a reduction in two levels, or None. Collective on the pair, which is closed where there is an error: see `agree_on_nodes`."""
    try:
        return agree_on_nodes(pair[0], asked, timeout)
    except Exception:
        for channel in pair:
            channel.close()
        raise


def make_pair(group: dist.ProcessGroup | FakeGroup, timeout: float) -> tuple[Communicator, Communicator]:
    """Two channels between the ranks of a group. Collective. Raises PeerError."""
    with _reaching(group, timeout):
        return make_channels(group, timeout)


def make_one(group: dist.ProcessGroup | FakeGroup, timeout: float) -> Communicator:
    """A single channel, likewise."""
    with _reaching(group, timeout):
        return make_channel(group, timeout)


@contextlib.contextmanager
def _reaching(group: dist.ProcessGroup | FakeGroup, timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CommpressError):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PeerError(
            f"rank {group.rank()} could not reach all {group.size()} ranks of the group within {timeout:g} s during "
            f"registration, which every rank must call: {why}"
        ) from error


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens in this one."""
    return every > 0 and step % every == 0


def plan_record(plan: Plan, step: int, rank: int, reason: str) -> dict[str, Any]:
    """The telemetry record of a new plan."""
    return {
        "kind": "plan",
        "step": step,
        "rank": rank,
        "objective": plan.objective,
        "budget_bytes": plan.budget_bytes,
        "planned_bytes": plan.planned_bytes,
        "reason": reason,
        "digest": plan.digest(),
        "layers": [
            {"name": name, "numel": int(n), "bits": float(rate), "exact": bool(exact)}
            for name, n, rate, exact in zip(plan.names, plan.dims, plan.rates, plan.exact, strict=True)
        ],
    }
