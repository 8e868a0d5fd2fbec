"""CUDA streams, kernels and a process group with a backend for CUDA (NCCL). No machine with a GPU has run this yet: docs/cuda.md."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
import torch.distributed as dist

from commpress import ops
from commpress.codecs import Codec, Key
from commpress.collectives.device import DeviceOps, Fetched, Range
from commpress.errors import PeerError, SpecError, StateError

_MOST_TABLES = 1024
_FIRST_NAP, _LONGEST_NAP = 20e-6, 5e-3


@final
class _CudaFetched(Fetched):
    def __init__(self, host: torch.Tensor, event: torch.cuda.Event) -> None:
        self._host, self._event = host, event

    def read(self, timeout: float) -> list[int]:
        deadline, nap = time.monotonic() + timeout, _FIRST_NAP
        try:
            while not self._event.query():  # not synchronize(): that knows no timeout
                if time.monotonic() > deadline:
                    raise PeerError(
                        f"the device has not finished the collectives of the last step within {timeout:g} s: some rank has not taken part in them"
                    )
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)
        except RuntimeError as error:
            if isinstance(error, PeerError):
                raise
            raise StateError(f"the CUDA device failed during the last step: {error}") from error
        return [int(value) for value in self._host.flatten().tolist()]


@final
class CudaOps(DeviceOps):
    """On one CUDA device. Collectives are those of `group`, which the caller uses for nothing else meanwhile on other streams or threads.

    Args:
        device: the CUDA device of all tensors.
        group: ProcessGroup with a backend for CUDA tensors, such as "nccl" or "cpu:gloo,cuda:nccl".

    Raises:
        StateError: the group has no backend for CUDA tensors, or this build has no CUDA kernels.
    """

    def __init__(self, device: torch.device, group: Any) -> None:
        if not ops.cuda_built():
            raise StateError(
                "this build of commpress has no CUDA kernels, so tensors on CUDA devices cannot be reduced: build it where nvcc is found (docs/cuda.md)"
            )
        if _backend_of(group) in (None, "gloo"):  # gloo takes CUDA tensors, but has no all-to-all for them
            raise StateError(
                f"the process group has no backend that exchanges CUDA tensors, only {dist.get_backend_config(group)}: make it with 'nccl' or 'cpu:gloo,cuda:nccl'"
            )
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._stream = torch.cuda.Stream(self.device)
        self._tables: collections.OrderedDict[Any, ops.DeviceTable] = collections.OrderedDict()

    def communicating(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)  # makes its device the current one, too

    def record(self, *, timed: bool = False) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=timed)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3

    def keep(self, tensor: torch.Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self.device))

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def new_future(self) -> torch.futures.Future[Any]:
        return torch.futures.Future(devices=[self.device])

    def complete(self, future: torch.futures.Future[Any], value: Any) -> None:
        future.set_result(value)  # records events on the current streams, which waiters' streams will wait for

    def empty(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(numel, dtype=dtype, device=self.device)

    def fetch(self, tensor: torch.Tensor) -> Fetched:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return _CudaFetched(host, self.record())

    def check(self, codec: Codec) -> None:
        if codec.device_layers(0, 0) is None:
            raise SpecError(
                f"{codec} has no kernels on CUDA devices: use uniform, lloyd, hadamard+lloyd, a number format, a cast or none (docs/cuda.md)"
            )

    def encode(
        self, codec: Codec, flat: torch.Tensor, ranges: Sequence[Range], key: Key, out: torch.Tensor, gain: float
    ) -> None:
        if not ranges:
            return
        # The kernels find every layer by its place in `flat` and in `out`, so what lies between two ranges costs nothing.
        table = self._table(codec, tuple(ranges))
        x = flat[ranges[0][0] : ranges[-1][1]]
        ops.encode_table(x, out, table, seed=key.seed, words=key.words(), gain=gain)

    def decode(
        self,
        codec: Codec,
        payloads: Sequence[torch.Tensor],
        keys: Sequence[Key],
        out: torch.Tensor,
        offset: int,
        report: torch.Tensor,
        *,
        accumulate: bool = False,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        if not out.numel():
            return
        ops.decode_table(
            list(payloads),
            out,
            self._table(codec, ((offset, offset + out.numel()),)),
            seed=keys[0].seed,
            senders=[key.words()[1] for key in keys],
            step=keys[0].step,
            tensor=keys[0].tensor,
            report=report,
            accumulate=accumulate,
            gain=gain,
            beta=beta,
        )

    def _table(self, codec: Codec, ranges: tuple[Range, ...]) -> ops.DeviceTable:
        """Kept; made on the communication stream, the only one that reads it."""
        place = codec, ranges
        if place not in self._tables:
            self._tables[place] = ops.device_table(layers_of_ranges(codec, ranges), self.device)
            while len(self._tables) > _MOST_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(place)
        return self._tables[place]

    def all_to_all(
        self, received: torch.Tensor, received_nbytes: list[int], sent: torch.Tensor, sent_nbytes: list[int]
    ) -> None:
        _behind(dist.all_to_all_single(received, sent, received_nbytes, sent_nbytes, group=self._group, async_op=True))

    def all_gather(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name until torch 2.13
        _behind(gather(received, sent, group=self._group, async_op=True))


def _backend_of(group: Any) -> str | None:
    """The name of what carries CUDA tensors in a group."""
    try:
        return str(group._get_backend(torch.device("cuda")).name())
    except RuntimeError:
        return None


def _behind(work: Any) -> None:
    """What the current stream is given from now on comes after a collective, which runs on the group's own stream, in the order of all its collectives."""
    work.wait()  # of NCCL: the stream waits, the host does not


def layers_of_ranges(codec: Codec, ranges: Sequence[Range]) -> list[ops.DeviceLayer]:
    """Rows for :func:`commpress.ops.device_table`, counted from the first range's start, with a gap where ranges do not meet. Raises SpecError: no kernels."""
    rows: list[ops.DeviceLayer] = []
    end = ranges[0][0]
    for start, stop in ranges:
        layers = codec.device_layers(start, stop - start)
        if layers is None:
            raise SpecError(f"{codec} has no kernels on CUDA devices")
        if start > end:
            rows.append(ops.gap(start - end))
        rows += layers
        end = stop
    return rows
