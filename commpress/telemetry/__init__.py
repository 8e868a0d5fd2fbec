"""Telemetry: one JSONL record per training step, written by a thread that never stops or blocks training.

    sink = commpress.telemetry.JsonlSink("run.jsonl", rank=rank)
    sink.emit({"step": 0, "rank": rank})        # returns at once, never raises
    sink.close()                                # waits a bounded time for the queue
    records = commpress.telemetry.read_jsonl("run.jsonl")

`write_report(load_runs(["run.jsonl"]), "report.html")` makes a page of a run's records, :class:`Tail` follows a live
file, and :class:`TensorBoardSink` writes scalars.

`register(..., telemetry="run.jsonl")` makes such a sink and emits a :class:`StepRecord` for every step. This room sees
numbers and names only: it imports none of the other rooms.
"""

from commpress.errors import MissingPackageError
from commpress.telemetry._jsonl import JsonlSink, rank_path, read_jsonl
from commpress.telemetry._load import LogError, RunLog, Tail, load_run
from commpress.telemetry._record import FORMAT, StepRecord, json_values
from commpress.telemetry._report import load_runs, write_report
from commpress.telemetry._report_data import number
from commpress.telemetry._sink import MemorySink, Sink
from commpress.telemetry._tensorboard import TensorBoardSink

__all__ = [
    "FORMAT",
    "JsonlSink",
    "LogError",
    "MemorySink",
    "MissingPackageError",
    "RunLog",
    "Sink",
    "StepRecord",
    "Tail",
    "TensorBoardSink",
    "json_values",
    "load_run",
    "load_runs",
    "number",
    "rank_path",
    "read_jsonl",
    "write_report",
]
