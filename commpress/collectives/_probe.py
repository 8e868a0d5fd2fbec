"""The probe: what a process group, its links and this machine can do, in seconds."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.cluster import TORCH, Calibration, CodecCost
from commpress.codecs import Codec, Key
from commpress.codecs import codec as make_codec
from commpress.collectives import _torch
from commpress.collectives._all_reduce import _resolve, group_timeout
from commpress.collectives._gamma import check_codec, codec_cost
from commpress.collectives._link import chunk_nbytes
from commpress.collectives.communicator import ChannelError, Communicator
from commpress.collectives.reducer import Reducer
from commpress.errors import PeerError, SpecError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDS = 12  # of small messages
_TINY = 128
_MOST_NBYTES = 4 << 20  # of one message
_MOST_TORCH_NBYTES = 16 << 20
_LEAST_NBYTES = 96 * 1024  # that an exchange has to carry to say anything about a link
_LEAST_SECONDS, _MOST_SECONDS = 0.04, 0.12  # of one exchange of the probe
# Of the real exchanges of each codec: what stays in caches, and what comes from memory.
_TRIAL_NUMELS = (1 << 18, 1 << 23)
# Calls of a trial: short ones scatter most, and many of them take no longer.
_LEAST_CALLS, _MOST_CALLS, _CALLS_SECONDS = 3, 25, 0.2
_LINK_ROUNDS = 4


def probe(
    codecs: Sequence[Any] = (),
    *,
    torch_dtypes: Sequence[str] = ("fp32", "bf16"),
    group: Any = None,
    timeout: float | None = None,
) -> Calibration:
    """Measures latency, link, sockets, codecs and torch's own all-reduces. Collective: every rank of the group calls it with the same arguments, with nothing else under way on the group.

    It makes two subgroups and closes them. Sizes follow the speed that it meets. Every codec and dtype adds its part: with eight codecs and two dtypes 5 to 9 s were seen on 2 and 4 ranks of
    2 cores, from 10 Mbit/s to loopback.

    Args:
        codecs: codecs or specs to be measured.
        torch_dtypes: of "fp32", "bf16" and "fp16".
        group: a process group; None is the default one.
        timeout: seconds that a wait for a peer may take; None: the group's own.

    Returns:
        The same :class:`commpress.cluster.Calibration` on all ranks: of every number that of the slowest rank.

    Raises:
        SpecError: an unknown dtype, or a codec that the model does not describe.
        PeerError: a rank died or was silent. StateError: no process group.
    """
    wanted = [check_codec(codec) for codec in codecs]
    unknown = [name for name in torch_dtypes if name not in TORCH]
    if unknown:
        raise SpecError(f"torch_dtypes must be of {', '.join(TORCH)}, got {unknown[0]!r}")
    group = _resolve(group)
    timeout = timeout or group_timeout(group)
    began = time.perf_counter()
    if group.size() == 1:
        at_once: dict[str, tuple[tuple[float, float], ...]] = dict.fromkeys(torch_dtypes, ((0.0, 0.0),))
        costs = {str(codec): codec_cost(codec, 2).at(1) for codec in wanted}
        return Calibration(1, 1, cores(), 0.0, 0.0, math.inf, 0.0, chunk_nbytes(0), at_once, costs)
    channels = _torch.make_channels(group, timeout)
    reducer = Reducer(*channels, timeout=timeout, plan="probe")
    try:
        with torch.no_grad():
            return _measure(channels[0], reducer, group, wanted, torch_dtypes, timeout, began)
    except ChannelError as problem:
        raise PeerError(f"rank {group.rank()} lost a peer during the probe: {problem}") from problem
    finally:
        reducer.close()


def _measure(
    comm: Communicator,
    reducer: Reducer,
    group: Any,
    codecs: Sequence[Codec],
    torch_dtypes: Sequence[str],
    timeout: float,
    began: float,
) -> Calibration:
    # The reducer's own channel serves between its calls: whoever has returned from one has read every message of it.
    peers = Peers(comm, timeout)
    latency = peers.latency()
    link, cpu = peers.link(latency)
    spend = min(_MOST_SECONDS, max(_LEAST_SECONDS, _LEAST_NBYTES / link))
    busy = max(1.0, peers.local_ranks / peers.cores)
    costs = {
        str(codec): peers.agreed_cost(codec_cost(codec, comm.size, busy=busy, barrier=peers.barrier))
        for codec in codecs
    }
    lines = {name: _torch_line(peers, group, _DTYPES[name], link, spend) for name in torch_dtypes}
    # The smallest tensor takes messages and nothing else, the same in every dtype: what differs there is chance, and would speak for the one dtype or the other in every small bucket.
    least = min((points[0][1] for points in lines.values()), default=0.0)
    lines = {name: ((points[0][0], least), *points[1:]) for name, points in lines.items()}
    found = Calibration(
        ranks=comm.size,
        local_ranks=peers.local_ranks,
        cores=peers.cores,
        latency=latency,
        call=0.0,
        link=link,
        socket=cpu * busy,
        message_nbytes=message_nbytes(link),
        torch=lines,
        codecs=costs,
    )
    small = _small(peers, reducer, found)
    if small < 3 * latency:  # waits of an exchange overlap with what other ranks do on the same cores
        found = dataclasses.replace(found, latency=small / 3)
    else:
        found = dataclasses.replace(found, call=small - 3 * latency)
    scaled = {
        name: dataclasses.replace(costs[name], scales=_trials(peers, reducer, codec, found, spend))
        for name, codec in zip(costs, codecs, strict=True)
    }
    seconds = peers.slowest([[time.perf_counter() - began]])[0]
    return dataclasses.replace(found, codecs=scaled, seconds=seconds)


def message_nbytes(link: float) -> int:
    """Payload bytes of a message on a link of so many bytes per second: what the reducers settle on."""
    return chunk_nbytes(1 << max(0, min(31, round(link / 1024).bit_length() - 1)))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@final
class Peers:
    """What all ranks measure together on one channel.

    Attributes:
        local_ranks: most ranks on one machine. cores: fewest that a rank may use.
    """

    def __init__(self, comm: Communicator, timeout: float) -> None:
        self._comm = comm
        self._timeout = timeout
        self._others = [(comm.rank + d) % comm.size for d in range(1, comm.size)]
        machine = float(zlib.crc32(f"{uuid.getnode()} {_boot()}".encode()))
        said = self.gather([machine, float(cores())])
        self.local_ranks = max(sum(other[0] == one[0] for other in said) for one in said)
        self.cores = int(min(one[1] for one in said))

    def _exchange(self, out: torch.Tensor, received: list[torch.Tensor]) -> None:
        """Everybody sends `out` to all others."""
        comm = self._comm
        handles = [comm.irecv(into, peer) for into, peer in zip(received, self._others, strict=True)]
        handles += [comm.isend(out, peer) for peer in self._others]
        for handle in handles:
            handle.wait(self._timeout)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, in rank order; all give as many."""
        mine = torch.tensor(values, dtype=torch.float64)
        rows = torch.zeros(self._comm.size, len(values), dtype=torch.float64)
        rows[self._comm.rank] = mine
        self._exchange(mine.view(torch.uint8), [rows[peer].view(torch.uint8) for peer in self._others])
        return [[float(value) for value in row] for row in rows]

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        self.gather([0.0])

    def slowest(self, samples: Sequence[Sequence[float]]) -> list[float]:
        """Of each row of samples (taken together on all ranks) the median of what the slowest rank had."""
        flat = self.gather([value for row in samples for value in row])
        most = [max(column) for column in zip(*flat, strict=True)]
        found, at = [], 0
        for row in samples:
            found.append(statistics.median(most[at : at + len(row)]))
            at += len(row)
        return found

    def time(self, work: Callable[[], Any], rounds: int, prepare: Callable[[], Any] | None = None) -> float:
        """Seconds of `work`, which all ranks begin together: the median of what the slowest rank needed. `prepare` is called ahead of each round."""
        samples = []
        for _ in range(rounds):
            if prepare is not None:
                prepare()
            self.barrier()
            began = time.perf_counter()
            work()
            samples.append(time.perf_counter() - began)
        return self.slowest([samples])[0]

    def time_often(self, work: Callable[[], Any], spend: float, prepare: Callable[[], Any] | None = None) -> float:
        """As :meth:`time`, with as many rounds as the first one, which does not count, leaves time for; that one alone counts where links are so slow that a call takes `spend` seconds or more and nothing else matters."""
        first = self.time(work, 1, prepare)
        if spend >= _MOST_SECONDS and first >= spend:
            return first
        return self.time(work, max(_LEAST_CALLS, min(_MOST_CALLS, int(_CALLS_SECONDS / max(first, 1e-9)))), prepare)

    def agreed_cost(self, cost: CodecCost) -> CodecCost:
        """Each time of `cost` as the median over the ranks: all did the same, and what one was disturbed by says nothing about the codec."""
        names = ("encode", "reduce", "decode", "encode_call", "reduce_call", "decode_call")
        said = self.gather([getattr(cost, name) for name in names])
        agreed: dict[str, Any] = {name: statistics.median(row[i] for row in said) for i, name in enumerate(names)}
        return dataclasses.replace(cost, **agreed)

    def latency(self) -> float:
        """Seconds until everybody has a small message of everybody."""
        out, rows = self._buffers(_TINY)
        self._exchange(out, rows)
        return self.time(lambda: self._exchange(out, rows), _ROUNDS)

    def link(self, latency: float) -> tuple[float, float]:
        """Bytes per second that a rank sends while all send to all, and CPU seconds of a byte.

        Load on the cores only ever lowers what is measured, so the best of a few rounds counts, each of them long beside the latency.
        """
        nbytes, longest = 8 * 1024, min(_MOST_SECONDS, _LEAST_SECONDS + 8 * latency)
        while True:
            work = functools.partial(self._exchange, *self._buffers(nbytes))
            seconds = self.time(work, 1)
            if seconds > longest or nbytes >= _MOST_NBYTES:
                break
            nbytes *= 4 if seconds < longest / 5 else 2
        sent, best, used = nbytes * len(self._others), seconds, time.process_time()
        for _ in range(_LINK_ROUNDS):
            best = min(best, self.time(work, 1))
        used = self.slowest([[time.process_time() - used]])[0] / _LINK_ROUNDS
        return sent / max(best - latency, best / 2, 1e-9), used / sent

    def _buffers(self, nbytes: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        out = torch.zeros(nbytes, dtype=torch.uint8)
        return out, [torch.zeros(nbytes, dtype=torch.uint8) for _ in self._others]


def _boot() -> str:
    """Differs between two machines even where their names and addresses do not; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _torch_line(
    peers: Peers, group: Any, dtype: torch.dtype, link: float, spend: float
) -> tuple[tuple[float, float], ...]:
    """torch's all-reduce at a few sizes: (bytes, seconds)."""
    n = group.size()
    most = min(_MOST_TORCH_NBYTES, max(16 * 1024, link * spend * n / (2 * (n - 1))))
    sizes = [4 * 1024]
    for share in (16, 1):
        if most / share > 2 * sizes[-1]:
            sizes.append(int(most / share) // 4096 * 4096)
    points = []
    for nbytes in sizes:
        tensor = torch.zeros(nbytes // dtype.itemsize, dtype=dtype)
        points.append((float(nbytes), peers.time_often(functools.partial(dist.all_reduce, tensor, group=group), spend)))
    return tuple(points)


def _small(peers: Peers, reducer: Reducer, found: Calibration) -> float:
    """Seconds of an all-reduce of one block for each rank, without what its bytes take: its waits for headers and both phases, and a call's fixed cost."""
    codec = make_codec("uniform:4")
    numel = 4096 * found.ranks
    flat = torch.zeros(numel)
    for _ in range(2):
        reducer.run(flat, codec, codec, Key())
    seconds = peers.time(lambda: reducer.run(flat, codec, codec, Key()), _ROUNDS)
    wire = 2 * (found.ranks - 1) * codec.payload_nbytes(4096) / found.link
    return max(0.2 * seconds, seconds - wire)


def _trials(
    peers: Peers, reducer: Reducer, codec: Codec, found: Calibration, spend: float
) -> tuple[tuple[float, float], ...]:
    """(coordinates, measured over modelled time) of this codec, at sizes that take no more than about `spend`."""
    sizes: list[int] = []
    for most in _TRIAL_NUMELS:
        numel = 4096 * found.ranks
        while 2 * numel <= most and found.predict(str(codec), 2 * numel) < _MOST_SECONDS:
            numel *= 2
        if numel not in sizes:
            sizes.append(numel)
    return tuple((float(numel), _trial(peers, reducer, codec, found, spend, numel)) for numel in sizes)


def _trial(peers: Peers, reducer: Reducer, codec: Codec, found: Calibration, spend: float, numel: int) -> float:
    """Measured over modelled time of an exchange of `numel` coordinates."""
    x = torch.randn(numel, generator=torch.Generator().manual_seed(found.ranks))
    flat = x.clone()
    work = functools.partial(reducer.run, flat, codec, codec.of_second_phase, Key())
    seconds = peers.time_often(work, spend, lambda: flat.copy_(x))
    model = found.predict(str(codec), numel) - found.call
    return min(2.0, max(0.5, (seconds - found.call) / model)) if model > 0 else 1.0
