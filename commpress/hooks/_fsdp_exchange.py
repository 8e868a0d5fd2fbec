"""What goes between the ranks of an FSDP2 model: reduce-scatters of gradients, all-gathers of weights, all-reduces between replicas."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist

from commpress.codecs import Codec, Key, LayeredCodec
from commpress.codecs import codec as make_codec
from commpress.collectives import Communicator, Notes, Reducer, group_timeout, rows_codec, shard_bounds
from commpress.errors import CommpressError, StateError
from commpress.feedback import Layout
from commpress.hooks._fsdp_ledger import Ledger
from commpress.hooks._fsdp_plan import ShardStatistics
from commpress.hooks._fsdp_residuals import WHOLE, Residuals
from commpress.hooks._fsdp_step import (
    PlainObserver,
    ReplicaObserver,
    RowsObserver,
    Step,
    by_layer,
    check_tensors,
    mixed_seed,
    nmse_of,
)
from commpress.hooks._planner import Planner, PlanSettings
from commpress.hooks._reduction import agree, due, make_pair
from commpress.hooks._sums import Column, LayerSums
from commpress.telemetry import Sink

if TYPE_CHECKING:
    from commpress.hooks._fsdp_torch import Unit

_log = logging.getLogger("commpress.hooks")
_EXACT = make_codec("none")
_EXACT_BELOW = 512  # coordinates of a shard whose weights travel as they are


@final
class ShardExchange:
    """Made collectively: agrees with the other ranks on `identity` and makes the process groups.

    Args:
        units: the model's modules. codec: of gradients, made by ``for_feedback()`` with `feedback`. gather: of weights, or None.
        shard, replicate: the ranks between which modules are sharded, and replicated (or None).
        identity: what must be equal on all ranks.
        operation: what FSDP's `op` means: "mean" or "sum", and a gain.
        plan: a bit budget, or None. seed, telemetry, telemetry_every, timeout: see :func:`commpress.register`.

    Raises:
        MismatchError: the ranks differ. PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        units: list[Unit],
        codec: Any,
        *,
        gather: Any,
        shard: dist.ProcessGroup,
        replicate: dist.ProcessGroup | None,
        identity: dict[str, Any],
        operation: Callable[[Any], tuple[str, float | None]],
        feedback: bool,
        plan: PlanSettings | None,
        seed: int,
        telemetry: str | os.PathLike[str] | Sink | None,
        telemetry_every: int,
        timeout: float | None,
    ) -> None:
        self.units, self.codec, self.seed = units, codec, seed
        self.rank, self.world_size = shard.rank(), shard.size()
        self.replica, self.replicas = 0, 1
        if replicate is not None:
            self.replica, self.replicas = replicate.rank(), replicate.size()
        self.error: Exception | None = None
        self.step = 0
        self.calls = [0] * len(units)
        self._gather, self._operation, self._shard = gather, operation, shard
        self._timeout = timeout or group_timeout(shard)
        self._telemetry_every = telemetry_every
        sizes: dict[str, int] = {}
        for unit in units:
            sizes |= {n: s for n, s in zip(*unit.layers(trained=True), strict=True) if s}
        self.planner = None if plan is None else Planner(sizes, plan, feedback=feedback)
        if self.planner is not None:
            identity = identity | self.planner.identity()
        self._reducer = self._make_reducer(shard, identity)
        self._replicas = None if replicate is None else self._make_reducer(replicate, identity)
        self._channels, self._control = list[Communicator](), list[Communicator]()
        self._statistics: ShardStatistics | None = None
        if self.planner is not None and self.world_size > 1:
            self._statistics = ShardStatistics(sizes, self.world_size, self.replicas, unbiased=codec.unbiased)
        if self._statistics is not None or self._replicas is not None:
            for group in (shard, replicate):
                if group is not None:
                    pair = make_pair(group, self._timeout)
                    self._channels += pair
                    self._control.append(pair[0])
        self._tables = [] if self._statistics is None else self._notes(self._statistics.nbytes)
        self._verdicts = self._notes(1) if self._replicas is not None and feedback and not codec.lossless else []
        self.residuals: Residuals | None = None
        if feedback and not codec.lossless:
            shards, replicas = (self.rank, self.world_size), (self.replica, self.replicas)
            self.residuals = Residuals(
                units, codec, self._row_codec, shards, replicas, replicated=replicate is not None
            )
        self._closed = False
        self._step: Step | None = None
        self._last: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {}
        self._work: dict[torch.dtype, torch.Tensor] = {}
        self._lock = threading.RLock()
        self.ledger = Ledger(codec, self.world_size, self.world_size * self.replicas, telemetry)

    def _make_reducer(self, group: dist.ProcessGroup, identity: dict[str, Any]) -> Reducer:
        (comm1, comm2), _ = agree(group, identity, 0, self._timeout)
        return Reducer(comm1, comm2, timeout=self._timeout, plan="fsdp2")

    def _notes(self, nbytes: int) -> list[Notes]:
        return [Notes(comm, nbytes, self._timeout) for comm in self._control]

    def _seed_of(self, leg: str, place: int) -> int:
        """No two groups of ranks that sum different things may share coins; without replicas there is one group."""
        return self.seed if self.replicas == 1 else mixed_seed(self.seed, leg, place)

    # -- gradients: the shards' leg

    def reduce_scatter(self, unit: Unit, output: torch.Tensor, input: torch.Tensor, op: Any) -> None:
        """`output` becomes this rank's row of the reduced `input`. Raises CommpressError."""
        self._guarded(unit, lambda: self._reduce_scatter(unit, output, input, op))

    def _reduce_scatter(self, unit: Unit, output: torch.Tensor, input: torch.Tensor, op: Any) -> None:
        check_tensors(unit.name, output, input)
        n, numel = self.world_size, output.numel()
        (name, gain), step = self._operation(op), self._open_step()
        layers, codec, known = self._row(unit, numel)
        dtype = torch.float64 if input.dtype == torch.float64 and codec.lossless else torch.float32
        flat, row = input.view(-1), output.view(-1)
        if input.dtype != dtype:
            work = self._buffer(input.numel() + numel, dtype)
            flat, row = work[: input.numel()].copy_(flat), work[input.numel() :]
        feedback = None if self.residuals is None else self.residuals.rows(unit, layers, known=known)
        statistics = self._statistics if known and self.planner is not None and self.planner.due(step.number) else None
        sample = step.record is not None and due(self._telemetry_every, step.number) and not codec.lossless
        layout, sums = Layout(layers[0] * n, layers[1] * n), None
        if sample or statistics is not None:
            sums = LayerSums(layout, distortion=sample or (self.planner is not None and self.planner.weighs_noise))
        rows = rows_codec(codec, numel, n)
        observer = RowsObserver(flat, rows, feedback, sums, self.fail)
        key = Key(seed=self._seed_of("shards", self.replica), step=self._call(unit), tensor=unit.index)
        self._reducer.reduce_scatter(
            row, flat, rows, key, op=name, gain=gain, observer=observer, plan=f"fsdp2 {unit.name}", wait=True
        ).wait()
        report = observer.report
        assert report is not None
        step.finite = step.finite and not report.nonfinite
        if row.data_ptr() != output.data_ptr():
            output.view(-1).copy_(row)
        nmse = None
        if sums is not None:
            table = by_layer(sums.table, n)
            nmse = nmse_of(table) if sums.distortion else None
            if statistics is not None:
                scale = gain * n if gain is not None else 1.0 if name == "mean" else float(n)
                norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in row.split(list(layers[1]))]
                table[:, Column.MEAN] = (torch.stack(norms) / scale).square().numpy()
                statistics.add(layers[0], table)
        self.ledger.add_rows(step.record, unit, layers, report, lossless=codec.lossless, nmse=nmse)

    def _row(self, unit: Unit, numel: int) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], Codec, bool]:
        """Names and sizes of what a row of a gradient holds, its codec, and whether the parameters in it are known."""
        layers = unit.layers(trained=True)
        known = sum(layers[1]) == numel
        if not known:
            # A parameter without a gradient is left out, and nothing says which. The row is one layer, at the mean rate.
            layers = (f"{WHOLE}{unit.name}, {numel} coordinates",), (numel,)
            self.ledger.say(
                "by_module",
                unit,
                "has no gradient for some parameters: feedback and rate are the whole module's "
                "(set_reduce_scatter_unused_params(True) keeps the parameters apart)",
            )
        self._last[unit.index] = layers
        return layers, self._row_codec(Layout(*layers)), known

    def _row_codec(self, layout: Layout) -> Codec:
        """The codec of one row; under a budget that of the plan, where it has the parameters.

        A codec that spreads its error evenly is applied to each parameter by itself: over a whole row the matrices' error would drown the small gradients of norms and biases.
        """
        if layout.parameters[0].startswith(WHOLE):
            return self.codec
        if self.planner is None:
            if not self.codec.even_error:
                return self.codec
            return LayeredCodec([(size, self.codec) for size in layout.sizes])
        known = set(self.planner.plan.names)
        for name, size in zip(layout.parameters, layout.sizes, strict=True):
            if size and name not in known:
                raise StateError(f"parameter {name!r} was frozen when the budget was shared out: register anew")
        return self.planner.codec(layout)

    # -- gradients: the replicas' leg

    def all_reduce(self, unit: Unit, tensor: torch.Tensor) -> None:
        """FSDP's all-reduce hook: `tensor`, this rank's row of a module's gradient, becomes its mean over the replicas (their sum with a divide factor, as FSDP's own all-reduce). Raises CommpressError."""
        self._guarded(unit, lambda: self._all_reduce(unit, tensor))

    def _all_reduce(self, unit: Unit, tensor: torch.Tensor) -> None:
        reducer = self._replicas
        assert reducer is not None
        if not unit.all_reduces:
            raise StateError(
                f"module {unit.name} was told set_requires_all_reduce(False), which has no meaning with an all-reduce hook: use set_requires_gradient_sync(False)"
            )
        step = self._open_step()
        if self.world_size == 1:  # no reduce-scatter came before
            self._row(unit, tensor.numel())
            self._call(unit)
        layers = self._last[unit.index]
        layout = Layout(*layers)
        codec = self._row_codec(layout)
        dtype = torch.float64 if tensor.dtype == torch.float64 and codec.lossless else torch.float32
        flat = tensor.view(-1)
        if tensor.dtype != dtype:
            flat = self._buffer(tensor.numel(), dtype).copy_(flat)
        bucket = None
        if self.residuals is not None:
            feedback = self.residuals.replicas(unit, layout, codec)
            if unit.index in step.reduced and step.finite:
                feedback.commit()  # used twice in one backward pass: the second time goes on from the first
            step.reduced.add(unit.index)
            bucket = feedback.bucket(0)
        observer = ReplicaObserver(flat, bucket, self.fail)
        key = Key(seed=self._seed_of("replicas", self.rank), step=self.calls[unit.index] - 1, tensor=unit.index)
        reducer.run(flat, codec, codec, key, observer=observer, plan=f"fsdp2 replicas of {unit.name}")
        report = observer.report
        assert report is not None
        if unit.divide_factor is not None:
            flat.mul_(self.replicas)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.view(-1).copy_(flat)
        step.finite = step.finite and not report.nonfinite
        own = shard_bounds(flat.numel(), self.replicas, self.replica, codec)
        sent = flat.numel() + (own[1] - own[0]) * (self.replicas - 2)
        self.ledger.add("all_reduce", report, 0 if codec.lossless or self.replicas == 1 else sent)

    # -- weights

    def all_gather(self, unit: Unit, output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup) -> None:
        """Every rank's `input` to `output`. Raises CommpressError."""
        self._guarded(unit, lambda: self._all_gather(unit, output, input, group))

    def _all_gather(self, unit: Unit, output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup) -> None:
        _, sizes = unit.layers(trained=False)
        if dist.get_process_group_ranks(group) != dist.get_process_group_ranks(self._shard):
            # reshard_after_forward=k: what it shards anew are the decoded weights; sent again with loss, backward would see others than forward.
            self._exact_gather(unit, output, input, group, "gathers weights that were resharded after forward")
            return
        if not input.is_floating_point() or sum(sizes) != input.numel():
            why = f"gathers {input.numel()} {input.dtype} values, which are not its parameters' own"
            self._exact_gather(unit, output, input, group, why)
            return
        check_tensors(unit.name, input, output)
        pairs = tuple((s, _EXACT if s < _EXACT_BELOW else self._gather) for s in sizes)
        codec = rows_codec(LayeredCodec(pairs), input.numel(), self.world_size)
        dtype = torch.float64 if input.dtype == torch.float64 and codec.lossless else torch.float32
        flat = output.view(-1) if output.dtype == dtype else self._buffer(output.numel(), dtype)
        own = flat.view(self.world_size, -1)[self.rank]
        if own.data_ptr() != input.data_ptr():
            own.copy_(input.view(-1))
        observer = PlainObserver(self.fail)
        # The same bytes for the same weights: forward and backward of a step must see the same.
        key = Key(seed=self.seed, step=self.step & 0xFFFFFFFF, tensor=unit.index)
        plan = f"fsdp2 weights of {unit.name}"
        self._reducer.all_gather(flat, codec, key, observer=observer, plan=plan, wait=True).wait()
        if flat.data_ptr() != output.data_ptr():
            output.view(-1).copy_(flat)
        assert observer.report is not None
        self.ledger.add("all_gather", observer.report)

    def _exact_gather(
        self, unit: Unit, output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup, why: str
    ) -> None:
        self.ledger.say("exact_all_gathers", unit, f"{why}: they travel uncompressed")
        unit.exact_gather(output, input, group)

    # -- steps

    def _open_step(self) -> Step:
        """The step under way. It ends with the backward pass that it began in."""
        graph = int(torch._C._current_graph_task_id())
        if self._step is not None and self._step.graph == graph:
            return self._step
        if self._step is not None:
            self.ledger.counts["abandoned_steps"] += 1
            _log.warning("step %d: its backward pass did not end; its residuals are dropped", self._step.number)
            self._forget()
        if graph < 0:
            raise StateError("gradients are reduced outside of a backward pass")
        step = self._step = Step(self.step, graph, self.ledger.open(self.step))
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self._end_step(step))
        return step

    def _end_step(self, step: Step) -> None:
        """At the end of the backward pass, after FSDP's own last exchange."""
        if step is self._step:
            self._guarded(None, lambda: self._finish(step))

    def _finish(self, step: Step) -> None:
        for notes in self._verdicts:
            step.finite = all(note == b"\1" for note in notes.post(bytes([step.finite])).collect())
        outcome = "off"
        if self.residuals is not None:
            outcome = "updated" if step.finite else "kept"
            if step.finite:
                self.residuals.commit()
        self._forget()
        self.step += 1
        self.ledger.end(step, outcome)
        if self._statistics is not None and self.planner is not None and self.planner.due(step.number):
            moments = self.planner.moments({n: p for unit in self.units for n, p in unit.parameters().items()})
            plan = self._statistics.exchange(step.number, self.planner, moments, self._tables)
            if plan is not None:
                self.ledger.plan(plan, step.number + 1)

    def _forget(self) -> None:
        """Drops what is not committed."""
        self._step = None
        if self.residuals is not None:
            self.residuals.drop()

    def _call(self, unit: Unit) -> int:
        """Number of this reduction of the module: no two share randomness, even where a module is used twice in a step."""
        number = self.calls[unit.index]
        self.calls[unit.index] += 1
        return number & 0xFFFFFFFF

    def _buffer(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._work or self._work[dtype].numel() < numel:
            self._work[dtype] = torch.empty(numel, dtype=dtype)
        return self._work[dtype][:numel]

    # -- failures

    def _guarded(self, unit: Unit | None, work: Callable[[], None]) -> None:
        with self._lock, torch.no_grad():
            if self._closed:
                raise StateError("this FSDPHookState is closed")
            if self.error is not None:
                raise StateError(f"this state failed earlier and refuses further use: {self.error}") from self.error
            try:
                work()
            except Exception as error:
                first = self._reducer.error or (self._replicas.error if self._replicas is not None else None) or error
                if not isinstance(first, CommpressError):
                    where = "the end of a step" if unit is None else f"module {unit.name}"
                    first = StateError(f"{type(first).__name__}: {first}: {where}, step {self.step}")
                self.fail(first)
                self._tell(first)
                raise first from error

    def fail(self, error: Exception) -> None:
        """Remembers the first failure."""
        if self.error is None:
            self.error = error
            _log.error("rank %d of %d: %s: %s", self.rank, self.world_size, type(error).__name__, error)

    def _tell(self, error: Exception) -> None:
        """Peers meet, instead of this rank's next exchange, a header that says why: what failed first, if others told it."""
        _, told, reason = str(error).rpartition("failed: ")
        plan = f"failed: {reason if told else f'{type(error).__name__}: {error}'}"
        for reducer in (self._reducer, self._replicas):
            if reducer is not None:
                with contextlib.suppress(CommpressError):  # it failed itself, and they know
                    reducer.submit(torch.zeros(0), _EXACT, _EXACT, Key(), plan=plan)

    # -- end and checkpoints

    @property
    def under_way(self) -> bool:
        """Whether a step is."""
        return self._step is not None

    def close(self) -> None:
        """Ends threads, process groups and the telemetry that came as a path."""
        self._closed = True
        for reducer in (self._reducer, self._replicas):
            if reducer is not None:
                reducer.close()
        for channel in self._channels:
            channel.close()
        self.ledger.close()
