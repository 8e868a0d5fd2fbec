"""A stand-in for a CUDA device on CPU tensors: does the work at once, and keeps book of what would make it wrong on streams.

Streams have vector clocks, as in a race detector: an operation must come after every write of what it reads, and after every access to what it writes, by its own stream's order or through
events. Operations of torch inside `communicating` are seen by a dispatch mode; what the caller's stream does is told by `reads` and `writes`. Faults are injected by `drop`: the n-th `wait`,
`keep` or `complete` is left out, or done on the wrong stream. `verify` says what was wrong.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from commpress.collectives import DeviceOps, Fetched
from commpress.errors import SpecError, WireError

CALLER, COMM, HOST = "caller's stream", "communication stream", "host"
ALL = -1
HOST_WAITS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.item", "aten.is_nonzero")


class Race(AssertionError):
    """What would be undefined, or a wait of the host, on a real device."""


class _Access:
    def __init__(self, low: int, high: int, stream: str, time: int, write: bool) -> None:
        self.low, self.high, self.stream, self.time, self.write = low, high, stream, time, write


class Book:
    """Who touched what, and who came after whom."""

    def __init__(self) -> None:
        self.clocks: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.current = CALLER
        self.accesses: dict[int, list[_Access]] = collections.defaultdict(list)
        self.home: dict[int, str] = {}
        self.alive: list[Any] = []  # so that no address is used twice
        self.kept: set[tuple[int, str]] = set()
        self.strangers: dict[tuple[int, str], str] = {}
        self.wrong: list[str] = []
        self.operations: list[tuple[str, str]] = []

    def storage(self, tensor: torch.Tensor, home: str = CALLER) -> int:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.home:
            self.home[address] = home
            self.alive.append(storage)
        return address

    def record(self) -> collections.Counter:
        return collections.Counter(self.clocks[self.current])

    def wait(self, event: collections.Counter) -> None:
        self.clocks[self.current] |= event  # the later of the two, for each stream

    def touch(self, what: str, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
        stream = self.current
        self.operations.append((stream, what))
        self.clocks[stream][stream] += 1
        now = self.clocks[stream]
        for tensor, write in [(t, False) for t in reads] + [(t, True) for t in writes]:
            if not tensor.numel():
                continue
            address = self.storage(tensor)
            if self.home[address] == HOST:
                continue
            if self.home[address] != stream:
                self.strangers.setdefault((address, stream), what)
            low = tensor.storage_offset() * tensor.itemsize
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            high = low + (last + 1) * tensor.itemsize
            rest = []
            for old in self.accesses[address]:
                overlap = old.low < high and low < old.high
                if overlap and (write or old.write) and old.time > now[old.stream]:
                    verb = "writes" if write else "reads"
                    other = "wrote" if old.write else "read"
                    self.wrong.append(
                        f"{what} on the {stream} {verb} what the {old.stream} {other}, and has not waited"
                    )
                if not (write and low <= old.low and old.high <= high):
                    rest.append(old)
            self.accesses[address] = [*rest, _Access(low, high, stream, now[stream], write)]


class _Watch(TorchDispatchMode):
    """Tells the book what torch does on the current stream."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if name.startswith(HOST_WAITS):
            self._book.wrong.append(f"{name} makes the host wait for the device")
        reads, writes = [], []
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    written = argument.alias_info is not None and argument.alias_info.is_write
                    (writes if written else reads).append(tensor)
        result = func(*args, **kwargs)
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                known = tensor.untyped_storage().data_ptr() in self._book.home
                self._book.storage(tensor, self._book.current)
                if not known and not view:
                    writes.append(tensor)
        if not view:
            self._book.touch(name, reads, writes)
        return result


class _StandInFetched(Fetched):
    def __init__(self, owner: StandIn, values: torch.Tensor) -> None:
        self._owner, self._values, self._step = owner, values, owner.step

    def read(self, timeout: float) -> list[int]:
        if self._owner.step == self._step:
            self._owner.book.wrong.append("the host waits for what it enqueued in this very step")
        return self._values.tolist()


