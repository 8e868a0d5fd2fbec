"""A bounded queue and one writer thread: what every sink that writes somewhere is made of."""

from __future__ import annotations

import abc
import atexit
import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import Mapping
from typing import Any, final

_log = logging.getLogger("commpress.telemetry")
_POLL_SECONDS = 0.2  # how often an idle writer looks whether its owner still exists


class Writer(abc.ABC):
    """Puts records somewhere. Used by one thread; may raise what it likes."""

    @abc.abstractmethod
    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record, whole or not at all."""

    @abc.abstractmethod
    def close(self) -> None:
        """After the last record."""


class _Shared:
    """What the thread shares with its owner (it holds no reference to the owner, so a forgotten one can die)."""

    def __init__(self, writer: Writer, what: str, capacity: int) -> None:
        self.writer = writer
        self.what = what
        self.queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(capacity)
        self.lock = threading.Lock()
        self.lost = 0
        self.written = 0
        self.closing = threading.Event()

    def drop(self, why: str) -> None:
        with self.lock:
            self.lost += 1
            first = self.lost == 1
        if first:
            _log.warning("telemetry drops records of %s (said once; see the sink's `dropped`): %s", self.what, why)


def _write_all(shared: _Shared, alive: weakref.ref[WriterThread]) -> None:
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
            shared.writer.write(record)
            shared.written += 1
        except Exception as error:  # the disk, a package, memory, an odd record: whatever it is, training goes on
            shared.drop(f"{type(error).__name__}: {error}")
    try:
        shared.writer.close()
    except Exception as error:
        _log.warning("closing %s: %s", shared.what, error)


@final
class WriterThread:
    """Writes records from a thread of its own. Nothing here raises or waits for the disk: what cannot be written is dropped, counted and warned of once.

    Ends at the interpreter's exit, or when nobody holds it any more.

    Args:
        writer: does the writing.
        what: for warnings.
        name: of the thread.
        capacity: records that may wait.
    """

    def __init__(self, writer: Writer, *, what: str, name: str, capacity: int) -> None:
        self._pid = os.getpid()
        self._shared = _Shared(writer, what, capacity)
        me = weakref.ref(self)
        self._thread: threading.Thread | None = threading.Thread(
            target=_write_all, args=(self._shared, me), name=name, daemon=True
        )
        self._thread.start()
        self._at_exit = lambda: _close(me)
        atexit.register(self._at_exit)

    def put(self, record: Mapping[str, Any]) -> bool:
        """Takes a record, from any thread; returns at once. False if it was dropped."""
        shared = self._shared
        if os.getpid() != self._pid:
            shared.drop("this process was forked off the one that writes")
            return False
        if shared.closing.is_set():
            shared.drop("the sink is closed")
            return False
        try:
            shared.queue.put_nowait(record)
        except queue.Full:
            shared.drop(f"the disk is too slow, {shared.queue.maxsize} records wait for it")
            return False
        return True

    @property
    def dropped(self) -> int:
        """Records lost so far."""
        return self._shared.lost

    @property
    def written(self) -> int:
        """Records that reached the operating system."""
        return self._shared.written

    def close(self, timeout: float) -> None:
        """Writes what is queued, for at most `timeout` seconds. May be called twice."""
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


def _close(thread: weakref.ref[WriterThread]) -> None:
    found = thread()
    if found is not None:
        found.close(5.0)
