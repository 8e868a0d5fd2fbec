"""Finding and calling mpiexec."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def mpiexec() -> str:
    """The program: the one beside this Python, where `pip install mpich` puts it, else the system's. Skips, with a printed reason, where something is missing."""
    beside = pathlib.Path(sys.executable).parent / "mpiexec"
    program = str(beside) if beside.exists() else shutil.which("mpiexec")
    reason = "" if program else "no mpiexec: `pip install mpich` gets one"
    if importlib.util.find_spec("mpi4py") is None:
        reason = "mpi4py is not installed: `pip install mpi4py`"
    if reason or program is None:
        print(f"skipped: {reason}")
        pytest.skip(reason)
    return program


def run_ranks(
    size: int, command: list[str], timeout: float, start: list[str] | None = None
) -> subprocess.CompletedProcess:
    """Runs `command` on `size` ranks on this machine, started by mpiexec or by `start`, which finds the size in RANKS. Fails if it is not over in time."""
    env = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        RANKS=str(size),
        GLOO_SOCKET_IFNAME="lo",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        # Open MPI counts cores and minds root; MPICH knows none of these
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
    )
    process = subprocess.Popen(
        [*(start or [mpiexec(), "-n", str(size)]), *command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpiexec ends its ranks
        out, err = process.communicate(timeout=20)
        raise AssertionError(f"still running after {timeout:g} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
