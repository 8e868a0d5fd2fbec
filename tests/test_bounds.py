"""`commpress bounds`: figures against the formulas, the words, the picture, and wrong usage."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commpress.cli import main
from commpress.cli._bounds import add_to, bounds_of, size, table
from commpress.errors import SpecError


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_to(parser.add_subparsers())
    return parser.parse_args(["bounds", *arguments])


def figures(*arguments: str) -> dict[str, Any]:
    return bounds_of(parse(*arguments))


# -- sizes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7B", 7_000_000_000), ("124M", 124_000_000), ("1e6", 1_000_000), ("1.5k", 1500), ("2T", 2 * 10**12),
        ("1", 1), ("124_000_000", 124_000_000), ("0.5g", 500_000_000), ("1.1M", 1_100_000), (" 3m ", 3_000_000),
    ],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value
    assert type(size(text)) is int


@given(st.integers(1, 10**15))
def test_a_size_written_out_is_itself(n: int) -> None:
    assert size(str(n)) == n


@pytest.mark.parametrize("text", ["", "0", "-1", "M", "1.5", "7Q", "1e", "nan", "inf", "1e400", "1,000", "0x10", "1 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="124M"):
        size(text)


# -- figures


def test_figures_are_those_of_the_formulas() -> None:
    found = figures("--numel", "1M", "--bits", "3", "--workers", "8", "--sigma", "2", "--eps", "50")
    rows = {row["bits"]: row for row in found["rows"]}
    assert list(rows) == [0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 8, 16, 32]
    assert [bits for bits, row in rows.items() if row["yours"]] == [3]
    uncompressed = 4 * 1e6 / 2500 / 8
    assert found["rounds_uncompressed"] == pytest.approx(uncompressed)
    for bits, row in rows.items():
        fraction = 1 - 2 ** (-2 * bits)
        assert row["fraction"] == pytest.approx(fraction)
        assert row["information_per_round"] == pytest.approx(8 * 1e6 / 4 * fraction)
        assert row["rounds"] == pytest.approx(uncompressed / fraction)
        assert row["message_bytes"] == pytest.approx(1e6 * bits / 8)
        assert row["total_bytes"] == pytest.approx(8 * 1e6 * bits / 8 * uncompressed / fraction)


def test_fewer_bits_never_take_fewer_rounds_nor_more_bytes() -> None:
    rows = figures("--numel", "124M")["rows"]
    for less, more in zip(rows, rows[1:], strict=False):
        assert less["rounds"] >= more["rounds"]
        assert less["total_bytes"] <= more["total_bytes"]


@pytest.mark.parametrize("bits", ["0.1", "0.5", "1", "4", "32"])
def test_halving_is_what_the_rows_say(bits: str) -> None:
    whole, half = figures("--numel", "64", "--bits", bits), figures("--numel", "64", "--bits", str(float(bits) / 2))
    one, two = (next(row for row in f["rows"] if row["yours"]) for f in (whole, half))
    assert whole["halving"]["rounds_factor"] == pytest.approx(two["rounds"] / one["rounds"])
    assert whole["halving"]["bytes_factor"] == pytest.approx(two["total_bytes"] / one["total_bytes"])


def test_defaults_and_the_optimisation_form() -> None:
    assert figures("--numel", "1M")["rounds_uncompressed"] == pytest.approx(100)
    assert figures("--numel", "1M", "--sigma", "7")["rounds_uncompressed"] == pytest.approx(100)
    found = figures("--numel", "100", "--sigma", "3", "--gap", "0.02", "--mu", "4")
    assert found["rounds_uncompressed"] == pytest.approx(9 * 100 / (2 * 4 * 0.02))
    known = figures("--numel", "100", "--sigma", "1", "--eps", "1", "--half-width", "0.5")
    assert known["rounds_uncompressed"] == pytest.approx(100 * (1 - math.pi**2 / 25))


def test_all_reduce_has_two_phases() -> None:
    assert figures("--numel", "10")["all_reduce_fraction"] is None
    found = figures("--numel", "10", "--bits", "1", "--workers", "4")
    assert found["all_reduce_fraction"] == pytest.approx((1 + 3 * 0.75) / 4 * 0.75)


# -- what is printed


def test_the_table_and_its_words() -> None:
    text = table(figures("--numel", "124M", "--bits", "2", "--workers", "8"))
    assert max(map(len, text.splitlines())) <= 125
    assert text.startswith("124,000,000 coordinates, 8 workers")
    (mine,) = re.findall(r"^.*<- yours$", text, flags=re.MULTILINE)
    assert mine.split()[:5] == ["2", "31", "MB", "9.3e+08", "93.75"]
    assert "bend lies at B = d: 15.5 MB per message" in text
    assert "above the bend: 13.33 rounds at least, and 12.5 without compression" in text
    assert "to 1 costs 25 % more rounds and saves 37.5 % of all bytes" in text
    assert "each rank sending 54.2 MB" in text


@pytest.mark.parametrize(
    ("bits", "verb", "side"), [("0.5", "are", "below"), ("1", "is", "at"), ("1.5", "are", "above")]
)
def test_the_side_of_the_bend(bits: str, verb: str, side: str) -> None:
    assert f" per coordinate {verb} {side} the bend" in table(figures("--numel", "1e6", "--bits", bits))


def test_one_coordinate_and_a_rate_beyond_the_rows() -> None:
    text = table(figures("--numel", "1", "--bits", "40"))
    assert "1 coordinate, 1 worker," in text
    assert "costs <0.01 % more rounds and saves 50 %" in text


def test_nothing_to_do_is_said() -> None:
    text = table(figures("--numel", "10", "--half-width", "0.01", "--eps", "1"))
    assert "no round is needed" in text and "Halving" not in text


# -- the command


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", "--numel", "7B", "--bits", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["numel"] == found["bend_bits_per_message"] == 7_000_000_000
    assert found["half_width"] is None
    assert [row for row in found["rows"] if row["yours"]][0]["rounds"] == pytest.approx(200)


@pytest.mark.parametrize(
    "arguments", [("124M", "2", "8"), ("1", "40", "1"), ("7B", "0.000001", "64"), ("7B", "1", "1")]
)
def test_the_picture(
    arguments: tuple[str, str, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numel, bits, workers = arguments
    path = tmp_path / "bounds.png"
    assert main(["bounds", "--numel", numel, "--bits", bits, "--workers", workers, "--plot", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1350, 900)


def test_the_picture_needs_matplotlib(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bounds", "--numel", "10", "--plot", str(tmp_path / "x.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "commpress[plot]" in err
    assert main(["bounds", "--numel", "10"]) == 0, "the table does not"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--bits", "0"], "--bits"),
        (["--bits", "nan"], "--bits"),
        (["--bits", "1e308"], "range"),
        (["--workers", "0"], "--workers"),
        (["--sigma", "-1"], "--sigma"),
        (["--eps", "0"], "--eps"),
        (["--eps", "1e-300"], "--eps"),
        (["--half-width", "nan"], "--half-width"),
        (["--gap", "1"], "--mu"),
        (["--mu", "1"], "--gap"),
        (["--half-width", "1e-9", "--plot", "x.png"], "nothing to draw"),
    ],
)
def test_bad_values_are_one_line(arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse("--numel", "1M", *arguments)
    with pytest.raises(SpecError, match=re.escape(names)):
        options.run(options)
    assert main(["bounds", "--numel", "1M", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and names in err


@pytest.mark.parametrize("wrong", [[], ["--numel", "many"], ["--numel", "1M", "--eps", "1", "--gap", "1"]])
def test_wrong_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bounds", *wrong])
    assert stopped.value.code == 2
    assert "usage: commpress bounds" in capsys.readouterr().err


def test_help_has_examples_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bounds", "--help"])
    examples = re.findall(r"commpress (bounds\b[^\n]*)", capsys.readouterr().out.split("examples:", 1)[1])
    assert len(examples) >= 3
    for example in examples:
        words = example.split()
        if "--plot" not in words:
            assert main(words) == 0


def test_the_page_shows_what_the_command_prints() -> None:
    page = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "information.md").read_text()
    (shown,) = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^commpress bounds (.*?) --plot", page, flags=re.MULTILINE)
    assert shown == table(figures(*command.split()))
