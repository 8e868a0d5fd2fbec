"""The kernels on CUDA devices: `csrc/ops_cuda.cpp`. None of them waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch

from commpress.ops._bitshift import bitshift_codebooks, bitshift_scratch_words
from commpress.ops._library import library, signed, wrote_argument

# Columns of a table (csrc/kernels/cuda_job.h): family, rate, centroid, number added to the key's tensor, offset, coordinates, first value,
# first byte, blocks before (of `topk`: segments; of entropy-coded quantisers: substreams); bits of every code and bytes of a whole block, or
# zeros where they differ (of `bitshift`: where its codebook begins, and nothing).
COLUMNS = 11
BLOCK, GROUP, RATE_ONE = 4096, 512, 1_000_000
RAW, CAST_FP16, CAST_BF16, UNIFORM = range(4)
_GAP = -1
FORMAT = 6  # a number format: its rate is `format_code`
TOPK = 7  # `topk`: its rate is `topk_code`
BITSHIFT = 8  # the bitshift trellis: its rate is `bitshift_code`
ENTROPY = 9  # a segment of an entropy-coded quantiser: its rate is `entropy_code`
_MOST_SCRATCH = 1 << 28  # int32 that encoders with scratch memory take at most, unless one block of threads needs more


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceTable:
    """Layers of a flat tensor as the kernels read them.

    Attributes:
        rows: int64 of shape (layers, 11); in host memory if there is one layer, else on the device.
        units: int32, the layer of each block, on the device; None if there is one layer.
        blocks, nbytes: of all layers together.
        families: the families that occur, as bits.
        codebooks: float32 on the device, of the layers of ``BITSHIFT``; None if there is none.
        scratch_words: int32 that a block of threads needs to encode layers of ``BITSHIFT`` and ``ENTROPY``.
        scratches: how many blocks of threads at most work on these at a time.
    """

    rows: torch.Tensor
    units: torch.Tensor | None
    blocks: int
    nbytes: int
    families: int
    codebooks: torch.Tensor | None = None
    scratch_words: int = 0
    scratches: int = 0


def _even(family: int, rate: int) -> tuple[int, int]:
    """Bits of every code and bytes of every whole block of a codec, or zeros."""
    if family <= CAST_BF16:
        return 0, BLOCK * (4 if family == RAW else 2)
    bits = rate // RATE_ONE if rate % RATE_ONE == 0 else 0
    return bits, (2 * BLOCK // GROUP if family == UNIFORM else 4) + bits * BLOCK // 8 if bits else 0


class Kind(NamedTuple):
    """A codec as the kernels know it.

    Attributes:
        family: of csrc/kernels/wire.h, or ``FORMAT``, ``TOPK``, ``BITSHIFT`` or ``ENTROPY``.
        rate: millionths of a bit per coordinate, or ``format_code``, ``topk_code``, ``bitshift_code`` or ``entropy_code``.
        centroid: 1 for the least-squares scale.
        block_nbytes: payload bytes of 4096 coordinates, of a number format only (of ``ENTROPY``: of a substream); those of the others follow from the rate.
        block: coordinates that a block of threads works on at a time.
        codebook: bits, values and length of a bitshift trellis.
        scratch_words: of ``ENTROPY``, as of :class:`DeviceTable`.
    """

    family: int
    rate: int = 0
    centroid: int = 0
    block_nbytes: int = 0
    block: int = BLOCK
    codebook: tuple[int, int, int] | None = None
    scratch_words: int = 0


def topk_code(fraction: int, bits: int, block: int) -> int:
    """What the kernels know ``topk`` by, as ``packed_topk`` of csrc/kernels/cuda_job.h: all of it in one number below 2^31."""
    return fraction | bits << 20 | (block.bit_length() - 1) << 26


def bitshift_code(bits: int, values: int, length: int, rotated: bool) -> int:
    """What the kernels know a bitshift trellis by, as ``packed_trellis`` of csrc/kernels/cuda_job.h."""
    return bits | values << 3 | length << 8 | rotated << 13


def entropy_code(rate: int, rotate: bool, dither: bool, states: int) -> int:
    """What the kernels know an entropy-coded quantiser by, as ``packed_entropy`` of csrc/kernels/cuda_job.h; ``states``: of the trellis, or 0."""
    return rate | rotate << 23 | dither << 24 | max(states.bit_length() - 1, 0) << 25


class DeviceLayer(NamedTuple):
    """Coordinates with a codec of their own: ``tensor`` is added to the key's, ``nbytes`` is their payload's size."""

    kind: Kind
    tensor: int
    offset: int
    numel: int
    nbytes: int


def gap(numel: int) -> DeviceLayer:
    """Coordinates of the flat tensor between two layers that belong to none, and have no bytes."""
    return DeviceLayer(Kind(_GAP), 0, 0, numel, 0)


def device_table(layers: Sequence[DeviceLayer], device: torch.device) -> DeviceTable:
    """From the layers and gaps, in order; the first and the last are no gaps."""
    rows: list[list[int]] = []
    units: list[int] = []
    codebooks: dict[tuple[int, int, int], int] = {}  # where they begin
    first = byte = families = levels = scratch_words = scratches = 0
    for kind, tensor, offset, numel, nbytes in layers:
        family, rate, centroid, block_nbytes, block, codebook, needed = kind
        if family != _GAP:
            even = (0, block_nbytes) if family in (FORMAT, TOPK, ENTROPY) else _even(family, rate)
            if codebook is not None:
                if codebook not in codebooks:
                    codebooks[codebook] = levels
                    levels += codebook[1] << (codebook[2] - 2)
                even = codebooks[codebook], 0
                needed = bitshift_scratch_words(*codebook)
            before = len(units)
            units += [len(rows)] * -(-numel // block)
            scratch_words = max(scratch_words, needed)
            if needed:
                scratches += 1 if family == ENTROPY else len(units) - before
            rows.append([family, rate, centroid, tensor, offset, numel, first, byte, before, *even])
            families |= 1 << family
        first, byte = first + numel, byte + nbytes
    table = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), COLUMNS)
    together = bitshift_codebooks(tuple(codebooks), device) if codebooks else None
    if len(rows) == 1:
        return DeviceTable(table, None, len(units), byte, families, together, scratch_words, scratches)
    of_block = torch.tensor(units, dtype=torch.int32)
    return DeviceTable(
        table.to(device), of_block.to(device), len(units), byte, families, together, scratch_words, scratches
    )


def new_report(device: torch.device) -> torch.Tensor:
    """What decoders write to: 1 + the position of a sender whose payload is invalid, and whether something is not finite."""
    return torch.zeros(2, dtype=torch.int32, device=device)


def _scratch(table: DeviceTable, device: torch.device) -> torch.Tensor | None:
    """Memory for as many blocks of threads as are busy at a time, and as fit."""
    if not table.scratch_words:
        return None
    busy = min(table.scratches, 2 * torch.cuda.get_device_properties(device).multi_processor_count)
    count = max(1, min(busy, _MOST_SCRATCH // table.scratch_words))
    return torch.empty(count * table.scratch_words, dtype=torch.int32, device=device)


def encode_table(
    x: torch.Tensor,
    payload: torch.Tensor,
    table: DeviceTable,
    *,
    seed: int,
    words: tuple[int, int, int],
    gain: float = 1.0,
    counter: torch.Tensor | None = None,
) -> None:
    """Writes the layers' payloads of ``gain * x``, one after the other.

    Args:
        x: 1-D contiguous float32, bfloat16 or float16 tensor on a CUDA device.
        payload: 1-D uint8 of ``table.nbytes`` there.
        words: step, sender and phase, tensor of the key.
        counter: one int64 there that is added to the step when the kernel runs: what a captured graph counts with.
    """
    library.encode_table(
        x,
        payload,
        table.rows,
        table.units,
        table.blocks,
        table.nbytes,
        table.families,
        signed(seed),
        *words,
        gain,
        counter,
        table.codebooks,
        _scratch(table, x.device),
        table.scratch_words,
    )


def decode_table(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    table: DeviceTable,
    *,
    seed: int,
    senders: list[int],
    step: int,
    tensor: int,
    report: torch.Tensor,
    accumulate: bool = False,
    gain: float = 1.0,
    beta: float = 1.0,
    counter: torch.Tensor | None = None,
) -> None:
    """``values = gain * decoded payloads``, added in their order, or on top of ``beta * values``; what is wrong goes to ``report``.

    Args:
        values: 1-D contiguous float32 on a CUDA device.
        senders: second word of each payload's key.
        report: of :func:`new_report`; never cleared here. After an invalid payload ``values`` are undefined.
    """
    library.decode_table(
        payloads,
        senders,
        values,
        table.rows,
        table.units,
        table.blocks,
        table.nbytes,
        table.families,
        signed(seed),
        step,
        tensor,
        accumulate,
        gain,
        beta,
        report,
        counter,
        table.codebooks,
    )


def cuda_built() -> bool:
    """Whether this build of the extension has the CUDA kernels."""
    return library.cuda_built()


torch.library.register_fake("commpress::encode_table")(wrote_argument)
torch.library.register_fake("commpress::decode_table")(wrote_argument)
