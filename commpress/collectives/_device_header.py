"""What ranks say of a step whose payloads go from device to device: the header, on the host's own channel, read when the next step begins."""

from __future__ import annotations

import hashlib
import json
from typing import final

from commpress.collectives._notes import Notes, Pending
from commpress.collectives.communicator import ChannelError, Communicator
from commpress.errors import MismatchError, PeerError

NBYTES = 512
_LONGEST = 60  # characters of a value that is sent as it is


@final
class DeviceHeaders:
    """One header for each step, of every rank, to every rank.

    A step unlike the one before (other sizes, codecs or buckets) waits for the others' headers before it sends anything: unequal sizes would leave the device waiting for ever. The rest are
    read when the next step begins, so the host waits for nobody.

    Args:
        comm: a channel between hosts that nothing else uses.
        timeout: seconds that a wait for a peer may take.
    """

    def __init__(self, comm: Communicator, timeout: float) -> None:
        self._comm = comm
        self._notes = Notes(comm, NBYTES, timeout)
        self._pending: Pending | None = None
        self._known = ""
        self.bytes_each, self.messages_each = self._notes.bytes_each, self._notes.messages_each

    def open(self, step: int, facts: dict[str, object]) -> None:
        """Sends this rank's header.

        Args:
            step: number of the step, or call.
            facts: what must be equal on all ranks, by name.

        Raises:
            MismatchError: the ranks differ; on all of them, if all have a step unlike the last. PeerError: a rank is gone.
        """
        short = {name: _short(str(value)) for name, value in facts.items()}
        signature = json.dumps(short)
        text = json.dumps({"step": step} | short).encode()
        try:
            self._pending = self._notes.post(text.ljust(NBYTES)[:NBYTES])
        except ChannelError as error:
            raise PeerError(f"rank {self._comm.rank} lost a peer at the header of step {step}: {error}") from error
        if signature != self._known:
            self.read()
            self._known = signature

    def read(self) -> None:
        """Compares the headers of the last step. Raises MismatchError, PeerError."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            said = [json.loads(note) for note in pending.collect()]
        except ChannelError as error:
            raise PeerError(
                f"rank {self._comm.rank} has no header from every rank, so one has died, hung or failed: {error}"
            ) from error
        names = dict.fromkeys(name for one in said for name in one)
        wrong = [
            f"{name} ({'; '.join(f'rank {rank}: {one.get(name)}' for rank, one in enumerate(said))})"
            for name in names
            if len({str(one.get(name)) for one in said}) > 1
        ]
        if wrong:
            raise MismatchError("ranks disagree on " + ", and on ".join(wrong))

    def abort(self) -> None:
        """This rank gives up: whoever waits for its next header learns so."""
        self._comm.abort()

    def close(self) -> None:
        self._comm.close()


def _short(text: str) -> str:
    """`text`, or its beginning and a digest."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:40]}... {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
