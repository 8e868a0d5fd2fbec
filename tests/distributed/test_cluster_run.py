"""One command on an emulated cluster: what ranks get, what happens when one fails, hangs, or the user has had enough; and what stays: nothing."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import Host, assert_nothing_left, need_cluster

from commpress.cli import main
from commpress.cluster import Cluster, Topology
from commpress.errors import ClusterError

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARK = f"commpress-test-mark-{os.getpid()}"
# A rank that leaves a descendant in a session of its own, which ignores what can be ignored.
STUBBORN = f"""
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)
"{MARK}"
"""


@pytest.fixture(scope="module")
def before() -> Host:
    need_cluster()
    return Host.now()


@pytest.fixture(autouse=True)
def _nothing_stays(before: Host) -> Iterator[None]:
    yield
    assert_nothing_left(before, MARK, f" {os.getpid()}:")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code + f"\n'{MARK}'"]


def test_a_command_runs_on_every_rank(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    script, log = tmp_path / "show.py", tmp_path / "cluster.jsonl"
    script.write_text(
        "import os, sys\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'MASTER_PORT', 'GLOO_SOCKET_IFNAME')\n"
        "print(*(os.environ[n] for n in names), 'OMP_NUM_THREADS' in os.environ, sys.argv[1:])\n"
        "print('to stderr', file=sys.stderr)\n"
    )
    words = ["cluster", "--ranks", "4", "--nodes", "2", "--rate", "1gbit", "--intra", "10gbit", "--log", str(log)]
    assert main([*words, "--all-output", "--", "torchrun", "--nproc_per_node=2", str(script), "-x", "--rate"]) == 0
    out, err = capfd.readouterr()
    rest = "29500 eth0 True ['-x', '--rate']"
    assert sorted(out.splitlines()) == [f"[rank {r}] {r} 4 {r % 2} 2 {r // 2} {rest}" for r in range(4)]
    for rank in range(4):
        assert f"[rank {rank}] to stderr" in err
    assert "node 1" in err and "delay none added" in err
    records = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = [record["kind"] for record in records]
    assert kinds[:2] == ["cluster", "counters"] and kinds[-2:] == ["counters", "end"]
    assert kinds.count("start") == kinds.count("exit") == 4
    assert records[0]["topology"]["nodes"] == 2 and records[0]["kernel"] and "tbf" in str(records[0]["tc"])
    assert [record["when"] for record in records if record["kind"] == "counters"] == ["before", "after"]
    assert records[-1]["ok"] is True and records[-1]["elapsed"] > 0
    # Without --all-output there is rank 0's, as it is.
    assert main(["cluster", "--ranks", "2", "--", str(script)]) == 0
    assert capfd.readouterr().out == "0 2 0 2 0 29500 eth0 True []\n"


@pytest.mark.parametrize(
    ("end", "words"),
    [("sys.exit(7)", "exit status 7"), ("os.kill(os.getpid(), 9)", "killed by SIGKILL"), ("1/0", "exit status 1")],
)
def test_a_failing_rank_stops_the_others(end: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {end}\ntime.sleep(1000)"
    began = time.monotonic()
    assert main(["cluster", "--ranks", "3", "--grace", "60", "--", *python(code)]) == 1
    assert time.monotonic() - began < 50  # SIGTERM was enough
    err = capfd.readouterr().err
    assert f"rank 1 failed: {words}" in err
    assert err.count("killed by SIGTERM") == 2
    if end == "1/0":
        assert "[rank 1] ZeroDivisionError" in err


def test_ranks_that_do_not_listen_are_killed(capfd: pytest.CaptureFixture[str]) -> None:
    code = STUBBORN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(1000)"
    assert main(["cluster", "--ranks", "2", "--timeout", "1.5", "--grace", "0.2", "--", *python(code)]) == 1
    out, err = capfd.readouterr()
    assert "the time limit was reached" in err and err.count("killed by SIGKILL") == 2
    assert "ready" in out


def test_descendants_do_not_keep_a_cluster_up() -> None:
    """A rank is done when its program is, though a daemon of its holds its output open."""
    with Cluster(Topology(2)) as cluster:
        outcome = cluster.run(python(STUBBORN + "print('done')"), timeout=60, on_output=lambda *_: None)
    assert outcome.ok


def test_a_command_that_cannot_run(capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    assert main(["cluster", "--", "no-such-program"]) == 2
    assert "ClusterError: cannot run 'no-such-program': No such file" in capfd.readouterr().err
    script = tmp_path / "script.sh"
    script.write_text("true")
    assert main(["cluster", "--", str(script)]) == 2
    err = capfd.readouterr().err
    assert "Permission denied" in err and "sudo" not in err


def test_an_output_of_many_bytes_arrives_whole() -> None:
    parts: dict[int, int] = {0: 0, 1: 0}

    def take(rank: int, stream: str, data: bytes) -> None:
        parts[rank] += len(data)

    code = "import os, sys; sys.stdout.buffer.write(bytes(3_000_000)); sys.stderr.buffer.write(bytes(10))"
    with Cluster(Topology(2)) as cluster:
        assert cluster.run(python(code), timeout=60, on_output=take).ok
    assert parts == {0: 3_000_010, 1: 3_000_010}


def test_a_large_environment_and_command_line_arrive_whole() -> None:
    with Cluster(Topology(2)) as cluster:
        code = "import os, sys; sys.exit(0 if len(os.environ['BIG']) == 100_000 and len(sys.argv[1]) == 100_000 else 3)"
        words = [sys.executable, "-S", "-c", code, "x" * 100_000]
        assert cluster.start(0, words, env={"BIG": "y" * 100_000}).wait(30) == 0


def test_ctrl_c(tmp_path: pathlib.Path) -> None:
    """The command as a shell starts it. Ranks get SIGTERM and time to say goodbye."""
    code = STUBBORN + (
        "def bye(*_):\n    print('goodbye', flush=True)\n    sys.exit(0)\nsignal.signal(signal.SIGTERM, bye)\n"
        "print('ready', flush=True)\ntime.sleep(1000)"
    )
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "commpress", "cluster", "--ranks", "2", "--log", str(log), "--", *python(code)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "goodbye" in out
    assert "Traceback" not in err
    assert json.loads(log.read_text().splitlines()[-1])["kind"] == "end"


def test_a_second_interrupt_does_not_wait() -> None:
    """The grace is a minute; who presses Ctrl-C twice waits no minute."""
    code = STUBBORN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.write(1, b'ready')\ntime.sleep(1000)"
    fingers: list[subprocess.Popen[bytes]] = []

    def take(rank: int, stream: str, data: bytes) -> None:
        if not fingers:
            press = f"sleep 0.2; kill -INT {os.getpid()}; sleep 1; kill -INT {os.getpid()}"
            fingers.append(subprocess.Popen(["sh", "-c", press]))

    began = time.monotonic()
    with Cluster(Topology(2)) as cluster, pytest.raises(KeyboardInterrupt):
        cluster.run(python(code), grace=60, on_output=take)
    assert time.monotonic() - began < 40
    assert fingers[0].wait(20) == 0


@pytest.mark.parametrize("which", ["guard", "init"])
def test_a_killed_keeper_is_an_error(which: str) -> None:
    from test_cluster_kills import init_of

    with Cluster(Topology(2)) as cluster:
        cluster.start(0, python(STUBBORN + "time.sleep(1000)"))
        pid = cluster.keeper.pid
        os.kill(pid if which == "guard" else init_of(pid), signal.SIGKILL)
        with pytest.raises(ClusterError, match="keeper was killed"):
            cluster.run(python("import time; time.sleep(1000)"))
