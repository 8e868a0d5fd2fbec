"""The main job's parts on one process: text, model, counters, records, table, picture."""

from __future__ import annotations

import json
import math
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from commpress.collectives import Sent, mss_of, mtu_of, read_counters
from commpress.errors import SpecError, StateError
from commpress.experiments import (
    ByteGPT,
    CorpusError,
    PlotError,
    RecordError,
    Run,
    RunWriter,
    Settings,
    Shape,
    TrafficMeter,
    _checkpoint,
    _traffic,
    file_name,
    plot,
    read_run,
    standard_library,
    table,
)
from commpress.experiments._claims import ClaimedBytes, framed_bytes
from commpress.experiments._job import learning_rate_factor
from commpress.experiments._model import loss_of
from commpress.experiments._records import Follower
from commpress.experiments._text import is_held_out
from commpress.experiments._ways import way


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# -- text


def a_library(folder: pathlib.Path, files: int = 80, size: int = 20_000) -> dict[str, bytes]:
    """Files whose text says which file it is, some of them where nobody should look."""
    made = {}
    for i in range(files):
        for name in (f"m{i:03}.py", f"test/t{i:03}.py", f"site-packages/s{i:03}.py", f"n{i:03}.txt"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            made[name] = (f"# {name} line\n".encode() * size)[:size]
            path.write_bytes(made[name])
    return made


def test_held_out_files_are_whole_and_never_trained_on(tmp_path: pathlib.Path) -> None:
    files = a_library(tmp_path)
    corpus = standard_library(tmp_path)
    train, held_out = (bytes(part.numpy()) for part in (corpus.train, corpus.held_out))
    wanted = [name for name in sorted(files) if name.startswith("m")]
    assert corpus.train_files + corpus.held_out_files == len(wanted)
    assert corpus.held_out_files == sum(map(is_held_out, wanted)) > 0
    for name in files:
        places = (files[name] in train, files[name] in held_out)
        assert places == ((not is_held_out(name), is_held_out(name)) if name in wanted else (False, False)), name
    assert train == b"\n".join(files[name] for name in wanted if not is_held_out(name)), "not in the order of names"


def test_the_digest_follows_the_text(tmp_path: pathlib.Path) -> None:
    a_library(tmp_path)
    before = standard_library(tmp_path).digest
    assert standard_library(tmp_path).digest == before
    (tmp_path / "m000.py").write_text("x = 1\n")
    assert standard_library(tmp_path).digest != before


def test_too_little_text_is_an_error_that_says_where(tmp_path: pathlib.Path) -> None:
    a_library(tmp_path, files=3)
    with pytest.raises(CorpusError, match=str(tmp_path)):
        standard_library(tmp_path)
    with pytest.raises(CorpusError):
        standard_library(tmp_path / "nothing")


def test_this_interpreters_library_is_enough() -> None:
    corpus = standard_library()
    assert len(corpus.train) > 4_000_000 and len(corpus.held_out) > 200_000
    assert 2.0 < corpus.unigram_loss() < math.log(256)


def test_batches_follow_seed_and_step_alone(tmp_path: pathlib.Path) -> None:
    a_library(tmp_path)
    corpus = standard_library(tmp_path)
    batch = corpus.batch(6, 32, seed=1, step=2)
    assert batch.shape == (6, 33) and batch.dtype == torch.int64
    torch.manual_seed(123)
    assert torch.equal(batch, corpus.batch(6, 32, seed=1, step=2))
    assert not torch.equal(batch, corpus.batch(6, 32, seed=1, step=3))
    assert not torch.equal(batch, corpus.batch(6, 32, seed=2, step=2))
    train = bytes(corpus.train.numpy())
    assert all(bytes(window.to(torch.uint8).numpy()) in train for window in batch)
    state = torch.get_rng_state()
    corpus.batch(6, 32, seed=1, step=4)
    assert torch.equal(state, torch.get_rng_state()), "it moved the user's random stream"


def test_held_out_windows_are_spread_over_everything(tmp_path: pathlib.Path) -> None:
    a_library(tmp_path)
    corpus = standard_library(tmp_path)
    windows = corpus.held_out_windows(50, 32)
    assert windows.shape == (50, 33)
    assert torch.equal(windows[0], corpus.held_out[:33].long())
    assert torch.equal(windows[-1], corpus.held_out[-33:].long())
    assert len(corpus.held_out_windows(10**9, 32)) == (len(corpus.held_out) - 1) // 32


# -- model


def test_the_default_model_has_a_few_million_parameters_and_begins_knowing_nothing() -> None:
    torch.manual_seed(0)
    model = ByteGPT(Shape())
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 4e6
    assert not list(model.buffers()), "DDP would send them"
    loss = loss_of(model, torch.randint(0, 256, (4, 65)))
    assert loss.item() == pytest.approx(math.log(256), rel=0.03)


def test_the_model_does_not_see_the_future_but_does_see_the_past() -> None:
    torch.manual_seed(0)
    model = ByteGPT(Shape(width=32, layers=2, heads=2, context=16))
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    difference = (model(tokens) - model(changed)).detach().abs().amax(dim=(0, 2))
    assert torch.all(difference[:9] == 0)
    assert torch.all(difference[9:] > 0)


def test_the_model_knows_the_order_of_what_it_sees() -> None:
    torch.manual_seed(0)
    model = ByteGPT(Shape(width=32, layers=2, heads=2, context=16))
    tokens = torch.arange(16)[None]
    swapped = tokens[:, [1, 0, *range(2, 16)]]
    assert (model(tokens)[0, -1] - model(swapped)[0, -1]).abs().max() > 1e-6


def test_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 and factors.index(1.0) in (9, 10)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.05, abs=0.01)
    assert [learning_rate_factor(0, 1)] == [1.0]