class StandIn(DeviceOps):
    """Args: group: gloo, or None for one rank. drop: a kind ("wait", "keep" or "complete") and which of its calls, from 0 on, or ALL, goes wrong."""

    def __init__(self, group: Any, drop: tuple[str, int] | None = None) -> None:
        self.device = torch.device("cpu")
        self._group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        self.book = Book()
        self.step = 0
        self.calls: collections.Counter = collections.Counter()
        self._drop = drop
        self._watch = _Watch(self.book)
        self.futures: list[tuple[Any, collections.Counter]] = []
        self.sent_nbytes = 0
        self.is_capturing = False
        self.corrupt: Any = None  # called with what an all-to-all brought

    # ---- what tests say and ask

    def next_step(self) -> None:
        """The caller goes on: what was enqueued before may be waited for from now on."""
        self.step += 1

    def reads(self, *tensors: torch.Tensor) -> None:
        self.book.touch("the caller", tensors, ())

    def writes(self, *tensors: torch.Tensor) -> None:
        self.book.touch("the caller", (), tensors)

    def on_host(self, *tensors: torch.Tensor) -> None:
        """These stand for host memory: a copy from there is done when the call returns."""
        for tensor in tensors:
            self.book.storage(tensor)
            self.book.home[tensor.untyped_storage().data_ptr()] = HOST

    def wait_for_futures(self) -> None:
        """As DDP does at the end of a backward pass."""
        for _, event in self.futures:
            self.book.wait(event)
        self.futures = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What torch does inside, on the caller's stream, is seen too."""
        with self._watch:
            yield

    def verify(self) -> None:
        """Raises Race if anything was wrong."""
        wrong = list(self.book.wrong)
        for (address, stream), what in self.book.strangers.items():
            if (address, stream) not in self.book.kept and stream != CALLER:
                wrong.append(
                    f"{what} on the {stream} uses memory of the {self.book.home[address]} without record_stream"
                )
        if wrong:
            raise Race("; ".join(dict.fromkeys(wrong)))

    def _dropped(self, kind: str) -> bool:
        self.calls[kind] += 1
        return self._drop in ((kind, self.calls[kind] - 1), (kind, ALL))

    # ---- streams

    @contextlib.contextmanager
    def communicating(self) -> Iterator[None]:
        before, self.book.current = self.book.current, COMM
        try:
            with self._watch:
                yield
        finally:
            self.book.current = before

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """The stand-in's own work."""
        with torch.utils._python_dispatch._disable_current_modes():
            yield

    def record(self, *, timed: bool = False) -> Any:
        return self.book.record()

    def wait(self, event: Any) -> None:
        if not self._dropped("wait"):
            self.book.wait(event)

    def seconds(self, begin: Any, end: Any) -> float:
        return float(sum(end.values()) - sum(begin.values()))

    def keep(self, tensor: torch.Tensor) -> None:
        if not self._dropped("keep"):
            self.book.kept.add((self.book.storage(tensor), self.book.current))

    def capturing(self) -> bool:
        return self.is_capturing

    def new_future(self) -> torch.futures.Future[Any]:
        return torch.futures.Future()

    def complete(self, future: torch.futures.Future[Any], value: Any) -> None:
        event = collections.Counter() if self._dropped("complete") else self.book.record()
        self.futures.append((future, event))
        future.set_result(value)

    # ---- memory

    def empty(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        with self._unseen():
            made = torch.full((numel,), 77, dtype=dtype)
        self.book.storage(made, self.book.current)
        return made

    def fetch(self, tensor: torch.Tensor) -> Fetched:
        with self._unseen():
            self.book.touch("fetch", [tensor], [])
            return _StandInFetched(self, tensor.clone())

    # ---- codecs

    def check(self, codec: Any) -> None:
        if codec.device_layers(0, 0) is None:
            raise SpecError(
                f"{codec} has no kernels on CUDA devices: use uniform, lloyd, hadamard+lloyd, a cast or none"
            )

    def encode(self, codec: Any, flat: Any, ranges: Any, key: Any, out: Any, gain: float) -> None:
        with self._unseen():
            self.book.touch("encode", [flat[start:stop] for start, stop in ranges], [out])
            position = 0
            for start, stop in ranges:
                end = position + codec.payload_nbytes(stop - start, offset=start)
                codec.encode(flat[start:stop], key, out=out[position:end], offset=start, gain=gain)
                position = end
            assert position == out.numel()

    def decode(
        self, codec: Any, payloads: Any, keys: Any, out: Any, offset: int, report: Any, *, accumulate: bool = False,
        gain: float = 1.0, beta: float = 1.0,
    ) -> None:  # fmt: skip
        with self._unseen():
            if not out.numel():
                return
            self.book.touch("decode", [*payloads, *([out] if accumulate else [])], [out, report])
            for i, (payload, key) in enumerate(zip(payloads, keys, strict=True)):
                more = accumulate or i > 0
                try:
                    codec.decode(
                        payload, key, out=out, accumulate=more, offset=offset, gain=gain, beta=1.0 if i else beta
                    )
                except WireError:
                    report[0] = i + 1
            if not bool(torch.isfinite(out).all()):
                report[1] = 1

    # ---- collectives

    def all_to_all(self, received: Any, received_nbytes: Any, sent: Any, sent_nbytes: Any) -> None:
        with self._unseen():
            self.book.touch("all_to_all", [sent], [received])
            assert sum(received_nbytes) == received.numel() and sum(sent_nbytes) == sent.numel()
            into, out = list(received.split(received_nbytes)), list(sent.split(sent_nbytes))
            peers = [r for r in range(self.size) if r != self.rank]
            works = [dist.irecv(into[r], group=self._group, group_src=r) for r in peers if received_nbytes[r]]
            works += [dist.isend(out[r], group=self._group, group_dst=r) for r in peers if sent_nbytes[r]]
            for work in works:
                work.wait()
            self.sent_nbytes += sum(sent_nbytes)
            if self.corrupt is not None:
                self.corrupt(received)

    def all_gather(self, received: Any, sent: Any) -> None:
        with self._unseen():
            self.book.touch("all_gather", [sent], [received])
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            gather(received, sent, group=self._group)
            self.sent_nbytes += sent.numel() * (self.size - 1)
