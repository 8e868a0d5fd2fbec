"""The TensorBoard sink: the main figures of each step, and layers on sampled steps, as scalars."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from commpress.errors import MissingPackageError
from commpress.telemetry._report_data import matrix, mean_to_others, number
from commpress.telemetry._sink import Sink
from commpress.telemetry._writer import Writer, WriterThread

_STEP = (
    ("bytes/wire", "wire_bytes"),
    ("bytes/payload", "payload_bytes"),
    ("bytes/header", "header_bytes"),
    ("bits/achieved", "achieved_rate"),
    ("bits/requested", "requested_rate"),
    ("time/step_seconds", "step_time"),
    ("health/dropped_records", "dropped_records"),
)
_INFORMATION = ("achieved", "allocated", "optimum", "eta_codec", "eta_alloc", "rate_payload", "rate_wire")
_PLAN = ("budget_bytes", "planned_bytes")


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every scalar that a record of kind "step", "plan" or "agreement" gives; nothing for other kinds."""
    kind = record.get("kind")
    if kind == "agreement":
        cosines = matrix(record.get("cosines"))
        known = mean_to_others(cosines) if cosines is not None else np.zeros(0)
        known = known[np.isfinite(known)]
        if known.size:
            yield "agreement/mean_cosine", float(known.mean())
            yield "agreement/least_cosine", float(known.min())
    elif kind == "plan":
        yield from _of(record, ((f"plan/{name}", name) for name in _PLAN))
        yield from _by_layer(record, ("bits",))
    elif kind == "step":
        yield from _of(record, _STEP)
        if record.get("finite") is not None:
            yield "health/finite", float(bool(record["finite"]))
        yield from _of(record, (("loss", "loss"), ("loss", "loss_rank0")))
        yield from _by_layer(record, ("nmse",))
        information = record.get("information")
        if isinstance(information, Mapping):
            yield from _of(information, ((f"information/{name}", name) for name in _INFORMATION))
            for phase in ("phase1", "phase2", "together"):
                part = information.get(phase)
                if isinstance(part, Mapping):
                    yield from _of(part, ((f"information/{phase}_{name}", name) for name in ("captured", "eta")))
            yield from _by_layer(information, ("bits", "eta"))


def _of(fields: Mapping[str, Any], names: Any) -> Iterator[tuple[str, float]]:
    for tag, name in names:
        value = number(fields.get(name))
        if value is not None:
            yield tag, value


def _by_layer(fields: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    layers = fields.get("layers")
    for layer in layers if isinstance(layers, (list, tuple)) else ():
        if isinstance(layer, Mapping):
            yield from _of(layer, ((f"layer_{name}/{layer.get('name')}", name) for name in names))


@final
class _Scalars(Writer):
    """Writes a record's scalars; the event file is made with the first."""

    def __init__(self, logdir: Path, make: Callable[[str], Any]) -> None:
        self._logdir = logdir
        self._make = make
        self._writer: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        self._writer = self._writer or self._make(str(self._logdir))
        step = number(record.get("step"))
        for tag, value in scalars(record):
            self._writer.add_scalar(tag, value, None if step is None else int(step), number(record.get("time")))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@final
class TensorBoardSink(Sink):
    """Writes records as TensorBoard scalars, from a thread of its own.

    Scalars of every step: ``bytes/*``, ``bits/*`` (bits per coordinate), ``time/step_seconds``, ``health/*``. On sampled
    steps ``information/*`` (Fisher trace and the ratios to the Gaussian limit), ``layer_nmse/NAME``, ``layer_bits/NAME``
    and ``layer_eta/NAME``. A plan gives ``plan/*`` and ``layer_bits/NAME``. Figures that are null are left out.

    Nothing here raises into training or waits for the disk: records that cannot be written are dropped, counted
    (`dropped`) and warned of once.

    Args:
        logdir: TensorBoard's folder for this run; made if need be.
        rank: this process's rank; others than 0 write nothing.
        also: another sink that gets every record too, such as a :class:`JsonlSink`; it is closed together with this.
        capacity: records that may wait for the disk.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """

    def __init__(
        self, logdir: str | os.PathLike[str], *, rank: int = 0, also: Sink | None = None, capacity: int = 1024
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "tensorboard is not installed; `pip install 'commpress[tensorboard]'` gets it"
            ) from error
        self.logdir = Path(logdir)
        self._also = also
        self._thread: WriterThread | None = None
        if rank == 0:
            self._thread = WriterThread(
                _Scalars(self.logdir, SummaryWriter),
                what=f"{self.logdir} for TensorBoard",
                name="commpress-tensorboard",
                capacity=capacity,
            )

    def emit(self, record: Mapping[str, Any]) -> bool:
        taken = self._also is None or self._also.emit(record)
        return (self._thread is None or self._thread.put(record)) and taken

    @property
    def dropped(self) -> int:
        lost = 0 if self._thread is None else self._thread.dropped
        return lost + (0 if self._also is None else self._also.dropped)

    def close(self, timeout: float = 5.0) -> None:
        if self._also is not None:
            self._also.close(timeout)
        if self._thread is not None:
            self._thread.close(timeout)
