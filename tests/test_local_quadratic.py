"""The local-SGD experiment: linear speed-up with its controls, the recursions, the command, the example."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from commpress.cli import main
from commpress.experiments._local_quadratic import outer_momentum, predicted_product, speed_up, vnmse
from commpress.experiments._local_runs import CODEC, FLAT, spread

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = {"d": 4096, "steps": 128}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def points():
    return [speed_up(workers, CODEC, **SIZE) for workers in (1, 2, 4, 8)]


def test_linear_speed_up(points):
    assert [p.workers for p in points] == [1, 2, 4, 8]
    assert spread(points) < FLAT
    for p in points:
        # A coordinate's squared error is one sample of a chi-squared variable: 4096 of them.
        assert abs(p.product / p.predicted - 1) < 5 * (2 / 4096) ** 0.5
    assert points[0].payload_bytes == 0
    for p in points[1:]:
        assert 0.0155 < p.share < 0.0165  # four of 32 bits, every eighth step


def test_controls_are_not_flat(points):
    alone = [speed_up(workers, CODEC, mode="alone", **SIZE) for workers in (1, 8)]
    assert alone[1].product / alone[0].product - 1 > 10 * FLAT
    value = speed_up(8, CODEC, mode="value", **SIZE)
    assert value.payload_bytes > 0
    assert value.product / points[0].product - 1 > 2 * FLAT
    assert max(value.product, points[3].product) == value.product


@pytest.mark.parametrize(
    ("codec", "every", "parts"), [("none", 16, 1), ("hadamard+lloyd:2", 8, 1), (CODEC, 1, 1), (CODEC, 4, 4)]
)
def test_prediction(codec, every, parts):
    p = speed_up(4, codec, every=every, parts=parts, seed=3, **SIZE)
    assert abs(p.product / p.predicted - 1) < 0.12
    if codec == "none":
        assert abs(p.predicted - 1) < 1e-9
    else:
        assert p.payload_bytes > 0
        assert p.share < 0.13 / every / parts * 1.6


def test_recursion_by_hand():
    """One round of one step from the start: x = x* - noise, so e = V / M and the code adds omega of what is encoded."""
    w = vnmse("hadamard+lloyd:4")
    one, mean = 2.0, 1 + 1 / 4
    first = w * 3 / 16 * one
    expected = 4 * (1 / 4 + first + w * (mean + first))
    assert abs(predicted_product(4, "hadamard+lloyd:4", steps=1, every=1) - expected) < 1e-9
    assert predicted_product(4, "topk:0.1", steps=8, every=2) is None


def test_outer_momentum_follows_its_recursion():
    plain = outer_momentum("none", momentum=0.0, rate=1.0, rounds=30)
    nesterov = outer_momentum("none", momentum=0.9, rate=0.7, rounds=30)
    for run in (plain, nesterov):
        for measured, predicted in zip(run.losses, run.predicted, strict=True):
            assert abs(measured / predicted - 1) < 1e-3
    assert nesterov.losses[-1] < 0.6 * plain.losses[-1]
    lossy = outer_momentum(CODEC, momentum=0.9, rate=0.7, rounds=12)
    assert lossy.losses != nesterov.losses[:12]
    assert abs(lossy.losses[-1] / lossy.predicted[-1] - 1) < 0.1


def test_command(tmp_path, capsys):
    assert main(["experiment", "local-sgd", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Linear speed-up" in shown and "Outer momentum" in shown and "The main job" in shown
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"speed-up", "outer-momentum", "training"}
    fp32, local = (r for r in records if r["kind"] == "training")
    assert 0.005 < local["share_of_fp32"] < 0.1
    assert local["held_out_loss"] > 0
    assert fp32["share_of_fp32"] == 1
    assert (tmp_path / "local-sgd.png").stat().st_size > 10_000


@pytest.mark.parametrize("arguments", [[], ["--outer"]])
def test_example(arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, "examples/local_sgd.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal on all ranks: True" in done.stdout
    assert "25 rounds" in done.stdout
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0] / 2
