"""`reduce_scatter` and `all_gather` on torch.distributed: the two halves of an all-reduce as calls of their own, on tensors of one row for each rank."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import LayeredCodec
from commpress.collectives._all_reduce import group_entry
from commpress.collectives._one_call import Entry
from commpress.collectives.observer import Observer
from commpress.errors import TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key
    from commpress.collectives._accounting import Report


@functools.lru_cache(maxsize=1024)
def rows_codec(codec: Any, numel: int, rows: int) -> LayeredCodec:
    """The codec of a tensor of `rows` rows of `numel` coordinates, each coded by `codec` from its own first coordinate on.

    Args:
        codec: any; a LayeredCodec has the layers of one row.
    """
    layers = codec.layers if isinstance(codec, LayeredCodec) else ((numel, codec),)
    return LayeredCodec(layers, rows=rows)


@final
class _Call(Observer):
    """Brings the result where it belongs, and the work buffers back."""

    def __init__(self, entry: Entry, finish: Callable[[], None]) -> None:
        self._entry = entry
        self._finish = finish

    def complete(self, report: Report) -> None:
        self._finish()
        self._entry.report = report


def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    codec: Any,
    *,
    op: str = "mean",
    group: Any = None,
    key: Key | None = None,
    async_op: bool = False,
) -> Any:
    """Reduces `input` over all ranks of `group` and leaves each rank its part, with compressed communication, in one phase.

    The n-th part of the elements, in order, is the row of rank 0, the next that of rank 1, and so on. A rank's own contribution to its row is not quantised, and neither is the
    result. A NaN or an infinity on one rank arrives as a non-finite value on the rank whose row it is in.

    Args:
        output: CPU tensor of ``input.numel() / world_size`` elements of the same dtype, of any shape and strides; overwritten.
        input: CPU tensor of a floating-point or complex dtype, of any shape and strides; left as it is. The work is done in fp32 (fp64 tensors with a lossless codec: fp64), and the
            result is divided before it is narrowed to the dtype. With one rank the output is a copy of the input.
        codec: a codec, or a spec such as "uniform:4"; equal on all ranks. Not one that only an all-reduce can use ("lowrank", "homomorphic", "modulo").
        op: "mean" (the default, unlike torch's sum) or "sum".
        group, key, async_op: as in `commpress.all_reduce`, with which the calls of a group are counted together.

    Returns:
        `output`, or with `async_op` a torch.futures.Future of it, whose `wait` raises what this function would. Do not touch either tensor before.

    Raises:
        TensorError: a tensor is not of an accepted kind, the sizes do not fit, or `op` is unknown. Nothing was sent: the other ranks wait.
        SpecError, MismatchError, PeerError, WireError, StateError: as `commpress.all_reduce`.
    """
    codec = _parsed(codec)
    if op not in ("mean", "sum"):
        raise TensorError(f"op must be 'mean' or 'sum', got {op!r}")
    _check(output, input)
    entry = group_entry(group)
    reducer = entry.reducer(False)
    size = reducer.world_size
    if output.numel() * size != input.numel():
        raise TensorError(
            f"{size} ranks reduce {input.numel()} elements to {input.numel() / size:g} each, and output has {output.numel()}"
        )
    source, target = _real(input), _real(output)
    dtype = torch.float64 if input.dtype in (torch.float64, torch.complex128) and codec.lossless else torch.float32
    direct = target.is_contiguous() and target.dtype == dtype
    row = target.view(-1) if direct else entry.take(target.numel(), dtype)
    flat = source.reshape(-1)
    if flat.dtype != dtype:
        flat = entry.take(source.numel(), dtype).copy_(flat)
    own_flat = flat.data_ptr() != source.data_ptr()

    def finish() -> None:
        if not direct:
            target.copy_(row.view(target.shape))
            entry.give(row)
        if own_flat:
            entry.give(flat)

    future = reducer.reduce_scatter(
        row,
        flat,
        rows_codec(codec, row.numel(), size),
        _key(entry, key),
        op=op,
        observer=_Call(entry, finish),
        result=output,
        wait=not async_op,
    )
    return future if async_op else future.wait()


def all_gather(
    output: torch.Tensor,
    input: torch.Tensor,
    codec: Any,
    *,
    group: Any = None,
    key: Key | None = None,
    async_op: bool = False,
) -> Any:
    """Gathers the `input` of every rank of `group` in `output`, in rank order, with compressed communication. All ranks end with the same bits: the own row is what the others decode.

    Args:
        output: CPU tensor of ``world_size * input.numel()`` elements of the same dtype, of any shape and strides; overwritten.
        input: CPU tensor of a floating-point or complex dtype; left as it is, unless it is a part of `output`.
        codec, group, key, async_op: as in :func:`reduce_scatter`.

    Returns:
        `output`, or with `async_op` a torch.futures.Future of it.

    Raises:
        TensorError, SpecError, MismatchError, PeerError, WireError, StateError: as :func:`reduce_scatter`.
    """
    codec = _parsed(codec)
    _check(output, input)
    entry = group_entry(group)
    reducer = entry.reducer(False)
    size, rank = reducer.world_size, reducer.rank
    if input.numel() * size != output.numel():
        raise TensorError(
            f"{size} ranks gather {size * input.numel()} elements, and output has {output.numel()}: give it room for all"
        )
    source, target = _real(input), _real(output)
    dtype = torch.float64 if input.dtype in (torch.float64, torch.complex128) and codec.lossless else torch.float32
    direct = target.is_contiguous() and target.dtype == dtype
    flat = target.view(-1) if direct else entry.take(target.numel(), dtype)
    flat.view(size, -1)[rank].copy_(source.reshape(-1))

    def finish() -> None:
        if not direct:
            target.copy_(flat.view(target.shape))
            entry.give(flat)

    future = reducer.all_gather(
        flat,
        rows_codec(codec, source.numel(), size),
        _key(entry, key),
        observer=_Call(entry, finish),
        result=output,
        wait=not async_op,
    )
    return future if async_op else future.wait()


def _parsed(codec: Any) -> Any:
    if isinstance(codec, str):
        from commpress.codecs import codec as parse

        return parse(codec)
    return codec


def _check(output: torch.Tensor, input: torch.Tensor) -> None:
    for name, tensor in (("output", output), ("input", input)):
        if tensor.layout != torch.strided:
            raise TensorError(f"{name} must be dense, got layout {tensor.layout}")
        if tensor.device.type != "cpu":
            raise TensorError(
                f"{name} must be on the CPU, got {tensor.device}, where reduce_scatter and all_gather work so far"
            )
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TensorError(f"{name} must be a floating-point or complex tensor, got {tensor.dtype}")
    if output.dtype != input.dtype:
        raise TensorError(f"output is {output.dtype} and input {input.dtype}: they must be of one dtype")


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as real numbers."""
    plain = tensor.detach()
    return torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain


def _key(entry: Entry, key: Key | None) -> Key:
    if key is None:
        from commpress.codecs import Key

        key = Key(seed=0, step=entry.calls % (1 << 32))
        entry.calls += 1
    return key
