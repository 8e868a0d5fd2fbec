"""The TensorBoard sink, with a writer that keeps and breaks, and with the real one."""

from __future__ import annotations

import logging
import pathlib
import sys
import threading
import types
from typing import Any

import pytest
from _runs import run_records

from commpress.telemetry import MemorySink, MissingPackageError, TensorBoardSink


class FakeWriter:
    """In place of SummaryWriter: keeps what it gets, and breaks when told to."""

    def __init__(self, logdir: str) -> None:
        if logdir.endswith("broken"):
            raise OSError("read-only")
        self.scalars: list[tuple[str, float, int | None, float | None]] = []
        self.closed = False
        made.append(self)

    def add_scalar(self, tag: str, value: float, step: int | None = None, walltime: float | None = None) -> None:
        if step == 13:
            raise RuntimeError("the disk is full")
        self.scalars.append((tag, value, step, walltime))

    def close(self) -> None:
        self.closed = True


made: list[FakeWriter] = []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    made.clear()
    return made


def test_tensorboard_gets_the_figures(tmp_path: pathlib.Path, fake: list[FakeWriter]) -> None:
    also = MemorySink()
    sink = TensorBoardSink(tmp_path / "tb", also=also)
    records = run_records(steps=30, every=20)
    for record in records:
        assert sink.emit(record) or record["step"] == 13
    sink.close()
    sink.close()
    assert also.records == records
    (writer,) = fake
    assert writer.closed
    by_tag: dict[str, dict[int, float]] = {}
    for tag, value, step, walltime in writer.scalars:
        by_tag.setdefault(tag, {})[step or 0] = value
        assert walltime is None or walltime == 1e9 + (step or 0)
    steps = {r["step"]: r for r in records if r["kind"] == "step" and "rank" in r}
    assert by_tag["bytes/wire"] == {s: r["wire_bytes"] for s, r in steps.items() if s != 13}
    assert by_tag["information/eta_codec"].keys() == {0, 20}
    assert by_tag["information/phase1_eta"][20] == 0.937
    assert "information/together_eta" not in by_tag  # null
    assert by_tag["layer_bits/head.weight"][20] == steps[20]["information"]["layers"][-1]["bits"]
    assert by_tag["layer_nmse/head.weight"][20] == steps[20]["layers"][-1]["nmse"]
    assert by_tag["plan/budget_bytes"].keys() == {0}
    assert len(by_tag["loss"]) == 29
    assert sink.dropped == 2  # step 13 of both files
    assert not sink.emit(records[0])


@pytest.mark.parametrize("kind", ["broken", "odd records", "slow"])
def test_tensorboard_never_raises(
    tmp_path: pathlib.Path, fake: list[FakeWriter], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.WARNING)
    held = threading.Event()
    sink = TensorBoardSink(tmp_path / kind, capacity=4 if kind == "slow" else 1024)
    odd: list[Any] = [{}, {"kind": "step"}, {"kind": "step", "step": "x", "layers": [1, {"nmse": 1}]}, 3, None]
    if kind == "slow":
        sink._thread._shared.writer._make = lambda logdir: held.wait(20) and FakeWriter(logdir)
    for record in {"broken": run_records(steps=3), "odd records": odd, "slow": run_records(steps=20)}[kind]:
        sink.emit(record)
    if kind == "slow":
        assert sink.dropped > 0
    held.set()
    sink.close()
    assert kind == "odd records" or sink.dropped > 0
    assert len([r for r in caplog.records if "drops records" in r.getMessage()]) <= 1


def test_other_ranks_write_nothing(tmp_path: pathlib.Path, fake: list[FakeWriter]) -> None:
    sink = TensorBoardSink(tmp_path, rank=1)
    assert sink.emit({"kind": "step", "step": 0, "wire_bytes": 1})
    sink.close()
    assert fake == [] and sink.dropped == 0


def test_without_tensorboard_it_says_what_to_install(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"commpress\[tensorboard\]"):
        TensorBoardSink(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_tensorboard_reads_it_back(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path / "tb")
    records = run_records(steps=6, every=3)
    for record in records:
        assert sink.emit(record)
    sink.close(timeout=60)
    assert sink.dropped == 0
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    expected = [r["wire_bytes"] for r in records if "wire_bytes" in r]
    assert [(e.step, e.value) for e in events.Scalars("bytes/wire")] == list(enumerate(expected))
    assert [e.step for e in events.Scalars("layer_nmse/head.weight")] == [0, 3]
    assert list((tmp_path / "tb").iterdir())
