"""Bytes that leave the network interface against bytes claimed, on shaped links between network namespaces."""

from __future__ import annotations

import os
import pathlib
import sys
import time

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _cluster_state import need_cluster
from _launch import launch

import commpress
from commpress import collectives
from commpress.cluster import Cluster, Topology

NUMEL = 1_500_000
CALLS = 4
FRAME_NBYTES = 1514  # TCP counts what it sends again in frames


def settled(counter: pathlib.Path) -> int:
    """The counter once it has stood still for a while: late acknowledgements belong to what was sent."""
    last, since = int(counter.read_text()), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        now = int(counter.read_text())
        if now != last:
            last, since = now, time.monotonic()
    return last


def sent_again() -> int:
    """Segments that TCP has sent a second time in this namespace: a busy machine acknowledges late. They are no part of any claim."""
    names, values = (
        line.split() for line in pathlib.Path("/proc/self/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(values[names.index("RetransSegs")])


def worker(rank: int, size: int, codec: str) -> dict:
    counter = pathlib.Path(f"/sys/class/net/{os.environ['GLOO_SOCKET_IFNAME']}/statistics/tx_bytes")
    tensor = torch.randn(NUMEL, generator=torch.Generator().manual_seed(rank))
    for _ in range(2):  # the frame size becomes known
        commpress.all_reduce(tensor.clone(), codec)
    dist.barrier()
    before = settled(counter)
    dist.barrier()
    idle = settled(counter) - before
    before += idle
    again = sent_again()
    claimed = payload = 0
    for step in range(CALLS):
        commpress.all_reduce(tensor.clone(), codec, key=commpress.Key(step=step))
        report = collectives.last_report()
        claimed += report.wire_bytes
        payload += report.bytes_payload1 + report.bytes_payload2
    counted = settled(counter) - before - FRAME_NBYTES * (sent_again() - again)
    dist.barrier()
    return {
        "claimed": claimed,
        "counted": counted,
        "payload": payload,
        "messages": report.messages,
        "chunks": report.chunks,
    }


@pytest.mark.parametrize(("size", "offload"), [(2, False), (3, False), (2, True)])
def test_claimed_bytes_are_those_counted(size, offload):
    """Without offloading the kernel cuts segments before the interface counts them, with it after."""
    need_cluster()
    codec = commpress.codec("uniform:4")
    with Cluster(Topology(size, "1gbit", offload=offload)) as cluster:
        results = launch(__file__, "worker", size, args={"codec": str(codec)}, timeout=90, cluster=cluster)
        outside = cluster.counters()
    for rank, result in enumerate(results):
        value = result.ok().value
        own = collectives.shard_bounds(NUMEL, size, rank)
        mine = codec.payload_nbytes(own[1] - own[0])
        assert value["payload"] == CALLS * (codec.payload_nbytes(NUMEL) - mine + (size - 1) * mine)
        assert value["counted"] > value["payload"]  # there is framing, and it was counted
        if not offload:  # a claim without framing, or with that of loopback, would not do
            assert value["payload"] / value["counted"] < 0.99
        assert 0.97 < value["claimed"] / value["counted"] < 1.03, value
        assert (
            outside.sent[rank].bytes >= value["counted"] and outside.received[rank].bytes > 0
        )  # the same interface, seen from outside
