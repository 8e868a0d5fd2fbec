"""Loads, stores and atomic updates, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

from ._batch import Batch
from ._counts import Counts
from ._errors import RaceError, UnsupportedError
from ._instructions import Step, as_lanes
from ._kernel import Instruction
from ._lanes import Lanes
from ._memory import LOCAL_BASE, SHARED_BASE, Memory
from ._operands import Operands, Reader, Writer
from ._parse import split_operands
from ._types import dtype_of, is_type

_SPACES = ("global", "shared", "local", "param", "const")
# Accesses that other threads may race with: what they see is up to the program.
_STRONG = ("volatile", "relaxed", "acquire", "release", "mmio")
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}
_BASES = {"shared": SHARED_BASE, "local": LOCAL_BASE}
_WORDS_PER_WAVEFRONT = 32


def space_of(one: Instruction) -> str:
    """The space that an access names, or ``generic``."""
    words = [modifier.partition("::")[0] for modifier in one.modifiers]
    return next((word for word in words if word in _SPACES), "generic")


def is_strong(one: Instruction) -> bool:
    return any(modifier in _STRONG for modifier in one.modifiers)


def narrowest(instructions: list[Instruction]) -> int:
    """Bytes of the narrowest access that may go to shared memory; 16 where there is none."""
    sizes = [16]
    for one in instructions:
        if one.opcode in ("ld", "st", "atom", "red") and space_of(one) in ("shared", "generic"):
            sizes.append(min(16, _itemsize(one) * _vector(one)))
    return min(sizes)


def _itemsize(one: Instruction) -> int:
    kinds = [modifier for modifier in one.modifiers if is_type(modifier)]
    if not kinds:
        raise UnsupportedError(one.name)
    return dtype_of(kinds[-1]).itemsize


def _vector(one: Instruction) -> int:
    return next((_VECTORS[modifier] for modifier in one.modifiers if modifier in _VECTORS), 1)


def access_step(one: Instruction, operands: Operands) -> Step:
    """What a ld, st, atom or red does.

    Raises:
        UnsupportedError: a form that is not known.
    """
    if one.opcode in ("atom", "red"):
        return _atomic(one, operands)
    kind = one.modifiers[-1]
    if not is_type(kind) or _itemsize(one) * _vector(one) > 16:
        raise UnsupportedError(f"the access {one.name}")
    loads = one.opcode == "ld"
    place = one.operands[1] if loads else one.operands[0]
    text = one.operands[0] if loads else one.operands[1]
    parts = split_operands(text[1:-1]) if text.startswith("{") else [text]
    if len(parts) != _vector(one):
        raise UnsupportedError(f"the access {one.name} of {len(parts)} values")
    space = space_of(one)
    if space == "param":
        offset = operands.parameter(place)
        if loads and offset is not None:
            return _load_parameter(offset, kind, [operands.write(part) for part in parts])
        # a parameter of a function called from here, which is local memory, or an address computed from a parameter's
        space = "global" if operands.is_register(place.strip("[] ").partition("+")[0].strip()) else "local"
    address = operands.address(place)
    if loads:
        return _load(one, space, kind, address, [operands.write(part) for part in parts])
    return _store(one, space, kind, address, [operands.read(part, kind) for part in parts])


def _load_parameter(offset: int, kind: str, writers: list[Writer]) -> Step:
    dtype = dtype_of(kind)

    def step(batch: Batch, lanes: Lanes) -> None:
        size = dtype.itemsize * len(writers)
        values = batch.launch.parameters[offset : offset + size].view(dtype)
        for number, write in enumerate(writers):
            write(batch, lanes, values[number : number + 1])

    return step


def _load(one: Instruction, space: str, kind: str, address: Reader, writers: list[Writer]) -> Step:
    dtype, checked = dtype_of(kind), not is_strong(one)
    nbytes = dtype.itemsize * len(writers)

    def from_space(batch: Batch, lanes: Lanes, addresses: np.ndarray, where: str) -> np.ndarray:
        if where == "shared":
            _count_shared(batch.counts, one, lanes, addresses, nbytes)
            return batch.shared.load(lanes, addresses, nbytes, checked=checked)
        if where == "local":
            return batch.local.load(lanes, addresses, nbytes)
        if where == "global":
            _count_global(batch.counts, "ld", lanes, addresses, nbytes)
        return batch.memory.load(addresses, nbytes)

    def step(batch: Batch, lanes: Lanes) -> None:
        addresses = as_lanes(address(batch, lanes), lanes)
        if space != "generic":
            raw = from_space(batch, lanes, addresses, space)
        else:
            raw = np.empty((lanes.count, nbytes), np.uint8)
            for where, mask in batch.spaces_of(addresses):
                some = lanes.where(mask)
                assert some is not None
                raw[mask] = from_space(batch, some, addresses[mask] & ~_BASES.get(where, 0), where)
        values = raw.view(dtype)
        for number, write in enumerate(writers):
            write(batch, lanes, np.ascontiguousarray(values[:, number]))

    return step


def _store(one: Instruction, space: str, kind: str, address: Reader, readers: list[Reader]) -> Step:
    dtype, checked = dtype_of(kind), not is_strong(one)
    nbytes = dtype.itemsize * len(readers)

    def to_space(batch: Batch, lanes: Lanes, addresses: np.ndarray, where: str, raw: np.ndarray) -> None:
        if where == "shared":
            _count_shared(batch.counts, one, lanes, addresses, nbytes)
            batch.shared.store(lanes, addresses, raw, checked=checked)
        elif where == "local":
            batch.local.store(lanes, addresses, raw)
        else:
            _count_global(batch.counts, "st", lanes, addresses, nbytes)
            _check_same(batch.memory.store(addresses, raw), raw, checked)

    def step(batch: Batch, lanes: Lanes) -> None:
        addresses = as_lanes(address(batch, lanes), lanes)
        values = np.empty((lanes.count, len(readers)), dtype)
        for number, read in enumerate(readers):
            values[:, number] = read(batch, lanes)
        raw = values.view(np.uint8)
        if space != "generic":
            to_space(batch, lanes, addresses, space, raw)
            return
        for where, mask in batch.spaces_of(addresses):
            some = lanes.where(mask)
            assert some is not None
            to_space(batch, some, addresses[mask] & ~_BASES.get(where, 0), where, raw[mask])

    return step


def _check_same(found: np.ndarray, meant: np.ndarray, checked: bool) -> None:
    if checked and (found != meant).any():
        raise RaceError("threads write different values to one place of global memory in one instruction")


def _distinct(keys: np.ndarray) -> int:
    """How many different values there are; quick where they are in order."""
    steps = np.diff(keys)
    if not (steps >= 0).all():
        steps = np.diff(np.sort(keys))
    return 1 + int(np.count_nonzero(steps))


def _count_global(counts: Counts, kind: str, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> None:
    traffic = counts.traffic[kind]
    traffic.requests += lanes.warps
    traffic.nbytes += nbytes * lanes.count
    # every access lies in one sector, being aligned; the warp's number goes above the bits of an address
    traffic.sectors += _distinct(lanes.warp << 52 | addresses >> 5)


def _count_shared(counts: Counts, one: Instruction, lanes: Lanes, addresses: np.ndarray, nbytes: int) -> None:
    """A warp's access takes as many passes as the most distinct words that any of the 32 banks has to give.

    The lanes of 8-byte accesses go in two groups, those of 16-byte accesses in four.
    """
    words = max(1, nbytes // 4)
    group = lanes.warp * words + lanes.lane * words // 32
    word = (addresses >> 2)[:, None] + np.arange(words)
    slot = (group[:, None] * _WORDS_PER_WAVEFRONT + (word & 31)).ravel()
    groups = lanes.shape.warps * words
    ideal = int(np.count_nonzero(np.bincount(group, minlength=groups)))
    load = np.bincount(slot, minlength=groups * _WORDS_PER_WAVEFRONT)
    counts.shared_ideal += ideal
    if load.max() == 1:
        counts.shared_wavefronts += ideal
        return
    # some bank is asked more than once: lanes that ask for the same word share the answer
    keys = np.sort(slot.astype(np.int64) << 32 | word.ravel())
    distinct = keys[np.concatenate(([True], np.diff(keys) != 0))] >> 32
    load = np.bincount(distinct, minlength=groups * _WORDS_PER_WAVEFRONT).reshape(groups, -1)
    wavefronts = int(load.max(axis=1).sum())
    counts.shared_wavefronts += wavefronts
    counts.conflicts[one.line] += wavefronts - ideal


Update = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_UPDATES: dict[str, Update] = {
    "add": lambda old, b, c: old + b,
    "min": lambda old, b, c: np.minimum(old, b),
    "max": lambda old, b, c: np.maximum(old, b),
    "and": lambda old, b, c: old & b,
    "or": lambda old, b, c: old | b,
    "xor": lambda old, b, c: old ^ b,
    "exch": lambda old, b, c: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
    "inc": lambda old, b, c: np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, b, c: np.where((old == 0) | (old > b), b, old - old.dtype.type(1)),
}


@final
class _Place:
    """Global or shared memory as an atomic update sees it."""

    def __init__(
        self, batch: Batch, one: Instruction, lanes: Lanes, addresses: np.ndarray, shared: bool, nbytes: int
    ) -> None:
        self._memory: Memory = batch.memory
        self._batch, self._shared, self._nbytes = batch, shared, nbytes
        self._lanes, self._addresses = lanes, addresses
        if shared:
            batch.shared.begin_atomic(lanes, addresses, nbytes)
            _count_shared(batch.counts, one, lanes, addresses, nbytes)
        else:
            _count_global(batch.counts, "atom", lanes, addresses, nbytes)

    def keys(self) -> np.ndarray:
        """Equal for lanes that update the same place."""
        return self._lanes.block << 40 | self._addresses if self._shared else self._addresses

    def fetch(self, chosen: np.ndarray) -> np.ndarray:
        if self._shared:
            return self._batch.shared.fetch(self._some(chosen), self._addresses[chosen], self._nbytes)
        return self._memory.load(self._addresses[chosen], self._nbytes)

    def replace(self, chosen: np.ndarray, data: np.ndarray) -> None:
        if self._shared:
            self._batch.shared.replace(self._some(chosen), self._addresses[chosen], data)
        else:
            self._memory.store(self._addresses[chosen], data)

    def _some(self, chosen: np.ndarray) -> Lanes:
        return Lanes(self._lanes.shape, self._lanes.numbers[chosen])


def _atomic(one: Instruction, operands: Operands) -> Step:
    kind = one.modifiers[-1]
    name = next((modifier for modifier in one.modifiers if modifier in _UPDATES), None)
    space = space_of(one)
    if name is None or not is_type(kind) or kind in ("f16x2", "bf16x2", "f16", "bf16") or _vector(one) > 1:
        raise UnsupportedError(f"the update {one.name}")
    update, dtype = _UPDATES[name], dtype_of(kind)
    rest = list(one.operands)
    write = operands.write(rest.pop(0)) if one.opcode == "atom" else None
    address = operands.address(rest[0])
    given = [operands.read(text, kind) for text in rest[1 : 3 if name == "cas" else 2]]

    def in_space(batch: Batch, lanes: Lanes, addresses: np.ndarray, values: list[np.ndarray], where: str) -> np.ndarray:
        place = _Place(batch, one, lanes, addresses, where == "shared", dtype.itemsize)
        old = np.empty(lanes.count, dtype)
        for chosen in _rounds(place.keys()):
            before = place.fetch(chosen).view(dtype).reshape(-1)
            old[chosen] = before
            after = update(before, values[0][chosen], values[-1][chosen])
            place.replace(chosen, np.ascontiguousarray(after.astype(dtype)).view(np.uint8).reshape(len(chosen), -1))
        return old

    def step(batch: Batch, lanes: Lanes) -> None:
        addresses = as_lanes(address(batch, lanes), lanes)
        values = [as_lanes(read(batch, lanes), lanes) for read in given]
        if space != "generic":
            old = in_space(batch, lanes, addresses, values, space)
        else:
            old = np.empty(lanes.count, dtype)
            for where, mask in batch.spaces_of(addresses):
                some = lanes.where(mask)
                assert some is not None and where != "local"
                addressed = addresses[mask] & ~_BASES.get(where, 0)
                old[mask] = in_space(batch, some, addressed, [value[mask] for value in values], where)
        if write is not None:
            write(batch, lanes, old)

    return step


def _rounds(keys: np.ndarray) -> list[np.ndarray]:
    """Lanes in groups without two of the same key; of one key, in their order."""
    order = np.argsort(keys, kind="stable")
    starts = np.concatenate(([True], np.diff(keys[order]) != 0))
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - first
    if not rank.any():
        return [np.arange(len(keys))]
    by_rank = np.argsort(rank, kind="stable")
    return np.split(by_rank, np.cumsum(np.bincount(rank))[:-1])
