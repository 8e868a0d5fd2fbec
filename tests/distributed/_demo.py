"""The demo as a user runs it: started, finished, read."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

TIMEOUT = 140.0  # of a job; it takes some ten seconds where nothing else runs
CODEC = "hadamard+lloyd:2"


def demo(out: pathlib.Path, *options: str, prefix: list[str] | None = None) -> subprocess.Popen[str]:
    """`commpress demo --quick`, started."""
    command = [*(prefix or []), sys.executable, "-m", "commpress", "demo", "--quick", "--out", str(out), *options]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        command,
        cwd=out.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts tests in the background makes them ignore Ctrl-C, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, standard output and standard error; nothing that it started outlives the timeout."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # the demo ends its ranks, which have sessions of their own
        out, err = process.communicate(timeout=30)
        pytest.fail(f"still running after {TIMEOUT} s\n{out}\n{err}")
    return process.returncode, out, err


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
