"""Codecs whose layers the CUDA kernels take: what :class:`QuantisingCodec`, :class:`TabledCodec` and :class:`LayeredCodec` do with tensors on a device.

Encoding never waits for the device. Decoding does, once, to raise what it found; :func:`commpress.ops.decode_table` is the form that leaves that in a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from commpress import ops
from commpress.codecs._key import Key
from commpress.errors import WireError


def runs_on(device: torch.device) -> bool:
    """Whether this build has kernels for the device."""
    return device.type == "cpu" or (device.type == "cuda" and ops.cuda_built())


def encode(table: ops.DeviceTable, x: torch.Tensor, key: Key, out: torch.Tensor, gain: float) -> None:
    """Writes the payload of ``gain * x``; values are read as they are in fp32, bf16 and fp16."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        x = x.to(torch.float32)
    ops.encode_table(x, out, table, seed=key.seed, words=key.words(), gain=gain)


def decode(
    table: ops.DeviceTable,
    payloads: Sequence[torch.Tensor],
    keys: Sequence[Key],
    out: torch.Tensor,
    *,
    corrupt: Callable[[int], WireError],
    accumulate: bool = False,
    gain: float = 1.0,
    beta: float = 1.0,
) -> bool:
    """Adds up the decoded payloads in their order, on top of ``beta * out`` with ``accumulate``. Returns whether the result is finite.

    The keys differ in their senders only.

    Raises:
        WireError: that of ``corrupt``, given the position of an invalid payload; what ``out`` then holds is undefined.
    """
    work = out.to(torch.float32)
    report = ops.new_report(out.device)
    _decode(table, payloads, keys, work, report, accumulate, gain, beta)
    if work is not out:
        out.copy_(work)
    return _finite(report, corrupt)


def reduce(
    table: ops.DeviceTable,
    payloads: Sequence[torch.Tensor],
    keys: Sequence[Key],
    key: Key,
    *,
    corrupt: Callable[[int], WireError],
    values: torch.Tensor,
    out: torch.Tensor,
    beta: float,
) -> bool:
    """The owner's part of an all-reduce (:meth:`Codec.reduce`), in three launches.

    Raises:
        WireError: that of ``corrupt``; what ``values`` and ``out`` then hold is undefined.
    """
    work = values.to(torch.float32)
    report = ops.new_report(values.device)
    _decode(table, payloads, keys, work, report, True, 1.0, beta)
    encode(table, work, key, out, 1.0)
    _decode(table, [out], [key], work, report, False, 1.0, 1.0)
    if work is not values:
        values.copy_(work)
    return _finite(report, corrupt)


def _decode(
    table: ops.DeviceTable,
    payloads: Sequence[torch.Tensor],
    keys: Sequence[Key],
    work: torch.Tensor,
    report: torch.Tensor,
    accumulate: bool,
    gain: float,
    beta: float,
) -> None:
    first = keys[0]
    ops.decode_table(
        list(payloads),
        work,
        table,
        seed=first.seed,
        senders=[key.words()[1] for key in keys],
        step=first.step,
        tensor=first.tensor,
        report=report,
        accumulate=accumulate,
        gain=gain,
        beta=beta,
    )


def _finite(report: torch.Tensor, corrupt: Callable[[int], WireError]) -> bool:
    invalid, non_finite = report.tolist()  # waits for the device
    if invalid:
        raise corrupt(invalid - 1)
    return not non_finite
