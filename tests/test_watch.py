"""`commpress watch`: following a file through everything that happens to files, and what is drawn."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.cli import main
from commpress.cli._main import parser
from commpress.cli._watch import Screen, Snapshot, watch
from commpress.telemetry import JsonlSink, Tail

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = [("head.weight", 65536, 3.5), ("body.weight", 4096, 1.25), ("norm.weight", 64, 32.0)]


def step(i: int, **more: Any) -> dict[str, Any]:
    """A step's record; sampled ones get theirs through `more`."""
    layers = [{"name": name, "numel": n, "payload_bytes": int(n * b / 8)} for name, n, b in LAYERS]
    figures = {"requested_rate": 2.0, "achieved_rate": 2.008, "wire_bytes": 35421, "step_time": 0.0213, "finite": True}
    return {"kind": "step", "step": i, "rank": 0, "time": 1e9 + i, "codec": "x:2", "layers": layers, **figures, **more}


def sampled(i: int) -> dict[str, Any]:
    layers = [{"name": name, "numel": n, "payload_bytes": 1, "nmse": 0.125} for name, n, _ in LAYERS]
    bits = [{"name": name, "numel": n, "bits": b} for name, n, b in LAYERS]
    information = {"label": "of the Gaussian limit", "eta_codec": 0.9414, "eta_alloc": 0.81, "layers": bits}
    return step(i, layers=layers, information=information)


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def steps_of(tail: Tail) -> list[Any]:
    return [None if record is None else record["step"] for record in tail.records()]


# -- following


