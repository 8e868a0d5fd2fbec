"""`commpress doctor` on real ranks, well and with one that is not."""

import json

import pytest
import torch
from _launch import launch
from _torchrun import torchrun

from commpress import doctor
from commpress.doctor import Interface, Network

LO = Interface("lo", "127.0.0.1", mtu=65536)


def worker(rank, world_size, case):
    import time

    network = Network((LO,), "host", ("127.0.0.1",), chosen="lo")
    arguments = {"network": network}
    if case == "clock" and rank == 1:
        arguments["clock"] = lambda: time.time() + 100
    if case == "bytes" and rank == 1:

        def flipped(tensor):
            commpress_all_reduce(tensor)
            tensor[17] += 0.5

        arguments["reduce"] = flipped
    if case == "exact":
        arguments["reduce"] = lambda tensor: torch.distributed.all_reduce(tensor.div_(world_size))
    if case == "version" and rank == 1:
        import dataclasses

        arguments["facts"] = dataclasses.replace(doctor.RankFacts.here(network), commpress="0.0.1", host="elsewhere")
    return [[c.name, c.status, c.text, c.remedy] for c in doctor.group_checks(**arguments)]


def commpress_all_reduce(tensor):
    import commpress

    commpress.all_reduce(tensor, "hadamard+lloyd:4")


@pytest.mark.parametrize(
    ("case", "name", "status", "text"),
    [
        ("well", "", "ok", ""),
        ("clock", "clocks", "warn", "rank 1"),
        ("bytes", "all-reduce", "fail", "rank 1's result differs"),
        ("exact", "all-reduce", "fail", "nothing was compressed"),
        ("version", "versions", "fail", "0.0.1 on rank 1"),
    ],
)
def test_a_group(case, name, status, text) -> None:
    results = [result.ok().value for result in launch(__file__, "worker", 2, args={"case": case}, timeout=90)]
    assert results[0] == results[1]  # all ranks get the same verdict
    bad = {check[0]: check for check in results[0] if check[1] != "ok"}
    if case == "version":  # two hosts now, and gloo on loopback
        assert bad.pop("group")[1] == "fail" and bad.pop("gloo")[1] == "fail"
    if case == "well":
        assert bad == {}
    else:
        assert list(bad) == [name]
        assert bad[name][1] == status and text in bad[name][2] and bad[name][3]


def test_the_command_under_torchrun() -> None:
    done = torchrun(["-m", "commpress", "doctor", "--json"])
    found = json.loads(done.stdout)  # rank 0 alone prints
    checks = {check["name"]: check for check in found["checks"]}
    assert {"versions", "clocks", "group", "all-reduce", "gloo", "extension", "emulated cluster"} <= set(checks)
    assert checks["all-reduce"]["status"] == "ok", checks["all-reduce"]
    assert "on 2 ranks: right" in checks["all-reduce"]["text"]
    assert done.returncode == (1 if found["status"] == "fail" else 0)
