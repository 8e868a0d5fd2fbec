"""Telemetry: records, the JSONL sink and its faults. No fault may raise into training or block it."""

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from commpress.telemetry import FORMAT, JsonlSink, MemorySink, StepRecord, rank_path, read_jsonl


def _wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def _warnings(caplog):
    return [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_every_record_is_written_in_order(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    sink = JsonlSink(path)
    for step in range(500):
        assert sink.emit({"step": step, "name": "größe\n"})
    sink.close()
    assert [r["step"] for r in read_jsonl(path)] == list(range(500))
    assert read_jsonl(path)[3]["name"] == "größe\n"
    assert sink.dropped == 0
    assert sink.written == 500


def test_a_second_run_continues_the_file(tmp_path):
    path = tmp_path / "run.jsonl"
    for run in range(2):
        sink = JsonlSink(path)
        sink.emit({"run": run})
        sink.close()
    assert [r["run"] for r in read_jsonl(path)] == [0, 1]


@pytest.mark.parametrize("torn", [b'{"run":', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off_when_the_file_is_continued(tmp_path, torn):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"run":0}\n' + torn)
    assert read_jsonl(path) == [{"run": 0}]
    sink = JsonlSink(path)
    sink.emit({"run": 1})
    sink.close()
    assert path.read_bytes() == b'{"run":0}\n{"run":1}\n'


def test_read_jsonl_refuses_a_broken_line_in_the_middle(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"run":0}\n{"ru\n{"run":2}\n')
    with pytest.raises(ValueError):
        read_jsonl(path)


def test_rank_zero_writes_by_default_and_all_ranks_write_their_own_files(tmp_path):
    path = tmp_path / "run.jsonl"
    for rank in range(3):
        sink = JsonlSink(path, rank=rank)
        assert sink.emit({"rank": rank})
        sink.close()
        assert sink.dropped == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["run.jsonl"]
    for rank in range(3):
        sink = JsonlSink(tmp_path / "all.jsonl", rank=rank, all_ranks=True)
        sink.emit({"rank": rank})
        sink.close()
        assert read_jsonl(rank_path(tmp_path / "all.jsonl", rank)) == [{"rank": rank}]
    assert (tmp_path / "all.rank2.jsonl").exists()


@pytest.mark.parametrize("kind", ["directory", "parent is a file", "disk full"])
def test_a_path_that_takes_nothing_drops_counts_and_warns_once(tmp_path, caplog, kind):
    path = {"directory": tmp_path, "parent is a file": tmp_path / "file" / "run.jsonl", "disk full": "/dev/full"}[kind]
    (tmp_path / "file").write_text("")
    sink = JsonlSink(path)
    for step in range(20):
        sink.emit({"step": step})
    sink.close()
    assert sink.dropped == 20
    assert sink.written == 0
    assert len(_warnings(caplog)) == 1
    assert "drops records" in caplog.text


_FULL = """
import resource, sys
from commpress.telemetry import JsonlSink
path = sys.argv[1]
sink = JsonlSink(path, capacity=10000)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
import time
def settle(n):
    while sink.written + sink.dropped < n: time.sleep(.002)
for step in range(100): sink.emit({"step": step, "dropped": sink.dropped})
settle(100)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
sink.emit({"step": 100, "dropped": sink.dropped})
settle(101)
sink.close()
print(sink.written, sink.dropped)
"""


def test_a_disk_that_fills_inside_a_line_leaves_whole_lines_and_goes_on_when_there_is_room(tmp_path):
    path = tmp_path / "run.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    written, dropped = map(int, done.stdout.split())
    records = read_jsonl(path)
    assert dropped > 0, "the fault did not fire"
    assert written + dropped == 101
    assert len(records) == written
    assert records[-1] == {"step": 100, "dropped": dropped}
    assert path.read_bytes().endswith(b"\n")
    assert done.stderr.count("drops records") == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_disk_that_never_answers_blocks_neither_emit_nor_close(tmp_path, caplog):
    path = tmp_path / "pipe"
    os.mkfifo(path)  # nobody reads: the writer thread hangs in write() once the pipe is full
    sink = JsonlSink(path, capacity=8)
    done = threading.Event()

    def train():
        for step in range(400):
            sink.emit({"step": step, "fill": "x" * 4096})
        _wait(lambda: sink.dropped > 300)
        sink.close(timeout=0.1)
        done.set()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(30)
    assert done.is_set(), "emit or close blocked"
    assert sink.written < 100
    assert sink.written + sink.dropped >= 399
    assert len(_warnings(caplog)) == 1
    assert not sink.emit({})
    assert "too slow" in caplog.text
    # Reading lets the writer thread go.
    with open(path, "rb", buffering=0, opener=lambda p, f: os.open(p, f | os.O_NONBLOCK)) as drain:
        _wait(lambda: not drain.read(1 << 20) and not _alive("commpress-telemetry"))


def _alive(name):
    return any(t.name == name for t in threading.enumerate())


_ENDLESS = """
import sys
from commpress.telemetry import JsonlSink
sink = JsonlSink(sys.argv[1])
step = 0
while True:
    if sink.emit({"step": step, "fill": "y" * 3000}): step += 1
"""


def test_a_killed_writer_leaves_a_file_of_which_every_line_but_the_last_parses(tmp_path):
    path = tmp_path / "run.jsonl"
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(path)], stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: path.exists() and path.stat().st_size > 1_000_000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    lines = path.read_bytes().split(b"\n")[:-1]
    assert len(lines) > 300
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))


def test_what_is_queued_at_exit_is_written(tmp_path):
    path = tmp_path / "run.jsonl"
    code = "import sys; from commpress.telemetry import JsonlSink\n"
    code += "s = JsonlSink(sys.argv[1])\nfor i in range(300): s.emit({'i': i})"
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=True)
    assert len(read_jsonl(path)) == 300


