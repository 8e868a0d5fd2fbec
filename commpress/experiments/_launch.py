"""Starts a run of the main job under torchrun, follows it, and stops it cleanly when it must."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commpress.errors import CommpressError
from commpress.experiments._records import Follower, Run, read_run

_LOOK_SECONDS = 0.1
_STOP_SECONDS = 15.0
_RAISED = re.compile(r"\[rank\d+\]: [\w.]+(Error|Exception|Interrupt): ")  # the last line of a traceback under torchrun


class RunError(CommpressError, RuntimeError):
    """A run under torchrun failed; the message holds the ranks' own words and names the log."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(
    arguments: Sequence[str], *, ranks: int, records: Path, log: Path, on_record: Callable[[dict[str, Any]], None]
) -> Run:
    """Runs ``commpress train <arguments> --records <records>`` on `ranks` ranks of this machine.

    Args:
        log: file for everything that the ranks print.
        on_record: called with each record of the run as it is written.

    Raises:
        RunError: a rank failed.
    """
    records.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "commpress", "train", "--no-progress", "--records", str(records), *arguments]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS=str(max(1, cores() // ranks)))
    # The ranks must find this very package, installed or not.
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    follower = Follower(records)
    with open(log, "wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                for record in follower.new():
                    on_record(record)
                time.sleep(_LOOK_SECONDS)
        finally:
            stop(process)
    for record in follower.new():
        on_record(record)
    if process.returncode != 0:
        raise RunError(f"{_last_words(log)}\n(status {process.returncode}; everything that the ranks said is in {log})")
    return read_run(records)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends torchrun and its ranks, first kindly; returns when they are gone."""
    if process.poll() is not None:
        return
    process.terminate()  # torchrun passes it on
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_words(log: Path) -> str:
    """The lines in which ranks said what went wrong, or the log's end."""
    lines = log.read_text(errors="replace").splitlines()
    own = [line for line in lines if line.startswith("commpress train: ")]
    raised = [line for line in lines if _RAISED.match(line)]
    return "\n".join(dict.fromkeys(own or raised or lines[-15:])) or "the run printed nothing"
