"""Runs the threads of a batch: those at the lowest instruction first, so that diverged threads meet again."""

from __future__ import annotations

from typing import final

import numpy as np

from ._batch import Batch
from ._errors import BarrierError, BoundsError, DeadlockError, MaskError, PtxError, TrapError, UnsupportedError
from ._instructions import as_lanes
from ._lanes import Lanes
from ._program import Kind, Program

_RUN, _WAIT, _BARRIER, _NAP, _GONE = range(5)
_FAR = 1 << 60
# Turns of a loop that reads what others write before its threads step aside, and how often they may in vain.
_SPIN_TURNS = 8
_NAPS = 5000


@final
class Scheduler:
    """Executes a program for one batch.

    A group of threads runs until it branches apart, meets others, or has to wait. `patience` is how many backward
    branches a batch may take in all.
    """

    def __init__(self, program: Program, batch: Batch, patience: int) -> None:
        self._program, self._batch = program, batch
        self._shape, self._counts = batch.shape, batch.counts
        self._pc = np.zeros(self._shape.count, np.int64)
        self._state = np.full(self._shape.count, _RUN, np.int8)
        self._barrier_number = np.zeros(self._shape.count, np.int64)
        self._patience, self._naps = patience, 0
        self._end = len(program.instructions)

    def run(self) -> None:
        """Runs until every thread has exited.

        Raises:
            PtxError: the kernel did something wrong, or something that is not known here.
        """
        with np.errstate(all="ignore"):
            while True:
                ready = np.where(self._state == _RUN, self._pc, _FAR)
                first = int(ready.min())
                if first < _FAR:
                    self._run_group(ready, first)
                elif not self._wake():
                    return

    def _run_group(self, ready: np.ndarray, number: int) -> None:
        here = ready == number
        later = ready[~here]
        stop = int(later.min()) if len(later) else _FAR
        if self._program.kinds[number] is Kind.COLLECTIVE:
            here |= (self._state == _WAIT) & (self._pc == number)
        lanes = self._batch.everyone if here.all() else Lanes(self._shape, np.flatnonzero(here))
        self._state[lanes.numbers] = _RUN
        self._turns, self._strong = 0, False
        start = number
        following: int | None = number
        while following is not None:
            number = following
            if number >= stop or (number != start and self._is_awaited(number)):
                self._pc[lanes.numbers] = number
                return
            end = min(self._program.straight_until[number], stop)
            if end > number:
                self._straight(lanes, number, end)
                following = end
            else:
                following = self._control(lanes, number)

    def _is_awaited(self, number: int) -> bool:
        """Whether lanes wait here for others of their warp: then all of them go on from here together."""
        if self._program.kinds[number] is not Kind.COLLECTIVE:
            return False
        return bool(((self._state == _WAIT) & (self._pc == number)).any())

    def _straight(self, lanes: Lanes, number: int, end: int) -> None:
        program, batch, counts = self._program, self._batch, self._counts
        counts.warps[number:end] += lanes.warps
        counts.threads[number:end] += lanes.count
        self._strong |= program.strong_before[end] > program.strong_before[number]
        try:
            for number in range(number, end):  # noqa: B020  the number is what an error reports
                condition = program.condition(number)
                if condition is None:
                    program.step(number)(batch, lanes)
                    continue
                some = lanes.where(as_lanes(condition(batch, lanes), lanes))
                counts.threads[number] -= lanes.count - (some.count if some is not None else 0)
                if some is not None:
                    program.step(number)(batch, some)
        except PtxError as error:
            raise self._at(error, number) from error

    def _at(self, error: PtxError, number: int) -> PtxError:
        one = self._program.instructions[number]
        place = f" at {one.location}" if one.location else ""
        return type(error)(f"{self._program.kernel.name}, instruction {number} ({one.text}){place}: {error}")

    def _control(self, lanes: Lanes, number: int) -> int | None:
        """Executes an instruction that may part the lanes; the next one's number if they all go on together."""
        if number == self._end:
            self._state[lanes.numbers] = _GONE
            return None
        try:
            condition = self._program.condition(number)
            chosen: Lanes | None = lanes
            if condition is not None:
                chosen = lanes.where(as_lanes(condition(self._batch, lanes), lanes))
            if chosen is None:
                self._count(number, lanes, 0)
                return number + 1
            handlers = {
                Kind.BRANCH: self._branch,
                Kind.TABLE: self._table,
                Kind.EXIT: self._exit,
                Kind.BARRIER: self._barrier,
                Kind.COLLECTIVE: self._collective,
                Kind.NAP: self._nap,
                Kind.TRAP: self._trap,
                Kind.CALL: self._call,
            }
            if chosen is not lanes:
                self._pc[lanes.numbers] = number + 1
            following = handlers[self._program.kinds[number]](lanes, chosen, number)
            if following is None or chosen is lanes:
                return following
            self._pc[chosen.numbers] = following
            return None
        except PtxError as error:
            raise self._at(error, number) from error

    def _count(self, number: int, lanes: Lanes, threads: int) -> None:
        self._counts.warps[number] += lanes.warps
        self._counts.threads[number] += threads

    def _branch(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        self._count(number, lanes, chosen.count)
        target = self._program.target(self._program.instructions[number].operands[0])
        if target > number:
            return target
        self._turns += 1
        if self._strong and self._turns >= _SPIN_TURNS:
            self._pc[chosen.numbers] = target
            self._state[chosen.numbers] = _NAP
            return None
        self._patience -= not self._strong
        if self._patience < 0:
            raise DeadlockError("the kernel does not end; its loops took as many turns as they may")
        return target

    def _table(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        self._count(number, lanes, chosen.count)
        read = self._program.operands.read(self._program.instructions[number].operands[0], "u32")
        index, targets = as_lanes(read(self._batch, chosen), chosen), self._program.targets(number)
        if int(index.max()) >= len(targets):
            raise BoundsError(f"entry {int(index.max())} of a jump table of {len(targets)}")
        goals = targets[index]
        if (goals == goals[0]).all():
            return int(goals[0])
        self._pc[chosen.numbers] = goals
        return None

    def _exit(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        self._count(number, lanes, chosen.count)
        self._state[chosen.numbers] = _GONE
        return None

    def _nap(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        self._count(number, lanes, chosen.count)
        self._pc[chosen.numbers] = number + 1
        self._state[chosen.numbers] = _NAP
        return None

    def _trap(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        raise TrapError(f"{chosen.count} threads trap")

    def _call(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        one = self._program.instructions[number]
        if "__assertfail" in one.operands:
            raise TrapError(f"an assertion fails in {chosen.count} threads")
        raise UnsupportedError("a call of something that is not in this text")

    def _collective(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        ready: Lanes | None = chosen
        if chosen.index is not None or not self._is_full(chosen, number):
            ready = self._all_there(chosen, self._masks(chosen, number))
        if ready is None:
            self._pc[chosen.numbers] = number
            self._state[chosen.numbers] = _WAIT
            return None
        self._count(number, lanes if ready is chosen else ready, ready.count)
        self._program.step(number)(self._batch, ready)
        if ready is chosen:
            return number + 1
        self._pc[chosen.numbers] = number
        self._state[chosen.numbers] = _WAIT
        self._pc[ready.numbers] = number + 1
        self._state[ready.numbers] = _RUN
        return None

    def _is_full(self, lanes: Lanes, number: int) -> bool:
        """Whether the mask is all ones, and the same for all."""
        masks = self._program.mask(number)(self._batch, lanes)
        return len(masks) == 1 and int(masks[0]) == 0xFFFFFFFF

    def _masks(self, lanes: Lanes, number: int) -> np.ndarray:
        """The mask of each lane, checked against the lane itself and those that have exited."""
        masks = as_lanes(self._program.mask(number)(self._batch, lanes), lanes) & self._shape.present[lanes.warp]
        if (masks >> lanes.lane & 1 == 0).any():
            raise MaskError("a lane outside its own mask")
        gone = np.flatnonzero(self._state == _GONE)
        if len(gone) and (self._shape.bits(gone)[lanes.warp] & masks).any():
            raise MaskError("the mask names a lane that has exited")
        return masks

    def _all_there(self, lanes: Lanes, masks: np.ndarray) -> Lanes | None:
        """Those of the lanes whose masks are complete."""
        here = lanes.bits[lanes.warp]
        complete = here & masks == masks
        table = np.zeros(self._shape.warps * 32, np.int64)
        table[lanes.seat] = masks
        # each lane of a mask must have that mask itself: it is enough to compare with the lowest lane's
        lowest = np.bitwise_count((masks & -masks) - 1)
        if (complete & (table[lanes.warp * 32 + lowest] != masks)).any():
            raise MaskError("lanes of one mask have different masks")
        return lanes.where(complete)

    def _barrier(self, lanes: Lanes, chosen: Lanes, number: int) -> int | None:
        self._count(number, lanes, chosen.count)
        one, operands = self._program.instructions[number], self._program.operands
        if not {"sync", "red"} & set(one.modifiers) or "cluster" in one.modifiers:
            raise UnsupportedError(one.name)
        reduces = "red" in one.modifiers
        plain = one.operands[1:-1] if reduces else one.operands
        sizes = [operands.read(text, "u32")(self._batch, chosen) for text in plain]
        self._pc[chosen.numbers] = number
        self._state[chosen.numbers] = _BARRIER
        self._barrier_number[chosen.numbers] = sizes[0]
        name = int(sizes[0][0])
        waiting = (self._state == _BARRIER) & (self._barrier_number == name)
        arrived = self._per_block(waiting)
        if len(sizes) > 1:
            complete = arrived == int(sizes[1][0])
        else:
            complete = (arrived > 0) & (arrived == self._per_block(self._state != _GONE))
            self._check_barrier(waiting & complete[self._shape.block])
        released = Lanes(self._shape, np.flatnonzero(waiting & complete[self._shape.block]))
        if released.count == 0:
            return None
        if reduces:
            self._reduce(released, number)
        self._batch.shared.block_barrier(np.flatnonzero(complete))
        if released.count == lanes.count == chosen.count:
            self._state[released.numbers] = _RUN
            return number + 1
        self._pc[released.numbers] += 1
        self._state[released.numbers] = _RUN
        return None

    def _per_block(self, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(self._shape.block[chosen], minlength=self._shape.blocks)

    def _check_barrier(self, meeting: np.ndarray) -> None:
        """Raises BarrierError if threads that a barrier would release should not have met there."""
        if not meeting.any():
            return
        blocks, places = self._shape.block[meeting], self._pc[meeting]
        if (places != places[np.searchsorted(blocks, blocks)]).any():
            numbers = sorted({int(place) for place in places})
            raise BarrierError(f"threads of a block meet in different barriers, at the instructions {numbers}")
        if (self._state[np.isin(self._shape.block, blocks)] == _GONE).any():
            raise BarrierError("a barrier after a thread of the block has exited")

    def _reduce(self, released: Lanes, number: int) -> None:
        """bar.red: a count, or whether all or any agree, over the block."""
        one, operands = self._program.instructions[number], self._program.operands
        given = as_lanes(operands.read(one.operands[-1], "pred")(self._batch, released), released)
        yes = np.bincount(released.block[given], minlength=self._shape.blocks)[released.block]
        everyone = np.bincount(released.block, minlength=self._shape.blocks)[released.block]
        write = operands.write(one.operands[0])
        if "popc" in one.modifiers:
            write(self._batch, released, yes.astype(np.uint32))
        else:
            write(self._batch, released, yes == everyone if "and" in one.modifiers else yes > 0)

    def _wake(self) -> bool:
        """When no thread runs: lets those that stepped aside go on; False when all have exited.

        Raises:
            KernelFault: the rest wait for something that cannot come.
        """
        napping = self._state == _NAP
        if napping.any():
            self._naps += 1
            if self._naps > _NAPS:
                raise self._at(DeadlockError("threads wait in a loop in vain"), int(self._pc[napping][0]))
            self._state[napping] = _RUN
            return True
        waiting = np.flatnonzero((self._state == _WAIT) | (self._state == _BARRIER))
        if len(waiting) == 0:
            return False
        places = np.unique(self._pc[waiting])
        number = int(places[0])
        try:
            for place in places:
                at = Lanes(self._shape, waiting[self._pc[waiting] == place])
                if self._program.kinds[place] is Kind.COLLECTIVE:
                    self._masks(at, int(place))
            self._check_barrier((self._state == _BARRIER) & ~np.isin(self._shape.block, self._waiting_blocks()))
        except PtxError as error:
            raise self._at(error, number) from error
        texts = [self._program.instructions[place].text for place in places]
        counts = [int(np.count_nonzero(self._pc[waiting] == place)) for place in places]
        where = ", ".join(f"{count} threads at {text}" for count, text in zip(counts, texts, strict=True))
        raise self._at(DeadlockError(f"no thread can go on: {where}"), number)

    def _waiting_blocks(self) -> np.ndarray:
        return np.unique(self._shape.block[self._state == _WAIT])
