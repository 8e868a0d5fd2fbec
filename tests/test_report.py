"""`commpress report`: the loader, the page, its pictures."""

from __future__ import annotations

import html.parser
import json
import math
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest
from _runs import gpt, run_records, write
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.cli import main
from commpress.cli._main import parser
from commpress.telemetry import (
    LogError,
    StepRecord,
    load_run,
    load_runs,
    number,
    write_report,
)
from commpress.telemetry._report_figures import _edges, _rows, _short

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Page(html.parser.HTMLParser):
    """Fails on tags that do not close in order; collects what could reach outside."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page_of(path: pathlib.Path) -> Page:
    """The parsed page, which must load nothing."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action"):
                assert tag == "img" and (value or "").startswith("data:image/png;base64,"), (tag, name, value)
    assert not re.search(r"https?:|@import|url\(", text)
    return page


# -- the loader


def test_both_kinds_of_records_in_one_file(tmp_path: pathlib.Path) -> None:
    run = load_run(write(tmp_path / "run.jsonl", run_records(steps=50)))
    assert len(run.steps) == 50 and len(run.losses) == 50 and len(run.information) == 3
    assert run.layer_names == [name for name, _, _ in gpt(4)]
    assert run.losses.steps.tolist() == list(range(50))  # k steps done is step k - 1
    assert [plan["step"] for plan in run.plans] == [0]
    steps, bits = run.bits.table()
    assert bits.shape == (len(run.layer_names), 50)
    np.testing.assert_allclose(bits[:, 0], list(run.plans[0]["bits"].values()), rtol=1e-6)
    assert run.nmse.table()[1].shape == (len(run.layer_names), 3)


def test_the_librarys_own_record_is_read(tmp_path: pathlib.Path) -> None:
    """Not a hand-made one: two buckets, filled from the model's end as DDP does."""
    record = StepRecord(step=0, rank=0, world_size=2, codec="uniform:2", requested_rate=2.0)
    counts = {"payload_bytes": 40, "header_bytes": 8, "wire_bytes": 60, "messages": 2, "compressed_numel": 160}
    record.add_bucket(0, [("c", 100), ("d", 60)], sent_numel=160, counts=counts, times={}, finite=True, nmse=[0.5, 0.1])
    counts |= {"payload_bytes": 20, "compressed_numel": 80}
    record.add_bucket(1, [("a", 50), ("b", 30)], sent_numel=80, counts=counts, times={}, finite=True, nmse=[0.25, 1.0])
    run = load_run(write(tmp_path / "run.jsonl", [record.as_dict(feedback="off", dropped=0)]))
    assert run.layer_names == ["a", "b", "c", "d"]
    assert run.bits.latest.tolist() == [2.0] * 4
    assert run.nmse.latest.tolist() == [0.25, 1.0, 0.5, pytest.approx(0.1)]
    assert run.steps["nmse"][0] == pytest.approx((50 * 0.25 + 30 + 50 + 6) / 240)
    assert run.head == {"codec": "uniform:2", "world_size": 2, "numel": 240}


def test_layers_with_shares_of_their_own_keep_them(tmp_path: pathlib.Path) -> None:
    layers = [{"name": "a", "numel": 800, "payload_bytes": 100}, {"name": "b", "numel": 800, "payload_bytes": 300}]
    record = {"kind": "step", "step": 0, "rank": 0, "payload_bytes": 400, "achieved_rate": 2.0, "layers": layers}
    assert load_run(write(tmp_path / "x", [record])).bits.latest.tolist() == [1.0, 3.0]


def test_a_resumed_run_counts_repeated_steps_once(tmp_path: pathlib.Path) -> None:
    first, second = run_records(steps=100, plan_every=30), run_records(steps=100, plan_every=30, seed=1)
    again = [r for r in second if r["step"] >= 60]
    run = load_run(write(tmp_path / "run.jsonl", first + again))
    assert run.steps.steps.tolist() == list(range(100))
    assert run.losses.steps.tolist() == list(range(100))
    assert run.information.steps.tolist() == [0, 20, 40, 60, 80]
    assert [plan["step"] for plan in run.plans] == [0, 30, 60, 90]
    by_step = {r["step"]: r for r in second if r["kind"] == "plan"}
    assert run.plans[2]["bits"]["head.weight"] == by_step[60]["layers"][-1]["bits"]


def test_a_new_run_in_the_same_file_replaces_the_old(tmp_path: pathlib.Path) -> None:
    run = load_run(write(tmp_path / "run.jsonl", run_records(steps=100) + run_records(steps=10)))
    assert len(run.steps) == len(run.losses) == 10 and len(run.information) == 1 and len(run.plans) == 1
    assert run.bits.table()[0].tolist() == list(range(10))


def test_other_ranks_and_kinds_are_ignored_and_counted(tmp_path: pathlib.Path) -> None:
    records = run_records(steps=3)
    other = [r | {"rank": 1} for r in records if r["kind"] == "step" and "rank" in r]
    run = load_run(write(tmp_path / "run.jsonl", records + other + [{"kind": "weather", "step": 3}, {"x": 1}]))
    assert len(run.steps) == 3 and run.ignored == 5


