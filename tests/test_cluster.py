"""The emulated cluster without a machine that can make one: units, topology, commands, errors, output. Real namespaces are in tests/distributed."""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from commpress.cli import _cluster as cli
from commpress.cli import main
from commpress.cluster import Cluster, Count, Counters, Outcome, Topology, bits_per_second, burst_of, status_in_words
from commpress.cluster import _handle as handle
from commpress.cluster._command import program
from commpress.cluster._counters import read
from commpress.cluster._topology import FABRIC, namespace_of
from commpress.cluster._units import FRAME_NBYTES, nbytes, queue_of, seconds, segment_of
from commpress.errors import ClusterError, SpecError, StateError

SHAPES = [(2, 1), (1, 1), (4, 1), (4, 2), (6, 3), (4, 4)]


def topology(ranks: int, nodes: int, **more: object) -> Topology:
    return Topology(ranks, nodes=nodes, intra="10gbit" if nodes > 1 else None, **more)  # type: ignore[arg-type]


# -- units


@pytest.mark.parametrize(
    ("text", "value"), [("1gbit", 10**9), ("100mbit", 10**8), ("2.5Gbit", 2_500_000_000), ("64kbit", 64_000)]
)
def test_rates(text: str, value: int) -> None:
    assert bits_per_second(text) == value


@pytest.mark.parametrize("text", ["", "fast", "1", "1gb", "-1gbit", "1 gbit", "0mbit", "1kbit", "200gbit", "nanmbit"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(SpecError):
        bits_per_second(text)


def test_sizes_and_times() -> None:
    assert [nbytes(text) for text in ("2000", "32kb", "1mb", "2k")] == [2000, 32768, 1 << 20, 2048]
    assert [seconds(text) for text in ("5ms", "200us", "1s")] == [0.005, pytest.approx(0.0002), 1.0]
    for text in ("1513", "0", "x", "1gb"):
        with pytest.raises(SpecError):
            nbytes(text)
    for text in ("0ms", "11s", "5", "5 ms"):
        with pytest.raises(SpecError):
            seconds(text)


def test_the_burst_is_small_and_holds_a_segment() -> None:
    for rate in (64_000, 10**7, 10**8, 10**9, 25 * 10**8, 10**10, 10**11):
        burst = burst_of(rate)
        late = rate / 8 * 50e-6  # what comes in while the bucket's timer is late
        # 200 us of traffic at most pass for free, or two frames.
        assert burst <= max(3200, 2 * FRAME_NBYTES + late + 1, rate / 8 * 200e-6)
        assert burst < max(3201, rate / 8 / 250)  # less than the rule of rate / HZ would give
        size = segment_of(burst, rate)
        if size is None:
            assert burst >= 65536
        else:
            frames = (size - 200) // 1448  # the kernel takes about 200 bytes off first
            assert frames >= 2
            assert frames * FRAME_NBYTES + late <= burst + 1
        assert queue_of(rate) >= burst


# -- topology


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": 0},
        {"ranks": 257},
        {"ranks": 4, "nodes": 3, "intra": "10gbit"},
        {"ranks": 2, "nodes": 4, "intra": "10gbit"},
        {"ranks": 4, "nodes": 0},
        {"ranks": 4, "nodes": 2},
        {"ranks": 4, "intra": "10gbit"},
        {"ranks": 2, "rate": "quick"},
        {"ranks": 2, "burst": "100"},
        {"ranks": 2, "delay": "soon"},
        {"ranks": 4, "nodes": 2, "intra": "quick"},
    ],
)
def test_topologies_that_are_none(wrong: dict) -> None:
    with pytest.raises(SpecError):
        Topology(**wrong)


def test_ranks_are_told_what_torchrun_tells_them() -> None:
    cluster = topology(6, 3)
    told = [cluster.environment(rank) for rank in range(6)]
    assert [env["RANK"] for env in told] == list("012345")
    assert [env["LOCAL_RANK"] for env in told] == list("010101")
    assert [env["GROUP_RANK"] for env in told] == list("001122")
    assert {env["LOCAL_WORLD_SIZE"] for env in told} == {"2"}
    assert {env["WORLD_SIZE"] for env in told} == {"6"}
    assert len({env["MASTER_ADDR"] for env in told}) == 1
    assert Topology(256).environment(255)["MASTER_ADDR"] == "10.231.0.1"
    assert len(set(Topology(256).record()["addresses"])) == 256


