"""The demo compares, and the bytes that it claims are those of its network interface. Alone on the machine: a slow job's rendezvous sends more beside the gradients."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys

from _demo import CODEC, TIMEOUT, demo, finish, records


def own_network() -> list[str]:
    """Command prefix that gives a job its own loopback interface, where nobody else is counted; [] if not allowed."""
    prefix = ["unshare", "--net", sys.executable, str(pathlib.Path(__file__).resolve())]
    if shutil.which("unshare") is None:
        return []
    return prefix if subprocess.run([*prefix, "true"], capture_output=True, timeout=TIMEOUT).returncode == 0 else []


def test_the_demo_compares_counts_and_leaves_its_results(tmp_path: pathlib.Path) -> None:
    prefix = own_network()
    status, out, err = finish(demo(tmp_path / "out", "--bits", "2", prefix=prefix))
    assert status == 0, f"{out}\n{err}"
    assert "run 2/2" in err and "12/12" in err, "no progress"
    assert (tmp_path / "out" / "table.txt").read_text() in out
    assert ("loss.png" in out) == (tmp_path / "out" / "loss.png").exists()
    found = {}
    for codec, name in (("fp32", "fp32.jsonl"), (CODEC, "hadamard+lloyd_2.jsonl")):
        lines = records(tmp_path / "out" / name)
        assert lines[0]["kind"] == "run" and lines[0]["codec"] == codec and lines[0]["world_size"] == 2
        assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 13))
        curve = [line["held_out_loss_sample"] for line in lines if line["kind"] == "evaluation"]
        assert len(curve) == 5 and curve[-1] < curve[0] - 0.5, "it did not learn"
        found[codec] = lines[-1]
        assert found[codec]["kind"] == "summary" and found[codec]["held_out_loss"] < 5.0
    assert found["fp32"]["nmse"] < 1e-12
    # Two messages with 0.13 each leave half of it where the ranks' gradients agree, all where they are noise, and less with noise shaping; four bits would leave 0.005.
    assert 0.03 < found[CODEC]["nmse"] < 0.2
    ratio = {
        codec: f["interface_bytes_per_step_per_rank"] / f["claimed_bytes_per_step_per_rank"]
        for codec, f in found.items()
    }
    assert all(r > 0.97 for r in ratio.values()), ratio
    if prefix:
        assert all(r < 1.04 for r in ratio.values()), ratio
    else:
        print("without a network namespace of its own the job shares `lo`: no upper limit on bytes was checked")
    less = found["fp32"]["claimed_bytes_per_step_per_rank"] / found[CODEC]["payload_bytes_per_step"]
    assert 15.5 < less < 16
    telemetry = records(tmp_path / "out" / "hadamard+lloyd_2.telemetry.jsonl")
    steps = [line for line in telemetry if line["kind"] == "step"]
    assert len(steps) == 12 and all(line["compressed_numel"] > 0 for line in steps)
    assert [line["step"] for line in telemetry if line["kind"] == "agreement"] == [0]


def in_own_network(command: list[str]) -> None:
    """Switches the new namespace's loopback interface on (SIOCSIFFLAGS: up, running) and becomes the command."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        import fcntl

        fcntl.ioctl(control.fileno(), 0x8914, struct.pack("<16sh14x", b"lo", 0x1 | 0x40))
    os.execvp(command[0], command)


if __name__ == "__main__":
    in_own_network(sys.argv[1:])
