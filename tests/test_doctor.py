"""`commpress doctor`: each check on facts that are well and on facts that are not, and the command on this machine."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

from commpress import doctor
from commpress.cli import main
from commpress.doctor import Interface, Machine, Network, RankFacts, check_network, check_ranks, machine_checks, worst
from commpress.doctor._exchange import judge, tensor_of
from commpress.doctor._machine import cpu_quota, load_error
from commpress.errors import PeerError

WELL = Machine(
    extension="/lib/_C.abi3.so",
    extension_error=None,
    isas=("PLAIN", "AVX2"),
    architecture="x86_64",
    torch_version="2.13.0+cpu",
    numpy_version="2.4.6",
    python_version="3.11.7",
    gloo=True,
    torch_cuda=None,
    devices=(),
    cuda_built=False,
    cores=8,
    quota=None,
    threads=2,
    local_ranks=4,
    mpi4py="4.1.2",
    mpi_library="MPICH Version: 5.0.2",
    mpiexec="/usr/bin/mpiexec",
    mpiexec_version="HYDRA build details: Version: 5.0.2",
    open_files=65536,
    locked_bytes=8 << 20,
    infiniband=(),
    world_size=4,
    cluster=(("root", True, "user ID 0"), ("cluster", True, "works"), ("delay", False, "no netem")),
)
ETH = Interface("eth0", "10.0.0.5", mbit=1000)
FAST = Interface("ens5", "10.1.0.5", mbit=25000)
LO = Interface("lo", "127.0.0.1", mtu=65536)
GOOD = Network((LO, ETH), "node5", ("10.0.0.5",))
RANK = RankFacts("node5", "boot", "0.1.0", "abc", "2.13.0", "3.11.7", 2, "eth0", 1500)


def the(checks: list[doctor.Check], name: str) -> doctor.Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_a_machine_that_is_well() -> None:
    checks = machine_checks(WELL)
    assert {check.status for check in checks} == {"ok"}
    assert {check.remedy for check in checks} == {""}
    assert len({check.name for check in checks}) == len(checks) == 9
    assert worst(checks) == "ok" == worst([])


MACHINES = {
    "no extension": (
        {"extension_error": "there is no such file"},
        "extension",
        "fail",
        "no such file",
        "pip install .",
    ),
    "broken extension": (
        {"extension_error": "undefined symbol: aoti_torch_x"},
        "extension",
        "fail",
        "undefined symbol",
        "--force-reinstall",
    ),
    "no AVX2": ({"isas": ("PLAIN",)}, "instructions", "warn", "without AVX2", "host-passthrough"),
    "old torch": ({"torch_version": "2.9.1"}, "torch", "fail", "2.10 is the oldest", "torch>=2.10"),
    "next torch": ({"torch_version": "3.0.0a0+git"}, "torch", "warn", "newer than", "tests"),
    "no gloo": ({"gloo": False}, "torch", "fail", "without gloo", "USE_GLOO=1"),
    "no kernels for the GPU": (
        {"devices": ("H100",), "torch_cuda": "13.0"},
        "CUDA",
        "warn",
        "no CUDA kernels",
        "COMMPRESS_CUDA=1",
    ),
    "too many ranks": ({"local_ranks": 16, "threads": 1}, "threads", "warn", "more ranks than cores", "at most 8"),
    "too many threads": ({"threads": 8}, "threads", "warn", "more threads than cores", "OMP_NUM_THREADS=2"),
    "too many threads for the container": (
        {"quota": 4.5},
        "threads",
        "warn",
        "the container may use 4.5",
        "OMP_NUM_THREADS=1",
    ),
    "idle cores": ({"threads": 1}, "threads", "warn", "cores are idle", "OMP_NUM_THREADS=2"),
    "mpi4py without MPI": (
        {"mpi_library": "error: RuntimeError: cannot load MPI library"},
        "MPI",
        "fail",
        "cannot load MPI library",
        "pip install mpich",
    ),
    "old mpi4py": ({"mpi4py": "3.1.6"}, "MPI", "fail", "4 is the oldest", "mpi4py>=4"),
    "no mpiexec": ({"mpiexec": None, "mpiexec_version": None}, "MPI", "warn", "no mpiexec", "PATH"),
    "another MPI's mpiexec": (
        {"mpiexec_version": "mpirun (Open MPI) 4.1.4"},
        "MPI",
        "fail",
        "rank 0 of 1",
        "MPICH's mpiexec first",
    ),
    "few files": ({"open_files": 256}, "open files", "warn", "may have 256", "ulimit -n"),
    "few files for so many ranks": ({"open_files": 1024, "world_size": 256}, "open files", "warn", "2304", "ulimit -n"),
    "RDMA without locked memory": ({"infiniband": ("mlx5_0",)}, "locked memory", "warn", "mlx5_0", "ulimit -l"),
    "no cluster": (
        {"cluster": (("root", False, "user ID 1000"), ("delay", False, ""))},
        "emulated cluster",
        "warn",
        "user ID 1000",
        "iproute2",
    ),
}


@pytest.mark.parametrize("case", MACHINES)
def test_a_machine_that_is_not(case) -> None:
    changes, name, status, text, remedy = MACHINES[case]
    checks = machine_checks(dataclasses.replace(WELL, **changes))
    bad = the(checks, name)
    assert bad.status == status and text in bad.text and remedy in bad.remedy, bad
    assert [check.name for check in checks if check.status != "ok"] == [name]


@pytest.mark.parametrize(
    "changes",
    [
        {"mpi4py": None, "mpi_library": None, "mpiexec": None},
        {"isas": ("PLAIN",), "architecture": "aarch64"},
        {"devices": ("H100",), "torch_cuda": "13.0", "cuda_built": True},
        {"torch_cuda": "13.0"},
        {"open_files": -1, "locked_bytes": -1, "infiniband": ("mlx5_0",)},
        {"mpi_library": "Intel(R) MPI Library 2021.1"},
        {"torch_version": "2.14.0"},
        {"cluster": ()},
    ],
)
def test_nothing_is_wrong_with(changes) -> None:
    assert worst(machine_checks(dataclasses.replace(WELL, **changes))) == "ok"


def test_a_file_that_is_no_library_and_none_at_all(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "_C.abi3.so"
    assert load_error(path) == "there is no such file"
    path.write_bytes(b"\x7fELF and then nothing")
    assert re.search("too short|invalid ELF", load_error(path) or "")
    assert load_error(doctor._machine.ops.LIBRARY) is None


@pytest.mark.parametrize("content", [None, b"\\x7fELF and then nothing"])
def test_without_its_extension_commpress_says_what_the_doctor_would(content, tmp_path: pathlib.Path) -> None:
    """The doctor cannot come then: no part of the package can be imported."""
    package = pathlib.Path(doctor.__file__).parents[1]
    shutil.copytree(package, tmp_path / "commpress", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if content is not None:
        (tmp_path / "commpress" / "_C.abi3.so").write_bytes(content)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "commpress", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ImportError: commpress's extension") and str(tmp_path) in said
    assert ("missing: build it" if content is None else "Build it anew") in said


def test_the_quota_of_a_container(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cpu.max"
    assert cpu_quota(path) is None
    path.write_text("max 100000\n")
    assert cpu_quota(path) is None
    path.write_text("150000 100000\n")
    assert cpu_quota(path) == 1.5


# -- network


def test_a_network_that_is_well() -> None:
    for net in (
        GOOD,
        Network((LO, ETH, FAST), "node5", ("10.1.0.5",)),  # the fast one is the one that is taken
        Network((LO, ETH, FAST), "node5", ("10.0.0.5",), chosen="ens5"),
        Network((LO, ETH, Interface("docker0", "172.17.0.1")), "node5", ("10.0.0.5",)),
        Network((LO, ETH, Interface("ens5", None)), "node5", ("10.0.0.5",)),
    ):
        assert worst(check_network(net, machines=2)) == "ok", net
    assert worst(check_network(Network((LO,), "node5", ("127.0.0.1",), chosen="lo"))) == "ok"


NETWORKS = {
    "Debian's 127.0.1.1": (Network((LO, ETH), "node5", ("127.0.1.1",)), "Debian", "GLOO_SOCKET_IFNAME=eth0"),
    "localhost": (Network((LO, ETH, FAST), "node5", ("127.0.0.1",)), "loopback", "GLOO_SOCKET_IFNAME=ens5"),
    "no such name": (Network((LO, ETH), "node5", ()), "resolves to no address", "/etc/hosts"),
    "another's address": (Network((LO, ETH), "node5", ("10.9.9.9",)), "no interface here has", "/etc/hosts"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_name_that_leads_nowhere(case) -> None:
    """Good enough for one machine, but not for two."""
    net, text, remedy = NETWORKS[case]
    for machines, status in ((1, "warn"), (2, "fail")):
        bad = the(check_network(net, machines=machines), "gloo")
        assert bad.status == status and text in bad.text and remedy in bad.remedy and "node5" in bad.remedy, bad


CHOICES = {
    "no such interface": (dataclasses.replace(GOOD, chosen="eth7"), "fail", "no such interface", "eth0"),
    "no address": (Network((LO, ETH, Interface("eth1", None)), "n", (), "eth1"), "fail", "no IPv4 address", "eth0"),
    "down": (Network((LO, ETH, Interface("eth1", "10.2.0.1", up=False)), "n", (), "eth1"), "fail", "down", "up"),
    "loopback": (dataclasses.replace(GOOD, chosen="lo"), "fail", "leads to no other machine", "eth0"),
    "the slow one": (Network((LO, ETH, FAST), "n", ("10.0.0.5",)), "warn", "is faster", "GLOO_SOCKET_IFNAME=ens5"),
    "speeds unknown": (
        Network((LO, Interface("eth0", "10.0.0.5"), Interface("eth1", "10.1.0.5")), "n", ("10.0.0.5",)),
        "warn",
        "speeds are not known",
        "GLOO_SOCKET_IFNAME=",
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_bad_choice_of_interface(case) -> None:
    net, status, text, remedy = CHOICES[case]
    bad = the(check_network(net, machines=2), "gloo")
    assert bad.status == status and text in bad.text and remedy in bad.remedy, bad


def test_this_networks_facts() -> None:
    net = Network.here({"GLOO_SOCKET_IFNAME": "lo"})
    (lo,) = (one for one in net.interfaces if one.name == "lo")
    assert lo.loopback and lo.up and lo.address == "127.0.0.1" and lo.mtu >= 1500 and net.used == lo
    assert Network.here({}).chosen is None


# -- ranks


def ranks(**changes) -> list[RankFacts]:
    """Three ranks on two machines, of which the last one is different."""
    other = dataclasses.replace(RANK, host="node6", machine="boot6")
    return [RANK, RANK, dataclasses.replace(other, **changes)]


def test_ranks_that_fit() -> None:
    checks = check_ranks(ranks(clock=0.2, clock_error=0.001))
    assert worst(checks) == "ok"
    assert "3 ranks on 2 machines" in the(checks, "group").text
    assert worst(check_ranks([dataclasses.replace(RANK, interface="lo")] * 2)) == "ok"
    # An error of the measurement is no difference.
    assert worst(check_ranks(ranks(clock=3.0, clock_error=2.9))) == "ok"


@pytest.mark.parametrize(
    ("changes", "name", "status", "text", "remedy"),
    [
        ({"commpress": "0.2.0"}, "versions", "fail", "0.2.0 on rank 2", "install the same"),
        ({"build": "def"}, "versions", "warn", "builds of commpress's extension differ", "install the same"),
        ({"torch": "2.12.0"}, "versions", "warn", "2.13.0 on ranks 0, 1; 2.12.0 on rank 2", "install the same"),
        ({"interface": "lo"}, "group", "fail", "loopback on ranks 2", "GLOO_SOCKET_IFNAME"),
        ({"mtu": 9000}, "group", "warn", "MTUs differ", "ip link set"),
        ({"threads": 1}, "group", "warn", "numbers of threads differ", "OMP_NUM_THREADS"),
        ({"clock": -100.0, "clock_error": 0.1}, "clocks", "warn", "rank 2 (node6) by -100.0 s", "set-ntp"),
    ],
)
def test_ranks_that_do_not(changes, name, status, text, remedy) -> None:
    checks = check_ranks(ranks(**changes))
    bad = the(checks, name)
    assert bad.status == status and text in bad.text and remedy in bad.remedy, bad
    assert [check.name for check in checks if check.status != "ok"] == [name]


# -- the trial all-reduce


def test_the_loopback_trial() -> None:
    found = doctor.loopback_check(timeout=60)
    assert found.status == "ok" and "right" in found.text, found


def unreachable(timeout: float) -> list[torch.Tensor]:
    raise PeerError("rank 0 lost rank 1")


@pytest.mark.parametrize(
    ("trial", "text"),
    [
        (unreachable, "rank 0 lost rank 1"),
        (lambda timeout: [tensor_of(0, 100), tensor_of(1, 100)], "rank 1's result differs"),
        (lambda timeout: [torch.zeros(100)] * 2, "of the energy"),
        (lambda timeout: [torch.full((100,), torch.nan)] * 2, "differs"),
        (lambda timeout: [torch.stack([tensor_of(0, 100), tensor_of(1, 100)]).mean(0)] * 2, "nothing was compressed"),
    ],
)
def test_a_trial_that_goes_wrong(trial, text) -> None:
    found = doctor.loopback_check(trial=trial)
    assert found.status == "fail" and text in found.text and found.remedy, found


def test_what_a_right_result_is() -> None:
    exact = torch.stack([tensor_of(0, 1000), tensor_of(1, 1000)]).mean(0)
    assert judge([1.01 * exact] * 2, 1000) is None
    assert judge([1.5 * exact] * 2, 1000) is not None


# -- the command


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.mark.usefixtures("_alone")
def test_the_command(capsys) -> None:
    status = main(["doctor", "--no-cluster"])
    out = capsys.readouterr().out.splitlines()
    assert out[-1].endswith(f"{0 if status == 0 else 1} failed") or status == 1
    assert any(line.startswith("ok    extension") for line in out)
    assert any(line.startswith("ok    loopback") for line in out)


@pytest.mark.usefixtures("_alone")
def test_the_command_as_json(capsys, monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    assert main(["doctor", "--no-cluster", "--json", "--timeout", "5"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "fail"
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["gloo"]["status"] == "fail" and "nowhere0" in checks["gloo"]["text"]
    # and indeed gloo cannot talk
    assert checks["loopback"]["status"] == "fail" and checks["loopback"]["remedy"]


@pytest.mark.usefixtures("_alone")
def test_a_group_that_does_not_meet(capsys, monkeypatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--no-cluster", "--timeout", "1"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^fail  group .* the ranks did not meet at 127.0.0.1:0", out, flags=re.MULTILINE), out
    assert "torchrun" in out
