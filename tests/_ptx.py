"""For the tests of the executor of PTX: its samples, compiled once, and launches with arrays for arguments."""

import functools
import pathlib
import sys

import numpy as np
import pytest

CUDA = pathlib.Path(__file__).parent / "cuda"
sys.path.insert(0, str(CUDA))

import ptx  # noqa: E402

needs_nvcc = pytest.mark.skipif(ptx.find_nvcc() is None, reason="no nvcc: neither in CUDA_HOME nor on the PATH")
# Tails: one thread, one less than a block, a block, a block and one, several blocks and some.
SIZES = [1, 63, 64, 65, 517]
POISON = 0xA5


@functools.cache
def samples():
    """The kernels of samples.cu by name."""
    return ptx.load(ptx.compile_ptx(CUDA / "ptx" / "samples.cu"))


def random(seed=0):
    return np.random.default_rng(seed)


def poisoned(count, dtype):
    return np.frombuffer(bytearray([POISON]) * (count * np.dtype(dtype).itemsize), dtype)


def run(kernel, grid, block, arguments, memory=None, **options):
    """Launches with arrays in place of their addresses."""
    memory = memory or ptx.Memory()
    given = [memory.add(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arguments]
    return ptx.Machine(kernel, memory, grid, block, given, **options).run()


def blocks_of(n, threads=64):
    return -(-n // threads)
