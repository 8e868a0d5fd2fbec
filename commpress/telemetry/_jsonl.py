"""The JSONL sink: a bounded queue and one writer thread."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import stat
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from commpress.telemetry._sink import Sink

_log = logging.getLogger("commpress.telemetry")
_REOPEN_SECONDS = 1.0  # after a failure to open, records are dropped without another try for so long
_POLL_SECONDS = 0.2  # how often an idle writer looks whether its sink still exists


def rank_path(path: str | os.PathLike[str], rank: int) -> Path:
    """The file of a rank: `path` itself for rank 0, ``run.rank3.jsonl`` for rank 3 of ``run.jsonl``."""
    base = Path(path)
    return base if rank == 0 else base.with_name(f"{base.stem}.rank{rank}{base.suffix}")


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records of a file. A last line without its newline (its writer died) is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: any other line does not parse.
    """
    *lines, _torn = Path(path).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


class _Lines:
    """Appends whole lines to a file; a line that could not be written whole is taken back. Used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._torn = False  # the file ends inside a line that could not be taken back

    def append(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = self._open()
        data = b"\n" + line if self._torn else line
        regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        size = os.fstat(self._fd).st_size if regular else 0
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            if done and regular:
                os.ftruncate(self._fd, size)
            elif done:
                self._torn = True
            raise
        self._torn = False

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode) and info.st_size:
                # A run that died inside a line left half a record, worth nothing and in the way of all that follows.
                os.ftruncate(fd, _end_of_lines(fd, info.st_size))
        except OSError:
            os.close(fd)
            raise
        return fd


def _end_of_lines(fd: int, size: int) -> int:
    """Offset just behind the last newline of the first `size` bytes."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class _Shared:
    """What the writer thread shares with its sink (it holds no reference to the sink, so a forgotten sink can die)."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.path = path
        self.queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(capacity)
        self.lock = threading.Lock()
        self.lost = 0
        self.written = 0
        self.warned = False
        self.closing = threading.Event()

    def drop(self, why: str) -> None:
        with self.lock:
            self.lost += 1
            first, self.warned = not self.warned, True
        if first:
            _log.warning("telemetry drops records of %s (said once; see the sink's `dropped`): %s", self.path, why)


def _write_all(shared: _Shared, alive: weakref.ref[Sink]) -> None:
    lines = _Lines(shared.path)
    blocked_until = 0.0
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
            if time.monotonic() < blocked_until:
                raise OSError("the file could not be opened a moment ago")
            lines.append(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            shared.written += 1
        except OSError as error:
            if lines._fd is None and time.monotonic() >= blocked_until:
                blocked_until = time.monotonic() + _REOPEN_SECONDS
            shared.drop(str(error))
        except Exception as error:  # a record that is no JSON, memory: whatever it is, training goes on
            shared.drop(f"{type(error).__name__}: {error}")
    try:
        lines.close()
    except OSError as error:
        _log.warning("closing %s: %s", shared.path, error)


@final
class JsonlSink(Sink):
    """Appends records to a file, one JSON object a line, from a thread of its own.

    Nothing here raises into training or waits for the disk: with an unwritable path, a full disk or a slow disk records
    are dropped, counted (`dropped`) and warned of once. Each record is one whole line: a crash can tear the last line
    only, and the torn last line of an earlier run is cut off when the file is continued.

    Args:
        path: the file; its folder is made if need be. Other ranks than 0 write :func:`rank_path` of it.
        rank: this process's rank.
        all_ranks: if false (default), ranks other than 0 write nothing (and count nothing as dropped).
        capacity: records that may wait for the disk.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, rank: int = 0, all_ranks: bool = False, capacity: int = 1024
    ) -> None:
        self.path = rank_path(path, rank)
        self._pid = os.getpid()
        self._shared = _Shared(self.path, capacity)
        self._silent = rank != 0 and not all_ranks
        self._thread: threading.Thread | None = None
        self._at_exit: Any = None
        if not self._silent:
            args = (self._shared, weakref.ref(self))
            self._thread = threading.Thread(target=_write_all, args=args, name="commpress-telemetry", daemon=True)
            self._thread.start()
            me = weakref.ref(self)
            self._at_exit = lambda: _close(me)
            atexit.register(self._at_exit)

    def emit(self, record: Mapping[str, Any]) -> bool:
        if self._silent:
            return True
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
        return True

    @property
    def dropped(self) -> int:
        return self._shared.lost

    @property
    def written(self) -> int:
        """Records that reached the operating system."""
        return self._shared.written

    def close(self, timeout: float = 5.0) -> None:
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


def _close(sink: weakref.ref[JsonlSink]) -> None:
    found = sink()
    if found is not None:
        found.close()
