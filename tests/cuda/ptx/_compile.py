"""Calls nvcc."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence


def find_nvcc() -> str | None:
    """The nvcc of ``CUDA_HOME``, or the one on the PATH; None where there is neither."""
    home = os.environ.get("CUDA_HOME")
    if home and (own := shutil.which("nvcc", path=os.path.join(home, "bin"))):
        return own
    return shutil.which("nvcc")


def compile_ptx(
    source: pathlib.Path, *, architecture: str = "compute_90", options: Sequence[str] = ("-std=c++17",)
) -> str:
    """The PTX of a source file, every operation with a rounding of its own (``-fmad=false``).

    Raises:
        RuntimeError: there is no nvcc, or it refuses the source; its message is in the error's.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc: neither in CUDA_HOME nor on the PATH")
    command = [nvcc, "-ptx", f"-arch={architecture}", "-fmad=false", *options, str(source), "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
    return done.stdout
