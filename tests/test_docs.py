"""What README and docs say is run: Python snippets, the diff, commands, links, and the figures that can be computed."""

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
from _runs import run_records

sys.path.insert(0, str(pathlib.Path(__file__).parent / "distributed"))
from _mpi_launch import mpiexec

import commpress
from commpress import cluster
from commpress.codecs import _PARSERS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README = (ROOT / "README.md").read_text()

# A snippet may use a process group (of one rank) and a model, as a reader's script would.
PREAMBLE = """
import torch, torch.distributed
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.Linear(64, 100)
"""
# What a rank of an emulated cluster runs where a page says train.py.
RANK = """
import os, socket, sys
talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
talk.sendto(bytes(1000), (os.environ["MASTER_ADDR"], 9))
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], sys.argv[1:])
"""
# What ranks that torchrun starts run there: a DDP script.
TRAIN = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
model(torch.ones(4, 64)).square().mean().backward()
print("rank", dist.get_rank(), sys.argv[1:])
dist.destroy_process_group()
"""
# Commands that pages show -> what stands for them here. `make demo` and `make test` themselves are run by .ci/run.
STAND_INS = {
    "make demo": "make --dry-run demo",
    "make test": "make --dry-run test",
    "make lint": "make --dry-run lint",
    "make format": "make --dry-run format",
    "make cpptest": "make --dry-run cpptest",
    "make cudatest": "make --dry-run cudatest",
    "make gpu": "make --dry-run gpu",
    "make docs": "make --dry-run docs",
    "make bench": f"{sys.executable} -m benchmarks --quick",
    "bash .ci/run": "bash -n .ci/run",
    "commpress experiment optimizer-precision": f"{sys.executable} -m commpress experiment optimizer-precision --help",
    "commpress experiment precision-scaling": f"{sys.executable} -m commpress experiment precision-scaling --help",
    "commpress experiment bandwidth": f"{sys.executable} -m commpress experiment bandwidth --help",
    # run by test_mean_1bit.py and test_cosine.py
    "commpress experiment mean-1bit --quick --seed 1": f"{sys.executable} -m commpress experiment mean-1bit --quick --help",
    "commpress experiment cosine --quick --seed 1": f"{sys.executable} -m commpress experiment cosine --quick --help",
    "commpress experiment bandwidth --quick": f"{sys.executable} -m commpress experiment bandwidth --quick --help",
}
# Quick experiments that a test of their own runs, in this file: here only the words are checked.
RUN_IN = {
    "cosine": "test_cosine.py",
    "limits": "test_limits.py",
    "local-sgd": "test_local_quadratic.py",
    "low-rank": "test_low_rank_experiment.py",
    "mean-1bit": "test_mean_1bit.py",
    "precision-scaling": "test_noise.py",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(command: list[str], cwd: pathlib.Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def prepare_cluster(folder: pathlib.Path) -> None:
    """A script for the ranks of an emulated cluster; skips, with a reason, where there can be none."""
    lacking = [text for name, can, text in cluster.check() if not can and name != "delay"]
    if lacking:
        print(f"skipped: {lacking[-1]}")
        pytest.skip(lacking[-1])
    (folder / "train.py").write_text(RANK)


def run_python(source: str, cwd: pathlib.Path) -> None:
    script = cwd / "snippet.py"
    script.write_text(PREAMBLE + source + "\ntorch.distributed.destroy_process_group()\n")
    run([sys.executable, "-W", "error::DeprecationWarning:commpress", str(script)], cwd)


def test_there_is_something_to_check() -> None:
    assert "README.md" in NAMES
    assert "docs/wire-format.md" in NAMES
    assert blocks(README, "python")
    assert blocks(README, "diff")
    assert blocks(README, "sh")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_snippets_run(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The snippets of one page, in order, as one program."""
    snippets = blocks(page.read_text(), "python")
    if page.name == "cluster.md":
        prepare_cluster(tmp_path)
    if page.name == "mpi.md":
        mpiexec()  # skips, with a reason, where there is no MPI
    if snippets:
        run_python("\n".join(snippets), tmp_path)


def test_the_diff_is_all_that_a_script_needs(tmp_path: pathlib.Path) -> None:
    (diff,) = blocks(README, "diff")
    lines = diff.splitlines()
    assert all(line[:1] in ("+", " ", "") for line in lines), "the diff takes something away"
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines)
    step = """
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
"""
    compile(before + step, "before", "exec")  # not run: it is torch alone, whose threads may end an interpreter's exit
    run_python(after + step + "assert state.state_dict()", tmp_path)


