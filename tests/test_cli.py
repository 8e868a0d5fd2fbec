"""The command line: usage, errors, frames in files, the progress bar. Runs under torchrun are in tests/distributed."""

from __future__ import annotations

import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from commpress._version import __version__
from commpress.cli import main
from commpress.cli._demo import codecs_of
from commpress.cli._main import parser
from commpress.cli._progress import ProgressBar
from commpress.errors import SpecError

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = (
    "demo",
    "train",
    "experiment",
    "bounds",
    "bench",
    "report",
    "watch",
    "cluster",
    "run",
    "doctor",
    "plan",
    "pack",
    "unpack",
    "info",
)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a failing command leaves on standard error."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"commpress {arguments[0]}: "), (out, err)
    return err


# -- usage


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "commpress", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"commpress {__version__}\n"), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    examples = re.findall(rf"commpress ({command}\b[^\n]*)", text.split("example", 1)[1])
    assert examples
    for example in examples:
        parser().parse_args(re.split(r"  +", example)[0].split())


@pytest.mark.parametrize(
    "wrong", [[], ["nonsense"], ["demo", "--steps", "many"], ["demo", "--bits", "2", "--codecs", "x"]]
)
def test_wrong_usage_is_status_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(wrong)
    assert stopped.value.code == 2
    assert "usage: commpress" in capsys.readouterr().err


# -- what the demo is asked to run


@pytest.mark.parametrize(
    ("arguments", "codecs"),
    [
        ([], ["fp32", "hadamard+lloyd:4", "hadamard+lloyd:2", "hadamard+lloyd:1"]),
        (["--bits", "3, 0.5"], ["fp32", "hadamard+lloyd:3", "hadamard+lloyd:0.5"]),
        (["--codecs", "uniform:4,fp16"], ["uniform:4", "fp16"]),
        (["--codecs", "hadamard+lloyd:2,scale=centroid;fp32"], ["hadamard+lloyd:2,scale=centroid", "fp32"]),
    ],
)
def test_the_demos_runs(arguments: list[str], codecs: list[str]) -> None:
    assert codecs_of(parser().parse_args(["demo", *arguments])) == codecs


@pytest.mark.parametrize("codecs", ["", ",", "fp32,fp32"])
def test_the_demo_needs_different_runs(codecs: str) -> None:
    with pytest.raises(SpecError):
        codecs_of(parser().parse_args(["demo", "--codecs", codecs]))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--codecs", "fp32,hadamard+loyd:2"], "SpecError"),
        (["--bits", "9"], "SpecError"),
        (["--ranks", "0"], "--ranks"),
        (["--steps", "0"], "steps"),
        (["--text", "/nonexistent"], "/nonexistent"),
    ],
)
def test_the_demo_refuses_before_it_runs_anything(
    arguments: list[str], names: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in fails(capsys, "demo", "--quick", "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_train_needs_a_place_for_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--checkpoint" in fails(capsys, "train", "--resume")


# -- frames in files


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_lossless_frame_gives_the_tensor_back(
    suffix: str, dtype: torch.dtype, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(3, 1001).to(dtype)
    source, back = tmp_path / f"x{suffix}", tmp_path / f"back{suffix}"
    np.save(source, x.numpy()) if suffix == ".npy" else torch.save(x, source)
    assert main(["pack", str(source), "--codec", "none"]) == 0
    frame = tmp_path / f"x{suffix}.cmpr"
    assert f"{frame.stat().st_size:,} bytes" in capsys.readouterr().out
    assert main(["unpack", str(frame), "--out", str(back)]) == 0
    y = torch.from_numpy(np.load(back)) if suffix == ".npy" else torch.load(back, weights_only=True)
    assert y.dtype == dtype and torch.equal(x, y)


def test_a_lossy_frame_is_small_and_near(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(1 << 16)
    torch.save(x, tmp_path / "x.pt")
    assert main(["pack", str(tmp_path / "x.pt"), "--codec", "hadamard+lloyd:4", "--out", str(tmp_path / "f")]) == 0
    size = (tmp_path / "f").stat().st_size
    assert x.numel() * 4 / 8 < size < x.numel() * 4.1 / 8
    assert main(["unpack", str(tmp_path / "f")]) == 0
    y = torch.load(tmp_path / "f.pt", weights_only=True)
    nmse = ((y - x).square().sum() / x.square().sum()).item()
    assert 0.008 < nmse < 0.011
    capsys.readouterr()
    assert main(["info", str(tmp_path / "f")]) == 0
    text = capsys.readouterr().out
    for word in ("hadamard+lloyd:4", "65536", "float32"):
        assert word in text


def test_the_seed_is_part_of_the_frame(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 5000, dtype=np.float32))
    frames = []
    for i, seed in enumerate(("1", "1", "2")):
        out = tmp_path / f"frame{i}"
        assert main(["pack", str(tmp_path / "x.npy"), "--codec", "uniform:2", "--seed", seed, "--out", str(out)]) == 0
        frames.append(out.read_bytes())
    assert frames[0] == frames[1] != frames[2]


def test_bad_files_are_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npy").write_bytes(b"no array")
    (tmp_path / "x.pt").write_bytes(b"no tensor")
    (tmp_path / "f").write_bytes(b"no frame")
    torch.save({"a": torch.ones(2)}, tmp_path / "two.pt")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "good.npy", np.ones(5, np.float32))
    for arguments, kind in (
        (["pack", "x.npy"], "TensorError"),
        (["pack", "x.pt"], "TensorError"),
        (["pack", "two.pt"], "TensorError"),
        (["pack", "words.npy"], "TensorError"),
        (["pack", "x.txt"], "TensorError"),
        (["pack", "nothing.npy"], "FileNotFoundError"),
        (["pack", "good.npy", "--codec", "nonsense:2"], "SpecError"),
        (["pack", "good.npy", "--seed", "-1"], "SpecError"),
        (["unpack", "f"], "WireError"),
        (["info", "f"], "WireError"),
        (["info", "nothing"], "FileNotFoundError"),
    ):
        assert kind in fails(capsys, arguments[0], str(tmp_path / arguments[1]), *arguments[2:]), arguments
    assert not list(tmp_path.glob("*.cmpr"))


def test_a_corrupt_frame_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.ones(5000, np.float32))
    assert main(["pack", str(tmp_path / "x.npy"), "--out", str(tmp_path / "f")]) == 0
    capsys.readouterr()
    frame = bytearray((tmp_path / "f").read_bytes())
    frame[len(frame) // 2] ^= 1
    (tmp_path / "f").write_bytes(frame)
    assert "WireError" in fails(capsys, "unpack", str(tmp_path / "f"))
    assert not (tmp_path / "f.pt").exists()


# -- the progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    stream = Terminal()
    bar = ProgressBar(40, "run", stream)
    for done in range(1, 41):
        bar.update(done, "loss 2.00" + " and much more" * 9)
    bar.close()
    bar.close()
    assert stream.getvalue().count("\n") == 1
    frames = stream.getvalue().rstrip("\n").split("\r")[1:]
    assert frames and all(len(frame) == 69 for frame in frames)
    assert "[" + "#" * 24 + "] 40/40  loss 2.00" in frames[-1]


def test_elsewhere_there_are_few_whole_lines() -> None:
    stream = io.StringIO()
    bar = ProgressBar(1000, "run", stream)
    for done in range(1, 1001):
        bar.update(done, "loss 2.00")
    bar.close()
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 10 and lines[-1] == "run: 1000/1000  loss 2.00"
    assert "\r" not in stream.getvalue()