@pytest.mark.parametrize(("ranks", "nodes"), SHAPES)
def test_every_link_is_shaped_at_both_ends(ranks: int, nodes: int) -> None:
    cluster = topology(ranks, nodes, rate="100mbit")
    shapes = cluster.shapes()
    assert [shape.namespace for shape in shapes[:ranks]] == [namespace_of(rank) for rank in range(ranks)]
    inner, outer = (10**10 if nodes > 1 else 10**8), 10**8
    assert {shape.rate for shape in shapes[:ranks]} == {inner}
    ends = {(shape.namespace, shape.device): shape.rate for shape in shapes}
    assert len(ends) == len(shapes)
    steps = cluster.link_commands({name: f"/{name}" for name in cluster.namespaces})
    text = "\n".join(line for _, command, lines in steps if command[0] == "ip" for line in lines)
    if cluster.direct:
        assert set(ends) == {("rank0", "eth0"), ("rank1", "eth0")}
    else:
        for rank in range(ranks):
            assert ends[FABRIC, f"port{rank}"] == inner
            assert f"add port{rank} type veth peer name eth0 netns /rank{rank}" in text
    assert sum(device.startswith(("up", "down")) for _, device in ends) == (2 * nodes if nodes > 1 else 0)
    assert all(ends[FABRIC, f"{way}{n}"] == outer for n in range(nodes) for way in ("up", "down") if nodes > 1)
    shaped = [line for _, command, lines in steps if command[0] == "tc" for line in lines]
    assert len(shaped) == len(shapes)
    assert all(" tbf rate " in line for line in shaped)


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (4, 1), (4, 2)])
def test_a_delay_is_met_once_on_each_way(ranks: int, nodes: int) -> None:
    cluster = topology(ranks, nodes, delay="5ms")
    late = [shape for shape in cluster.shapes() if shape.delay]
    assert len(late) == (nodes if nodes > 1 else ranks)
    assert all(shape.device == (f"up{i}" if nodes > 1 else "eth0") for i, shape in enumerate(late))
    for shape in late:
        assert "netem delay 5000us" in shape.commands()[1]
    assert not any(shape.delay for shape in topology(ranks, nodes).shapes())


def test_the_burst_can_be_chosen() -> None:
    assert {shape.burst for shape in topology(4, 2, burst="32kb").shapes()} == {32768}


# -- the command that each rank runs


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train.py", "--epochs", "3"], [sys.executable, "train.py", "--epochs", "3"]),
        (["python", "train.py"], ["python", "train.py"]),
        (["./run", "-x"], ["./run", "-x"]),
        (["torchrun", "train.py", "--nnodes", "2"], [sys.executable, "train.py", "--nnodes", "2"]),
        (["torchrun", "--nproc_per_node=2", "-m", "commpress", "train"], [sys.executable, "-m", "commpress", "train"]),
        (["torchrun", "--nproc-per-node", "2", "train.py"], [sys.executable, "train.py"]),
        (["torchrun", "--no-python", "./run"], ["./run"]),
        (["python", "-m", "torch.distributed.run", "train.py"], [sys.executable, "train.py"]),
    ],
)
def test_commands(words: list[str], command: list[str]) -> None:
    assert program(words, 2) == (command, [])


def test_what_torchrun_would_decide_is_left_out_and_said() -> None:
    command, remarks = program(["torchrun", "--standalone", "--nnodes", "4", "--rdzv-id=7", "train.py", "-v"], 2)
    assert command == [sys.executable, "train.py", "-v"]
    assert [remark.split(" is ")[0] for remark in remarks] == [
        "torchrun's --standalone",
        "torchrun's --nnodes 4",
        "torchrun's --rdzv_id 7",
    ]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["torchrun"],
        ["torchrun", "--nnodes"],
        ["torchrun", "--nproc_per_node=3", "x.py"],
        ["torchrun", "--tee", "3", "x.py"],
        ["torchrun", "-m"],
    ],
)
def test_commands_that_are_none(words: list[str]) -> None:
    with pytest.raises(SpecError):
        program(words, 2)


