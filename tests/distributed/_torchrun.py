"""Starting a script on ranks of this machine with torchrun."""

from __future__ import annotations

import atexit
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """The tests' own, with this checkout on the path, gloo on loopback and one thread a rank."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # What scripts call `python` and `torchrun` is of this Python, which need not have a torchrun beside it.
    env["PATH"] = os.pathsep.join([_tools(), str(pathlib.Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env | more


@functools.cache
def _tools() -> str:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="commpress-tools-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "torchrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    (folder / "torchrun").chmod(0o755)
    return str(folder)


def run(
    command: list[str], *, timeout: float, cwd: pathlib.Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs a command that starts ranks; all of them are killed, and the test fails, if it is not over in time."""
    process = subprocess.Popen(
        command,
        cwd=cwd or ROOT,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        raise AssertionError(f"still running after {timeout:g} s: {command}\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def torchrun(
    words: list[str],
    *,
    ranks: int = 2,
    timeout: float = 120,
    cwd: pathlib.Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """``torchrun --standalone --nproc_per_node=ranks words``."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run([*start, *words], timeout=timeout, cwd=cwd, env=env)
