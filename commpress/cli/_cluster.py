"""``commpress cluster``: a command on all ranks of an emulated cluster."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from commpress.cluster import Counters, Outcome, Topology

EXIT_FAILED = 1
_EXAMPLES = """\
examples:
  commpress cluster --ranks 4 --rate 1gbit -- train.py --epochs 3
  commpress cluster --ranks 4 --rate 100mbit --log cluster.jsonl -- torchrun -m commpress train --quick
  commpress cluster --ranks 4 --nodes 2 --rate 1gbit --intra 10gbit -- python train.py
  commpress cluster --check                       what this machine can do
  commpress cluster --sweep                       end clusters whose owner has died

What follows -- is run once for each rank, in a network namespace of its own, with the environment that torchrun
gives; a .py file is run with this Python. Rank 0's standard output is passed on, everybody's standard error too.
Needs Linux, root, and iproute2. Exit status: 0 all ranks did well, 1 a rank failed or the time limit was reached,
2 the cluster could not be made, 130 Ctrl-C, 143 SIGTERM. Whatever happens, nothing is left behind.
docs/cluster.md says what is emulated and what is not.
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "cluster",
        help="run a command on an emulated cluster with slow links",
        description="Network namespaces on this machine, one for each rank, joined by links of a given rate; one "
        "command up, run and down.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="number of ranks (default %(default)s)")
    parser.add_argument(
        "--rate",
        default="1gbit",
        metavar="RATE",
        help="of each rank's link, or with --nodes of each node's, as 100mbit (default %(default)s)",
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="divide the ranks evenly among N nodes")
    parser.add_argument("--intra", metavar="RATE", help="with --nodes, the rate of ranks' links inside a node")
    parser.add_argument(
        "--burst",
        metavar="SIZE",
        help="bytes that may pass at once, as 32kb (default: 200 us of the rate, at least two frames and 50 us of it)",
    )
    parser.add_argument(
        "--delay", metavar="TIME", help="one way, between ranks or with --nodes between nodes, as 5ms; needs netem"
    )
    parser.add_argument(
        "--no-offload",
        action="store_true",
        help="send frames one by one, so that interfaces' own counters have every header; costs CPU time",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop all ranks after this time")
    parser.add_argument(
        "--grace", type=float, default=5.0, metavar="SECONDS", help="from SIGTERM to SIGKILL (default %(default)g)"
    )
    parser.add_argument(
        "--all-output", action="store_true", help="standard output of all ranks, each line with its rank"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="JSON lines: links, tc's own words, exits, counters")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say what this machine can do, and end")
    what.add_argument("--sweep", action="store_true", help="end clusters whose owner has died, and end")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what each rank runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.cluster import Cluster, Topology, sweep
    from commpress.cluster._command import program
    from commpress.errors import SpecError

    if options.check:
        return _check()
    if options.sweep:
        ended = sweep()
        print(f"{len(ended)} clusters without an owner" + "".join(f"; ended keeper {pid}" for pid in ended))
        return 0
    for name in ("timeout", "grace"):
        value = getattr(options, name)
        if value is not None and not value >= 0:
            raise SpecError(f"--{name} must be a number of seconds, got {value}")
    topology = Topology(
        ranks=options.ranks,
        rate=options.rate,
        nodes=options.nodes,
        intra=options.intra,
        burst=options.burst,
        delay=options.delay,
        offload=not options.no_offload,
    )
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    command, remarks = program(words, topology.per_node)
    env = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    env.update({} if "PYTHONUNBUFFERED" in os.environ else {"PYTHONUNBUFFERED": "1"})
    for remark in [*remarks, _links(topology)]:
        _say(remark)
    with contextlib.ExitStack() as stack:
        log = _Log(stack.enter_context(open(options.log, "w")) if options.log is not None else None)
        stack.enter_context(_terminable())
        try:
            began = time.monotonic()
            with Cluster(topology) as cluster:
                log.write("cluster", setup_seconds=time.monotonic() - began, command=command, **cluster.record())
                before = cluster.counters()
                log.write("counters", when="before", **before.record())
                printer = _Printer(options.all_output)
                outcome = cluster.run(
                    command,
                    env=env,
                    timeout=options.timeout,
                    grace=options.grace,
                    on_output=printer,
                    on_event=lambda event: log.write(**event),
                )
                printer.close()
                after = cluster.counters()
                log.write("counters", when="after", **after.record())
            log.write("end", elapsed=time.monotonic() - began, ok=outcome.ok, what=outcome.in_words())
        except _Terminated as stopped:
            log.write("end", elapsed=time.monotonic() - began, ok=False, what=str(stopped))
            _say(f"{stopped}; ranks and links are gone")
            return 128 + stopped.number
        except BaseException as problem:
            log.write("end", elapsed=time.monotonic() - began, ok=False, what=str(problem) or type(problem).__name__)
            raise
    for line in table(outcome, after - before):
        _say(line)
    if not outcome.ok:
        _say(outcome.in_words())
    return 0 if outcome.ok else EXIT_FAILED


def table(outcome: Outcome, traffic: Counters) -> list[str]:
    """What is said at the end: bytes of each rank as frames on a wire, and between nodes."""
    from commpress.cluster import status_in_words

    rows = [["rank", "sent", "received", "dropped", "ended with"]]
    for rank, status in enumerate(outcome.statuses):
        sent, received = traffic.sent[rank], traffic.received[rank]
        dropped = sent.dropped + received.dropped
        rows.append(
            [str(rank), f"{sent.frame_bytes:,}", f"{received.frame_bytes:,}", f"{dropped:,}", status_in_words(status)]
        )
    for node, (left, entered) in enumerate(zip(traffic.left, traffic.entered, strict=True)):
        dropped = left.dropped + entered.dropped
        rows.append([f"node {node}", f"{left.frame_bytes:,}", f"{entered.frame_bytes:,}", f"{dropped:,}", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=False)) + f"  {row[4]}"
        for row in rows
    ]
    return [line.rstrip() for line in lines] + [f"bytes with frame headers; {outcome.seconds:.2f} s"]