NIGHTLY = {"make bench"}  # minutes, even where it is quick


def commands() -> list[Any]:
    found = []
    for page in PAGES:
        for block in blocks(page.read_text(), "sh"):
            found += [line.split("#")[0].strip() for line in block.splitlines()]
    marks = dict.fromkeys(NIGHTLY, (pytest.mark.nightly,))
    return [pytest.param(command, marks=marks.get(command, ())) for command in sorted({line for line in found if line})]


@pytest.mark.parametrize("command", commands())
def test_commands_run(command: str, tmp_path: pathlib.Path) -> None:
    stand_in = STAND_INS.get(command)
    if stand_in is not None:
        run(stand_in.split(), ROOT)
        return
    words = command.split()
    if words[0] == "mpiexec":
        run([mpiexec(), *(sys.executable if word == "python" else word for word in words[1:])], ROOT)
        return
    if words[0] == "torchrun":
        (tmp_path / "train.py").write_text(TRAIN)
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        run([sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]], tmp_path)
        return
    assert words[0] in ("python", "commpress"), f"say in STAND_INS how to check {command!r}"
    program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "commpress"]
    if words[:2] == ["commpress", "experiment"] and words[2] in RUN_IN and "--quick" in words:
        assert f'"experiment", "{words[2]}", "--quick"' in (ROOT / "tests" / RUN_IN[words[2]]).read_text()
        words.append("--help")
    if "run.jsonl" in words:
        (tmp_path / "run.jsonl").write_text("\n".join(json.dumps(record) for record in run_records(steps=40)) + "\n")
    if words[:2] == ["commpress", "cluster"] or words[:3] == ["commpress", "experiment", "bandwidth"]:
        prepare_cluster(tmp_path)
    if words[:2] == ["commpress", "bench"]:
        words.append("--quick")
    if words[:2] == ["commpress", "watch"]:
        words.append("--once")  # else it goes on watching
    run([*program, *words[1:]], tmp_path)


def test_ci_runs_what_readme_promises() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci
    assert "make demo" in ci


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def codec_table() -> list[tuple[str, str, str]]:
    """(spec, what the table says under `unbiased`, under `noise`) for each spec in README's table."""
    rows = re.findall(r"^\| (`.*?) \| .*? \| ([^|]*) \| ([^|]*) \|$", README, flags=re.MULTILINE)
    return [(spec, unbiased, noise) for specs, unbiased, noise in rows for spec in re.findall(r"`([^`]+)`", specs)]


@pytest.mark.parametrize(("spec", "unbiased", "noise"), codec_table())
def test_codec_table(spec: str, unbiased: str, noise: str) -> None:
    example = {"b": "3", "f": "0.1", "t": "2"}
    codec = commpress.codec(re.sub(":([bft])$", lambda match: f":{example[match[1]]}", spec))
    assert unbiased.split()[0] in ("yes", "no")
    assert codec.unbiased == unbiased.startswith("yes")
    assert codec.lossless == ("lossless" in unbiased)
    assert codec.noise == noise_of(spec, noise)


def noise_of(spec: str, said: str) -> str:
    """What a row says about one of its specs, at three bits: `K`, `K from N bits on, else L`, or ``name` K, ... L``."""
    clauses = [clause.strip() for clause in said.split(",")]
    if len(clauses) > 1 and " from " in clauses[0]:
        return clauses[1].removeprefix("else ")
    named = {name: clause.split()[-1] for clause in clauses for name in re.findall("`([^`]+)`", clause)}
    return named.get(spec.split(":")[0], clauses[-1].split()[-1])


def test_codec_table_is_complete() -> None:
    assert {spec.split(":")[0] for spec, _, _ in codec_table()} == set(_PARSERS)


@pytest.mark.parametrize(("spec", "shown"), [("uniform:4", "4.031"), ("hadamard+lloyd:2", "2.008")])
def test_bytes_that_readme_counts(spec: str, shown: str) -> None:
    assert f"({shown}" in README
    numel = 1 << 20
    assert f"{8 * commpress.codec(spec).payload_nbytes(numel) / numel:.3f}" == shown
