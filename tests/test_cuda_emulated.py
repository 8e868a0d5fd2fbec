"""The CUDA kernels without a GPU: their source under the emulator against the CPU path, and what bugs that would catch."""

import functools
import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "cuda"
COMPILERS = {"plain": "g++", "sanitize": "g++", "threads": "clang++"}
# Seed, order (0 in order, 1 reversed, 2 random), blocks in flight, every how many-th case.
RUNS = [
    ("test_kernels", "plain", (11, 0, 1, 2)),
    ("test_kernels", "plain", (12, 1, 4, 3)),
    ("test_kernels", "plain", (13, 2, 8, 3)),
    ("test_kernels", "sanitize", (14, 0, 4, 4)),
    ("test_kernels", "sanitize", (15, 2, 8, 8)),
    ("test_kernels", "threads", (16, 0, 8, 30)),
    ("test_kernels", "threads", (17, 1, 1, 40)),
    ("test_kernels", "threads", (18, 2, 8, 30)),
    ("test_formats", "plain", (11, 0, 1, 5)),
    ("test_formats", "plain", (12, 2, 4, 5)),
    ("test_formats", "sanitize", (13, 1, 8, 20)),
    ("test_formats", "threads", (14, 2, 8, 60)),
    ("test_topk", "plain", (11, 0, 1, 1)),
    ("test_topk", "plain", (12, 1, 4, 3)),
    ("test_topk", "plain", (13, 2, 8, 3)),
    ("test_topk", "sanitize", (14, 2, 8, 20)),
    ("test_topk", "threads", (15, 0, 8, 40)),
    ("test_topk", "threads", (16, 2, 4, 40)),
    ("test_bitshift", "plain", (11, 0, 1, 12)),
    ("test_bitshift", "plain", (12, 1, 4, 25)),
    ("test_bitshift", "plain", (13, 2, 8, 25)),
    ("test_bitshift", "sanitize", (14, 0, 4, 40)),
    ("test_bitshift", "sanitize", (15, 2, 8, 40)),
    ("test_bitshift", "threads", (16, 0, 8, 90)),
    ("test_bitshift", "threads", (17, 2, 4, 90)),
    ("test_entropy", "plain", (11, 0, 1, 3)),
    ("test_entropy", "plain", (12, 1, 4, 5)),
    ("test_entropy", "plain", (13, 2, 8, 5)),
    ("test_entropy", "sanitize", (14, 2, 8, 20)),
    ("test_entropy", "threads", (15, 0, 8, 60)),
    ("test_entropy", "threads", (16, 2, 4, 60)),
    ("test_entropy_encoder", "plain", (11, 0, 1, 2)),
    ("test_entropy_encoder", "plain", (12, 1, 4, 4)),
    ("test_entropy_encoder", "plain", (13, 2, 4, 4)),
    ("test_entropy_encoder", "sanitize", (14, 2, 4, 20)),
    ("test_entropy_encoder", "threads", (15, 0, 4, 40)),
    ("test_entropy_encoder", "threads", (16, 2, 4, 40)),
]
TESTS = ("test_kernels", "test_formats", "test_topk", "test_bitshift", "test_entropy", "test_entropy_encoder")
QUICK_MUTANTS = [
    "tensor_of_layer_forgotten",
    "fold_barrier_in_one_warp",
    "zero_scale_means_something",
    "largest_of_half_a_chunk",
    "ranks_within_warp",
    "trellis_bits_used_at_once",
    "escapes_have_one_rank",
    "escapes_of_one_lane",
]


def run(*command, timeout):
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=timeout
    )
    return done.returncode, done.stdout


@functools.cache
def programs():
    """The folder of the tests in every build that there is a compiler for: made together, so that no core waits."""
    builds = [build for build, compiler in COMPILERS.items() if shutil.which(compiler)]
    targets = [f"../../build/cudatest/{build}/{test}" for build in builds for test in TESTS]
    code, output = run("make", "-j2", "-C", str(FOLDER), *targets, timeout=170)
    assert code == 0, output
    return {build: ROOT / "build" / "cudatest" / build for build in builds}


def program(build, test="test_kernels"):
    """A test in this build, or a skip that says what is missing."""
    for tool in ["make", COMPILERS[build]]:
        if shutil.which(tool) is None:
            pytest.skip(f"the {build} build of the emulated kernels is not tested: no {tool}")
    return programs()[build] / test


@pytest.mark.parametrize(("test", "build", "schedule"), RUNS, ids=str)
def test_kernels_give_the_bytes_of_the_cpu(test, build, schedule):
    code, output = run(str(program(build, test)), *map(str, schedule), timeout=170)
    if code != 0 and "unexpected memory mapping" in output:
        pytest.skip(
            "the threads build of the emulated kernels is not tested: ThreadSanitizer cannot run on this kernel"
        )
    assert code == 0 and output.endswith("passed\n"), output


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_million_coordinates_of_trellises():
    code, output = run(str(program("plain", "test_bitshift")), *map(str, (21, 2, 8, 1, 2**20 - 5)), timeout=1800)
    assert code == 0 and output.endswith("passed\n"), output


def test_long_payloads_of_entropy_coded_quantisers():
    """Several times a search on samples, and tens of substreams."""
    arguments = map(str, (21, 2, 4, 1, 2**20 - 5))
    code, output = run(str(program("plain", "test_entropy_encoder")), *arguments, timeout=170)
    assert code == 0 and output.endswith("passed\n"), output


@functools.cache
def mutants():
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("mutants")
    finally:
        sys.path.remove(str(FOLDER))


def test_every_mutant_still_has_its_text():
    assert mutants().check_texts() == []
    names = [mutant.name for mutant in mutants().MUTANTS]
    assert len(names) >= 100
    assert set(QUICK_MUTANTS) <= set(names)


def test_some_mutants_are_caught():
    program("plain")
    code, output = run(
        *[sys.executable, str(FOLDER / "mutants.py"), "--builds", "plain", "--no-baseline", *QUICK_MUTANTS], timeout=170
    )
    assert code == 0, output
    assert f"{len(QUICK_MUTANTS)} of {len(QUICK_MUTANTS)} caught" in output, output


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_mutants_are_caught():
    for build in COMPILERS:
        program(build)
    code, output = run(sys.executable, str(FOLDER / "mutants.py"), timeout=5400)
    print(output)
    assert code == 0, output
