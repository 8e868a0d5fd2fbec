"""Communicator on MPI, by way of mpi4py."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from typing import Any, final

import torch

from commpress.collectives.communicator import ChannelError, Communicator, Handle
from commpress.errors import MissingPackageError, PeerError, StateError, TensorError

DEFAULT_TIMEOUT = 1800.0
_MOST_NBYTES = (1 << 31) - 1  # MPI counts in C ints
_DATA, _BYE = 0, 1  # tags
_BUSY_POLLS = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 1e-3  # seconds between two looks
_GRACE = 1.0  # seconds that a message may still take after its sender has said goodbye
_LINGER = 5.0  # seconds that a close waits for the others' goodbyes

# Requests that could not be ended, with their buffers, and communicators that could not be freed: MPI may still write there.
_kept: list[Any] = []


def mpi_library() -> Any:
    """mpi4py's `MPI` module, initialised. Raises MissingPackageError or StateError."""
    try:
        MPI: Any = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and no MPI library
        raise MissingPackageError(
            "mpi4py or an MPI library is not installed; `pip install 'commpress[mpi]'` gets mpi4py, "
            f"and `pip install mpich` an MPI where the system has none ({error})"
        ) from error
    if not MPI.Is_initialized():
        raise StateError("MPI is not initialised: call MPI.Init_thread(MPI.THREAD_MULTIPLE) first")
    if MPI.Is_finalized():
        raise StateError("MPI is finalised already")
    return MPI


@final
class _Transfer(Handle):
    """One message, in as many pieces as it takes."""

    def __init__(self, channel: MpiCommunicator, peer: int, data: Any, *, receiving: bool) -> None:
        self.receiving = receiving
        self._channel = channel
        self._peer = peer
        self._data = data  # keeps the memory that MPI works on
        self._lock = threading.Lock()  # a request must not be tested by one thread and cancelled by another
        self._requests: list[
            tuple[Any, int]
        ] = []  # in the order of the pieces, with their sizes; those that are through are taken out

    def add(self, request: Any, nbytes: int) -> None:
        """Takes note of the next piece."""
        self._requests.append((request, nbytes))

    def done(self) -> bool:
        """Whether all of it is through; does not wait. Raises ChannelError."""
        MPI = self._channel.mpi
        status = MPI.Status()
        with self._lock:
            while self._requests:
                request, nbytes = self._requests[0]
                try:
                    if not request.Test(status):
                        return False
                except MPI.Exception as problem:
                    raise ChannelError(problem.Get_error_string()) from None
                del self._requests[0]
                if self.receiving:
                    if status.Is_cancelled():
                        raise ChannelError("the channel was aborted")
                    if status.Get_count(MPI.BYTE) != nbytes:
                        raise ChannelError(f"message of {status.Get_count(MPI.BYTE)} bytes met a receive of {nbytes}")
        self._channel.under_way.discard(self)
        return True

    def cancel(self) -> None:
        """Takes receives back that have met no message. A send cannot be taken back."""
        if self.receiving:
            with self._lock, contextlib.suppress(self._channel.mpi.Exception):
                for request, _ in self._requests:
                    request.Cancel()

    def wait(self, timeout: float) -> None:
        now = time.monotonic()
        deadline, gone_at, polls, pause = now + timeout, 0.0, 0, _FIRST_PAUSE
        while not self.done():
            self._channel.check()
            polls += 1
            if polls < _BUSY_POLLS:
                time.sleep(0)
                continue
            now = time.monotonic()
            if now >= deadline:
                raise ChannelError(f"no message within {timeout:g} s", timed_out=True)
            if self._channel.has_left(self._peer):
                gone_at = gone_at or now
                if now - gone_at >= _GRACE:
                    raise ChannelError("the channel was closed from the other side")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@final