def test_a_forked_child_drops_instead_of_writing_into_the_parents_file(tmp_path):
    code = (
        "import os, sys; from commpress.telemetry import JsonlSink\ns = JsonlSink(sys.argv[1])\n"
        "if os.fork() == 0: os._exit(0 if not s.emit({'child': 1}) and s.dropped == 1 else 3)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\ns.emit({'child': 0})"
    )
    path = tmp_path / "run.jsonl"
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=True)
    assert read_jsonl(path) == [{"child": 0}]


def test_a_record_that_is_no_json_is_dropped_and_the_next_one_written(tmp_path, caplog):
    sink = JsonlSink(tmp_path / "run.jsonl")
    sink.emit({"x": object()})
    sink.emit({"x": math.nan})
    sink.emit({"x": 1})
    sink.close()
    assert read_jsonl(sink.path) == [{"x": 1}]
    assert sink.dropped == 2
    assert len(_warnings(caplog)) == 1


def test_a_closed_or_forgotten_sink_leaves_no_thread(tmp_path):
    before = threading.active_count()
    sink = JsonlSink(tmp_path / "a.jsonl")
    sink.close()
    sink.close()
    assert not sink.emit({})
    assert sink.dropped == 1
    forgotten = JsonlSink(tmp_path / "b.jsonl")
    forgotten.emit({"x": 1})
    del forgotten
    _wait(lambda: threading.active_count() <= before)
    assert read_jsonl(tmp_path / "b.jsonl") == [{"x": 1}]


def test_memory_sink():
    sink = MemorySink()
    assert sink.emit({"x": 1})
    assert sink.records == [{"x": 1}]
    sink.close()
    assert not sink.emit({"x": 2})
    assert sink.dropped == 1
    assert len(sink.records) == 1


def test_step_record_shares_the_bytes_out_exactly_and_keeps_the_three_figures_apart():
    record = StepRecord(step=7, rank=1, world_size=2, codec="uniform:4", requested_rate=4.0)
    counts = {"payload_bytes": 1001, "header_bytes": 256, "wire_bytes": 1400, "messages": 3, "compressed_numel": 1999}
    layers = [("a", 3), ("b", 0), ("c", 1996)]
    record.add_bucket(
        0, layers, sent_numel=1999, counts=counts, times={"encode": 0.25}, finite=True, nmse=[0.5, math.nan, 0.25]
    )
    record.add_bucket(1, [("d", 10)], sent_numel=0, counts={}, times={"encode": 0.5, "wire": 1.0}, finite=False)
    out = record.as_dict(feedback="kept", dropped=4)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["format"] == FORMAT
    assert out["kind"] == "step"
    assert (out["step"], out["rank"], out["world_size"]) == (7, 1, 2)
    assert sum(layer["payload_bytes"] for layer in out["layers"]) == out["payload_bytes"] == 1001
    assert [layer["name"] for layer in out["layers"]] == ["a", "b", "c", "d"]
    assert out["numel"] == 2009
    assert out["layers"][0]["payload_bytes"] == 1001 * 3 // 1999
    assert out["layers"][1]["payload_bytes"] == 0
    assert out["requested_rate"] == 4.0
    assert out["achieved_rate"] == 8 * 1001 / 1999
    assert (out["header_bytes"], out["wire_bytes"], out["messages"]) == (256, 1400, 3)
    assert out["layers"][0]["nmse"] == 0.5
    assert out["layers"][1]["nmse"] is None
    assert "nmse" not in out["layers"][3]
    assert out["times"] == {"encode": 0.75, "wire": 1.0}
    assert out["step_time"] > 0
    assert out["finite"] is False
    assert out["feedback"] == "kept"
    assert out["dropped_records"] == 4


def test_telemetry_imports_no_other_room():
    code = (
        "import sys, types\n"
        "package = types.ModuleType('commpress'); package.__path__ = sys.path[:0] or [sys.argv[1]]\n"
        "sys.modules['commpress'] = package\n"
        "import commpress.telemetry\n"
        "ours = [m for m in sys.modules if m.startswith('commpress.')]\n"
        "assert all(m.startswith(('commpress.telemetry', 'commpress.errors')) for m in ours)\n"
        "assert 'torch' not in sys.modules\n"
    )
    import commpress.telemetry

    root = os.path.dirname(os.path.dirname(commpress.telemetry.__file__))
    subprocess.run([sys.executable, "-c", code, root], timeout=60, check=True)
