"""An emulated cluster killed at random moments, whoever is killed: nothing is left behind.

The command runs in a fork of a process that has loaded commpress already (loading torch takes seconds, in which there is nothing to kill), so kills fall into set-up, run and tear-down.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import Host, assert_nothing_left, need_cluster, processes, remains

from commpress.cluster import sweep

MARK = f"commpress-kill-mark-{os.getpid()}"
NURSERY = """
import os, sys
from commpress.cli import main
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        status = 99
        try:
            status = main(line.rstrip("\\n").split("\\t"))
        except SystemExit as stopped:
            status = stopped.code
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
# Talks a little, leaves a daemon that ignores what can be ignored, and ends by itself after a while.
RANK = f"""
import os, signal, socket, sys, time
if os.fork() == 0:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)
talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    talk.sendto(bytes(1000), (os.environ["MASTER_ADDR"], 9))
    time.sleep(0.01)
# {MARK}
"""
WHO = ["owner", "owner", "owner SIGTERM", "owner SIGINT", "guard", "init", "rank", "both", "stopped"]


@pytest.fixture(autouse=True, scope="module")
def _cluster_here() -> None:
    need_cluster()


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def init_of(guard: int) -> int:
    """The first process of the cluster's PID namespace."""
    return children_of(guard)[0]


def guard_of(owner: int) -> int | None:
    for line in processes(f" {owner}:"):
        pid = int(line.split(":")[0])
        if pid in children_of(owner):
            return pid
    return None


def find(owner: int) -> dict[str, int]:
    """Who can be killed at the moment."""
    found = {"owner": owner}
    if (guard := guard_of(owner)) is not None:
        found["guard"] = guard
        if inits := children_of(guard):
            found["init"] = inits[0]
            if ranks := children_of(inits[0]):
                found["rank"] = random.choice(ranks)
    return found


