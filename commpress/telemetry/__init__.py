"""Telemetry: one JSONL record per training step, written by a thread that never stops or blocks training.

    sink = commpress.telemetry.JsonlSink("run.jsonl", rank=rank)
    sink.emit({"step": 0, "rank": rank})        # returns at once, never raises
    sink.close()                                # waits a bounded time for the queue
    records = commpress.telemetry.read_jsonl("run.jsonl")

`register(..., telemetry="run.jsonl")` makes such a sink and emits a :class:`StepRecord` for every step. This room sees
numbers and names only: it imports none of the other rooms.
"""

from commpress.telemetry._jsonl import JsonlSink, rank_path, read_jsonl
from commpress.telemetry._record import FORMAT, StepRecord
from commpress.telemetry._sink import MemorySink, Sink

__all__ = ["FORMAT", "JsonlSink", "MemorySink", "Sink", "StepRecord", "rank_path", "read_jsonl"]
