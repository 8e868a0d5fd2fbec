"""The main job on real ranks: it learns, counts, repeats itself to the bit, restarts, and fails readably."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import torch
from _demo import CODEC, ROOT, TIMEOUT, demo, finish, records
from _launch import launch

# -- the demo as a user runs it


def test_ctrl_c_keeps_what_is_finished_and_ends_everything(tmp_path: pathlib.Path) -> None:
    # The second run is stopped as soon as it is under way.
    process = demo(tmp_path / "out", "--codecs", "fp32,fp16", "--steps", "60")
    second = tmp_path / "out" / "fp16.jsonl"
    began = time.monotonic()
    while not second.exists() and process.poll() is None and time.monotonic() - began < TIMEOUT:
        time.sleep(0.02)
    assert process.poll() is None, "the second run was not seen under way"
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130, f"{out}\n{err}"
    assert "interrupted during fp16" in err and "Traceback" not in err
    assert "fp32 all-reduce" in out and "fp16" not in out
    assert records(tmp_path / "out" / "fp32.jsonl")[-1]["kind"] == "summary"
    assert processes_with(second) == [], "ranks are still running"


def test_a_terminated_experiment_ends_its_ranks(tmp_path: pathlib.Path) -> None:
    first = tmp_path / "out" / "fp32.jsonl"
    options = ["--quick", "--parts", "loss", "--ways", "fp32", "--steps", "400", "--job-ranks", "2"]
    command = [sys.executable, "-m", "commpress", "experiment", "bandwidth", *options, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, env=dict(os.environ, PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    began = time.monotonic()
    while not first.exists() and process.poll() is None and time.monotonic() - began < TIMEOUT:
        time.sleep(0.02)
    assert process.poll() is None and processes_with(first), "the run was not seen under way"
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 130 and "terminated" in err and "Traceback" not in err, f"{out}\n{err}"
    assert processes_with(first) == [], "ranks are still running"


def processes_with(argument: pathlib.Path) -> list[pathlib.Path]:
    """Those whose command line has it."""
    return [path for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if str(argument).encode() in _read(path)]


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_run_that_fails_is_named(tmp_path: pathlib.Path) -> None:
    # Rank 0 cannot write where a folder is in the way.
    (tmp_path / "out" / "hadamard+lloyd_2.telemetry.jsonl").mkdir(parents=True)
    status, out, err = finish(demo(tmp_path / "out", "--codecs", CODEC, "--steps", "3"))
    assert status == 1, f"{out}\n{err}"
    assert f"the run with {CODEC} failed" in err and "telemetry.jsonl" in err and "rank 0" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "table.txt").exists()


# -- ranks of one process each, without torchrun


def quick(**changes: Any) -> Any:
    from commpress.experiments import QUICK, Settings

    return Settings(**{**QUICK, "codec": CODEC, "probes": 2, **changes})


def run_job(settings: Any, **options: Any) -> dict[str, Any]:
    """One run, or with `load` the rest of one; its summary."""
    from commpress.experiments import MainJob, RunWriter

    load = options.pop("load", None)
    job = MainJob(settings, writer=RunWriter(None))
    try:
        if load is not None:
            job.load(load)
        return {**job.run(**options), "steps_done": job.steps_done}
    finally:
        job.close()


def repeat_and_restart(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    from commpress.errors import StateError

    torch.manual_seed(100 + rank)  # what the user's generators hold must not matter
    whole = run_job(quick())
    again = run_job(quick())
    other = run_job(quick(seed=1))
    saved = pathlib.Path(folder)
    half = run_job(quick(), save=saved, stop_after=7)
    rest = run_job(quick(), load=saved)
    try:
        run_job(quick(codec="hadamard+lloyd:3"), load=saved)
        refused = ""
    except StateError as error:
        refused = str(error)
    keep = ("parameters_sha256", "held_out_loss", "nmse", "steps_done")
    runs = {"whole": whole, "again": again, "other": other, "half": half, "rest": rest}
    return {"refused": refused, **{name: {k: run[k] for k in keep} for name, run in runs.items()}}


def test_same_seed_same_bits_and_a_restart_changes_none(tmp_path: pathlib.Path) -> None:
    results = launch(__file__, "repeat_and_restart", 2, args={"folder": str(tmp_path / "saved")}, timeout=TIMEOUT)
    first, second = (result.ok().value for result in results)
    refused = first.pop("refused"), second.pop("refused")
    assert first == second, "ranks report different results"
    digest = {name: first[name]["parameters_sha256"] for name in ("whole", "again", "other", "half", "rest")}
    assert digest["whole"] == digest["again"] == digest["rest"]
    assert len({digest["whole"], digest["other"], digest["half"]}) == 3
    assert first["whole"] == first["again"]
    assert (first["half"]["steps_done"], first["rest"]["steps_done"]) == (7, 12)
    assert first["rest"]["held_out_loss"] == first["whole"]["held_out_loss"]
    assert all("settings" in message for message in refused), refused


CHANGES: tuple[dict[str, Any], ...] = ({"codec": "uniform:3"}, {"codec": "fp32"}, {"seed": 5}, {"steps": 13})


def faults(rank: int, world_size: int) -> dict[str, Any]:
    from commpress.errors import MismatchError
    from commpress.experiments import MainJob, RunWriter

    found: dict[str, Any] = {"settings": [], "parameters": []}
    for change in CHANGES:
        try:
            run_job(dataclasses.replace(quick(), **(change if rank == 1 else {})))
            found["settings"].append("no error")
        except MismatchError as error:
            found["settings"].append(str(error))
    for different in (False, True):
        job = MainJob(quick(codec="fp32", steps=1), writer=RunWriter(None))
        if different and rank == 1:
            with torch.no_grad():
                next(job.model.parameters())[0, 0] += 1e-3
        try:
            found["parameters"].append(str(job.run()["parameters_sha256"]))
        except MismatchError as error:
            found["parameters"].append(str(error))
    return found


def test_ranks_that_differ_all_say_so() -> None:
    results = [result.ok().value for result in launch(__file__, "faults", 2, timeout=TIMEOUT)]
    for found in results:
        for change, message in zip(CHANGES, found["settings"], strict=True):
            assert "different settings" in message and f"{next(iter(change.values()))}" in message, (change, message)
        equal, different = found["parameters"]
        assert len(equal) == 64, equal
        assert "parameters differ" in different, different
    assert results[0] == results[1]