def kill(who: str, owner: int) -> str:
    """Kills, and says who it was: what does not exist at that moment is replaced by the owner."""
    there = find(owner)
    name, _, number = who.partition(" ")
    try:
        if name == "both" and "init" in there:
            os.kill(there["guard"], signal.SIGKILL)
            os.kill(owner, signal.SIGKILL)
        elif name == "stopped" and "init" in there:
            os.kill(there["init"], signal.SIGSTOP)
            os.kill(owner, signal.SIGKILL)
        else:
            name = name if name in there else "owner"
            os.kill(there[name], signal.Signals[number] if number and name == "owner" else signal.SIGKILL)
    except ProcessLookupError:
        return "nobody"
    return name + (f" {number}" if number and name == "owner" else "")


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """Forks the command on request; its output goes nowhere."""
    command = [sys.executable, "-c", NURSERY]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def tell(nursery: subprocess.Popen[str], folder: pathlib.Path, seconds: float = 0.4) -> int:
    """Starts the command, whose ranks run for so long; returns its process ID."""
    assert nursery.stdin is not None and nursery.stdout is not None
    script = folder / "rank.py"
    script.write_text(RANK)
    words = ["cluster", "--ranks", "3", "--grace", "0.3", "--log", str(folder / "log"), "--"]
    words += [sys.executable, "-S", str(script), MARK, str(seconds)]
    nursery.stdin.write("\t".join(words) + "\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def kill_often(nursery: subprocess.Popen[str], times: int, seed: int, folder: pathlib.Path) -> None:
    """Kills, waits, looks; in the end shows that kills fell into all phases."""
    dice, before = random.Random(seed), Host.now()
    phases: collections.Counter[str] = collections.Counter()
    victims: collections.Counter[str] = collections.Counter()
    assert nursery.stdout is not None
    began = time.monotonic()
    tell(nursery, folder)
    assert int(nursery.stdout.readline()) == 0
    whole = time.monotonic() - began  # of a run that nobody disturbs
    for turn in range(times):
        who, log = WHO[(seed + turn) % len(WHO)], folder / "log"
        log.unlink(missing_ok=True)
        owner = tell(nursery, folder)
        time.sleep(dice.uniform(0, whole))
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        kinds = [json.loads(line)["kind"] for line in lines if line.endswith("\n")]
        ended = kinds.count("exit") == 3
        phases["set-up" if "start" not in kinds else "tear-down" if ended else "run"] += 1
        victim = kill(who, owner)
        victims[victim] += 1
        status = int(nursery.stdout.readline())
        if victim in ("owner", "both", "stopped"):
            # 0: it had just ended. 2: it was faster in seeing that the guard was dead.
            assert status in (-9, 0, *([2] if victim == "both" else [])), (victim, status)
        elif victim == "owner SIGTERM":
            assert status in (143, -15, 0), status  # -15: before the command has begun, or after its end
        elif victim == "owner SIGINT":
            assert status in (130, 0, 99, -2), status
        elif not ended:
            assert status in (0, 1, 2), (victim, status)
        assert_nothing_left(before, MARK, f" {owner}:")
    print(f"seed {seed}: {times} kills, none left anything; {dict(phases)}, {dict(victims)}")
    assert sum(phases.values()) == times
    if times >= 50:
        assert all(phases[phase] for phase in ("set-up", "run")), phases
        assert len(victims) >= 6, victims


@pytest.mark.timeout(120)
def test_killed_at_random_moments(nursery: subprocess.Popen[str], tmp_path: pathlib.Path) -> None:
    kill_often(nursery, len(WHO), 0, tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_50_random_moments(nursery: subprocess.Popen[str], seed: int, tmp_path: pathlib.Path) -> None:
    kill_often(nursery, 50, seed, tmp_path)


def abandon(nursery: subprocess.Popen[str], folder: pathlib.Path) -> tuple[int, int]:
    """A cluster whose watchers are stopped and whose owner is killed: (owner, guard)."""
    assert nursery.stdout is not None
    owner = tell(nursery, folder, 1000)
    deadline = time.monotonic() + 30
    while len(processes(str(folder / "rank.py"))) < 4:  # the owner's command line is the nursery's; daemons count too
        assert time.monotonic() < deadline
        time.sleep(0.01)
    there = find(owner)
    os.kill(there["guard"], signal.SIGSTOP)
    os.kill(there["init"], signal.SIGSTOP)
    os.kill(owner, signal.SIGKILL)
    assert int(nursery.stdout.readline()) == -9
    return owner, there["guard"]


def test_what_would_be_left_is_seen_and_swept(nursery: subprocess.Popen[str], tmp_path: pathlib.Path) -> None:
    """The control: with both watchers stopped a killed owner does leave a cluster. It is seen, and a sweep ends it."""
    before = Host.now()
    owner, guard = abandon(nursery, tmp_path)
    time.sleep(1.0)
    found = remains(before, MARK, f" {owner}:")
    assert len(found["processes"]) >= 5, found  # daemons do not end by themselves
    assert guard in sweep()
    assert_nothing_left(before, MARK, f" {owner}:")
    assert guard not in sweep()


def test_a_namespace_that_nobody_holds_is_seen() -> None:
    """The other control: one that only a message on its way holds, which no process shows."""
    before = Host.now()
    if before.namespaces is None:
        print("skipped: this kernel does not tell how many namespaces there are")
        pytest.skip("this kernel does not tell how many namespaces there are")
    one, other = socket.socketpair()
    with one, other:
        with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as holder:
            while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
                time.sleep(0.01)
            with open(f"/proc/{holder.pid}/ns/net") as namespace:
                socket.send_fds(one, [b"x"], [namespace.fileno()])
            holder.kill()
        assert remains(before)["namespaces"] >= 1
    assert_nothing_left(before)


def test_a_new_cluster_sweeps_too(nursery: subprocess.Popen[str], tmp_path: pathlib.Path) -> None:
    assert nursery.stdout is not None
    before = Host.now()
    owner, _ = abandon(nursery, tmp_path)
    assert remains(before, MARK, f" {owner}:")
    tell(nursery, tmp_path)
    assert int(nursery.stdout.readline()) == 0
    assert_nothing_left(before, MARK, f" {owner}:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_in_order(
    number: signal.Signals, nursery: subprocess.Popen[str], tmp_path: pathlib.Path
) -> None:
    assert nursery.stdout is not None
    before, log = Host.now(), tmp_path / "log"
    owner = tell(nursery, tmp_path, 1000)
    deadline = time.monotonic() + 30
    while not log.exists() or log.read_text().count('"start"') < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(owner, number)
    assert int(nursery.stdout.readline()) == 128 + number
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["status"] for record in records if record["kind"] == "exit"] == [-15] * 3
    assert records[-1]["kind"] == "end" and number.name in records[-1]["what"]
    assert_nothing_left(before, MARK, f" {owner}:")
