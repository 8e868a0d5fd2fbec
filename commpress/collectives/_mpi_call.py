"""`all_reduce` on MPI: numpy arrays and torch tensors. Keeps one `Entry` per communicator, as an MPI attribute of it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from commpress.collectives._accounting import Report
from commpress.collectives._mpi import DEFAULT_TIMEOUT, MpiCommunicator, mpi_library
from commpress.collectives._one_call import Entry, reduce_tensor
from commpress.collectives.nodes import Asked, Hierarchical
from commpress.collectives.reducer import Reducer, on_nodes
from commpress.errors import StateError, TensorError

if TYPE_CHECKING:
    from commpress.codecs import Key

# An attribute goes with its communicator (`Free`, and what MPI_Finalize deletes), where a table with handles as keys would take a new communicator for an old one.
_keyval: int | None = None
_entries: weakref.WeakSet[Entry] = weakref.WeakSet()  # all that communicators hold
_lock = threading.Lock()


def _close_entry(comm: Any, keyval: int, entry: Entry) -> None:
    with contextlib.suppress(Exception):  # an exception cannot leave an MPI callback; a close has nothing to report
        entry.close()


def _close_all(comm: Any, keyval: int, nothing: Any) -> None:
    for entry in list(_entries):
        _close_entry(comm, keyval, entry)


def _key(MPI: Any) -> int:
    global _keyval
    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval(None, _close_entry)
        # MPI_Finalize begins with the attributes of COMM_SELF, while everything still works. (At the interpreter's exit the Reducers end first, by themselves.)
        MPI.COMM_SELF.Set_attr(MPI.Comm.Create_keyval(None, _close_all), True)
    return _keyval


def _resolve(comm: Any) -> tuple[Any, Any]:
    """(mpi4py's MPI, the communicator). Raises MissingPackageError or StateError."""
    MPI = mpi_library()
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise StateError(f"expected an mpi4py intracommunicator that this process is a member of, got {comm!r}")
    return MPI, comm


def _entry(comm: Any, timeout: float) -> Entry:
    MPI, comm = _resolve(comm)
    with _lock:
        entry: Entry | None = comm.Get_attr(_key(MPI))
        if entry is None:

            def make(asked: Asked) -> Reducer:
                channels = [MpiCommunicator(comm, timeout=timeout) for _ in range(2)]
                return on_nodes(channels[0], channels[1], asked, timeout)

            entry = Entry(make)
            comm.Set_attr(_key(MPI), entry)
            _entries.add(entry)
    return entry


def close(comm: Any = None) -> None:
    """Gives back what `all_reduce` keeps for a communicator. Collective, like its `Free`, which does the same; without either it is done at exit.

    The next `all_reduce` makes everything anew, which is also the way on after an error. Ranks that call it more than five seconds apart leave the duplicates to MPI_Finalize.

    Args:
        comm: an mpi4py communicator; None is MPI.COMM_WORLD. One that was never used does no harm.

    Raises:
        MissingPackageError, StateError: as `all_reduce`.
    """
    MPI, comm = _resolve(comm)
    with _lock:
        entry = comm.Get_attr(_key(MPI))
    if entry is not None:
        entry.close()
        comm.Delete_attr(_key(MPI))


def last_report(comm: Any = None) -> Report | None:
    """Bytes and times (a `commpress.collectives.Report`) of the last completed `all_reduce` on a communicator, or None."""
    MPI, comm = _resolve(comm)
    entry = comm.Get_attr(_key(MPI))
    return None if entry is None else entry.report


def all_reduce(
    array: Any,
    codec: Any,
    comm: Any = None,
    *,
    op: str = "mean",
    key: Key | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    hierarchical: Hierarchical = None,
) -> Any:
    """Reduces `array` over all ranks of an MPI communicator, in place, with compressed communication in both phases.

    The algorithm, the bytes and, to the bit, the result are those of `commpress.all_reduce`, which says what the codecs do. Returns when the result is there.

    Args:
        array: a list of arrays, reduced as if they were one, or a numpy array (float16, float32, float64, complex64 or complex128, in the machine's byte order) or torch CPU tensor (of any floating-point or complex dtype), of any shape and strides;
            all ranks the same number of elements and dtype. float32 and complex64 that are C-contiguous are worked on where they are, all else is copied there and back.
        codec: a codec, or a spec such as "uniform:4"; equal on all ranks.
        comm: an mpi4py intracommunicator; None is MPI.COMM_WORLD. The first call on it duplicates it twice ("lowrank": four times more), collectively; `close` gives that back.
        op: "mean" (the default) or "sum" (MPI's default).
        key: randomness, equal on all ranks; None: seed 0 and the number of this communicator's earlier calls without a key as step.
        timeout: seconds that any single wait for another rank may take. That of the first call on a communicator counts until it is closed.
        hierarchical: None, False, True or the ranks of each node, as for `commpress.all_reduce`. Ranks are on one node if they have the same host (name and boot); what torchrun's
            variables say, where a script has set them, goes first.

    Returns:
        `array`.

    Raises:
        TensorError: an integer or boolean array, byte-swapped, read-only, no array at all, or an unknown `op`. Nothing was sent: the other ranks wait.
        SpecError: the spec is malformed, or not for so many ranks, or `hierarchical` is.
        TopologyError: `hierarchical` demands what the nodes do not allow.
        MismatchError: ranks disagree on codec, version, size, dtype, key, operation, or `hierarchical`; raised on all.
        PeerError: another rank left, was silent for `timeout`, or failed in its codec. (If one is killed, mpiexec usually ends the job.)
        WireError: what arrived cannot be decoded.
        MissingPackageError: no mpi4py, or no MPI library.
        StateError: MPI is not running or does not let threads call it at the same time, `comm` is no intracommunicator or this process not in it, or an earlier call on it failed
            (`close` it on all ranks, then calls work again).
    """
    several = isinstance(array, (list, tuple))
    pairs = [_tensor_of(one) for one in (array if several else [array])]
    tensors: Any = [tensor for tensor, _ in pairs] if several else pairs[0][0]
    reduce_tensor(
        tensors,
        codec,
        lambda: _entry(comm, timeout),
        op=op,
        key=key,
        async_op=False,
        hierarchical=hierarchical,
    )
    for one, (_, work) in zip(array if several else [array], pairs, strict=True):
        if work is not None:
            one[...] = work
    return array


def _tensor_of(array: Any) -> tuple[torch.Tensor, np.ndarray | None]:
    """A tensor of the array's memory, or of a copy, which is returned too."""
    if isinstance(array, torch.Tensor):
        return array, None
    if type(array) is not np.ndarray:  # of a masked array only the data would be reduced
        raise TensorError(f"expected a numpy array or a torch tensor, got {type(array).__name__}")
    if array.dtype not in (np.float16, np.float32, np.float64, np.complex64, np.complex128):
        raise TensorError(f"expected a floating-point or complex array in the machine's byte order, got {array.dtype}")
    if not array.flags.writeable:
        raise TensorError("the array is read-only")
    work = array.copy() if any(stride < 0 for stride in array.strides) else None  # torch knows no negative strides
    return torch.from_numpy(array if work is None else work), work