def test_broken_lines(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "run.jsonl", run_records(steps=3))
    path.write_bytes(path.read_bytes() + b'{"kind":"step","st')
    assert len(load_run(path).steps) == 3 and load_run(path).unreadable == 0
    path.write_bytes(b"\xff\xfe nonsense\n[1]\n\n" + path.read_bytes())
    run = load_run(path)
    assert len(run.steps) == 3 and run.unreadable == 2


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"PNG\x00\x01\n", b"[]\n", b'{"kind":"run","codec":"fp32"}\n', b'{"kind":']
)
def test_a_file_without_a_step_is_an_error(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(LogError, match=r"run\.jsonl"):
        load_run(path)
    with pytest.raises(LogError, match="no file"):
        load_run()
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "missing")


def test_losses_and_telemetry_in_two_files_are_one_run(tmp_path: pathlib.Path) -> None:
    records = run_records(steps=5)
    a = write(tmp_path / "a.jsonl", [r for r in records if "loss_rank0" in r])
    b = write(tmp_path / "a.telemetry.jsonl", [r for r in records if "loss_rank0" not in r])
    (tmp_path / "other").mkdir()
    c = write(tmp_path / "other" / "a.jsonl", records)
    (run,) = load_runs([b, a])
    assert run.name == "a.jsonl" and len(run.steps) == len(run.losses) == 5
    assert [run.name for run in load_runs([a, c])] == [str(a), str(c)]
    assert [run.name for run in load_runs([b])] == ["a.telemetry.jsonl"]
    with pytest.raises(LogError, match="twice"):
        load_runs([a, a])


def test_long_runs_are_thinned_out_evenly(tmp_path: pathlib.Path) -> None:
    layers = [{"name": "a", "numel": 8, "payload_bytes": 1, "nmse": 0.5}]
    with open(tmp_path / "x", "w") as file:
        for step in range(5000):
            file.write(json.dumps({"kind": "step", "step": step, "rank": 0, "layers": layers}) + "\n")
    run = load_run(tmp_path / "x")
    steps, _ = run.nmse.table()
    assert len(run.steps) == 5000 and 256 <= len(steps) <= 1024
    assert len(set(np.diff(steps))) == 1


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, 10**400, [1], {}])
def test_what_is_no_number(value: Any) -> None:
    assert number(value) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("rank", "payload_bytes", "achieved_rate", "wire_bytes", "layers", "information", "loss", "buckets", "codec")
LAYER = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("name", "numel", "payload_bytes", "nmse", "bits", "eta"), JSON)
)
VALUE = JSON | st.lists(LAYER, max_size=3) | st.fixed_dictionaries({"layers": st.lists(LAYER, max_size=2)})
RECORD = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "plan", "run", "evaluation"]), "step": st.integers(-2, 9) | JSON},
    optional=dict.fromkeys(FIELDS, VALUE),
)


