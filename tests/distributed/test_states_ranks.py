"""The main job with optimizer states in few bits: replicas stay equal, restarts are bitwise, and bad settings are errors of one line."""

import pytest
import torch

from commpress.errors import SpecError, StateError
from commpress.experiments import QUICK, MainJob, RunWriter, Settings, launch, process_group


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_replicas_agree(tmp_path, optimizer):
    """A run ends by comparing the ranks' parameters."""
    arguments = ["--quick", "--codec", "hadamard+lloyd:2", "--optimizer", optimizer]
    found = {}
    for states in ("float:e8m3", None) if optimizer == "adamw" else ("float:e8m3",):
        more = ["--states", states] if states else []
        seen = []
        run = launch(
            [*arguments, *more],
            ranks=2,
            records=tmp_path / f"{states}.jsonl",
            log=tmp_path / "log",
            on_record=seen.append,
        )
        found[states] = run.summary
        assert run.head["settings"]["optimizer"] == optimizer and run.head["settings"]["states"] == states
    if optimizer == "muon":
        return
    packed, plain = found.values()
    assert packed["parameters_sha256"] != plain["parameters_sha256"]  # something was lost
    assert packed["optimizer_state_bytes"] < 0.4 * plain["optimizer_state_bytes"]
    assert packed["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=0.05)


@pytest.mark.parametrize(("optimizer", "codec"), [("adamw", "fp32"), ("muon", "uniform:4")])
def test_restart(tmp_path, optimizer, codec):
    settings = Settings(codec=codec, optimizer=optimizer, states="float:e8m4", seed=2, **QUICK)
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with process_group():
            for stop in (None, 5, None):
                job = MainJob(settings, writer=RunWriter(None))
                if stop is None and found:
                    job.load(tmp_path)
                    assert job.steps_done == 5
                found.append(job.run(save=tmp_path if stop else None, stop_after=stop)["parameters_sha256"])
                job.close()
            other = Settings(codec=codec, optimizer=optimizer, states="float:e8m5", seed=2, **QUICK)
            job = MainJob(other, writer=RunWriter(None))
            with pytest.raises(StateError, match="settings"):
                job.load(tmp_path)
            job.close()
    finally:
        torch.set_num_threads(threads)
    assert found[2] == found[0] != found[1]


def test_refused():
    for wrong in (
        {"optimizer": "lion"},
        {"states": "nonsense"},
        {"codec": "1bit-adam", "states": "float:e8m7"},
        {"codec": "1bit-adam", "optimizer": "muon"},
    ):
        with pytest.raises(SpecError):
            Settings(**wrong)
    with process_group(), pytest.raises(SpecError, match="exp_avg_sq"):
        MainJob(Settings(codec="fp32", states="int8", **QUICK), writer=RunWriter(None))
