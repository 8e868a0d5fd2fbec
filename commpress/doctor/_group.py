"""What the ranks of a group must have in common, and whether they can talk."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist

from commpress import ops
from commpress._version import __version__
from commpress.doctor._check import Check, fail, ok, warn
from commpress.doctor._exchange import exchange_check
from commpress.doctor._network import Network, check_network, gather_network

_PINGS = 5
_MOST_CLOCK_SECONDS = 0.5


@final
@dataclasses.dataclass(frozen=True)
class RankFacts:
    """What one rank says of itself.

    Attributes:
        host: its machine's name. machine: tells machines apart that have the same name.
        commpress, torch, python: versions; build: of the extension, a digest.
        threads: of torch. interface, mtu: through which gloo talks.
        clock: seconds that its clock is ahead of rank 0's, give or take `clock_error`.
    """

    host: str
    machine: str
    commpress: str
    build: str
    torch: str
    python: str
    threads: int
    interface: str
    mtu: int
    clock: float = 0.0
    clock_error: float = 0.0

    @staticmethod
    def here(network: Network) -> RankFacts:
        """Those of this process, but for the clock."""
        used = network.used
        return RankFacts(
            host=socket.gethostname(),
            machine=_machine_id(),
            commpress=__version__,
            build=hashlib.sha256(ops.LIBRARY.read_bytes()).hexdigest()[:12],
            torch=torch.__version__,
            python=platform.python_version(),
            threads=torch.get_num_threads(),
            interface="lo" if used is None else used.name,
            mtu=0 if used is None else used.mtu,
        )


def _machine_id() -> str:
    """The same for all containers on one kernel, which share a clock but maybe no network: the name is compared beside it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def machines(facts: Sequence[RankFacts]) -> int:
    """How many machines the ranks run on."""
    return len({(one.machine, one.host) for one in facts})


def check_ranks(facts: Sequence[RankFacts]) -> list[Check]:
    """What is to be said about facts of all ranks, in rank order."""
    return [_check_versions(facts), _check_alike(facts), _check_clock(facts)]


def _by(facts: Sequence[RankFacts], name: str) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for rank, one in enumerate(facts):
        found.setdefault(getattr(one, name), []).append(rank)
    return found


def _in_words(found: dict[Any, list[int]]) -> str:
    return "; ".join(f"{value} on rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}" for value, r in found.items())


def _check_versions(facts: Sequence[RankFacts]) -> Check:
    remedy = "install the same on every machine: the same wheel or container image, or one environment on a shared file system"
    for name in ("commpress", "build", "torch", "python"):
        found = _by(facts, name)
        if len(found) > 1:
            what = "builds of commpress's extension" if name == "build" else f"versions of {name}"
            # Registration refuses other versions of commpress. A build or a torch of another version may well give the same bytes.
            return (fail if name == "commpress" else warn)("versions", f"{what} differ: {_in_words(found)}", remedy)
    one = facts[0]
    return ok(
        "versions", f"commpress {one.commpress}, torch {one.torch}, Python {one.python} on all {len(facts)} ranks"
    )


def _check_alike(facts: Sequence[RankFacts]) -> Check:
    count = machines(facts)
    lost = [rank for rank, one in enumerate(facts) if one.interface == "lo"]
    if count > 1 and lost:
        return fail(
            "group",
            f"{count} machines, and gloo talks through loopback on ranks {', '.join(map(str, lost))}",
            "export GLOO_SOCKET_IFNAME on those machines; `commpress doctor` there says which",
        )
    for name, remedy in (
        (
            "mtu",
            "ip link set DEVICE mtu N, the same on all machines and on the switch: larger frames get lost on the way",
        ),
        ("threads", "export OMP_NUM_THREADS, the same for all ranks: the slowest one sets the pace"),
    ):
        found = _by(facts, name)
        if len(found) > 1:
            return warn(
                "group", f"{'MTUs' if name == 'mtu' else 'numbers of threads'} differ: {_in_words(found)}", remedy
            )
    return ok(
        "group",
        f"{len(facts)} ranks on {count} machine{'s' * (count > 1)}, talking through {_in_words(_by(facts, 'interface'))}",
    )


def _check_clock(facts: Sequence[RankFacts]) -> Check:
    ahead = {rank: one for rank, one in enumerate(facts) if abs(one.clock) - one.clock_error > _MOST_CLOCK_SECONDS}
    if ahead:
        words = ", ".join(f"rank {rank} ({one.host}) by {one.clock:+.1f} s" for rank, one in ahead.items())
        return warn(
            "clocks",
            f"differ from rank 0's: {words}; logs and telemetry of different ranks cannot be compared",
            "timedatectl set-ntp true, or start chronyd, on those machines",
        )
    most = max(abs(one.clock) + one.clock_error for one in facts)
    return ok("clocks", f"agree within {1000 * most:.1f} ms")


def measure_clock(clock: Callable[[], float] = time.time, group: Any = None) -> tuple[float, float]:
    """How far this rank's clock is ahead of rank 0's, and the error of that, in seconds. Collective.

    Rank 0 asks each other rank in turn; the offset is its reading less the middle of the question's time on the way, in the quickest of five tries.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    told = torch.zeros(size, 2, dtype=torch.float64)
    note = torch.zeros(1, dtype=torch.float64)
    for peer in range(1, size):
        if rank == 0:
            best: tuple[float, float] | None = None
            for _ in range(_PINGS):
                sent = clock()
                dist.send(note, peer, group)
                dist.recv(note, peer, group)
                received = clock()
                offset = float(note[0]) - (sent + received) / 2
                if best is None or (received - sent) / 2 < best[1]:
                    best = offset, (received - sent) / 2
            assert best is not None
            told[peer, 0], told[peer, 1] = best
        elif rank == peer:
            for _ in range(_PINGS):
                dist.recv(note, 0, group)
                note[0] = clock()
                dist.send(note, 0, group)
    dist.broadcast(told, 0, group)
    return float(told[rank, 0]), float(told[rank, 1])


def group_checks(
    *,
    clock: Callable[[], float] = time.time,
    network: Network | None = None,
    facts: RankFacts | None = None,
    reduce: Callable[[torch.Tensor], Any] | None = None,
) -> list[Check]:
    """Checks the default process group. Collective; every rank gets the same list.

    Args:
        clock, network, facts, reduce: what to use in place of this rank's own.
    """
    network = network or gather_network()
    offset, error = measure_clock(clock)
    mine = dataclasses.replace(facts or RankFacts.here(network), clock=offset, clock_error=error)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    checks = check_ranks(everyone)
    local: list[Any] = [None] * len(everyone)
    here = check_network(network, machines=machines(everyone))
    exchange = exchange_check(reduce=reduce)
    dist.all_gather_object(local, (mine.host, [*here, exchange]))
    said = dict(reversed(local))  # one rank of each machine speaks for it
    several = len(said) > 1
    for host in sorted(said):
        checks += [dataclasses.replace(one, host=host if several else "") for one in said[host][:-1]]
    worst_exchange = next((found[-1] for _, found in local if found[-1].status != "ok"), local[0][1][-1])
    return [*checks, worst_exchange]