@settings(max_examples=150, deadline=None)
@given(records=st.lists(RECORD, max_size=6))
def test_no_json_breaks_the_loader_or_the_text(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    from commpress.telemetry import _report_text as text

    path = write(tmp_path_factory.mktemp("fuzz") / "run.jsonl", records)
    try:
        run = load_run(path)
    except LogError:
        return
    Page("".join([*text.summary(run), text.layers(run), text.plans(run), text.phases(run), text.comparison([run])]))


# -- the page


def test_the_page_says_what_the_figures_are(tmp_path: pathlib.Path) -> None:
    run = load_run(write(tmp_path / "run.jsonl", run_records()))
    written = write_report([run], tmp_path / "deep" / "page.html")
    assert [path.name for path in written] == [
        "page.html",
        "page-information.png",
        "page-bits.png",
        "page-nmse.png",
        "page-bytes.png",
        "page-loss.png",
    ]
    page = page_of(written[0])
    text = " ".join(page.text.split())
    kept, gain = run.information["eta_codec"].mean(), 1 / run.information["eta_alloc"].mean() - 1
    assert f"kept {100 * kept:.1f} % of the information that any code of these bits could keep" in text
    assert f"would give at most {100 * gain:.1f} % more" in text
    assert "of the Gaussian limit" in text and "memoryless" in text
    assert "2 bits per coordinate were asked for" in text
    assert f"{run.steps['wire_bytes'].mean():,.0f} bytes per step" in text
    assert all(name in text for name in run.layer_names)
    assert sum(tag == "img" for tag, _ in page.tags) == 5
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_several_runs_are_compared(tmp_path: pathlib.Path) -> None:
    paths = [write(tmp_path / f"r{rate}.jsonl", run_records(rate=rate, steps=60)) for rate in (1.0, 2.0, 3.0)]
    written = write_report(load_runs(paths), tmp_path / "report.html")
    text = page_of(written[0]).text
    assert "3 runs" in text and all(path.name in text for path in paths)
    assert {"report-bits-1.png", "report-bits-3.png", "report-nmse-2.png"} <= {path.name for path in written}


@pytest.mark.parametrize("only", ["loss", "telemetry", "one step", "no layers", "plan alone"])
def test_what_is_not_logged_is_said_and_left_out(tmp_path: pathlib.Path, only: str) -> None:
    records = run_records(steps=5, every=1000)
    records = {
        "loss": [r for r in records if "loss_rank0" in r],
        "telemetry": [r for r in records if "loss_rank0" not in r],
        "one step": records[:3],
        "no layers": [{"kind": "step", "step": 0, "rank": 0, "wire_bytes": 0, "layers": []}],
        "plan alone": records[:1],
    }[only]
    written = write_report([load_run(write(tmp_path / "run.jsonl", records))], tmp_path / "report.html")
    text = page_of(written[0]).text
    names = {path.name for path in written[1:]}
    assert ("report-loss.png" in names) == (only in ("loss", "one step")) == ("No loss is logged" not in text)
    assert ("report-information.png" in names) == (only == "one step") or only == "telemetry"
    assert ("report-bits.png" in names) == (only in ("telemetry", "one step"))


EVIL = "<script>alert(1)</script>\"'><img src=http://x onerror=alert(1)> $\\frac{ _ \x1b[31m\x00 层"


def test_what_comes_from_files_is_escaped(tmp_path: pathlib.Path) -> None:
    records = run_records(steps=3, blocks=1)
    for record in records:
        for key in ("codec", "objective", "reason"):
            if key in record:
                record[key] = EVIL
        for holder in (record, record.get("information", {})):
            for layer in holder.get("layers", []):
                layer["name"] = EVIL + layer["name"]
        if "information" in record:
            record["information"] |= {"label": EVIL, "binding": EVIL}
    path = write(tmp_path / "_<b>$x_&.jsonl", records)
    run = load_run(path)
    page = page_of_evil(write_report([run, load_run(path, name="b")], tmp_path / "report.html")[0])
    assert "<script>alert(1)</script>" in page.text  # as text


def page_of_evil(path: pathlib.Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(tag not in ("script", "b<") and "onerror" not in attributes for tag, attributes in page.tags)
    for tag, attributes in page.tags:
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
    assert "\x00" not in text and "\x1b" not in text
    return page


def test_the_checks_of_the_page_have_teeth(tmp_path: pathlib.Path) -> None:
    for wrong in ("<p><b></p></b>", "<img src='http://x/y.png'>", "<p onclick='x'></p>", "<script></script>", "<p>"):
        path = tmp_path / "page.html"
        path.write_text("<!DOCTYPE html>" + wrong)
        with pytest.raises(AssertionError):
            page_of(path)


def test_many_layers_stay_readable(tmp_path: pathlib.Path) -> None:
    """1,000 layers: a picture of bounded size, and every layer in the table."""
    import struct

    records = run_records(steps=4, blocks=200, every=2)
    written = write_report([load_run(write(tmp_path / "run.jsonl", records))], tmp_path / "report.html")
    bits = next(path for path in written if path.name == "report-bits.png").read_bytes()
    width, height = struct.unpack(">II", bits[16:24])
    assert width <= 1600 and height <= 1600
    assert "blocks.199.down.weight" in page_of(written[0]).text


def test_layers_are_joined_by_coordinates(tmp_path: pathlib.Path) -> None:
    layers = [{"name": f"b.{i}.{part}", "numel": n, "bits": b} for i in range(130) for part, n, b in PARTS]
    run = load_run(write(tmp_path / "x", [{"kind": "plan", "step": 0, "rank": 0, "layers": layers}]))
    values = np.array([[layer["bits"]] for layer in layers])
    names, joined, shares = _rows(run, values, np.full(260, 1 / 260))
    assert names == [f"b.{i}" for i in range(130)]
    np.testing.assert_allclose(joined, 1.5)
    assert shares is not None
    np.testing.assert_allclose(shares, 2 / 260)


PARTS = (("norm", 10, 6.0), ("weight", 90, 1.0))


def test_names_in_pictures() -> None:
    assert _short("blocks.0.up.weight") == "blocks.0.up.weight"
    assert len(_short("x" * 30 + "y" * 30)) == 34
    assert _short("$a_层") == r"\$a_?"
    assert _short("_run") == " _run"
    np.testing.assert_allclose(_edges(np.array([0.0, 10.0, 40.0])), [-5, 5, 25, 55])


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "run.jsonl", run_records(steps=2))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(path), "--out", str(tmp_path / "report.html")]) == 2
    assert "commpress[plot]" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run.jsonl", run_records(steps=3))
    assert main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["report", str(path), str(tmp_path / "empty.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("commpress report: LogError: ") and err.count("\n") == 1
    with pytest.raises(LogError):
        write_report([], tmp_path / "x.html")


def test_what_the_docs_show_parses() -> None:
    page = (ROOT / "docs" / "reports.md").read_text()
    shown = re.findall(r"^    \$ commpress ((?:report|watch)[^\n#]*)", page, flags=re.MULTILINE)
    assert len(shown) >= 3
    for command in shown:
        parser().parse_args(command.split())
