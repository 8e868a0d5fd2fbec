"""The JSONL sink."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from commpress.telemetry._sink import Sink
from commpress.telemetry._writer import Writer, WriterThread

_REOPEN_SECONDS = 1.0  # after a failure to open, records are dropped without another try for so long


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


@final
class _Lines(Writer):
    """Appends whole lines to a file; a line that could not be written whole is taken back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._torn = False  # the file ends inside a line that could not be taken back
        self._blocked_until = 0.0

    def write(self, record: Mapping[str, Any]) -> None:
        self._append(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            if time.monotonic() < self._blocked_until:
                raise OSError("the file could not be opened a moment ago")
            try:
                self._fd = self._open()
            except OSError:
                self._blocked_until = time.monotonic() + _REOPEN_SECONDS
                raise
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
        self._thread: WriterThread | None = None
        if rank == 0 or all_ranks:
            self._thread = WriterThread(
                _Lines(self.path), what=str(self.path), name="commpress-telemetry", capacity=capacity
            )

    def emit(self, record: Mapping[str, Any]) -> bool:
        return self._thread is None or self._thread.put(record)

    @property
    def dropped(self) -> int:
        return 0 if self._thread is None else self._thread.dropped

    @property
    def written(self) -> int:
        """Records that reached the operating system."""
        return 0 if self._thread is None else self._thread.written

    def close(self, timeout: float = 5.0) -> None:
        if self._thread is not None:
            self._thread.close(timeout)
