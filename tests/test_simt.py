"""The emulator that runs CUDA kernels on the host (tests/cuda/simt): its self test, and faults that it must catch."""

import functools
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "cuda"
OUT = ROOT / "build" / "cudatest"
BUILDS = ["plain", "sanitize", "threads"]
COMPILERS = {"plain": "g++", "sanitize": "g++", "threads": "clang++"}
REPORTS = re.compile(r"simt: ERROR|FAILED: |ERROR: AddressSanitizer|runtime error|WARNING: ThreadSanitizer: data race")


def run(*command, **options):
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )
    return done.returncode, done.stdout


@functools.cache
def program(build):
    """The self test in this build, or a skip that says what is missing."""
    for tool in ["make", COMPILERS[build]]:
        if shutil.which(tool) is None:
            pytest.skip(f"the {build} build of the emulator is not tested: no {tool}")
    path = OUT / build / "test_simt"
    code, output = run("make", "-C", str(FOLDER), f"../../build/cudatest/{build}/test_simt", timeout=170)
    assert code == 0, output
    code, output = run(str(path), "faults", timeout=20)
    if code != 0 and "unexpected memory mapping" in output:
        pytest.skip("the threads build of the emulator is not tested: ThreadSanitizer cannot run on this kernel")
    assert code == 0, output
    return path


def faults(build):
    """Names of the planted faults, and whether this build must catch each."""
    lines = run(str(program(build)), "faults", timeout=20)[1].splitlines()
    return {line.split()[0]: build in line.split()[1:] for line in lines}


@pytest.mark.parametrize("build", BUILDS)
def test_kernels_run_under_every_schedule(build):
    code, output = run(str(program(build)), timeout=120)
    assert code == 0 and output.endswith("passed\n"), output


@pytest.mark.parametrize("build", BUILDS)
def test_planted_faults_are_caught(build):
    for name, must_catch in faults(build).items():
        code, output = run(str(program(build)), "fault", name, timeout=60)
        if must_catch:
            assert code != 0, f"{name} was not caught"
            assert REPORTS.search(output), output


def test_every_fault_is_some_builds_duty():
    lines = run(str(program("plain")), "faults", timeout=20)[1].splitlines()
    assert len(lines) >= 25
    for line in lines:
        name, *builds = line.split()
        assert builds and set(builds) <= set(BUILDS), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deadlock", r"block 0,0,0 warp 0 lanes 0000ffff wait in __syncwarp with mask ffffffff at faults\.cpp:\d+"),
        ("mask_lacks_caller", r"own mask \[block 0,0,0 thread 16 warp 0 lane 16, faults\.cpp:\d+\]"),
        ("two_barriers_for_one", r"different __syncthreads \[block 0,0,0 thread 1 warp 0 lane 1, faults\.cpp:\d+\]"),
    ],
)
def test_errors_name_the_thread_and_the_line(name, message):
    output = run(str(program("plain")), "fault", name, timeout=60)[1]
    assert re.search(message, output), output
