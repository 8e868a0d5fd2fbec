"""Collectives on compressed tensors.

`all_reduce` is the one-call form. Underneath is the `Reducer`, the two-phase pipeline that the DDP hook drives as well:

    comm1, comm2 = make_channels(process_group)       # collective: two gloo subgroups with the same ranks, used by nothing else
    reducer = Reducer(comm1, comm2, timeout=60.0, plan="text that must be equal on all ranks")
    future = reducer.submit(flat, codec1, codec2, key, op="mean", observer=None)      # returns at once
    future.wait()                                                              # flat, reduced in place; or raises a CommpressError
    reducer.close()

`submit(flat, codec1, codec2, key, *, op="mean", observer=None, plan=None, result=None) -> torch.futures.Future[Tensor]`
    `flat`: 1-D contiguous fp32 (or fp64) CPU tensor, overwritten with the result; hands off until the future is done. `codec1` encodes what goes to the
    owners of the shards, `codec2` the reduced shards. `key` is the same on every rank (`sender` and `phase` are filled in). Calls are carried out in the order of
    submission, which must be the same on every rank; any number may be in flight. The future is resolved on a worker thread. It carries a Python exception as
    `Future.set_exception` does (`plan` replaces the reducer's for this call, `result` the future's value), so C++ consumers (DDP) should be handed `future.then(lambda f: f.value())`, which turns it into an error with the same text.
`reducer.error` the first failure (a CommpressError) or None; from then on `submit` raises StateError. `reducer.close()` waits for what is in flight,
    joins the threads and closes the channels; also done at exit.

An `Observer` sees one submission; every method has a default that does nothing, and an exception in one fails the submission on every rank:
    prepare(flat)                  phase-1 thread, once, before anything of `flat` is encoded: feedback adds the residual here, in place.
    encoded(phase, start, stop, payload, key, gain)
                                   right after coordinates [start, stop) were encoded with codec1 (phase 1: `gain` is 1/n for the mean, 1 for the sum) or codec2
                                   (phase 2, `gain` 1, or that of phase 1 where `passes_on`); flat[start:stop] still holds what was encoded, and `codec.decode(payload, key, out=..., offset=start)` gives
                                   what the others will see (phase 1: gain times it). Block-aligned ranges; phase 1 covers all of `flat` but the own shard.
                                   Phase 1 on the phase-1 thread, phase 2 on the phase-2 thread, at the same time: the ranges are disjoint.
    reduced(start, stop)           phase-2 thread, before the owner encodes flat[start:stop], the exact reduced values (its own ones where `passes_on`): owner-side feedback adds its residual here.
    complete(report)               phase-2 thread, after everything arrived and every rank said that all went well, just before the future is resolved:
                                   the place to commit a transaction. `report` is a `Report`.
    failed(error)                  instead of `complete`; discard.
    sent_exactly(start, stop)      instead of `reduced` and `encoded` in phase 2 with a codec that adds codes (`LinearCodec`), whose phase 1 covers all of `flat`.
With two ranks and most codecs (`codec.passes_on(2)`) phase 2 brings the owner's own contribution, and each rank adds both: nothing is quantised twice.
Own shards are never quantised in phase 1, but by a `LinearCodec`; `shard_bounds(numel, world_size, rank)` gives their limits.

`Report`: numel, world_size, codecs, chunks; bytes_payload1, bytes_payload2, bytes_header (sent by this rank), messages; wire_bytes (with framing, see
`wire_nbytes`) and the mss behind it; seconds_queue, _prepare, _header, _encode1, _wait1, _decode1, _encode2, _wait2, _decode2, _total; nonfinite (the result holds a NaN or an infinity:
the same on all ranks); link_bytes_per_second.

A `FactorReducer` does the same for matrices that travel as two low-rank factors (docs/lowrank.md): it takes a `Passage`, which says of one flat tensor which matrices
lie where (`FactorPlan`), what follows them from step to step (`commpress.lowrank.Tracker`), and who fills it and takes the result (`PassageObserver`).

`reducer.reduce_scatter(row, flat, codec, key, *, op="mean")` and `reducer.all_gather(flat, codec, key)` are the two halves: phase 1 with one row of `flat` for each rank, and
a phase 2 that brings verdicts only; and phase 2 alone. `reduce_scatter` and `all_gather` are the one-call forms.
`Reducer(..., nodes=NodeMap(((0, 1), (2, 3))))` works in two levels: `flat` is added up exactly inside each node, local rank l gets the l-th part (`reducer.part`), and what is
said above of ranks holds for the ranks of the same local rank on all nodes, who reduce that part; a gather inside the nodes ends it. `encoded` and `reduced` then cover the part alone, in
positions of `flat`; `gain` is still 1/n of all ranks, since what is encoded is a node's sum; `key.sender` is the node's number. `prepare` comes before everything, on each rank's own values.

`common_scale(x)` finds one scale for all ranks (the range of a quantiser, say) at one bit for each rank and round; `common_scales(statistics)` many at once.

A `DeviceReducer` does the same to tensors on a device with streams, on a `DeviceOps` (docs/cuda.md): everything is enqueued, and what went wrong is known when the next step begins.

World size 1: nothing is encoded or sent; `prepare` and `complete` are called, the tensor stays as it is (mean and sum).
"""

