"""What a run writes down: one JSON object per line, one file per run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TextIO

from commpress.errors import CommpressError


class RecordError(CommpressError, ValueError):
    """A run's records are missing or unreadable."""


def file_name(codec: str) -> str:
    """Name of a run's JSONL file: ``hadamard+lloyd:2`` -> ``hadamard+lloyd_2.jsonl``."""
    return "".join(c if c.isalnum() or c in "+-.=" else "_" for c in codec) + ".jsonl"


class RunWriter:
    """Appends records to a file; every line is whole and flushed, so a reader can follow a run that is still under way.

    The first fields of each record are ``kind`` and, if there is one, ``step`` (the number of optimiser steps done).
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, append: bool = False) -> None:
        self._file: TextIO | None = None
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a" if append else "w", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:
        """One record."""
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No more records."""
        if self._file is not None:
            self._file.close()


class Follower:
    """Reads the records of a file that is still being written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._done = 0

    def new(self) -> list[dict[str, Any]]:
        """Complete records since the last call; none if the file is not there yet."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._done)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._done += len(data)
        return [json.loads(line) for line in data.splitlines()]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as its file tells it."""

    codec: str
    head: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run's file.

    Raises:
        RecordError: it is not there, not JSONL, or the run did not finish.
    """
    try:
        records = Follower(path).new()
    except ValueError as error:
        raise RecordError(f"{path} is not a run's JSONL file: {error}") from error
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record.get("kind", ""), []).append(record)
    if "run" not in by_kind or "summary" not in by_kind:
        raise RecordError(f"{path} holds no finished run")
    head = by_kind["run"][0]
    return Run(head["codec"], head, by_kind.get("step", []), by_kind.get("evaluation", []), by_kind["summary"][-1])
