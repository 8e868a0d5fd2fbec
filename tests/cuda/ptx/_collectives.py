"""Instructions that the lanes of a warp execute together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ._batch import Batch
from ._errors import MaskError, UnsupportedError
from ._instructions import Step, as_lanes
from ._kernel import Instruction
from ._lanes import Lanes
from ._operands import Operands, Reader
from ._types import dtype_of

_REDUCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def is_collective(one: Instruction) -> bool:
    if one.opcode in ("bar", "barrier"):
        return one.modifiers[:1] == ("warp",)
    return one.opcode in ("shfl", "vote", "redux", "match", "elect")


def mask_of(one: Instruction, operands: Operands) -> Reader:
    """The mask of lanes that take part: the last operand, int64 of one value or one for each lane."""
    if one.opcode in ("shfl", "vote", "match", "redux") and "sync" not in one.modifiers:
        raise UnsupportedError(f"{one.name}: without a mask")
    read = operands.read(one.operands[-1], "u32")
    return lambda batch, lanes: read(batch, lanes).astype(np.int64)


def collective_step(one: Instruction, operands: Operands) -> Step:
    """What a collective computes, once all the lanes of each mask are there.

    Raises:
        UnsupportedError: a form that is not known.
    """
    makers: dict[str, Callable[[Instruction, Operands], Step]] = {
        "shfl": _shuffle,
        "vote": _vote,
        "redux": _reduce,
        "match": _match,
        "elect": _elect,
    }
    if one.opcode in ("bar", "barrier"):
        return lambda batch, lanes: batch.shared.warp_barrier(np.unique(lanes.warp))
    return makers[one.opcode](one, operands)


def _by_seat(lanes: Lanes, values: np.ndarray) -> np.ndarray:
    """Shape (warps, 32), zero where no lane is."""
    table = np.zeros(lanes.shape.warps * 32, values.dtype)
    table[lanes.seat] = values
    return table.reshape(-1, 32)


def _shuffle(one: Instruction, operands: Operands) -> Step:
    mode = one.modifiers[1]
    target, _, inside = one.operands[0].partition("|")
    write = operands.write(target)
    write_inside = operands.write(inside) if inside else None
    value = operands.read(one.operands[1], "b32")
    control, clamp = (operands.read(text, "u32") for text in one.operands[2:4])
    mask = mask_of(one, operands)

    def sources(batch: Batch, lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
        """The row of each lane's source among the lanes of the batch, and whether it is in range."""
        by, bounds = control(batch, lanes).astype(np.int64) & 31, clamp(batch, lanes).astype(np.int64)
        asked = mask(batch, lanes)
        key = (mode, int(by[0]), int(bounds[0]), int(asked[0]))
        constant = lanes.index is None and len(by) == len(bounds) == len(asked) == 1
        if constant and key in lanes.shape.shuffles:
            return lanes.shape.shuffles[key]
        segment, lane = bounds >> 8 & 31, lanes.lane
        low = lane & segment
        high = low | (bounds & 31 & ~segment)
        wanted = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment)}[mode]
        found = wanted >= high if mode == "up" else wanted <= high
        source = np.where(found, wanted, lane)
        if ((asked >> source & 1) == 0).any():
            raise MaskError("a shuffle from a lane outside the mask")
        rows = np.full(lanes.shape.warps * 32, -1)
        rows[lanes.seat] = lanes.numbers
        chosen = rows[lanes.warp * 32 + source]
        if (chosen < 0).any():
            raise MaskError("a shuffle from a lane that does not exist")
        if constant:
            lanes.shape.shuffles[key] = chosen, found
        return chosen, found

    def step(batch: Batch, lanes: Lanes) -> None:
        chosen, found = sources(batch, lanes)
        values = as_lanes(value(batch, lanes), lanes)
        if lanes.index is not None:
            everyone = np.zeros(lanes.shape.count, values.dtype)
            everyone[lanes.index] = values
            values = everyone
        write(batch, lanes, values[chosen])
        if write_inside is not None:
            write_inside(batch, lanes, found)

    return step


