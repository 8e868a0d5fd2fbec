"""The end of worker threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

_AFTER_BREAK_SECONDS = 10.0


def join(threads: Sequence[threading.Thread], grace: float, break_off: Callable[[], None]) -> None:
    """Waits for `grace` seconds until all have ended; then calls `break_off`, which ends their waits, and joins them. One of them may call it itself."""
    others = [thread for thread in threads if thread is not threading.current_thread()]
    deadline = time.monotonic() + grace
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        break_off()
        for thread in others:
            thread.join(_AFTER_BREAK_SECONDS)