def test_settings_refuse_nonsense() -> None:
    for wrong in ({"steps": 0}, {"seed": -1}, {"windows_per_rank": 0}, {"curve_points": 0}):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            Settings(**wrong)


# -- what the interface counted


def fake_counters(path: pathlib.Path, **values: int) -> None:
    lines = [
        f"{name:>6}: {111 + i} 2 3 4 5 6 7 8 {value} {value // 1000} 11 12 13 14 15 16"
        for i, (name, value) in enumerate(values.items())
    ]
    path.write_text("\n".join(["Inter-|   Receive | Transmit", " face |bytes    packets |bytes", *lines]) + "\n")


@pytest.mark.usefixtures("one_rank")
def test_the_meter_counts_its_windows_alone_and_takes_the_busiest(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_traffic, "read_counters", lambda: read_counters(tmp_path / "dev"))
    meter, watching = TrafficMeter(), TrafficMeter("eth0")
    for before, after in ((100, 1100), (50_000, 50_500)):
        fake_counters(tmp_path / "dev", lo=before, eth0=7)
        meter.start(), watching.start()
        fake_counters(tmp_path / "dev", lo=after, eth0=17)
        meter.stop(), watching.stop()
    assert (meter.total().interface, meter.total().nbytes, meter.total().ranks) == ("lo", 1500, 1)
    assert (watching.total().interface, watching.total().nbytes) == ("eth0", 20)


