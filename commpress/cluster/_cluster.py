"""A cluster on one machine: made, used, counted, gone."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, final

from commpress.cluster._counters import Counters, read
from commpress.cluster._handle import Keeper, sweep
from commpress.cluster._run import Outcome, run
from commpress.cluster._topology import Topology, namespace_of
from commpress.errors import ClusterError, StateError

_WAIT_SECONDS = 0.01


@final
class RankProcess:
    """A process inside the cluster, much as `subprocess.Popen`."""

    def __init__(self, keeper: Keeper, rank: int, pid: int) -> None:
        self._keeper = keeper
        self.rank = rank
        self.pid = pid
        """Its ID inside the cluster's PID namespace."""

    def poll(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs."""
        return self._keeper.status_of(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has one.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank {self.rank}", timeout)
            time.sleep(_WAIT_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process and to its process group."""
        self._keeper.ask("signal", pids=[self.pid], signal=int(number))

    def kill(self) -> None:
        """SIGKILL, as `send_signal`."""
        self.send_signal(signal.SIGKILL)


@final
class Cluster:
    """Network namespaces joined by links of a given rate, and processes in them. Needs root, and `ip`, `bridge` and `tc` (iproute2).

        with Cluster(Topology(ranks=4, rate="1gbit")) as cluster:
            outcome = cluster.run(["python", "train.py"])
            sent = [count.frame_bytes for count in cluster.counters().sent]

    All of it is gone when the block ends or the process does, however it ends; see `_keeper.py`. Entering takes about 0.1 s for four ranks.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._open: Keeper | None = None
        self._paths: dict[str, str] = {}

    def __enter__(self) -> Cluster:
        if self._open is not None:
            raise StateError("this cluster is open already")
        sweep()
        keeper = self._open = Keeper()
        try:
            self._paths = keeper.ask("make", names=self.topology.namespaces, hosts=self.topology.hosts())["paths"]
            for namespace, command, lines in self.topology.link_commands(self._paths):
                self._batch(namespace, command, lines)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes and removes all links; returns when the processes are gone. May be called again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def keeper(self) -> Keeper:
        """What it lives by.

        Raises:
            StateError: the cluster is not open.
        """
        if self._open is None:
            raise StateError("this cluster is not open: use it in a `with` block")
        return self._open

    def start(
        self,
        rank: int,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> RankProcess:
        """Starts a process in a rank's namespace. Its standard input is empty.

        Args:
            env: variables beside the owner's own and those of `Topology.environment`.
            cwd: its folder, by default the owner's.
            stdout, stderr: files or descriptors; by default the owner's.

        Raises:
            ClusterError: the command cannot be run.
        """
        if not 0 <= rank < self.topology.ranks:
            raise StateError(f"there is no rank {rank} of {self.topology.ranks}")
        outputs = [
            default if stream is None else stream if isinstance(stream, int) else stream.fileno()
            for stream, default in ((stdout, 1), (stderr, 2))
        ]
        with open(os.devnull, "rb") as nothing:
            reply = self.keeper.ask(
                "start",
                [nothing.fileno(), *outputs],
                namespace=namespace_of(rank),
                command=[os.fspath(word) for word in command],
                env={**self.topology.environment(rank), **(env or {})},
                cwd=os.path.abspath(cwd or os.getcwd()),
            )
        return RankProcess(self.keeper, rank, reply["pid"])

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        grace: float = 5.0,
        on_output: Callable[[int, str, bytes], None] | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Runs a command once for each rank and waits for all. When a rank fails, the others are stopped.

        Args:
            timeout: seconds after which all ranks are stopped.
            grace: seconds between SIGTERM and SIGKILL for ranks that have to be stopped.
            on_output: called with (rank, ``"stdout"`` or ``"stderr"``, bytes) as output comes; without it ranks write to the owner's own files.
            on_event: called with a record of each start and exit.

        Raises:
            ClusterError: the command cannot be run, or the cluster was killed.
        """
        return run(
            lambda rank, out, err: self.start(rank, command, env=env, cwd=cwd, stdout=out, stderr=err),
            self.keeper,
            self.topology.ranks,
            timeout=timeout,
            grace=grace,
            on_output=on_output,
            on_event=on_event,
        )

    def counters(self, *, frames: bool = True) -> Counters:
        """What the interfaces have counted since the cluster was made.

        Args:
            frames: ask the shapers too, which takes some milliseconds for each namespace; without, only `Count.bytes` and `Count.packets` are there.
        """
        return read(self.topology, self._read, self._qdiscs if frames else None)

    def tool(self, namespace: str, *command: str) -> str:
        """Standard output of `ip`, `tc` or another short command, run in a namespace of `Topology.namespaces`.

        Raises:
            ClusterError: it failed; the message holds its own words.
        """
        reply = self.keeper.ask("tool", namespace=namespace, command=list(command), input="")
        if reply["status"] != 0:
            raise ClusterError(f"{' '.join(command)} in {namespace}: {reply['err'].strip()}")
        return str(reply["out"])

    def record(self) -> dict[str, Any]:
        """The cluster as it is, as JSON values: topology, kernel, and what `tc` says about each namespace."""
        version = subprocess.run(["tc", "-V"], capture_output=True, text=True, timeout=10).stdout.strip()
        return {
            "kernel": platform.release(),
            "tc_version": version,
            "topology": self.topology.record(),
            "tc": {name: self.tool(name, "tc", "qdisc", "show").splitlines() for name in self.topology.namespaces},
        }

    def _read(self, namespace: str, path: str) -> str:
        return str(self.keeper.ask("read", namespace=namespace, paths=[path])["texts"][0])

    def _qdiscs(self, namespace: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.tool(namespace, "tc", "-s", "-j", "qdisc", "show"))
        return found

    def _batch(self, namespace: str, command: list[str], lines: list[str]) -> None:
        text = "".join(line + "\n" for line in lines)
        reply = self.keeper.ask("tool", namespace=namespace, command=command, input=text)
        if reply["status"] == 0:
            return
        said = " ".join(reply["err"].split())
        match = re.search(r"Command failed -:(\d+)", said)
        line = lines[int(match[1]) - 1] if match and int(match[1]) <= len(lines) else ""
        for kind in ("netem", "tbf", "bridge", "veth"):
            if kind in line.split() and re.search(r"unknown|not supported|No such file", said, flags=re.IGNORECASE):
                hint = "leave out the delay, or use" if kind == "netem" else "use"
                raise ClusterError(
                    f"this kernel has no {kind} ({said}): try `modprobe {_MODULES.get(kind, kind)}`, else {hint} a kernel that has it"
                )
        raise ClusterError(f"{command[0]} {line}: {said}")


_MODULES = {"netem": "sch_netem", "tbf": "sch_tbf"}


def check() -> list[tuple[str, bool, str]]:
    """What this machine can do: (what, whether, in words). Makes small clusters to find out."""
    found: list[tuple[str, bool, str]] = [("root", os.geteuid() == 0, f"user ID {os.geteuid()}")]
    for name in ("ip", "bridge", "tc"):
        path = shutil.which(name)
        found.append((name, path is not None, path or "missing: install iproute2"))
    release = platform.release()
    began = time.monotonic()
    try:
        with Cluster(Topology(ranks=4)):
            took = time.monotonic() - began
        found.append(
            ("cluster", True, f"four ranks in {took:.2f} s; namespaces, veth, bridge and tbf work (kernel {release})")
        )
    except ClusterError as error:
        found.append(("cluster", False, str(error)))
        return found
    try:
        with Cluster(Topology(ranks=2, delay="1ms")):
            found.append(("delay", True, "netem works"))
    except ClusterError as error:
        found.append(("delay", False, str(error)))
    cores = len(os.sched_getaffinity(0))
    found.append(("cores", True, f"{cores}, shared by all ranks and by the network itself"))
    return found
