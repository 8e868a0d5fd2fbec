"""The executor of PTX: faults that it must find, each planted in one kernel."""

import numpy as np
import pytest
from _ptx import needs_nvcc, ptx, run, samples

pytestmark = needs_nvcc


@pytest.fixture(scope="module")
def kernels():
    return samples()


FAULTS = {
    1: (ptx.BoundsError, "byte 260 of 256"),
    2: (ptx.AlignmentError, "8 bytes at the offset 4"),
    3: (ptx.UninitializedError, "before it is written"),
    4: (ptx.RaceError, "read of shared"),
    5: (ptx.RaceError, "read of shared"),
    6: (ptx.MaskError, "exited"),
    7: (ptx.MaskError, "outside"),
    8: (ptx.MaskError, "outside its own"),
    9: (ptx.BarrierError, "exited"),
    10: (ptx.BarrierError, "different barriers"),
    11: (ptx.DeadlockError, "in vain"),
    12: (ptx.DeadlockError, "does not end"),
    13: (ptx.TrapError, "trap"),
    14: (ptx.TrapError, "assertion"),
    15: (ptx.RaceError, "one place of global"),
    16: (ptx.RaceError, "another thread read"),
    17: (ptx.BoundsError, "no allocation"),
    18: (ptx.BoundsError, "shared"),
    19: (ptx.DeadlockError, "no thread can go on"),
    20: (ptx.UnsupportedError, "cp.async"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(kernels, which):
    error, message = FAULTS[which]
    with pytest.raises(error, match=message) as caught:
        run(kernels["faults"], 1, 64, [np.zeros(64, np.float32), 64, which], patience=3000)
    assert "faults, instruction" in str(caught.value)


def test_no_fault(kernels):
    run(kernels["faults"], 1, 64, [np.zeros(64, np.float32), 64, 0])


def test_an_access_through_a_null_pointer_or_past_the_tail(kernels):
    x, y = np.zeros(100, np.float32), np.zeros(99, np.float32)
    fields = np.dtype([("x", "u8"), ("y", "u8"), ("n", "i8"), ("s", "f4", 2), ("order", "i4", 8)], align=True)
    memory = ptx.Memory()
    x_at, y_at = memory.add(x), memory.add(y)
    for pointer in (0, y_at, y_at - 4):
        argument = np.array([(x_at, pointer, 100, 0, 0)], fields)[0]
        with pytest.raises(ptx.BoundsError):
            run(kernels["affine"], 2, 64, [argument], memory)


def test_read_only_memory(kernels):
    x, y = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    x.flags.writeable = False
    run(kernels["copy"], 1, 64, [x, y, 64])
    with pytest.raises(ptx.BoundsError, match="read-only"):
        run(kernels["copy"], 1, 64, [y, x, 64])


def test_arguments_are_checked(kernels):
    kernel, memory = kernels["copy"], ptx.Memory()
    for arguments in ([0, 0], [0, 0, np.int64(1)], [0, 0, 1 << 32], [0, 0, b"12345678"]):
        with pytest.raises(ValueError):
            ptx.Machine(kernel, memory, 1, 64, arguments)
    with pytest.raises(ValueError):
        ptx.Machine(kernel, memory, 1, 1025, [0, 0, 0])
    with pytest.raises(ValueError, match="contiguous"):
        memory.add(np.zeros(10, np.uint8)[::2])
