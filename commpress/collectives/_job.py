"""One submission on its way through the pipeline."""

from __future__ import annotations

import functools
import queue
import time
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.collectives._accounting import Report
from commpress.collectives._message import Message, Piece
from commpress.collectives.communicator import Handle
from commpress.collectives.observer import Observer

if TYPE_CHECKING:
    from commpress.collectives._in_node import Legs
    from commpress.collectives._layout import Layout


@final
class Job:
    """One submission: what is asked for, the buffers, what failed, and the report."""

    __slots__ = (
        "codec1", "codec2", "error", "flat", "future", "gain", "here", "key", "layout", "legs", "link_start", "name", "nonfinite", "observer", "op",
        "part", "peer_error", "plan", "received2", "report", "result", "row", "senders", "sent1", "sequence", "submitted", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        flat: torch.Tensor,
        codec1: Any,
        codec2: Any,
        key: Any,
        op: str,
        observer: Observer,
        sequence: int,
        plan: str,
    ) -> None:
        self.flat = flat
        self.result = flat
        self.codec1 = codec1
        self.codec2 = codec2
        self.key = key
        self.op = op
        self.row: torch.Tensor | None = None  # of a reduce-scatter: where this rank's row of the result goes
        self.gain = 1.0  # what phase 1 multiplies by
        self.here = False  # run by the thread that asked for it
        self.name = 0  # this rank in the group
        self.senders = 1  # how many contributions the codecs meet: ranks, or nodes
        self.part = 0, flat.numel()  # what this rank reduces with the other senders
        self.observer = observer
        self.sequence = sequence
        self.plan = plan
        self.future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self.report = Report(flat.numel(), 1, _text(codec1), _text(codec2), sequence)
        self.submitted = time.perf_counter()
        self.link_start = 0.0
        self.layout: Layout | None = None
        self.legs: Legs | None = None  # inside the node
        self.error: Exception | None = None  # what failed on this rank
        self.peer_error: tuple[int, str] | None = None  # what a peer said
        self.nonfinite = False
        self.sent1: list[tuple[int, Handle]] = []
        self.received2: list[list[Handle | None]] = []
        self.tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True for each reduced chunk, False: give up

    @property
    def failed(self) -> bool:
        """Whether this rank, or one that it has heard from, has failed."""
        return self.error is not None or self.peer_error is not None

    def parts(self, message: Message) -> list[Piece]:
        """What codec calls work on: pieces if the observer follows (what one pass wrote the next finds in the cache), else everything at once."""
        return message.pieces if self.observer.follows_reduction else message.whole

    def note(self, problem: Exception) -> None:
        """Remembers this rank's first failure."""
        if self.error is None:
            self.error = problem

    def where(self, rank: int, phase: int = 0) -> str:
        """Which submission, for messages."""
        where = f", phase {phase}" if phase else ""
        return (
            f"step {self.key.step}, tensor {self.key.tensor}{where} (submission {self.sequence}), seen by rank {rank}"
        )

    def write_verdict(self, message: Message, rank: int) -> None:
        """Fills the prefix of a message that `rank` is about to send."""
        origin, reason = rank, ""
        if self.error is not None:
            reason = f"{type(self.error).__name__}: {self.error}"
        elif self.peer_error is not None:
            origin, reason = self.peer_error
        message.write_verdict(self.sequence, failed=self.failed, nonfinite=self.nonfinite, origin=origin, reason=reason)

    def read_verdict(self, message: Message) -> None:
        """Takes note of the prefix of a message that has arrived, and counts it."""
        self.hear(message)
        self.report.bytes_received += message.data.numel()
        self.report.messages_received += 1

    def hear(self, message: Message) -> None:
        """Takes note of the prefix of a message that has arrived."""
        failed, nonfinite, origin, sequence, reason = message.read_verdict()
        if sequence != self.sequence:
            failed, reason = True, f"message of submission {sequence} in submission {self.sequence}"
        if failed and self.peer_error is None:
            self.peer_error = (origin, reason)
        self.nonfinite = self.nonfinite or nonfinite


@functools.lru_cache(maxsize=256)
def _text(codec: Any) -> str:
    return "" if codec is None else str(codec)
