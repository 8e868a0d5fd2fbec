"""What one record says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, final

FORMAT = 1
"""Version of the record's fields."""


@final
class StepRecord:
    """Collects the figures of one step, bucket by bucket; :meth:`as_dict` is the JSONL record.

    Fields of the record (bytes are those that this rank sent in this step; times are seconds):

    * ``format``, ``kind`` ("step"), ``step``, ``rank``, ``world_size``, ``time`` (Unix time), ``codec``
    * ``numel``: coordinates reduced; ``requested_rate``: bits per coordinate asked for; ``achieved_rate``: payload bits
      per coordinate sent, over both phases
    * ``payload_bytes``, ``header_bytes``, ``wire_bytes`` (with the transport's framing), ``messages``;
      ``compressed_numel``: coordinates that went through a lossy codec
    * ``node_bytes``, ``node_wire_bytes``: of a hierarchical exchange, what stayed inside the node, all together and with framing;
      the fields before have what went to other nodes
    * ``layers``: a list of ``{"name", "numel", "payload_bytes"}``, and ``"nmse"`` on sampled steps: squared error over
      energy of what this rank sent in phase 1. A payload spans layers; its bytes are shared out by coordinates (with
      low-rank factors: by the numbers that each layer sends)
    * ``buckets``: a list of ``{"bucket", "numel", "payload_bytes", "times"}``
    * ``times``: sums over buckets (which overlap); ``step_time``: from the first hook to the last result
    * ``information``: on sampled steps, what the bits carried against the Gaussian limit (docs/information.md)
    * ``history``: on sampled steps, what predictions from the last 1 to 8 aggregates leave of the gradient's energy, and the window that would pay (docs/side-information.md)
    * ``low_rank``: with low-rank factors a list of ``{"name", "fidelity", "restarted"}`` by matrix (docs/lowrank.md)
    * ``local_sgd``: of a round of LocalSGD, which is a step here (docs/local-sgd.md)
    * ``finite``: false if some gradient was not; ``feedback``: "off", "kept" (residuals held back) or "updated"
    * ``dropped_records``: records lost before this one

    Numbers that are not finite are written as null (JSON knows none), which ``finite`` explains.
    """

    def __init__(self, *, step: int, rank: int, world_size: int, codec: str, requested_rate: float | None) -> None:
        self._head = {"format": FORMAT, "kind": "step", "step": step, "rank": rank, "world_size": world_size}
        self._codec = codec
        self._requested = requested_rate
        self._began = time.perf_counter()
        self._layers: list[dict[str, Any]] = []
        self._buckets: list[dict[str, Any]] = []
        self._times: dict[str, float] = {}
        self._sums = {"payload_bytes": 0, "header_bytes": 0, "wire_bytes": 0, "messages": 0, "compressed_numel": 0}
        self._sums |= {"node_bytes": 0, "node_wire_bytes": 0}
        self._numel = 0
        self._sent_numel = 0
        self._finite = True

    def add_bucket(
        self,
        bucket: int,
        layers: Sequence[tuple[str, int]],
        *,
        sent_numel: int,
        counts: Mapping[str, int],
        times: Mapping[str, float],
        finite: bool,
        nmse: Sequence[float] | None = None,
        weights: Sequence[int] | None = None,
    ) -> None:
        """Adds one bucket.

        Args:
            bucket: its index.
            layers: name and number of coordinates of each layer, in order.
            sent_numel: coordinates that the sent payloads held (each copy counts).
            counts: ``payload_bytes``, ``header_bytes``, ``wire_bytes``, ``messages``, ``compressed_numel``, ``node_bytes``, ``node_wire_bytes``; none is 0.
            times: seconds of each phase.
            finite: whether the result was.
            nmse: for each layer, on sampled steps.
            weights: for each layer, by which the payload is shared out; by default the coordinates.
        """
        numel = sum(n for _, n in layers)
        weights = [n for _, n in layers] if weights is None else weights
        total = sum(weights)
        payload = int(counts.get("payload_bytes", 0))
        done = given = 0
        for i, (name, n) in enumerate(layers):
            done += weights[i]
            upto = payload * done // total if total else 0
            entry: dict[str, Any] = {"name": name, "numel": n, "payload_bytes": upto - given}
            if nmse is not None:
                entry["nmse"] = json_values(nmse[i])  # all else is finite by its nature
            given = upto
            self._layers.append(entry)
        self._buckets.append({"bucket": bucket, "numel": numel, "payload_bytes": payload, "times": dict(times)})
        for name in self._sums:
            self._sums[name] += int(counts.get(name, 0))
        for name, seconds in times.items():
            self._times[name] = self._times.get(name, 0.0) + seconds
        self._numel += numel
        self._sent_numel += sent_numel
        self._finite = self._finite and finite

    @property
    def counts(self) -> dict[str, int]:
        """So far: ``payload_bytes``, ``header_bytes``, ``wire_bytes``, ``messages``, ``compressed_numel``."""
        return dict(self._sums)

    def add_overhead(
        self, header_bytes: int, wire_bytes: int, messages: int, node_bytes: int = 0, node_wire_bytes: int = 0
    ) -> None:
        """Adds what a step sent beside its buckets."""
        for name, value in (
            ("header_bytes", header_bytes),
            ("wire_bytes", wire_bytes),
            ("messages", messages),
            ("node_bytes", node_bytes),
            ("node_wire_bytes", node_wire_bytes),
        ):
            self._sums[name] += value

    def as_dict(self, *, feedback: str, dropped: int) -> dict[str, Any]:
        """The record, with JSON values only. It shares what was collected, so nothing may be added after."""
        achieved = 8 * self._sums["payload_bytes"] / self._sent_numel if self._sent_numel else None
        return (
            self._head
            | {"time": time.time(), "codec": self._codec, "numel": self._numel}
            | {"requested_rate": self._requested, "achieved_rate": achieved}
            | self._sums
            | {"times": self._times, "step_time": time.perf_counter() - self._began}
            | {"finite": self._finite, "feedback": feedback, "dropped_records": dropped}
            | {"layers": self._layers, "buckets": self._buckets}
        )


def json_values(value: Any) -> Any:
    """`value` with JSON's own types only: text keys, lists, and null for numbers that are not finite."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(k): json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(v) for v in value]
    return value