def _links(topology: Topology) -> str:
    shape = topology.shapes()[-1]
    delay = f"{topology.delay} one way" if topology.delay else "none added"
    inside = f", {topology.intra} inside {topology.nodes} nodes" if topology.nodes > 1 else ""
    return f"{topology.ranks} ranks, links of {topology.rate}{inside}; burst {shape.burst} bytes, queue {shape.queue} bytes, delay {delay}"


def _check() -> int:
    from commpress.cluster import check

    found = check()
    width = max(len(name) for name, _, _ in found)
    for name, can, text in found:
        print(f"{name.ljust(width)}  {'yes' if can else 'no '}  {text}")
    return 0 if all(can for name, can, _ in found if name != "delay") else EXIT_FAILED


def _say(line: str) -> None:
    print(f"commpress cluster: {line}", file=sys.stderr, flush=True)


@final
class _Log:
    """JSON lines, each written at once: a killed command leaves what it knew."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def write(self, kind: str, **values: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, "time": time.time(), **values}) + "\n")
            self._file.flush()


@final
class _Printer:
    """Passes ranks' output on: rank 0's standard output as it comes, the rest in whole lines that begin with the rank."""

    def __init__(self, everybody: bool) -> None:
        self._everybody = everybody
        self._begun: dict[tuple[int, str], bytes] = {}

    def __call__(self, rank: int, stream: str, data: bytes) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        if stream == "stdout" and not self._everybody:
            if rank == 0:
                self._put(out, data)
            return
        lines = (self._begun.pop((rank, stream), b"") + data).splitlines(keepends=True)
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._begun[rank, stream] = lines.pop()
        self._put(out, b"".join(f"[rank {rank}] ".encode() + line for line in lines))

    def close(self) -> None:
        """Lines without an end."""
        for (rank, stream), data in self._begun.items():
            self._put(sys.stdout if stream == "stdout" else sys.stderr, f"[rank {rank}] ".encode() + data + b"\n")
        self._begun.clear()

    @staticmethod
    def _put(out: Any, data: bytes) -> None:
        out.flush()
        raw = getattr(out, "buffer", None)
        if raw is None:  # somebody has put a file of text in its place
            out.write(data.decode(errors="replace"))
        else:
            raw.write(data)
            raw.flush()


@final
class _Terminated(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def _terminable(numbers: Sequence[int] = (signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """SIGTERM and SIGHUP become an exception, so that ranks are stopped in order. Without it they would be killed, no more."""

    def stop(number: int, _: FrameType | None) -> None:
        raise _Terminated(number)

    try:
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
