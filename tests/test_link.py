"""The link meter: what it concludes from submissions that waited for the wire alone, and from those that computed meanwhile."""

import pytest

from commpress.collectives._link import LinkMeter, chunk_nbytes

MIB = 1 << 20


def test_nothing_is_concluded_from_few_or_small_submissions() -> None:
    meter = LinkMeter()
    assert meter.quantised() == 0
    for _ in range(2):
        assert meter.record(MIB, 0.01, overlapped=False) == pytest.approx(100 * MIB)
    for _ in range(10):
        assert meter.record(1000, 1e-6, overlapped=False) == 0.0
    assert meter.quantised() == 0
    meter.record(MIB, 0.01, overlapped=True)
    assert meter.quantised() == 1 << 16  # the power of two below 102,400 KiB/s


def test_bounds_never_displace_what_the_wire_alone_took() -> None:
    meter = LinkMeter()
    for _ in range(3):
        meter.record(MIB, 0.001, overlapped=False)
    for _ in range(100):
        meter.record(MIB, 0.02, overlapped=True)
    assert meter.quantised() == 1 << 19
    for _ in range(8):  # a link that became slow is noticed
        meter.record(MIB, 0.02, overlapped=False)
    assert meter.quantised() == 1 << 15


def test_messages_are_long_as_long_as_nothing_is_known_and_on_fast_links() -> None:
    assert chunk_nbytes(0) == chunk_nbytes(1 << 22) == 8 * MIB
    assert chunk_nbytes(1 << 18) == (1 << 28) // 320
    assert chunk_nbytes(1 << 10) == 256 * 1024
