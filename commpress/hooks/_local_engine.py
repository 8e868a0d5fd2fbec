"""What a bound LocalSGD works with: the exchange of differences, and what a round does with its result."""

from __future__ import annotations

import logging
import time
from typing import Any, final

import torch.distributed as dist

from commpress.codecs import LowRankCodec
from commpress.collectives import Communicator, FakeGroup, group_timeout
from commpress.hooks._dimensions import DimensionSettings
from commpress.hooks._exchange import Exchange
from commpress.hooks._handshake import library_version
from commpress.hooks._local_model import LocalModel
from commpress.hooks._local_replica import Replica
from commpress.hooks._local_round import Buffers, Outer, Round, RoundSink
from commpress.hooks._local_settings import LocalSettings
from commpress.hooks._local_start import broadcast_tensors, compare_tensors
from commpress.hooks._low_rank import LowRankReduction
from commpress.hooks._planner import PlanSettings
from commpress.hooks._reduction import Reduction, make_pair
from commpress.telemetry import JsonlSink, Sink

_log = logging.getLogger("commpress.hooks")
_BYTES = ("payload_bytes", "header_bytes", "wire_bytes", "messages", "compressed_numel")
COUNTS = ("rounds", "nonfinite_rounds", "restored_rounds", "held", *_BYTES)


