"""What ``codec="auto"`` adds to an exchange: the choice of every step, and torch's own all-reduce for buckets that are better sent as they are."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.cluster import Calibration
from commpress.codecs import Codec
from commpress.codecs import codec as make_codec
from commpress.collectives import Communicator, ExactReducer, Notes, probe
from commpress.errors import SpecError
from commpress.feedback import Layout
from commpress.hooks import _handshake
from commpress.hooks._auto import CODECS, EXACT, TORCH_WAYS, AutoPlan, Chooser
from commpress.hooks._reduction import make_pair
from commpress.hooks._step import NOTE_NBYTES
from commpress.telemetry import FORMAT, Sink, json_values

_log = logging.getLogger("commpress.hooks")
DTYPES = {EXACT: torch.float32, "bf16": torch.bfloat16}


@final
@dataclasses.dataclass(frozen=True)
class AutoSettings:
    """What a HookState with ``codec="auto"`` was asked for.

    Args:
        codecs: specs to choose from beside torch's own all-reduces, the most exact first.
        feedback: with error feedback; then a sum in 16 bits, whose rounding nobody would keep, is no candidate.
        calibration: of the group; None: probed at registration.
        trials: whether the model's pick is confirmed by timed steps.
    """

    codecs: tuple[str, ...] = CODECS
    feedback: bool = False
    calibration: Calibration | None = None
    trials: bool = True

    @property
    def candidates(self) -> tuple[str, ...]:
        """Of a bucket, the most exact first."""
        return (EXACT, *(() if self.feedback else TORCH_WAYS[1:]), *self.codecs)

    def identity(self) -> dict[str, Any]:
        """What must be equal on all ranks before the probe."""
        known = self.calibration
        return {
            "auto": list(self.candidates),
            "auto trials": self.trials,
            "calibration": None if known is None else Chooser(self.candidates, known, known.ranks, trials=False).digest,
        }


def auto_settings(base: Codec | None, feedback: bool, calibration: Any, trials: bool) -> AutoSettings:
    """From a HookState's arguments. `base`: the budget's codec, or None without one. Raises SpecError."""
    if calibration is not None and not isinstance(calibration, Calibration):
        raise SpecError(f"calibration must be a commpress.cluster.Calibration, got {type(calibration).__name__}")
    codecs = CODECS if base is None else (str(base),)
    settings = AutoSettings(tuple(str(make_codec(spec)) for spec in codecs), feedback, calibration, bool(trials))
    if calibration is not None:
        Chooser(settings.candidates, calibration, calibration.ranks, trials=False)
    return settings


@final
class AutoLane:
    """Made collectively, after all ranks agreed on `settings.identity()`; probes the group unless a calibration came with the settings.

    Args:
        settings: what was asked for. budget: whether its one codec stands for the plan of a bit budget.
        group: DDP's process group. timeout: seconds for any wait for a peer. sink: for the telemetry of choices, or None.

    Raises:
        PeerError: a rank did not take part. SpecError: the calibration is of another number of ranks.
    """

    def __init__(
        self, settings: AutoSettings, group: dist.ProcessGroup, timeout: float, sink: Sink | None, *, budget: bool
    ) -> None:
        known = settings.calibration
        if known is None:
            names = tuple(way for way in settings.candidates if way in TORCH_WAYS)
            known = probe(settings.codecs, torch_dtypes=names, group=group, timeout=timeout)
            _log.info("auto: probed %d ranks in %.2f s: %.4g MB/s", known.ranks, known.seconds, known.link / 1e6)
        self.chooser = Chooser(settings.candidates, known, group.size(), trials=settings.trials)
        self._codecs = {} if budget else {spec: make_codec(spec) for spec in settings.codecs}
        if settings.feedback:
            self._codecs = {spec: codec.for_feedback() for spec, codec in self._codecs.items()}
        self._timeout = timeout
        self._sink = sink
        self._rank = group.rank()
        self._world_size = group.size()
        self._channels: list[Communicator] = list(make_pair(group, timeout))
        self.notes = Notes(self._channels[0], NOTE_NBYTES, timeout)
        self.exact = ExactReducer(group, timeout=timeout)
        self.plan: AutoPlan | None = None
        self.ways: list[str] = []
        self._loaded: dict[str, Any] | None = None
        self._told: tuple[str, str, tuple[Layout, ...]] | None = None

    def open_step(self, step: int, layouts: Sequence[Layout]) -> None:
        """Chooses for a step that begins now; collective in a step that ends a round of trials. Raises PeerError."""
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            self.chooser.load_state_dict(state, layouts)
        now = time.perf_counter()
        if self.chooser.due(step):
            self.chooser.saw(step, "", now)
            tables = _handshake.gather(self._channels[1], self.chooser.table(), self._timeout, "auto's trial steps")
            self.chooser.settle(step, tables)
            now = time.perf_counter()
        name = self.chooser.plan_of(step, layouts)
        self.chooser.saw(step, name, now)
        self.ways = self.chooser.ways(name, layouts)
        news = name if self.chooser.decided != "trial" else "", self.chooser.decided, tuple(layouts)
        if news != self._told:
            self._told = news
            self.plan = self.chooser.describe(name, layouts)
            self._tell(step, self.plan)

    def codec(self, index: int, planned: Codec) -> Codec:
        """Of a bucket that is compressed in this step; `planned` where a plan or one codec serves all. Also what the residuals of a bucket are laid out for that is not."""
        return self._codecs.get(self.ways[index], planned)

    def dtype(self, index: int) -> torch.dtype | None:
        """In which torch's own all-reduce sends a bucket of this step; None: it is compressed."""
        return DTYPES.get(self.ways[index])

    def _tell(self, step: int, plan: AutoPlan) -> None:
        if self._rank == 0:
            for i, bucket in enumerate(plan.buckets):
                how = "compressed with" if bucket.compressed else "compression off,"
                _log.info(
                    "auto: step %d, bucket %d of %d coordinates: %s %s (%s)",
                    step,
                    i,
                    bucket.numel,
                    how,
                    bucket.way,
                    bucket.reason,
                )
        if self._sink is not None:
            buckets = [
                {"bucket": i, "numel": one.numel, "way": one.way, "compressed": one.compressed, "reason": one.reason}
                | {"predicted_seconds": one.seconds}
                for i, one in enumerate(plan.buckets)
            ]
            head = {"format": FORMAT, "kind": "auto", "time": time.time(), "step": step, "rank": self._rank}
            told = {"name": plan.name, "decided": plan.decided, "step_seconds": plan.step_seconds, "buckets": buckets}
            self._sink.emit(json_values(head | told))

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text and lists."""
        return self._loaded if self._loaded is not None else self.chooser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Waits for the layouts of the next step."""
        self._loaded = state

    def close(self) -> None:
        """Ends the threads and the channels."""
        self.exact.close()
        for channel in self._channels:
            channel.close()
