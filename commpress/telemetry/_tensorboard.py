"""The TensorBoard sink: the main figures of each step, and layers on sampled steps, as scalars."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from commpress.errors import CommpressError
from commpress.telemetry._report_data import number
from commpress.telemetry._sink import Sink

_log = logging.getLogger("commpress.telemetry")
_POLL_SECONDS = 0.2  # how often an idle writer looks whether its sink still exists

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


class MissingPackageError(CommpressError, ImportError):
    """A package that this function needs, and the library does not, is not installed. The message names the extra."""


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every scalar that a record of kind "step" or "plan" gives; nothing for other kinds."""
    kind = record.get("kind")
    if kind == "plan":
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


class _Shared:
    """What the writer thread shares with its sink (it holds no reference to the sink, so a forgotten sink can die)."""

    def __init__(self, logdir: Path, make: Any, capacity: int) -> None:
        self.logdir = logdir
        self.make = make
        self.queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(capacity)
        self.closing = threading.Event()
        self.lost = 0
        self._lock = threading.Lock()

    def drop(self, why: str) -> None:
        with self._lock:
            self.lost += 1
            first = self.lost == 1
        if first:
            _log.warning("telemetry for TensorBoard in %s drops records (said once): %s", self.logdir, why)


def _write_all(shared: _Shared, alive: weakref.ref[Sink]) -> None:
    writer = None
    while True:
        try:
            record = shared.queue.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if shared.closing.is_set() or alive() is None:
                break
            continue
        if record is None:
            break
        try:
            writer = writer or shared.make(str(shared.logdir))
            step = number(record.get("step"))
            for tag, value in scalars(record):
                writer.add_scalar(tag, value, None if step is None else int(step), number(record.get("time")))
        except Exception as error:  # the disk, the package, an odd record: whatever it is, training goes on
            shared.drop(f"{type(error).__name__}: {error}")
    if writer is not None:
        try:
            writer.close()
        except Exception as error:
            _log.warning("closing TensorBoard's file in %s: %s", shared.logdir, error)


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
        self._pid = os.getpid()
        self._silent = rank != 0
        self._shared = _Shared(self.logdir, SummaryWriter, capacity)
        self._thread: threading.Thread | None = None
        self._at_exit: Any = None
        if not self._silent:
            args = (self._shared, weakref.ref(self))
            self._thread = threading.Thread(target=_write_all, args=args, name="commpress-tensorboard", daemon=True)
            self._thread.start()
            me = weakref.ref(self)
            self._at_exit = lambda: _close(me)
            atexit.register(self._at_exit)

    def emit(self, record: Mapping[str, Any]) -> bool:
        taken = self._also is None or self._also.emit(record)
        if self._silent:
            return taken
        if os.getpid() != self._pid:
            self._shared.drop("this process was forked off the one that writes")
            return False
        if self._shared.closing.is_set():
            self._shared.drop("the sink is closed")
            return False
        try:
            self._shared.queue.put_nowait(record)
        except queue.Full:
            self._shared.drop(f"the disk is too slow, {self._shared.queue.maxsize} records wait for it")
            return False
        return taken

    @property
    def dropped(self) -> int:
        return self._shared.lost + (0 if self._also is None else self._also.dropped)

    def close(self, timeout: float = 5.0) -> None:
        if self._also is not None:
            self._also.close(timeout)
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._pid:
            return
        self._shared.closing.set()
        atexit.unregister(self._at_exit)
        with contextlib.suppress(queue.Full):  # then the writer sees `closing` once the queue is empty
            self._shared.queue.put_nowait(None)
        thread.join(timeout)
        if thread.is_alive():
            for _ in range(self._shared.queue.qsize()):
                self._shared.drop(f"the disk did not take them within {timeout} s at closing")


def _close(sink: weakref.ref[TensorBoardSink]) -> None:
    found = sink()
    if found is not None:
        found.close()
