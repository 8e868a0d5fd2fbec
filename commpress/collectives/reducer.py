"""The Reducer: submissions in, futures out."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import LinearCodec, LowRankCodec
from commpress.collectives._job import Job
from commpress.collectives._layout import split
from commpress.collectives._pipeline import Pipeline
from commpress.collectives.communicator import Communicator
from commpress.collectives.nodes import Asked, NodeMap, agree_on_nodes
from commpress.collectives.observer import Observer
from commpress.errors import SpecError, StateError, TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key

_EXIT_GRACE = 5.0  # seconds that an interpreter's exit waits for exchanges under way


@final
class Reducer:
    """Two-phase compressed all-reduce, and its two halves, on a pair of channels, with two FIFO threads. The package's text has the whole contract.

    Args:
        comm1, comm2: channels of the two phases; same rank and size; used by nothing else. Closed with the reducer.
        timeout: seconds that any single wait for a peer may take.
        plan: text that must be equal on all ranks, such as a fingerprint of the parameters; shown in the error if it is not.
        chunk_nbytes: payload bytes per message; must be equal on all ranks. By default it follows the speed of the link.
        nodes: which ranks share a node, equal on all ranks, for an exchange in two levels: exact sums inside each node, compressed between nodes. None: all ranks exchange
            compressed values.

    Attributes:
        rank, world_size: this rank's place. nodes: as given. senders: how many contributions meet, and are quantised: the ranks, or with `nodes` the nodes.

    Raises:
        StateError: the channels, or they and the nodes, do not belong together.
    """

    def __init__(
        self,
        comm1: Communicator,
        comm2: Communicator,
        *,
        timeout: float,
        plan: str = "",
        chunk_nbytes: int | None = None,
        nodes: NodeMap | None = None,
    ) -> None:
        if (comm1.rank, comm1.size) != (comm2.rank, comm2.size):
            raise StateError("the two channels have different ranks or sizes")
        if nodes is not None and nodes.size != comm1.size:
            raise StateError(f"nodes of {nodes.size} ranks in all do not suit channels between {comm1.size}")
        self.rank = comm1.rank
        self.world_size = comm1.size
        self.nodes = nodes
        self.senders = comm1.size if nodes is None else len(nodes.nodes)
        self.timeout = float(timeout)
        self._plan = plan
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sequence = 0
        self._closed = False
        self._pipeline = Pipeline(comm1, comm2, self.timeout, chunk_nbytes, nodes)
        # The threads know the pipeline only, so a forgotten Reducer is collected; also called at exit, while threads still run.
        self._finalizer = weakref.finalize(self, _shutdown, self._pipeline, self._pid)

    def part(self, numel: int, codec: Any) -> tuple[int, int]:
        """Limits of what this rank exchanges in compressed form of a tensor: with nodes the part that its node's sum ends up in here, else all."""
        return self._pipeline.levels.part(numel, codec)

    def shard(self, numel: int, codec: Any) -> tuple[int, int]:
        """Limits of what this rank owns: what is reduced here, and not quantised in phase 1."""
        place = self._pipeline.rank
        start, stop = split(codec, *self.part(numel, codec), self.senders)[place : place + 2]
        return start, stop

    @property
    def error(self) -> Exception | None:
        """The first failure, or None."""
        return self._pipeline.error

    def submit(
        self,
        flat: torch.Tensor,
        codec1: Any,
        codec2: Any,
        key: Key,
        *,
        op: str = "mean",
        observer: Observer | None = None,
        plan: str | None = None,
        result: torch.Tensor | None = None,
    ) -> torch.futures.Future[torch.Tensor]:
        """Starts one all-reduce and returns at once.

        Args:
            flat: 1-D contiguous fp32 or fp64 CPU tensor; overwritten. After a failure its content is undefined.
            codec1, codec2: codecs of the two phases, equal on all ranks.
            key: equal on all ranks; `sender` and `phase` are filled in here.
            op: "mean" or "sum".
            observer: see `Observer`.
            plan: replaces the reducer's plan text for this submission.
            result: what the future resolves with instead of `flat`.

        Returns:
            A future of `flat`, or of a CommpressError: MismatchError (ranks disagree), PeerError (a rank died, hung or failed), or what failed here.

        Raises:
            TensorError: `flat` or `op` is not as above. SpecError: the codecs cannot be used together, or not with so many ranks.
            StateError: closed, failed before, or used in a forked process.
        """
        with self._lock:
            self._check_all_reduce(op, codec1, codec2)
            job = self._job(flat, codec1, codec2, key, op, observer, plan, result)
            self._pipeline.submit(job)
        return job.future

    def run(
        self,
        flat: torch.Tensor,
        codec1: Any,
        codec2: Any,
        key: Key,
        *,
        op: str = "mean",
        observer: Observer | None = None,
        plan: str | None = None,
        result: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Like `submit`, but waits and returns the future's value or raises its error; on the caller's thread where that is faster. The observer must not call the reducer."""
        with self._lock:
            self._check_all_reduce(op, codec1, codec2)
            job = self._job(flat, codec1, codec2, key, op, observer, plan, result)
            self._pipeline.run(job)
        return job.future.wait()

    def reduce_scatter(
        self,
        row: torch.Tensor,
        flat: torch.Tensor,
        codec: Any,
        key: Key,
        *,
        op: str = "mean",
        gain: float | None = None,
        observer: Observer | None = None,
        plan: str | None = None,
        result: Any = None,
        wait: bool = False,
    ) -> torch.futures.Future[Any]:
        """Starts a reduce-scatter: row r of `flat` is reduced to rank r. One phase: the own row is not quantised, and no result is.

        A second message to each rank carries no more than a verdict: all ranks know in the end whether the step is good, and whether any row is not finite.

        Args:
            row: 1-D contiguous tensor of ``flat.numel() / world_size`` coordinates and of the same dtype, overwritten with this rank's row of the result.
            flat: as in :meth:`submit`, of `world_size` rows of equal length; left as it is, but for what the observer's `prepare` does.
            codec: of what is sent: payloads begin at every row's first coordinate, so where that is no multiple of 4096 it is a `LayeredCodec` with ``rows=world_size``. Equal on all ranks.
            key: equal on all ranks; `sender` and `phase` (1) are filled in here.
            op: "mean" or "sum".
            gain: of each contribution to a "sum", instead of 1; equal on all ranks.
            observer, plan, result: see `submit`; `result` is `row` by default. `encoded` is called for phase 1 only, `reduced` never.
            wait: do the work now, on the caller's thread where that is faster; the future is done then. The observer must not call the reducer.

        Returns:
            A future of `result`; errors as those of :meth:`submit`.

        Raises:
            TensorError, SpecError, StateError: as :meth:`submit`.
        """
        self._check_half(codec, "a reduce-scatter")
        if op not in ("mean", "sum") or (op == "mean" and gain is not None):
            raise TensorError(f"op must be 'mean', or 'sum' with or without gain, got {op!r}")
        if flat.numel() != self.world_size * row.numel() or row.dtype != flat.dtype or not row.is_contiguous():
            raise TensorError(
                f"{self.world_size} rows of {row.numel()} {row.dtype} coordinates, contiguous, are to be reduced, got {flat.numel()} {flat.dtype}"
            )
        with self._lock:
            text = self._plan if plan is None else plan
            if gain is not None:
                text = f"{text}, gain {float(gain)!r}"
            job = self._job(flat, codec, None, key, f"reduce-scatter {op}", observer, text, result)
            job.row = row.detach()
            job.gain = 1.0 / self.world_size if op == "mean" else 1.0 if gain is None else float(gain)
            job.result = row if result is None else result
            (self._pipeline.run if wait else self._pipeline.submit)(job)
        return job.future

    def all_gather(
        self,
        flat: torch.Tensor,
        codec: Any,
        key: Key,
        *,
        observer: Observer | None = None,
        plan: str | None = None,
        result: Any = None,
        wait: bool = False,
    ) -> torch.futures.Future[Any]:
        """Starts an all-gather: row r of `flat`, as rank r has it, goes to all. All ranks decode the same bytes, the owner of a row included.

        Args:
            flat: as in :meth:`submit`, of `world_size` rows of equal length; this rank's row is read, all are overwritten.
            codec, observer, plan, result, wait: as in :meth:`reduce_scatter`; the observer sees `prepare` and `complete` alone.
            key: equal on all ranks; `sender` and `phase` (2) are filled in here.

        Returns:
            A future of `result`, by default `flat`; errors as those of :meth:`submit`.

        Raises:
            TensorError, SpecError, StateError: as :meth:`submit`.
        """
        self._check_half(codec, "an all-gather")
        if flat.numel() % self.world_size:
            raise TensorError(f"{flat.numel()} coordinates are no {self.world_size} rows of equal length")
        with self._lock:
            job = self._job(flat, None, codec, key, "all-gather", observer, plan, result)
            (self._pipeline.run if wait else self._pipeline.submit)(job)
        return job.future

    def _check_half(self, codec: Any, what: str) -> None:
        if self.nodes is not None:
            raise SpecError(f"{what} is flat: it needs a Reducer without nodes")
        if isinstance(codec, (LinearCodec, LowRankCodec)) or getattr(codec, "needs_side", False):
            raise SpecError(f"{codec} is for an all-reduce, not for {what}: use a codec such as 'hadamard+lloyd:4'")

    def _check_all_reduce(self, op: str, codec1: Any, codec2: Any) -> None:
        if op not in ("mean", "sum"):
            raise TensorError(f"op must be 'mean' or 'sum', got {op!r}")
        if isinstance(codec1, LinearCodec) or isinstance(codec2, LinearCodec):
            if codec1 != codec2:
                raise SpecError(
                    f"{codec1} and {codec2} cannot share an all-reduce: a codec that adds codes serves both phases"
                )
            if self.senders > 1 or self.nodes is None:
                codec1.check_workers(self.senders)
        if getattr(codec2, "needs_side", False):
            raise SpecError(
                f"{codec2} cannot serve phase 2, where all ranks must decode the same: use its of_second_phase"
            )

    def _job(
        self,
        flat: torch.Tensor,
        codec1: Any,
        codec2: Any,
        key: Key,
        op: str,
        observer: Observer | None,
        plan: str | None,
        result: Any,
    ) -> Job:
        """Checks everything and takes the next sequence number. With the lock held."""
        if flat.device.type != "cpu":
            raise TensorError(
                f"tensors must be on the CPU, got {flat.device}: a Reducer is for those, CUDA tensors go through all_reduce"
            )
        if flat.dtype not in (torch.float32, torch.float64) or flat.dim() != 1 or not flat.is_contiguous():
            raise TensorError(
                f"expected a 1-D contiguous fp32 or fp64 tensor, got {flat.dtype} of shape {tuple(flat.shape)}"
            )
        if self._closed:
            raise StateError("the reducer is closed")
        if self._pid != os.getpid():
            raise StateError("a reducer does not survive fork: its threads are in the parent")
        if self._pipeline.error is not None:
            raise StateError(f"an earlier submission failed: {self._pipeline.error}") from self._pipeline.error
        text = self._plan if plan is None else plan
        job = Job(flat.detach(), codec1, codec2, key, op, observer or Observer(), self._sequence, text)
        job.result = flat if result is None else result
        self._sequence += 1
        return job

    def close(self) -> None:
        """Waits for what is in flight (at most twice the timeout), joins the threads and closes the channels. Twice does no harm."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and self._finalizer.detach() is not None and self._pid == os.getpid():
            self._pipeline.shutdown(2 * self.timeout)


def _shutdown(pipeline: Pipeline, pid: int) -> None:
    if pid == os.getpid():
        pipeline.shutdown(_EXIT_GRACE)


def on_nodes(comm1: Communicator, comm2: Communicator, asked: Asked, timeout: float, **options: Any) -> Reducer:
    """A Reducer on two channels, hierarchical as asked for and as the ranks' nodes allow. Collective; `options` are the Reducer's.

    Raises:
        MismatchError, TopologyError, PeerError: see `agree_on_nodes`. The channels are closed then.
    """
    try:
        nodes = agree_on_nodes(comm1, asked, timeout)
    except Exception:
        comm1.close()
        comm2.close()
        raise
    return Reducer(comm1, comm2, timeout=timeout, nodes=nodes, **options)