def _vote(one: Instruction, operands: Operands) -> Step:
    mode = one.modifiers[1]
    if mode not in ("ballot", "any", "all", "uni"):
        raise UnsupportedError(one.name)
    write = operands.write(one.operands[0])
    predicate = operands.read(one.operands[1], "pred")
    mask = mask_of(one, operands)

    def step(batch: Batch, lanes: Lanes) -> None:
        given = as_lanes(predicate(batch, lanes), lanes)
        voters = lanes.where(given)
        yes = voters.bits if voters is not None else np.zeros(lanes.shape.warps, np.int64)
        asked = mask(batch, lanes) & lanes.shape.present[lanes.warp]
        votes = yes[lanes.warp] & asked
        if mode == "ballot":
            write(batch, lanes, votes.astype(np.uint32))
        elif mode == "any":
            write(batch, lanes, votes != 0)
        elif mode == "all":
            write(batch, lanes, votes == asked)
        else:
            write(batch, lanes, (votes == asked) | (votes == 0))

    return step


def _groups(lanes: Lanes, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lanes of one warp and mask belong together: an order that puts them side by side, where each group starts in
    it, and each lane's group."""
    key = lanes.warp << 32 | as_lanes(mask, lanes)
    order = np.argsort(key, kind="stable")
    _, starts, member = np.unique(key[order], return_index=True, return_inverse=True)
    of_lane = np.empty(lanes.count, np.int64)
    of_lane[order] = member
    return order, starts, of_lane


def _reduce(one: Instruction, operands: Operands) -> Step:
    operation = next((_REDUCTIONS[m] for m in one.modifiers if m in _REDUCTIONS), None)
    kind = one.modifiers[-1]
    if operation is None or dtype_of(kind).kind == "f":
        raise UnsupportedError(one.name)
    write, value, mask = operands.write(one.operands[0]), operands.read(one.operands[1], kind), mask_of(one, operands)

    def step(batch: Batch, lanes: Lanes) -> None:
        order, starts, member = _groups(lanes, mask(batch, lanes))
        values = as_lanes(value(batch, lanes), lanes)
        write(batch, lanes, operation.reduceat(values[order], starts, dtype=values.dtype)[member])

    return step


def _match(one: Instruction, operands: Operands) -> Step:
    kind = one.modifiers[-1]
    target, _, all_same = one.operands[0].partition("|")
    write = operands.write(target)
    write_all = operands.write(all_same) if all_same else None
    value, mask = operands.read(one.operands[1], kind), mask_of(one, operands)
    of_all = "all" in one.modifiers

    def step(batch: Batch, lanes: Lanes) -> None:
        values, asked = as_lanes(value(batch, lanes), lanes), mask(batch, lanes)
        table = _by_seat(lanes, values)
        here = lanes.bits[lanes.warp] & asked
        same = np.zeros(lanes.count, np.int64)
        for lane in range(32):
            equal = table[lanes.warp, lane] == values
            same |= np.where(equal & (here >> lane & 1 != 0), np.int64(1) << lane, 0)
        if of_all:
            agreed = same == here
            write(batch, lanes, np.where(agreed, same, 0).astype(np.uint32))
            if write_all is not None:
                write_all(batch, lanes, agreed)
        else:
            write(batch, lanes, same.astype(np.uint32))

    return step


def _elect(one: Instruction, operands: Operands) -> Step:
    target, _, elected = one.operands[0].partition("|")
    write, write_elected, mask = operands.write(target), operands.write(elected or "_"), mask_of(one, operands)

    def step(batch: Batch, lanes: Lanes) -> None:
        order, starts, member = _groups(lanes, mask(batch, lanes))
        first = lanes.lane[order[starts]][member]
        write(batch, lanes, first.astype(np.uint32))
        write_elected(batch, lanes, lanes.lane == first)

    return step


def active_mask_step(one: Instruction, operands: Operands) -> Step:
    write = operands.write(one.operands[0])
    return lambda batch, lanes: write(batch, lanes, lanes.bits[lanes.warp].astype(np.uint32))