from commpress.collectives._accounting import Report, wire_nbytes
from commpress.collectives._all_reduce import all_reduce, close, group_timeout, last_report, make_channel, make_channels
from commpress.collectives._common_scale import CommonScale, CommonScales, common_scale, common_scales
from commpress.collectives._cuda_ops import CudaOps
from commpress.collectives._factor_plan import (
    FactorPlan,
    MatrixShape,
    factor_nbytes,
    matrix_shape,
    most_dimensions,
    worth,
)
from commpress.collectives._fake import FakeCommunicator, FakeGroup, FakeWorld
from commpress.collectives._framing import Sent, mss_of, mtu_of, read_counters
from commpress.collectives._gamma import check_codec, codec_cost
from commpress.collectives._gather import gather
from commpress.collectives._layout import shard_bounds
from commpress.collectives._mpi import MpiCommunicator
from commpress.collectives._mpi_call import all_reduce as mpi_all_reduce
from commpress.collectives._mpi_call import close as mpi_close
from commpress.collectives._mpi_call import last_report as mpi_last_report
from commpress.collectives._notes import Notes, Pending
from commpress.collectives._passage import Passage, PassageObserver
from commpress.collectives._probe import message_nbytes, probe
from commpress.collectives._rows_call import all_gather, reduce_scatter, rows_codec
from commpress.collectives._torch import TorchCommunicator
from commpress.collectives.communicator import ChannelError, Communicator, Handle
from commpress.collectives.device import DeviceOps, Fetched
from commpress.collectives.device_reducer import DeviceReducer, Verdict
from commpress.collectives.exact_reducer import ExactReducer
from commpress.collectives.factor_reducer import FactorReducer
from commpress.collectives.nodes import Asked, Hierarchical, NodeMap, agree_on_nodes, asked_of
from commpress.collectives.observer import Observer
from commpress.collectives.reducer import Reducer

__all__ = [
    "Asked",
    "ChannelError",
    "CommonScale",
    "CommonScales",
    "Communicator",
    "CudaOps",
    "DeviceOps",
    "DeviceReducer",
    "ExactReducer",
    "FactorPlan",
    "FactorReducer",
    "FakeCommunicator",
    "FakeGroup",
    "FakeWorld",
    "Fetched",
    "Handle",
    "Hierarchical",
    "MatrixShape",
    "MpiCommunicator",
    "NodeMap",
    "Notes",
    "Observer",
    "Passage",
    "PassageObserver",
    "Pending",
    "Reducer",
    "Report",
    "Sent",
    "TorchCommunicator",
    "Verdict",
    "all_gather",
    "agree_on_nodes",
    "all_reduce",
    "asked_of",
    "check_codec",
    "close",
    "codec_cost",
    "common_scale",
    "common_scales",
    "factor_nbytes",
    "gather",
    "group_timeout",
    "last_report",
    "make_channel",
    "make_channels",
    "matrix_shape",
    "message_nbytes",
    "most_dimensions",
    "mpi_all_reduce",
    "mpi_close",
    "mpi_last_report",
    "mss_of",
    "mtu_of",
    "probe",
    "read_counters",
    "reduce_scatter",
    "rows_codec",
    "shard_bounds",
    "wire_nbytes",
    "worth",
]
