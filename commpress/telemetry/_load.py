"""Reads JSONL records back: whole files into a :class:`RunLog`, and live files line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from commpress.errors import CommpressError
from commpress.telemetry._report_data import Columns, Layers, Scales, Snapshots, matrix, mean_to_others, number

_CHUNK = 1 << 20
_MOST_STANDING_OUT = 1000
_PRINT = 64  # bytes before the reading position that must still be there, or the file was written anew


class LogError(CommpressError, ValueError):
    """A file holds no record that the reader knows."""


def parse(line: bytes) -> dict[str, Any] | None:
    """One line's JSON object, or None if it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@final
class RunLog:
    """What the records of one run say, as arrays.

    Made by :func:`load_run`. Steps are the library's: the first is 0. A loss that the main job wrote after `k` steps
    done belongs to step ``k - 1``, a held-out loss to step ``k``. Where records of a step come twice (a run that was
    resumed, a file that was continued), the later ones count, and all later steps of the earlier attempt are dropped.

    Attributes:
        name: what the report calls it.
        steps: per step ``wire_bytes``, ``payload_bytes``, ``header_bytes`` (bytes sent by this rank), ``achieved_rate``,
            ``requested_rate`` (bits per coordinate), ``step_time`` (seconds), ``nmse`` (mean over coordinates of the
            layers' NMSE, on sampled steps).
        information: on sampled steps ``achieved``, ``allocated``, ``optimum`` (Fisher trace, 1 / units of the gradient
            squared), ``eta_codec``, ``eta_alloc``, ``rate_payload``, ``rate_wire`` (bits per coordinate and phase),
            ``extra_bytes``.
        losses, held_out: the column ``loss``.
        layer_names, layer_numels: in model order, as far as the records tell it.
        bits, nmse: by layer, over steps; rows in the order of `layer_names`.
        last_information: the last sampled step's, as it was written, and `last_information_step`.
        last_layers: the last sampled step's layers by name: ``nmse`` and what the information says.
        agreements: of the worker-agreement monitor, thinned out evenly when there are many: ``step``, ``cosines`` (float64, ranks x ranks, NaN where unknown).
        agreement: by step ``mean`` and ``least``: over the ranks, of a rank's mean cosine to the others.
        standing_out: what stood out, in order, at most the last 1000: ``step``, ``rank``, ``why``, ``cosine``, ``others``, ``norm``.
        scales: of the same monitor: every layer's rms on most ranks, and which ranks were far from it.
        history: the last that a step told of predictions from more than one aggregate, as written; {} if none did.
        plans: plan records: ``step``, ``objective``, ``reason``, ``budget_bytes``, ``planned_bytes``, and ``bits`` by
            layer's name.
        head: ``codec``, ``world_size``, ``numel`` as far as known.
        unreadable: lines that are no JSON object; ignored: records of other kinds or ranks.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = Columns(
            "wire_bytes",
            "payload_bytes",
            "header_bytes",
            "achieved_rate",
            "requested_rate",
            "step_time",
            "nmse",
        )
        self.information = Columns(
            "achieved",
            "allocated",
            "optimum",
            "eta_codec",
            "eta_alloc",
            "rate_payload",
            "rate_wire",
            "extra_bytes",
        )
        self.losses = Columns("loss")
        self.held_out = Columns("loss")
        self.layer_names: list[str] = []
        self.layer_numels: list[float] = []
        self.bits = Layers()
        self.nmse = Layers()
        self.last_information: dict[str, Any] = {}
        self.last_information_step: float | None = None
        self.last_layers: dict[str, dict[str, float | None]] = {}
        self.last_layers_step: float | None = None
        self.agreements = Snapshots()
        self.agreement = Columns("mean", "least")
        self.standing_out: list[dict[str, Any]] = []
        self.scales = Scales(_MOST_STANDING_OUT)
        self.history: dict[str, Any] = {}
        self.plans: list[dict[str, Any]] = []
        self.head: dict[str, Any] = {}
        self.unreadable = 0
        self.ignored = 0
        self._rank: Any = None
        self._index: dict[str, int] = {}
        self._old_plans = 0  # so many plans were made before the last step's record

    def __bool__(self) -> bool:
        """Whether there was any record."""
        return bool(len(self.steps) or len(self.losses) or len(self.held_out) or len(self.agreement) or self.plans)

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes one record of any kind."""
        kind, step = record.get("kind"), number(record.get("step"))
        if kind == "run":
            self._take_head(record)
        elif step is None:
            self.ignored += 1
        elif kind in ("step", "plan", "agreement") and "rank" in record:
            if self._rank is None:
                self._rank = record["rank"]
            if record["rank"] != self._rank:
                self.ignored += 1
            elif kind == "plan":
                self._plan(step, record)
            elif kind == "agreement":
                self._agreement(step, record)
            else:
                self._step(step, record)
        elif kind == "step" and (loss := _loss(record)) is not None:
            self.losses.add(step - 1, {"loss": loss})
        elif kind == "evaluation" and (loss := number(record.get("held_out_loss_sample"))) is not None:
            self.held_out.add(step, {"loss": loss})
        else:
            self.ignored += 1

    def _take_head(self, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("codec"), str):
            self.head["codec"] = record["codec"]
        for name in ("world_size", "numel"):
            if number(record.get(name)) is not None:
                self.head[name] = record[name]

    def _plan(self, step: float, record: Mapping[str, Any]) -> None:
        layers = _layers(record)
        self._know(layers)
        bits = {layer["name"]: number(layer.get("bits")) for layer in layers}
        plan = {name: number(record.get(name)) for name in ("budget_bytes", "planned_bytes")}
        words = {name: str(record.get(name, "")) for name in ("objective", "reason")}
        self.plans.append({"step": step, **words, **plan, "bits": bits})

    def _agreement(self, step: float, record: Mapping[str, Any]) -> None:
        cosines = matrix(record.get("cosines"))
        if cosines is None:
            self.ignored += 1
            return
        self._take_head({"world_size": len(cosines)})
        self.standing_out = [one for one in self.standing_out if one["step"] < step]
        self.agreements.add(step, cosines)
        to_others = mean_to_others(cosines)
        known = to_others[np.isfinite(to_others)]
        figures = {"mean": float(known.mean()), "least": float(known.min())} if known.size else {}
        self.agreement.add(step, figures)
        listed = record.get("standing_out")
        for one in listed if isinstance(listed, list) else ():
            if isinstance(one, dict) and number(one.get("rank")) is not None:
                figures_of = {name: number(one.get(name)) for name in ("rank", "cosine", "others", "norm")}
                self.standing_out.append({"step": step, "why": str(one.get("why", "")), **figures_of})
        self.standing_out = self.standing_out[-_MOST_STANDING_OUT:]
        if isinstance(scales := record.get("scales"), dict):
            layers = _layers(scales)
            self._know(layers)
            rms = {layer["name"]: number(layer.get("rms")) for layer in layers}
            self.scales.add(step, rms, self.layer_names, scales.get("far"))

    def _step(self, step: float, record: Mapping[str, Any]) -> None:
        if self.steps.last is not None and step <= self.steps.last:
            for figures_by_step in (self.information, self.bits, self.nmse):
                figures_by_step.cut(step)
            old = [plan for plan in self.plans[: self._old_plans] if plan["step"] < step]
            self.plans = old + self.plans[self._old_plans :]
        self._old_plans = len(self.plans)
        self._take_head(record)
        self.history = told if isinstance(told := record.get("history"), dict) else self.history
        layers = _layers(record)
        self._know(_model_order(record, layers))
        figures = {name: number(record.get(name)) for name in self.steps.names}
        nmse = {layer["name"]: number(layer.get("nmse")) for layer in layers if number(layer.get("nmse")) is not None}
        if nmse:
            numels = {layer["name"]: number(layer.get("numel")) or 0 for layer in layers}
            total = sum(numels[name] for name in nmse)
            weighted = sum(numels[name] * (value or 0) for name, value in nmse.items())
            figures["nmse"] = weighted / total if total else None
            self.nmse.add(step, [nmse.get(name) for name in self.layer_names])
        self.steps.add(step, figures)
        if (loss := _loss(record)) is not None:
            self.losses.add(step, {"loss": loss})
        informed = self._information(step, record)
        if nmse or informed:
            names = [*nmse, *(name for name in informed if name not in nmse)]
            self.last_layers = {name: {"nmse": nmse.get(name), **informed.get(name, {})} for name in names}
            self.last_layers_step = step
        self._bits(step, record, layers, informed)

    def _information(self, step: float, record: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
        """By layer, what the record's information says; {} if it has none."""
        information = record.get("information")
        if not isinstance(information, dict):
            return {}
        self.information.add(step, {name: number(information.get(name)) for name in self.information.names})
        self.last_information, self.last_information_step = information, step
        layers = _layers(information)
        self._know(layers)
        fields = ("bits", "variance", "captured", "eta")
        return {layer["name"]: {field: number(layer.get(field)) for field in fields} for layer in layers}

    def _bits(
        self,
        step: float,
        record: Mapping[str, Any],
        layers: Sequence[Mapping[str, Any]],
        informed: Mapping[str, Mapping[str, float | None]],
    ) -> None:
        """The plan's bits where there is one, what was measured on a sampled step, or the share of the payload."""
        sent, rate = number(record.get("payload_bytes")), number(record.get("achieved_rate"))
        numel = sum(number(layer.get("numel")) or 0 for layer in layers)
        found: dict[str, float | None] = {}
        for layer in layers:
            mine, share = number(layer.get("numel")), number(layer.get("payload_bytes"))
            if rate is None or share is None or not sent or not mine:
                continue
            even = sent * mine / numel
            # A share is whole bytes: of a layer of 64 coordinates one byte is an eighth of a bit and means nothing.
            found[layer["name"]] = rate if abs(share - even) <= 1 else rate * share / even
        found.update({name: layer["bits"] for name, layer in informed.items() if layer["bits"] is not None})
        if self.plans:
            found.update({name: bits for name, bits in self.plans[-1]["bits"].items() if bits is not None})
        if found:
            self.bits.add(step, [found.get(name) for name in self.layer_names])

    def _know(self, layers: Sequence[Mapping[str, Any]]) -> None:
        for layer in layers:
            if layer["name"] not in self._index:
                self._index[layer["name"]] = len(self.layer_names)
                self.layer_names.append(layer["name"])
                self.layer_numels.append(number(layer.get("numel")) or 0)


def _loss(record: Mapping[str, Any]) -> float | None:
    found = number(record.get("loss"))
    return number(record.get("loss_rank0")) if found is None else found


def _layers(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    layers = record.get("layers")
    if not isinstance(layers, list):
        return []
    return [layer for layer in layers if isinstance(layer, dict) and isinstance(layer.get("name"), str)]


def _model_order(record: Mapping[str, Any], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DDP fills its buckets from the model's end: the last bucket holds the first layers, in order."""
    buckets = record.get("buckets")
    if not isinstance(buckets, list) or len(buckets) < 2:
        return layers
    groups: list[tuple[float, list[dict[str, Any]]]] = []
    left = iter(layers)
    for bucket in buckets:
        if not isinstance(bucket, dict) or (size := number(bucket.get("numel"))) is None:
            return layers
        group: list[dict[str, Any]] = []
        while size > 0 and (layer := next(left, None)) is not None:
            group.append(layer)
            size -= number(layer.get("numel")) or 0
        if size != 0:
            return layers
        groups.append((number(bucket.get("bucket")) or 0, group))
    ordered = [layer for _, group in sorted(groups, key=lambda pair: -pair[0]) for layer in group]
    return [*ordered, *left]


def load_run(*paths: str | os.PathLike[str], name: str | None = None) -> RunLog:
    """The records of one run, from one file or several.

    Takes the library's telemetry (kinds "step" and "plan") and the main job's own records (losses), in any file.
    Records of other kinds are ignored and counted. So is a line that is no JSON object; the last line of a file that is
    still being written may be one. Files are read line by line: memory goes by the number of steps and layers.

    Args:
        paths: the files, at least one.
        name: what the run is called; by default the first file's name.

    Raises:
        LogError: no file was given, or none of them holds a record that says anything.
        OSError: a file cannot be read.
    """
    if not paths:
        raise LogError("no file was given; name one or more JSONL files")
    run = RunLog(Path(paths[0]).name if name is None else name)
    for path in paths:
        with open(path, "rb") as file:
            for line in file:
                if (record := parse(line)) is not None:
                    run.add(record)
                elif line.endswith(b"\n") and line.strip():
                    run.unreadable += 1
    if not run:
        raise LogError(
            f"{' and '.join(map(str, paths))}: no step of a run in it ({run.unreadable} lines are no JSON, "
            f"{run.ignored} records are of other kinds); give a file that `telemetry=` or `--records` wrote"
        )
    return run


@final
class Tail:
    """Follows a file that is being written: whole lines only, through truncation, replacement and its absence.

    Lines that are no JSON object are left out and counted (`unreadable`).

    Args:
        path: the file; it need not be there yet.
        last_bytes: of a file that is longer at first sight, only so many are read.
    """

    def __init__(self, path: str | os.PathLike[str], *, last_bytes: int = 64 << 20) -> None:
        self.unreadable = 0
        self._path = Path(path)
        self._last = last_bytes
        self._file: Any = None
        self._at = 0
        self._partial = b""
        self._print = b""
        self._skip = False  # up to the next newline: reading began inside a line

    def records(self) -> Iterator[dict[str, Any] | None]:
        """Records completed since the last call. None: the file begins anew from here.

        Raises:
            OSError: the file is there but cannot be read.
        """
        if self._file is None:
            if not self._open(first=True):
                return
        elif self._replaced():
            yield from self._rest()  # of the file under its old name
            self.close()
            yield None
            if not self._open(first=False):
                return
        elif self._rewritten():
            self._start(0)
            yield None
        yield from self._rest()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._start(0)

    def _open(self, *, first: bool) -> bool:
        try:
            self._file = open(self._path, "rb", buffering=0)
        except FileNotFoundError:
            return False
        size = os.fstat(self._file.fileno()).st_size
        self._start(size - self._last if first and size > self._last else 0)
        return True

    def _start(self, at: int) -> None:
        self._at, self._partial, self._print, self._skip = at, b"", b"", at > 0

    def _replaced(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return not os.path.samestat(there, os.fstat(self._file.fileno()))

    def _rewritten(self) -> bool:
        self._file.seek(self._at - len(self._print))
        return self._file.read(len(self._print)) != self._print

    def _rest(self) -> Iterator[dict[str, Any]]:
        self._file.seek(self._at)
        while chunk := self._file.read(_CHUNK):
            self._at += len(chunk)
            self._print = (self._print + chunk)[-_PRINT:]
            *whole, self._partial = (self._partial + chunk).split(b"\n")
            for line in whole:
                if self._skip:
                    self._skip = False
                elif (record := parse(line)) is not None:
                    yield record
                elif line.strip():
                    self.unreadable += 1