def test_traffic_of_ranks_that_share_an_interface_is_divided() -> None:
    assert _traffic.Traffic("lo", 3000, 2, 4).per_rank == 750


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts bytes by interface in /proc")
def test_the_kernel_counts_what_a_socket_sends() -> None:
    size = 1 << 20
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            before = read_counters()["lo"].nbytes
            received = 0
            for _ in range(size // 4096):
                client.sendall(b"x" * 4096)
                received += len(peer.recv(4096, socket.MSG_WAITALL))
    assert received == size
    assert read_counters()["lo"].nbytes - before >= size


# -- what is claimed


def test_claims_add_up_over_steps(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"of": "an earlier run"}\n')
    claims = ClaimedBytes(path)
    assert claims.per_step("header_bytes") == 0
    for wire in (100, 300):
        claims.emit({"kind": "step", "payload_bytes": 10, "header_bytes": wire, "messages": 3})
    claims.emit({"kind": "note"})
    claims.close()
    assert (claims.per_step("header_bytes"), claims.per_step("payload_bytes")) == (200, 10)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["step", "step", "note"]
    shapes = [torch.Size([10, 90]), torch.Size([100])]
    assert way("fp32").textbook_bytes(shapes, 4) == 6000 and way("fp16").textbook_bytes(shapes, 2) == 2000


def test_framing_follows_the_packet_size() -> None:
    small, large = framed_bytes(600_000, 4, 1448), framed_bytes(600_000, 4, 65484)
    assert 1.04 * 600_000 < small < 1.08 * 600_000
    assert 600_000 < large < 1.01 * 600_000
    assert framed_bytes(0, 0, 1448) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the packet size")
def test_the_packet_size_of_an_interface() -> None:
    assert mtu_of("lo") > 1500
    assert mtu_of("no-such-if") == 1500


def test_the_frame_size_follows_from_bytes_and_packets() -> None:
    assert mss_of(Sent(10_000 * 1514, 10_000), 1500) == 1448  # every packet is a frame
    assert mss_of(Sent(10_000 * 1514 + 20_000 * 114, 30_000), 1500, notices=20_000) == 1448
    assert mss_of(Sent(15_000_000, 1000), 1500) == 15_000 - 66  # cut behind the counter
    assert mss_of(Sent(15_000_000, 100), 1500) == 65160
    assert mss_of(Sent(15_000_000, 400), 65536) == 65484  # loopback
    assert mss_of(Sent(0, 0), 9000) == 8948


# -- checkpoints


def test_a_checkpoint_is_of_its_settings_rank_and_world(tmp_path: pathlib.Path) -> None:
    model = torch.nn.Linear(3, 2)
    _checkpoint.save(tmp_path, 0, 2, Settings(steps=9), 5, {"model": model})
    other = torch.nn.Linear(3, 2)
    assert _checkpoint.load(tmp_path, 0, 2, Settings(steps=9), {"model": other}) == 5
    assert torch.equal(model.weight, other.weight)
    for rank, world, settings, parts, names in (
        (1, 2, Settings(steps=9), {"model": other}, "rank1"),
        (0, 3, Settings(steps=9), {"model": other}, "world_size"),
        (0, 2, Settings(steps=8), {"model": other}, "settings"),
        (0, 2, Settings(steps=9), {}, "model"),
    ):
        with pytest.raises(StateError, match=names):
            _checkpoint.load(tmp_path, rank, world, settings, parts)
    (tmp_path / "rank0.pt").write_bytes(b"torn")
    with pytest.raises(StateError, match="cannot read"):
        _checkpoint.load(tmp_path, 0, 2, Settings(steps=9), {"model": other})


# -- records


def test_a_follower_gives_whole_records_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    follower = Follower(path)
    assert follower.new() == []
    path.write_text('{"kind": "a"}\n{"ki')
    assert follower.new() == [{"kind": "a"}]
    with open(path, "a") as file:
        file.write('nd": "b"}\n')
    assert follower.new() == [{"kind": "b"}]
    assert follower.new() == []


def test_an_unfinished_run_is_no_run(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    writer = RunWriter(path)
    writer.write("run", codec="fp32")
    with pytest.raises(RecordError, match="finished"):
        read_run(path)
    writer.write("summary", step=3, held_out_loss=2.0)
    assert read_run(path).summary["held_out_loss"] == 2.0
    writer.close()
    path.write_text("no JSON\n")
    with pytest.raises(RecordError):
        read_run(path)
    with pytest.raises(RecordError):
        read_run(tmp_path / "nothing")


def test_file_names_are_different_and_plain() -> None:
    specs = ["fp32", "hadamard+lloyd:2", "hadamard+lloyd:2,scale=centroid", "uniform:2.5", "../x"]
    names = [file_name(spec) for spec in specs]
    assert len(set(names)) == len(specs)
    assert all("/" not in name and ":" not in name for name in names)


# -- table and picture


def a_run(codec: str, *, loss: float, sent: float, claimed: float, nmse: float, interface: str = "lo") -> Run:
    evaluations = [
        {
            "step": step,
            "held_out_loss_sample": 5.5 - step * (5.5 - loss) / 40,
            "train_seconds": step * 0.1,
            "interface_bytes_per_rank": step * sent,
        }
        for step in (0, 10, 20, 30, 40)
    ]
    head: dict[str, Any] = {"codec": codec, "world_size": 2, "parameters": 2_500_000}
    head |= {"settings": {"steps": 40, "seed": 7}, "text": {"held_out_files": 48}}
    summary = {
        "held_out_loss": loss,
        "held_out_bytes": 65536,
        "unigram_loss": 3.16,
        "interface": interface,
        "ranks_on_interface": 2,
        "interface_bytes_per_step_per_rank": sent,
        "claimed_bytes_per_step_per_rank": claimed,
        "step_seconds": 0.125,
        "nmse": nmse,
    }
    return Run(codec, head, [], evaluations, summary)


RUNS = [
    a_run("fp32", loss=2.0, sent=10_100_000, claimed=10_000_000, nmse=1e-15),
    a_run("hadamard+lloyd:2", loss=2.01, sent=631_250, claimed=625_000, nmse=0.2004),
]


def test_the_table_says_how_the_runs_compare() -> None:
    text = table(RUNS)
    _, _, base, two_bits, *_ = text.splitlines()
    assert base.split()[:1] == ["fp32"] and "2.0000" in base and "10,100,000" in base and base.endswith("0")
    for cell in ("2.0100", "+0.50%", "631,250", "625,000", "+1.0%", "16.0x", "125 ms", "0.200"):
        assert cell in two_bits.split() or cell in two_bits, cell
    assert "'lo'" in text and "divided by 2" in text and "3.16" in text


def test_the_table_needs_no_fp32_and_no_counters() -> None:
    text = table([a_run("uniform:4", loss=2.0, sent=0, claimed=10, nmse=0.1, interface="")])
    assert "unknown" in text.splitlines()[2] and "does not count" in text
    assert "no run" in table([])


def test_the_picture_has_both_runs(tmp_path: pathlib.Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="the picture needs matplotlib")
    sizes = []
    for runs in (RUNS[:1], RUNS):
        plot(runs, tmp_path / "loss.png")
        pixels = image.imread(tmp_path / "loss.png")
        height, width = pixels.shape[:2]
        assert width >= 1200 and height >= 500
        colour = pixels[..., :3].max(axis=2) - pixels[..., :3].min(axis=2) > 0.3  # fp32 is black
        sizes.append((colour[:, : width // 2].sum(), colour[:, width // 2 :].sum()))
    assert all(s == 0 for s in sizes[0]) and all(s > 1000 for s in sizes[1]), "the second run is not in both panels"


def test_without_matplotlib_the_error_says_how_to_get_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match="pip install"):
        plot(RUNS, tmp_path / "loss.png")