def test_whole_lines_only(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    tail = Tail(path)
    assert steps_of(tail) == []  # not there yet
    data = line(step(0)) + line(step(1))
    with open(path, "wb", buffering=0) as file:
        file.write(data[:10])
        assert steps_of(tail) == []
        file.write(data[10:-5])
        assert steps_of(tail) == [0]
        file.write(data[-5:] + b"nonsense\n\n" + line(step(2)))
        assert steps_of(tail) == [1, 2] and tail.unreadable == 1
    assert steps_of(tail) == []
    tail.close()


@pytest.mark.parametrize("how", ["shorter", "same length", "longer", "replaced", "replaced later"])
def test_a_file_that_begins_anew(tmp_path: pathlib.Path, how: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(line(step(0)) + line(step(1)) + b'{"torn')
    tail = Tail(path)
    assert steps_of(tail) == [0, 1]
    new = line(step(7))
    if how == "same length":
        new = line(step(7)) + line(step(8)) + b'{"fresh'
        new = new[: path.stat().st_size]
    if how == "longer":
        new = b"".join(line(step(i)) for i in range(7, 12))
    if how.startswith("replaced"):
        with open(path, "ab") as file:
            file.write(b'"}\n' + line(step(2)))  # written before the rotation, read after it
        path.rename(tmp_path / "old.jsonl")
        expected: list[Any] = [None, 2]
        if how == "replaced later":
            assert [s for s in steps_of_any(tail) if s != "torn"] == [2]
            expected = [None]
        path.write_bytes(new)
        assert sorted(map(str, (s for s in steps_of_any(tail) if s != "torn"))) == sorted(map(str, [*expected, 7]))
    else:
        path.write_bytes(new)
        found = steps_of(tail)
        assert (
            found[:2] == [None, 7] and found[2:] == {"shorter": [], "same length": [8], "longer": [8, 9, 10, 11]}[how]
        )
    tail.close()


def steps_of_any(tail: Tail) -> list[Any]:
    return [None if record is None else record.get("step", "torn") for record in tail.records()]


def test_a_long_file_is_read_from_near_its_end(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(line(step(i)) for i in range(100)))
    each = len(line(step(99)))
    tail = Tail(path, last_bytes=3 * each + each // 2)
    assert steps_of(tail) == [97, 98, 99]
    tail.close()


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=8))
def test_however_the_bytes_arrive(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("tail") / "run.jsonl"
    data = b"".join(line({"kind": "step", "step": i, "name": "größe"}) for i in range(20))
    tail, found, begin = Tail(path), [], 0
    with open(path, "wb", buffering=0) as file:
        for cut in [*sorted(cuts), len(data)]:
            file.write(data[begin:cut])
            begin = max(begin, cut)
            found += steps_of(tail)
    tail.close()
    assert found == list(range(20))


# -- what is shown


def picture(*records: dict[str, Any] | None, layers: int = 8, width: int = 100) -> str:
    state = Snapshot()
    for record in records:
        state.take(record)
    return "\n".join(state.picture("run.jsonl", layers, width))


def test_a_snapshot_has_the_figures() -> None:
    text = picture(sampled(40), step(41), {"kind": "step", "step": 42, "loss_rank0": 2.5})
    for figure in (
        "41",
        "2.5000",
        "35,421",
        "2.008 of 2 asked for",
        "0.125",
        "94.1 % of the Gaussian limit",
        "21.3 ms",
    ):
        assert figure in text
    assert "81.0 % of the optimum" in text
    bars = dict(re.findall(r"^(\S+ +[\d.]+ +[\d.]+ %) (#*)", text, flags=re.MULTILINE))
    # 65536 * 3.5, 4096 * 1.25 and 64 * 32 bits
    assert [re.sub(" +", " ", name) for name in bars] == [
        "head.weight 3.50 97.0 %",
        "body.weight 1.25 2.2 %",
        "norm.weight 32.00 0.9 %",
    ]
    assert [len(bar) for bar in bars.values()] == [28, 1, 0]
    assert "norm.weight" not in picture(sampled(40), layers=2)


def test_plans_come_before_samples_and_a_new_file_forgets() -> None:
    plan = {"kind": "plan", "step": 0, "rank": 0, "layers": [{"name": "planned", "numel": 4, "bits": 2.0}]}
    assert "planned" in picture(plan, sampled(0)) and "head.weight" not in picture(plan, sampled(0))
    assert "waiting" in picture(plan, sampled(0), None)
    assert "a gradient was not finite" in picture(step(0, finite=False))


@pytest.mark.parametrize("width", [1, 5, 20, 43, 80, 200])
def test_lines_fit_and_hold_nothing_that_a_terminal_obeys(width: int) -> None:
    bad = sampled(0)
    bad["codec"] = "\x1b[2J"
    names = ("\x1b[31mred\n" * 9, "层" * 60, "x" * 300)
    bad["information"]["layers"] = [{"name": name, "bits": 2.0} for name in names]
    text = picture(bad, width=width)
    assert "\x1b" not in text
    assert all(len(row) + sum(c == "层" for c in row) <= width for row in text.split("\n"))


@pytest.mark.parametrize("odd", [{}, {"kind": "step"}, {"kind": "step", "step": 1, "rank": None, "layers": [1, {}]}])
def test_odd_records_do_no_harm(odd: dict[str, Any]) -> None:
    picture(
        odd, {"kind": "plan", "layers": 3}, odd | {"information": {"layers": {}, "eta_codec": "x"}, "wire_bytes": []}
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_in_place() -> None:
    out = Terminal()
    screen = Screen(out)
    screen.draw(["a", "b"])
    screen.draw(["a", "b"])  # nothing new
    screen.draw(["c"])
    screen.close()
    assert out.getvalue() == "\x1b[Ja\nb\n\x1b[2F\x1b[Jc\n\n"


# -- the command


def test_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(line(sampled(3)) + b'{"torn')
    assert main(["watch", str(path), "--once"]) == 0
    assert "35,421" in capsys.readouterr().out
    path.write_bytes(b"")
    for arguments in (["watch", str(path), "--once"], ["watch", str(tmp_path / "missing"), "--once"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("commpress watch: ") and err.count("\n") == 1
    for wrong in (["--interval", "0"], ["--interval", "nan"], ["--layers", "-1"]):
        assert main(["watch", str(path), *wrong]) == 2


class Enough(io.StringIO):
    """Presses Ctrl-C when the text has come."""

    def __init__(self, until: str) -> None:
        super().__init__()
        self._until = until

    def flush(self) -> None:
        if self._until in self.getvalue():
            raise KeyboardInterrupt


def test_it_follows_a_live_sink_line_by_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    stop = threading.Event()

    def train() -> None:
        sink = JsonlSink(path)
        for i in range(100000):
            if stop.wait(0.01):
                break
            sink.emit(step(i))
        sink.close()

    writer = threading.Thread(target=train)
    writer.start()
    out = Enough("step 20")
    try:
        assert watch(path, once=False, interval=0.001, layers=3, out=out) == 0
    finally:
        stop.set()
        writer.join()
    rows = out.getvalue().splitlines()
    numbers = [int(re.match(r"step (\d+)  wire bytes per step 35,421", row)[1]) for row in rows]  # type: ignore[index]
    assert numbers == sorted(set(numbers))
    assert "\x1b" not in out.getvalue()


def test_ctrl_c_ends_it_cleanly(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(line(sampled(5)))
    command = [sys.executable, "-u", "-m", "commpress", "watch", str(path), "--interval", "0.05"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("step 5 ")
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("command", ["report", "watch"])
def test_help_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    examples = re.findall(rf"commpress ({command}\b[^\n]*)", capsys.readouterr().out.split("example", 1)[1])
    assert len(examples) >= 3
    for example in examples:
        parser().parse_args(re.split(r"  +", example)[0].split())
