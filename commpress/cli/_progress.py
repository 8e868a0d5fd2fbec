"""A progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, final

_LINES = 5  # on something that is no terminal: so many lines for the whole
_BAR = 24
_REDRAW_SECONDS = 0.1
_TICKS = 1000


@final
class ProgressBar:
    """Shows how far something is.

    Args:
        total: how many steps there are.
        title: what is under way.
        stream: where to draw, usually standard error.
    """

    def __init__(self, total: int, title: str, stream: TextIO) -> None:
        self._total, self._title, self._stream = max(1, total), title, stream
        self._terminal = stream.isatty()
        self._began = time.monotonic()
        self._drawn_at = 0.0
        self._said = 0
        self._open = False

    def update(self, done: int, note: str = "") -> None:
        """`done` steps are done."""
        if self._terminal:
            now = time.monotonic()
            if done >= self._total or now - self._drawn_at >= _REDRAW_SECONDS:
                self._drawn_at = now
                self._draw(done, note)
        elif done * _LINES // self._total > self._said:
            self._said = done * _LINES // self._total
            self._stream.write(f"{self._title}: {done}/{self._total}{'  ' + note if note else ''}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the bar where it is and goes on below it."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _draw(self, done: int, note: str) -> None:
        full = min(_BAR, _BAR * done // self._total)
        left = (time.monotonic() - self._began) * (self._total - done) / done if done else None
        ending = "" if left is None else f"  {_minutes(left)} left" if done < self._total else ""
        text = f"{self._title} [{'#' * full}{'.' * (_BAR - full)}] {done}/{self._total}  {note}{ending}"
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + text[:width].ljust(width))
        self._stream.flush()
        self._open = True


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def with_bar(title: str, work: Callable[[Callable[[float, str], None]], Any]) -> Any:
    """Result of `work`, which is given a function to call with the share that is done and a note, on standard error."""
    bar = ProgressBar(_TICKS, title, sys.stderr)
    try:
        return work(lambda share, note: bar.update(round(_TICKS * share), note))
    finally:
        bar.close()
