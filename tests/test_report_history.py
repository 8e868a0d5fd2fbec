"""What `commpress report` says of a longer memory of aggregates."""

from _runs import run_records, write

from commpress.telemetry import load_run, write_report


def with_history(errors, law, window):
    found = run_records(steps=40)
    told = {"errors": errors, "law": law, "window": window, "floor": 0.5, "alpha": 1.0, "tau": 2.5, "eps": 0.01}
    last = [r for r in found if r["kind"] == "step" and "rank" in r][-1]
    last["history"] = {**told, "pays_below": 0.909, "measurements": 8}
    return found


def test_a_longer_memory(tmp_path):
    falling = [0.6 + 0.3 / w for w in range(1, 9)]
    cases = [
        (falling, "power", 5, ("a power law", "5 steps", "makes use of the last one")),
        ([0.95 - 0.01 * w for w in range(8)], "exponential", 40, ("an exponential of 2.5", "40 steps", "has one step")),
        ([0.99] * 8, "none", 1, ("one step of history is enough", "does not pay here")),
    ]
    for i, (errors, law, window, wanted) in enumerate(cases):
        run = load_run(write(tmp_path / f"{i}.jsonl", with_history(errors, law, window)))
        page, *pictures = write_report([run], tmp_path / f"{i}.html")
        shown = page.read_text()
        assert "Would a longer memory pay?" in shown and all(words in shown for words in wanted), i
        assert f"{i}-history.png" in {picture.name for picture in pictures}
    runs = [load_run(tmp_path / f"{i}.jsonl") for i in range(3)]
    page, *pictures = write_report(runs, tmp_path / "all.html")
    assert "all-history.png" in {picture.name for picture in pictures}
    for odd in (None, {}, {"errors": "x"}, {"errors": [0.5, None]}, {"errors": [-1.0]}):
        records = run_records(steps=3)
        next(r for r in records if "rank" in r)["history"] = odd
        page, *_ = write_report([load_run(write(tmp_path / "odd.jsonl", records))], tmp_path / "odd.html")
        assert "longer memory" not in page.read_text()