@final
class Engine:
    """Made collectively: agrees with the other ranks, makes the process groups, and gives all ranks the same start.

    Args:
        settings: what was asked for.
        model: what is averaged.
        group: the ranks.
        start: whether parameters and buffers are made equal, or compared; not where a saved state follows.

    Attributes:
        pending: the round under way, or None.
        counts: see :class:`LocalSGD`.

    Raises: see :class:`LocalSGD`.
    """

    def __init__(
        self, settings: LocalSettings, model: LocalModel, group: dist.ProcessGroup | FakeGroup, *, start: bool
    ) -> None:
        self.model = model
        self.pending: Round | None = None
        self.counts = dict.fromkeys(COUNTS, 0)
        self._settings = settings
        self.replica = Replica(model.parameters, settings.parts, settings.overlap)
        self.outer = Outer(self.replica, settings)
        self._timeout = settings.timeout or group_timeout(group)
        self._own_sink: Sink | None = None
        self.sink = self._make_sink(group.rank())
        self.reduction = self._make_reduction(group)
        try:
            self._control: tuple[Communicator, Communicator] = make_pair(group, self._timeout)
            if start:
                self._start()
        except Exception:
            self.reduction.close()
            raise
        self.buffers: Buffers | None = None
        if settings.buffers == "average" and model.buffers and group.size() > 1:
            self.buffers = Buffers(model.buffers, *self._control, self._timeout)
        self.replica.begin()
        self._told: dict[str, Any] = {}
        self._ended = time.perf_counter()

    def _make_sink(self, rank: int) -> RoundSink:
        telemetry = self._settings.telemetry
        if telemetry is not None and not isinstance(telemetry, Sink):
            self._own_sink = telemetry = JsonlSink(telemetry, rank=rank)
        return RoundSink(telemetry)

    def _make_reduction(self, group: dist.ProcessGroup | FakeGroup) -> Reduction:
        settings, codec = self._settings, self._settings.used_codec()
        identity = {
            "commpress version": library_version(),
            "mode": "local SGD",
            **settings.identity(),
            "outer optimiser": self.outer.identity(),
            "world size": group.size(),
            "parameters": self.model.described(),
        }
        options: dict[str, Any] = {
            "feedback": settings.with_feedback,
            "timeout": settings.timeout,
            "telemetry": self.sink,
            "telemetry_every": settings.telemetry_every if settings.telemetry is not None else 0,
            "check_every": settings.check_every,
            "caller": "local SGD",
        }
        budget = settings.budget
        if isinstance(codec, LowRankCodec):
            assert not isinstance(budget, PlanSettings)
            return LowRankReduction(codec, self.replica.pieces, group, identity, budget=budget, **options)
        assert not isinstance(budget, DimensionSettings)
        options |= {"plan": budget, "information": settings.parts == 1}
        return Exchange(codec, self.replica.pieces, group, identity, **options)

    def _start(self) -> None:
        if self._settings.check:
            compare_tensors(self._control[0], self.model.state, self._timeout, "at the start")
        else:
            broadcast_tensors(self._control[0], self.model.state, self._timeout)

    def end_warmup(self) -> None:
        """All ranks' parameters, which DDP kept equal, are x_sync from now on. Collective. Raises MismatchError if they are not equal."""
        if self.reduction.world_size > 1:
            compare_tensors(self._control[0], self.model.parameters, self._timeout, "after the warm-up")
        self.model.exchange_gradients(False)
        self.replica.begin()
        if self.buffers is not None:
            self.buffers.begin()
        self._ended = time.perf_counter()

    def begin(self, number: int, part: int | None, *, seed: int, steps: int, since: int) -> None:
        """Sends the differences of a part, or of all parameters, on their way."""
        self.model.check_same()
        members, layouts = self.replica.members(part), self.replica.layouts
        self._told = {"round": number, "local_steps": since, "step": steps, "part": part}
        self._told["seconds_local"] = time.perf_counter() - self._ended
        self.replica.take(members)
        step = self.reduction.open_step(number, layouts, members)
        step.plan = f"local SGD, round {number} after {steps} steps"
        self.sink.open_round(number)
        self.pending = Round(number, members, step)
        self.pending.futures = [
            self.reduction.submit(step, i, layouts[i], self.replica.difference[i], seed) for i in members
        ]

    def wait(self) -> None:
        """Until the averages of the round under way are there; they are not applied. Raises MismatchError or PeerError."""
        pending = self.pending
        assert pending is not None
        for future in pending.futures:
            try:
                future.wait()
            except Exception as error:
                raise (self.reduction.error or error) from None
        pending.futures = ()
        if pending.step is not None:
            pending.finite = pending.step.finite
            self.counts["held"] += pending.step.held
            if pending.step.record is not None:
                self._count(pending.step.record.counts)
            pending.step = None

    def finish(self) -> None:
        """Waits for the averages of the round under way and applies them. Collective, for the buffers."""
        self.wait()
        pending, self.pending = self.pending, None
        assert pending is not None
        sent: dict[str, int] = {}
        restored = not pending.finite and self._settings.nonfinite == "restore"
        if pending.finite:
            self.outer.step(pending.members)
            self.replica.adopt(pending.members)
        elif restored:
            self.restore()
        else:
            self.replica.spread(pending.members)
        if self.buffers is not None and not restored:
            sent = self.buffers.average(pending.number, finite=pending.finite)
            self._count(sent)
        if not pending.finite:
            what = "all ranks went back to the synchronised parameters" if restored else "all ranks' parameters show it"
            _log.warning("round %d: a difference was not finite: %s", pending.number, what)
        self.counts["rounds"] += 1
        self.counts["nonfinite_rounds"] += not pending.finite
        self.counts["restored_rounds"] += restored
        self._ended = time.perf_counter()
        told = {**self._told, "seconds_round": self._ended - pending.began, "restored": restored}
        self.sink.close_round(pending.number, **told, buffer_bytes=sent.get("wire_bytes", 0))

    def restore(self) -> None:
        """Parameters and averaged buffers go back to what the last good rounds left."""
        self.replica.restore()
        if self.buffers is not None:
            self.buffers.restore()

    def resume(self, pending: Round | None, steps: int) -> None:
        """After a state was loaded: its round under way, if it had one."""
        self.pending = pending
        if pending is not None:
            self._told = {"round": pending.number, "step": steps}
        self._ended = time.perf_counter()

    def _count(self, sent: dict[str, int]) -> None:
        for name in _BYTES:
            self.counts[name] += sent.get(name, 0)

    def close(self) -> None:
        """Ends threads, process groups and telemetry, and gives DDP its gradient exchange back."""
        self.reduction.close()
        if self.buffers is not None:
            self.buffers.close()
        else:
            for channel in self._control:
                channel.close()
        self.sink.close()
        if self._own_sink is not None:
            self._own_sink.close()
        self.model.give_back()