# -- errors before anything is made


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["cluster", *arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_root_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = fails(capsys, "--ranks", "2", "--", "true")
    assert "ClusterError" in line and "sudo" in line and "--cap-add NET_ADMIN --cap-add SYS_ADMIN" in line
    assert main(["cluster", "--check"]) == 1
    out = capsys.readouterr().out
    assert "root" in out and "no " in out and "sudo" in out


@pytest.mark.parametrize("tool", ["ip", "bridge", "tc"])
def test_without_tools_it_says_what_to_install(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/sbin/{name}")
    line = fails(capsys, "--", "true")
    assert f"no `{tool}`" in line and "apt install iproute2" in line


def test_wrong_options_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command" in fails(capsys, "--ranks", "2")
    assert "SpecError" in fails(capsys, "--rate", "quick", "--", "true")
    assert "--timeout" in fails(capsys, "--timeout", "-1", "--", "true")
    assert "--grace" in fails(capsys, "--grace", "nan", "--", "true")
    assert "nproc_per_node" in fails(capsys, "--ranks", "4", "--", "torchrun", "--nproc_per_node=2", "x.py")


def test_a_cluster_that_is_not_open() -> None:
    cluster = Cluster(Topology(2))
    for use in (lambda: cluster.counters(), lambda: cluster.start(0, ["true"]), lambda: cluster.run(["true"])):
        with pytest.raises(StateError):
            use()
    cluster.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"id": 0, "errno": 1, "error": "unshare (PID namespace): Operation not permitted"}, "--cap-add SYS_ADMIN"),
        ({"id": 0, "errno": 22, "error": "unshare (PID namespace): Invalid argument"}, "this kernel lacks"),
    ],
)
def test_a_machine_without_namespaces(
    reply: dict, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(handle, "missing", lambda: None)
    keeper = tmp_path / "_keeper.py"
    keeper.write_text(f"import os, sys; os.write(int(sys.argv[1]), {json.dumps(reply)!r}.encode() + b'\\n')")
    monkeypatch.setattr(handle, "KEEPER", keeper)
    with pytest.raises(ClusterError, match=words):
        handle.Keeper()


def test_a_keeper_that_dies_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(handle, "missing", lambda: None)
    (tmp_path / "_keeper.py").write_text("import os; os._exit(3)")
    monkeypatch.setattr(handle, "KEEPER", tmp_path / "_keeper.py")
    with pytest.raises(ClusterError, match="keeper was killed"):
        handle.Keeper()


def test_sweeping_spares_the_living(tmp_path: pathlib.Path) -> None:
    """What looks like a keeper of this process, which lives, is left alone; one whose owner is dead is not."""
    dead = subprocess.Popen(["sleep", "60"])
    tag = handle.tag_of(dead.pid)
    dead.kill()
    dead.wait()
    script = tmp_path / handle.KEEPER.name
    script.write_text("import time; time.sleep(60)")
    mine, orphan = (
        subprocess.Popen([sys.executable, str(script), "3", "4", owner]) for owner in (handle.tag_of(os.getpid()), tag)
    )
    try:
        found = handle.sweep()
        assert orphan.pid in found
        assert mine.pid not in found
        assert orphan.wait(10) == -9
        assert mine.poll() is None
    finally:
        for process in (mine, orphan):
            process.kill()
            process.wait()


def test_the_keeper_needs_nothing_but_the_standard_library() -> None:
    """It is run with -I -S; whatever else it imported would not be there."""
    code = f"import runpy, sys; runpy.run_path({str(handle.KEEPER)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


# -- what is said


def test_statuses_in_words() -> None:
    assert status_in_words(3) == "exit status 3"
    assert status_in_words(-9) == "killed by SIGKILL"
    assert status_in_words(-64 - 20) == "killed by signal 84"
    assert Outcome((0, 1), 1.0, 1, False).in_words() == "rank 1 failed: exit status 1"
    assert Outcome((0, -15), 1.0, None, True).in_words() == "the time limit was reached"
    assert Outcome((0, 0), 1.0, None, False).ok


def test_the_table() -> None:
    def count(n: int) -> Count:
        return Count(n, 1, n + 66, 2, 0)

    traffic = Counters((count(1000), count(2)), (count(2), count(1000)), (count(7), count(8)), (count(8), count(7)))
    lines = cli.table(Outcome((0, -9), 1.5, 1, False), traffic)
    assert lines[1].split() == ["0", "1,066", "68", "0", "exit", "status", "0"]
    assert lines[2].endswith("killed by SIGKILL")
    assert lines[3].split()[:4] == ["node", "0", "73", "74"]
    assert lines[-1].endswith("1.50 s")


def test_counters_are_read_from_the_right_ends() -> None:
    """What a rank receives was shaped by the switch's port; of two ranks, by the other one."""
    for cluster in (Topology(2), topology(4, 2)):
        names = cluster.namespaces
        devices = {name: ["eth0"] for name in names}
        if not cluster.direct:
            devices[FABRIC] = [shape.device for shape in cluster.shapes() if shape.namespace == FABRIC]
        number = {(name, d): 100 * i + j for i, name in enumerate(names) for j, d in enumerate(devices[name], 1)}

        def text(name: str, path: str, number: dict = number) -> str:
            rows = [f"  {d}: {n} 1 0 0 0 0 0 0 {n + 5000} 2 0 0 0 0 0 0" for (at, d), n in number.items() if at == name]
            return "\n".join(["head", "head", *rows])

        def qdiscs(name: str, number: dict = number) -> list:
            found = [
                {"kind": "tbf", "dev": d, "bytes": n, "packets": 3, "drops": 4}
                for (at, d), n in number.items()
                if at == name
            ]
            return [*found, {"kind": "noqueue", "dev": "lo"}]

        counters = read(cluster, text, qdiscs)
        for rank in range(cluster.ranks):
            own = number[namespace_of(rank), "eth0"]
            peer = number[(namespace_of(1 - rank), "eth0") if cluster.direct else (FABRIC, f"port{rank}")]
            assert counters.sent[rank] == Count(own + 5000, 2, own, 3, 4)
            assert counters.received[rank] == Count(own, 1, peer, 3, 4)
        if cluster.nodes > 1:
            up, down = number[FABRIC, "up1"], number[FABRIC, "down1"]
            assert counters.left[1] == Count(up + 5000, 2, up, 3, 4)
            assert counters.entered[1] == Count(up, 1, down, 3, 4)
        assert set((counters - counters).sent) == {Count()}
        assert read(cluster, text, None).sent[0].frames == 0


def test_lines_carry_their_rank(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = cli._Printer(everybody=True)
    printer(1, "stdout", b"a\nb")
    printer(0, "stdout", b"x\n")
    printer(1, "stdout", b"c\n")
    printer(0, "stderr", b"no end")
    printer.close()
    out, err = capsysbinary.readouterr()
    assert out == b"[rank 1] a\n[rank 0] x\n[rank 1] bc\n"
    assert err == b"[rank 0] no end\n"
    printer = cli._Printer(everybody=False)
    printer(0, "stdout", b"raw \r")
    printer(1, "stdout", b"nobody sees it\n")
    printer(1, "stderr", b"but this\n")
    out, err = capsysbinary.readouterr()
    assert (out, err) == (b"raw \r", b"[rank 1] but this\n")


def test_the_log_is_whole_lines_at_any_time() -> None:
    file = io.StringIO()
    log = cli._Log(file)
    log.write("start", rank=0)
    log.write("end", ok=True)
    records = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [record["kind"] for record in records] == ["start", "end"]
    cli._Log(None).write("nowhere")
