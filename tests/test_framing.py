"""What the frames of the job's interface are taken to hold, from counters that lag behind what was sent."""

from __future__ import annotations

import pytest

from commpress.collectives import _framing
from commpress.collectives._accounting import MSS
from commpress.collectives._framing import FramingMeter, Sent


def meter(monkeypatch: pytest.MonkeyPatch, *readings: dict[str, Sent], loopback: bool = True) -> FramingMeter:
    """One that sees these counters in turn, after zeros."""
    first = {name: Sent(0, 0) for name in readings[0]}
    left = iter([first, *readings])
    monkeypatch.setattr(_framing, "read_counters", lambda: next(left))
    monkeypatch.setattr(_framing, "mtu_of", lambda name: 65536 if name == "lo" else 1500)
    return FramingMeter(loopback=loopback)


def test_few_bytes_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meter(monkeypatch, {"eth0": Sent(10, 1)}).record(200_000, 0) == MSS


def test_segments_and_frames_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meter(monkeypatch, {"eth0": Sent(304_000, 20)}).record(300_000, 0) == pytest.approx(15_134)
    assert meter(monkeypatch, {"eth0": Sent(314_000, 208)}).record(300_000, 0) == MSS


def test_the_end_may_still_wait_in_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until 250 kB of 300 are through, that is enough; with half of them the next call looks again, at all there was."""
    assert meter(monkeypatch, {"eth0": Sent(250_000, 20)}).record(300_000, 0) > 10_000
    late = meter(monkeypatch, {"eth0": Sent(150_000, 10)}, {"eth0": Sent(590_000, 40)})
    assert late.record(300_000, 0) == MSS
    assert late.record(300_000, 0) == pytest.approx(590_000 / 40 - 66)


def test_another_interface_is_not_taken_for_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bytes go past the kernel, somebody else's packets say nothing."""
    strange = meter(monkeypatch, *[{"eth1": Sent(50_000, 2)}] * 20)
    assert {strange.record(300_000, 0) for _ in range(20)} == {MSS}
    apart = meter(monkeypatch, {"lo": Sent(400_000, 10), "eth0": Sent(1000, 10)}, loopback=False)
    assert apart.record(300_000, 0) == MSS


def test_reading_becomes_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the counters say nothing: a thousand calls, a few dozen readings."""
    readings = iter([{"eth0": Sent(0, 0)}] * 60)
    monkeypatch.setattr(_framing, "read_counters", lambda: next(readings))
    silent = FramingMeter()
    for _ in range(1000):
        silent.record(300_000, 3)
    assert len(list(readings)) > 20