class MpiCommunicator(Communicator):
    """Channel on a duplicate of an mpi4py communicator, so that its messages meet nobody else's. Making one is collective.

    MPI has no connections that could break, so a rank says goodbye on a tag of its own when it closes or aborts its end, and whoever waits for it learns that. Waits look
    for their message with short sleeps in between: MPI's own waits have no timeout, and keep a core busy.

    Args:
        comm: an intracommunicator. It stays its owner's.
        timeout: seconds that the other ranks may take to join.
        most_nbytes: longer messages are cut into pieces of that size; equal on all ranks.

    Raises:
        MissingPackageError: no mpi4py, or no MPI library. PeerError: the other ranks did not join in time.
        StateError: MPI is not running, `comm` is no intracommunicator, or threads may not call MPI at the same time (MPI_THREAD_MULTIPLE), which those of the two phases do.
    """

    def __init__(self, comm: Any, *, timeout: float = DEFAULT_TIMEOUT, most_nbytes: int = _MOST_NBYTES) -> None:
        MPI = self.mpi = mpi_library()
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise StateError(f"this process is not a member of the communicator, or it is no intracommunicator: {comm}")
        if not 0 < most_nbytes <= _MOST_NBYTES:
            raise StateError(f"most_nbytes is {most_nbytes}, must be from 1 to {_MOST_NBYTES}")
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        # One lock round every call would do for this library's threads, but the user's own threads do not take it, and below MULTIPLE that is undefined behaviour.
        if self.size > 1 and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StateError(
                "MPI was not initialised for calls from several threads: leave mpi4py.rc.thread_level at 'multiple' (the default) "
                "before the first import of mpi4py.MPI, or call MPI.Init_thread(MPI.THREAD_MULTIPLE)"
            )
        self.under_way: set[_Transfer] = set()
        self._most = most_nbytes
        self._comm = _duplicate(MPI, comm, timeout)
        self._comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._aborted = self._closed = self._said_goodbye = False
        self._lock = threading.Lock()
        self._goodbyes = {
            peer: self._comm.Irecv([bytearray(), 0, MPI.BYTE], peer, _BYE)
            for peer in range(self.size)
            if peer != self.rank
        }

    def isend(self, tensor: torch.Tensor, dst: int) -> Handle:
        return self._start(tensor, dst, receiving=False)

    def irecv(self, tensor: torch.Tensor, src: int) -> Handle:
        return self._start(tensor, src, receiving=True)

    def _start(self, tensor: torch.Tensor, peer: int, *, receiving: bool) -> Handle:
        if tensor.dtype != torch.uint8 or not tensor.is_contiguous():
            raise TensorError("messages are contiguous uint8 tensors")
        self.check()
        data = tensor.detach().view(-1).numpy()  # the same memory
        transfer = _Transfer(self, peer, data, receiving=receiving)
        self.under_way.add(transfer)
        post = self._comm.Irecv if receiving else self._comm.Isend
        try:
            for start in range(0, max(len(data), 1), self._most):  # MPI keeps the order of the pieces
                piece = data[start : start + self._most]
                transfer.add(post([piece, len(piece), self.mpi.BYTE], peer, _DATA), len(piece))
        except self.mpi.Exception as problem:
            raise ChannelError(problem.Get_error_string()) from None
        return transfer

    def check(self) -> None:
        """Raises ChannelError if nothing can come any more."""
        if self._aborted or self._closed:
            raise ChannelError("the channel is closed")

    def has_left(self, peer: int) -> bool:
        """Whether that rank has closed or aborted its end."""
        with self._lock:
            request = self._goodbyes.get(peer)
            if request is None:
                return True
            if request.Test():
                del self._goodbyes[peer]
                return True
            return False

    def abort(self) -> None:
        if self._aborted or self._closed:
            return
        self._aborted = True
        for transfer in list(self.under_way):
            transfer.cancel()
        self._say_goodbye()

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self.mpi.Is_finalized():
            _kept.append((self._comm, self._goodbyes, self.under_way))
            return
        self._say_goodbye()
        deadline, pause = time.monotonic() + _LINGER, _FIRST_PAUSE
        while not self._all_over():
            if time.monotonic() >= deadline:
                # The number of a communicator that is never freed is never given to another one, so a late goodbye reaches nobody.
                _kept.append((self._comm, self.under_way))
                for request in self._goodbyes.values():
                    request.Cancel()
                    request.Wait()
                return
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._comm.Free()  # empty: what stayed in it could come out of a new communicator that gets the same number

    def _say_goodbye(self) -> None:
        with self._lock:
            said, self._said_goodbye = self._said_goodbye, True
            if said:
                return
            for peer in range(self.size):
                if peer != self.rank:
                    with contextlib.suppress(self.mpi.Exception):
                        transfer = _Transfer(self, peer, b"", receiving=False)
                        transfer.add(self._comm.Isend([bytearray(), 0, self.mpi.BYTE], peer, _BYE), 0)
                        self.under_way.add(transfer)

    def _all_over(self) -> bool:
        """Whether all others have said goodbye and nothing is under way from or to them. Receives what nobody waits for; its sender does."""
        gone = all(self.has_left(peer) for peer in list(self._goodbyes))
        self._receive_the_rest()  # in this order: what was sent before a goodbye is there when the goodbye is
        for transfer in list(self.under_way):
            try:
                if not transfer.done() and gone:
                    transfer.cancel()
            except ChannelError:  # a piece that was cancelled or failed is out; the next look goes on behind it
                continue
        return gone and not self.under_way

    def _receive_the_rest(self) -> None:
        status = self.mpi.Status()
        while self._comm.Iprobe(self.mpi.ANY_SOURCE, _DATA, status):
            peer, nbytes = status.Get_source(), status.Get_count(self.mpi.BYTE)
            data = bytearray(nbytes)
            transfer = _Transfer(self, peer, data, receiving=True)
            transfer.add(self._comm.Irecv([data, nbytes, self.mpi.BYTE], peer, _DATA), nbytes)
            self.under_way.add(transfer)


def _duplicate(MPI: Any, comm: Any, timeout: float) -> Any:
    """A communicator of the same ranks. Not with `Dup`, which would wait for ever for a rank that does not call it.

    What was begun cannot be taken back: after the error Open MPI makes no communicator at all until the missing rank has joined.
    """
    made, request = comm.Idup()
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
    while not request.Test():
        if time.monotonic() >= deadline:
            _kept.append((made, request))
            raise PeerError(f"not all ranks of the communicator have made this call within {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return made
