"""all_reduce over a real MPI: bit for bit what torch.distributed gives, and no hang whatever fails. `_mpi_ranks.py` has what the ranks do."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _mpi_launch import ROOT, mpiexec, run_ranks

import commpress
from commpress.errors import CommpressError, MissingPackageError

RANKS = str(pathlib.Path(__file__).with_name("_mpi_ranks.py"))


def ranks(
    size: int, scenario: str, argument: str = "-", *, abort: bool = True, start: list[str] | None = None
) -> subprocess.CompletedProcess:
    """All ranks of one scenario; with `abort`, mpi4py's runner ends the job at the first exception. `start` is a script that stands for mpiexec, Python and that runner."""
    command = [sys.executable, *(["-m", "mpi4py"] if abort else [])]
    if scenario == "thread_level":
        command += ["-rc", f"thread_level={argument}"]
    return run_ranks(size, [*([] if start else command), RANKS, scenario, argument], 100, start)


def fine(size: int, scenario: str, argument: str = "-", *, start: list[str] | None = None) -> None:
    done = ranks(size, scenario, argument, start=start)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # mpiexec may put two ranks' lines on one
    assert sorted(re.findall(r"fine (\d)", done.stdout)) == [str(rank) for rank in range(size)], done.stdout
    assert "Traceback" not in done.stderr and "rror" not in done.stderr, done.stderr


def test_the_same_bits_as_over_gloo(tmp_path: pathlib.Path) -> None:
    """On 2, 3 and 4 ranks; and an explicit MPI_Finalize in the end."""
    fine(4, "results", str(tmp_path / "store"))


def test_faults_are_named_and_nothing_hangs() -> None:
    fine(3, "faults")


def test_channels_and_the_launch_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks are started by launch/mpirun.sh, with what mpiexec there is."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(pathlib.Path(mpiexec()).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHON", sys.executable)
    fine(2, "channels", start=["sh", str(ROOT / "launch" / "mpirun.sh")])


@pytest.mark.parametrize("level", ["serialized"])
def test_threads_that_may_not_call_mpi(level: str) -> None:
    fine(2, "thread_level", level)


def test_a_rank_that_leaves_with_an_exception() -> None:
    """Without mpi4py's runner: the others learn of it and the job ends, with interpreters that exit as usual."""
    done = ranks(2, "ends", "raise", abort=False)
    assert done.returncode != 0
    assert "user code failed" in done.stderr and "fine 0" in done.stdout, f"{done.stdout}\n{done.stderr}"


def test_a_rank_that_is_killed_ends_the_job() -> None:
    assert ranks(2, "ends", "kill").returncode != 0


@pytest.mark.parametrize("lacking", ["mpi4py", "an MPI library"])
def test_without_mpi(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mpi4py.MPI" not in sys.modules, "importing commpress starts MPI"

    def load(name: str) -> None:
        raise {"mpi4py": ImportError, "an MPI library": RuntimeError}[lacking](f"cannot load {name}")

    monkeypatch.setattr("commpress.collectives._mpi.importlib.import_module", load)
    for call in (
        lambda: commpress.mpi.all_reduce(np.ones(3), "none"),
        commpress.mpi.close,
        commpress.mpi.last_report,
    ):
        with pytest.raises(MissingPackageError, match="pip install") as caught:
            call()
        assert isinstance(caught.value, CommpressError) and isinstance(caught.value, ImportError)
