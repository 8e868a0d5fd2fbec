"""Links of an emulated cluster: their rates, their counters, what hangs on what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import Host, assert_nothing_left, need_cluster

from commpress.cluster import Cluster, Counters, Topology, bits_per_second, check
from commpress.errors import ClusterError, StateError

# Rank 0 receives, the last rank sends `sys.argv[1]` bytes; both print seconds and bytes. The first eighth is not timed.
FLOW = """
import os, socket, sys, time
total, rank, last = int(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
source = int(sys.argv[2]) if len(sys.argv) > 2 else last
if rank == 0:
    with socket.create_server((os.environ["MASTER_ADDR"], 5001)) as server:
        connection, _ = server.accept()
    buffer, got, begin, mark = bytearray(1 << 16), 0, 0.0, 0
    while n := connection.recv_into(buffer):
        got += n
        if not begin and got > total // 8:
            begin, mark = time.monotonic(), got
    print(got, (got - mark) / (time.monotonic() - begin))
elif rank == source:
    while True:
        try:
            connection = socket.create_connection((os.environ["MASTER_ADDR"], 5001))
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    connection.sendall(bytes(total))
    connection.close()
"""
PYTHON = [sys.executable, "-S", "-c"]


@pytest.fixture(autouse=True, scope="module")
def _cluster_here() -> None:
    need_cluster()


def flow(cluster: Cluster, nbytes: int, source: int | None = None) -> tuple[float, Counters]:
    """Sends so many bytes to rank 0; (bits per second of the frames that came, what was counted)."""
    before = cluster.counters()
    said: list[bytes] = []
    words = [*PYTHON, FLOW, str(nbytes), *([] if source is None else [str(source)])]
    outcome = cluster.run(words, timeout=60, on_output=lambda rank, stream, data: said.append(data))
    assert outcome.ok, (outcome, said)
    got, speed = b"".join(said).split()
    assert int(got) == nbytes
    return 8 * float(speed) * 1514 / 1448, cluster.counters() - before


@pytest.mark.parametrize(
    "topology",
    [Topology(2, "100mbit"), Topology(3, "100mbit"), Topology(4, "100mbit", nodes=2, intra="1gbit")],
    ids=["direct", "switch", "nodes"],
)
def test_rates_are_reached_and_not_passed(topology: Topology) -> None:
    before = Host.now()
    with Cluster(topology) as cluster:
        # A busy machine makes a link slower at times, and never faster.
        speeds: list[float] = []
        while not speeds or (max(speeds) <= 97e6 and len(speeds) < 6):
            speeds.append(flow(cluster, 16_000_000)[0])
        assert 97e6 < max(speeds) < 103e6, speeds
        if topology.nodes > 1:  # inside a node it is faster
            speed, counted = flow(cluster, 16_000_000, source=1)
            assert speed > 200e6
            assert counted.left[0].bytes == counted.left[1].bytes == 0
    assert_nothing_left(before)


def test_a_large_burst_would_flatter_small_messages() -> None:
    """The control to the test above: with a burst of the classic rule's size a small message is free, with ours it is not."""
    took = {}
    for burst in ("512kb", None):
        with Cluster(Topology(2, "100mbit", burst=burst)) as cluster:
            speed, _ = flow(cluster, 400_000)
            took[burst] = speed
    assert took["512kb"] > 3 * 100e6
    assert took[None] < 1.1 * 100e6


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (4, 1), (4, 2)])
def test_counters_hold_what_was_sent_and_nothing_else(ranks: int, nodes: int, offload: bool) -> None:
    nbytes = 4_000_000
    topology = Topology(ranks, "1gbit", nodes=nodes, intra="2gbit" if nodes > 1 else None, offload=offload)
    with Cluster(topology) as cluster:
        assert sum(count.bytes for count in cluster.counters().sent) == 0  # no chatter
        _, counted = flow(cluster, nbytes)
    sender = counted.sent[-1]
    frames = -(-nbytes // 1448)
    low, high = (
        nbytes + 66 * frames,
        nbytes + 66 * frames + 66 * 20 + 1514 * 20,
    )  # opening and closing, and a few frames cut short or sent again
    assert low <= sender.frame_bytes <= high
    assert low <= counted.received[0].frame_bytes <= high
    assert nbytes < sender.bytes <= sender.frame_bytes
    if offload:
        assert sender.packets < sender.frames / 3
    else:
        assert sender.packets == sender.frames and sender.bytes == sender.frame_bytes
    # Acknowledgements come back, and nobody else hears a thing.
    assert 0 < counted.received[-1].bytes == counted.sent[0].bytes < nbytes / 10
    for rank in range(1, ranks - 1):
        assert counted.sent[rank].bytes == counted.received[rank].bytes == 0
    if nodes > 1:
        assert low <= counted.left[1].frame_bytes <= high and low <= counted.entered[0].frame_bytes <= high
        assert counted.left[0].bytes == counted.entered[1].bytes == counted.sent[0].bytes
    assert not any(count.dropped for count in counted.sent + counted.received + counted.left + counted.entered)


def test_ranks_see_their_own_interface_and_each_others_names() -> None:
    code = """
import os, pathlib, socket
print(os.environ["RANK"], sorted(os.listdir("/sys/class/net")), socket.gethostbyname("rank2"), os.getpid() == int(os.readlink("/proc/self")),
      pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() if os.path.exists("/proc/sys/net/ipv6") else "1")
"""
    said: dict[int, bytes] = {}
    with Cluster(Topology(3)) as cluster:
        outcome = cluster.run(
            [*PYTHON, code], on_output=lambda rank, stream, data: said.update({rank: said.get(rank, b"") + data})
        )
    assert outcome.ok, said
    for rank in range(3):
        assert said[rank].decode().split("\n")[0] == f"{rank} ['eth0', 'lo'] 10.231.0.3 True 1"


def test_the_record_holds_what_tc_says() -> None:
    with Cluster(Topology(4, "200mbit", nodes=2, intra="1gbit")) as cluster:
        record = json.loads(json.dumps(cluster.record()))
    assert "iproute2" in record["tc_version"] and record["kernel"]
    lines = [line for lines in record["tc"].values() for line in lines if " tbf " in line]
    assert len(lines) == len(record["topology"]["shapes"]) == 12
    assert sum("rate 200Mbit" in line for line in lines) == 4
    assert sum("rate 1Gbit" in line for line in lines) == 8
    assert {shape["rate"] for shape in record["topology"]["shapes"]} == {bits_per_second("200mbit"), 10**9}


def test_a_delay_is_there_or_refused() -> None:
    """Where the kernel has netem a round trip takes two delays; where not, nobody gets a cluster without one by mistake."""
    can = {name: (yes, text) for name, yes, text in check()}
    code = """
import os, socket, time
rank = int(os.environ["RANK"])
if rank == 0:
    with socket.create_server((os.environ["MASTER_ADDR"], 5001)) as server:
        connection, _ = server.accept()
    connection.sendall(connection.recv(1))
else:
    time.sleep(0.5)
    connection = socket.create_connection((os.environ["MASTER_ADDR"], 5001))
    begin = time.monotonic()
    connection.sendall(b"x")
    connection.recv(1)
    print(time.monotonic() - begin)
"""
    if not can["delay"][0]:
        print(f"no delays here: {can['delay'][1]}")
        with pytest.raises(ClusterError, match="no netem"):
            with Cluster(Topology(2, delay="20ms")):
                pass
        return
    said: list[bytes] = []
    with Cluster(Topology(2, delay="20ms")) as cluster:
        assert cluster.run([*PYTHON, code], on_output=lambda *output: said.append(output[2])).ok
    assert 0.04 <= float(b"".join(said)) < 0.4


def test_many_times_in_one_process() -> None:
    """An experiment makes cluster after cluster, and reads counters often: no descriptor and no process is lost."""
    before, files = Host.now(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with Cluster(Topology(4)) as cluster, tempfile.TemporaryFile() as file:
            process = cluster.start(
                3, ["sh", "-c", "echo $RANK; pwd; echo $EXTRA"], env={"EXTRA": "e"}, cwd="/", stdout=file
            )
            assert process.wait(20) == 0
            file.seek(0)
            assert file.read().split() == [b"3", b"/", b"e"]
            with pytest.raises(ClusterError, match="no-such-program"):
                cluster.start(0, ["no-such-program"])
            with pytest.raises(StateError):
                cluster.start(4, ["true"])
            with pytest.raises(StateError):
                cluster.__enter__()
            sleeper = cluster.start(1, ["sleep", "1000"])
            with pytest.raises(subprocess.TimeoutExpired):
                sleeper.wait(0.05)
            sleeper.kill()
            assert sleeper.wait(20) == -9
            cluster.start(2, ["sleep", "1000"])  # left running
            for _ in range(5):
                cluster.counters(frames=False)
    assert len(os.listdir("/proc/self/fd")) == files
    assert_nothing_left(before, f" {os.getpid()}:")


def test_two_clusters_do_not_meet() -> None:
    with Cluster(Topology(2, "100mbit")) as one, Cluster(Topology(2, "100mbit")) as two:
        flow(one, 100_000)
        assert sum(count.bytes for count in two.counters().sent) == 0
        flow(two, 100_000)


def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import bench_cluster

    monkeypatch.setattr(sys, "argv", ["bench_cluster", "--quick"])
    assert bench_cluster.main() == 0
    assert "100mbit" in capsys.readouterr().out
