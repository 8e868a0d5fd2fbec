"""The report: one self-contained HTML page, and its pictures beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from commpress.telemetry import _report_agreement as agreement
from commpress.telemetry import _report_figures as figures
from commpress.telemetry import _report_history as history
from commpress.telemetry import _report_text as text
from commpress.telemetry._load import LogError, RunLog, load_run

_TELEMETRY = ".telemetry"
# The policy lets the page load nothing at all, so that "no network" does not rest on this file's care alone.
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 1.5rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; }}
p {{ margin: .3rem 0; max-width: 60rem; }}
.summary {{ background: #f3f7fb; border-left: 4px solid #0072b2; padding: .6rem 1rem; margin: .8rem 0; }}
.summary p {{ margin: .25rem 0; }}
.note {{ color: #555; font-size: .87rem; }}
img {{ display: block; max-width: 100%; height: auto; margin: .5rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .84rem; margin: .5rem 0; }}
th, td {{ text-align: right; padding: .18rem .6rem; white-space: nowrap; border-bottom: 1px solid #eee; }}
th {{ color: #444; font-weight: 600; border-bottom: 1px solid #bbb; }}
th:first-child, td:first-child {{ text-align: left; }}
td:has(.bar) {{ min-width: 7rem; }}
.bar {{ background: #0072b2; height: .7rem; min-width: 1px; }}
.bar.exact {{ background: #d55e00; }}
code {{ font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .95em; }}
</style>
</head>
<body>
"""


def write_report(runs: Sequence[RunLog], out: str | os.PathLike[str]) -> list[Path]:
    """Writes the page, and each picture as a PNG beside it: ``report.html``, ``report-information.png``, ...

    The page holds its pictures and styles itself and loads nothing. Pictures without data are left out. With several
    runs the line plots show them side by side, and each has its own maps and tables.

    Args:
        runs: from :func:`load_run`, at least one.
        out: the page's file; its folder is made if need be.

    Returns:
        The files written, the page first.

    Raises:
        LogError: there is no run.
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    if not runs:
        raise LogError("a report needs at least one run; see load_run")
    page = Path(out)
    body, pictures = _body(runs)
    title = "commpress report: " + ", ".join(run.name for run in runs)
    page.parent.mkdir(parents=True, exist_ok=True)
    written = [page]
    for name, png in pictures:
        written.append(page.with_name(f"{page.stem}-{name}.png"))
        written[-1].write_bytes(png)
    page.write_text(_HEAD.format(title=text.escape(title)) + body + "</body>\n</html>\n", encoding="utf-8")
    return written


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> list[RunLog]:
    """One run for each file, in order; ``X.jsonl`` and ``X.telemetry.jsonl`` of one folder are one run.

    Runs are called by their files' names, or by the paths where two names are equal. Raises as :func:`load_run`; the
    same file twice is a LogError.
    """
    groups: dict[Path, list[Path]] = {}
    for path in map(Path, paths):
        base = path.with_name(path.stem.removesuffix(_TELEMETRY) + path.suffix)
        mine = groups.setdefault(base, [])
        if path in mine:
            raise LogError(f"{path} is given twice")
        mine.append(path)
    names = [base.name if len(files) > 1 else files[0].name for base, files in groups.items()]
    return [
        load_run(*files, name=name if names.count(name) == 1 else str(files[0]))
        for name, files in zip(names, groups.values(), strict=True)
    ]


def _body(runs: Sequence[RunLog]) -> tuple[str, list[tuple[str, bytes]]]:
    parts: list[str] = []
    pictures: list[tuple[str, bytes]] = []

    def picture(name: str, alternative: str, png: bytes | None) -> bool:
        if png is not None:
            pictures.append((name, png))
            data = base64.b64encode(png).decode()
            parts.append(f'<img alt="{text.escape(alternative)}" src="data:image/png;base64,{data}">\n')
        return png is not None

    def note(words: str) -> None:
        parts.append(f"<p class=note>{words}</p>\n")

    several = len(runs) > 1
    parts.append(f"<h1>commpress report{f': {len(runs)} runs' if several else ''}</h1>\n")
    if several:
        parts.append(text.comparison(runs))
    for run in runs:
        sentences = "".join(f"<p>{sentence}</p>\n" for sentence in text.summary(run))
        parts.append(f'<div class="summary"><p><b><code>{text.escape(run.name)}</code></b></p>\n{sentences}</div>\n')
    parts.append("<h2>How near to the limit</h2>\n")
    if picture(
        "information", "Information achieved, allocated and at the optimum over steps", figures.information(runs)
    ):
        note(
            "Information about the true gradient that the bits carried. <b>achieved</b>: what the codec kept. "
            "<b>allocated</b>: what the best code could keep with the bits that each layer got. <b>optimum</b>: the same "
            "with the bits spread over the layers in the best way for information. The gap between achieved and allocated is the "
            "codec's, that between allocated and optimum is the plan's. The limit is that of Gaussian gradients; "
            "heavy-tailed ones can exceed it."
        )
    else:
        note("No step of these files measured information.")
    for i, run in enumerate(runs):
        suffix = f"-{i + 1}" if several else ""
        name = text.escape(run.name)
        parts.append(f"<h2>Layers{f' of <code>{name}</code>' if several else ''}</h2>\n")
        if not run.layer_names:
            note("The records name no layers.")
            continue
        parts.append("<h3>Bits by layer over time</h3>\n")
        if picture(f"bits{suffix}", f"Bits by layer over time, {run.name}", figures.bits_map(run)):
            note(
                "Layers in the model's order, from top to bottom; darker is more bits per coordinate. Orange: sent exactly. "
                "Grey: not known. "
                "On the right: how much of all bits sent the layer takes, which its size decides too."
            )
        else:
            note("The records tell no bits by layer.")
        parts.append("<h3>Distortion by layer</h3>\n")
        if picture(f"nmse{suffix}", f"NMSE by layer over time, {run.name}", figures.nmse_map(run)):
            note(
                "Squared error over energy of what a rank sent in phase 1, on sampled steps. 1 is as bad as sending nothing."
            )
        else:
            note("No step of this file measured distortion.")
    for i, run in enumerate(runs):
        if not run.agreements.kept:
            continue
        suffix = f"-{i + 1}" if several else ""
        heading = f" of <code>{text.escape(run.name)}</code>" if several else ""
        parts.append(f"<h2>Do the ranks agree?{heading}</h2>\n")
        picture(f"agreement{suffix}", f"Cosines between the ranks' gradients, {run.name}", agreement.heat_map(run))
        parts.append(agreement.words(run))
        if picture(f"scales{suffix}", f"Gradient scale by layer over time, {run.name}", figures.scales_map(run)):
            parts.append(agreement.scale_words(run))
    if any(history.told(run) for run in runs):
        parts.append("<h2>Would a longer memory pay?</h2>\n")
        picture(
            "history", "Energy left by a prediction, by the number of aggregates it is made from", history.decay(runs)
        )
        parts += [history.heading(run, several) + history.words(run) for run in runs if history.told(run)]
        note(
            "Measured on rank 0 from a sample of its coordinates, with one set of coefficients for all layers, fitted on other steps than those it is tested on (docs/side-information.md)."
        )
    parts.append("<h2>Bytes per step</h2>\n")
    if not picture("bytes", "Bytes sent in each step", figures.step_bytes(runs)):
        note("The records tell no bytes.")
    parts.append("<h2>Loss</h2>\n")
    if not picture("loss", "Loss over steps", figures.loss(runs)):
        note("No loss is logged in these files. Give the file with the losses too, if there is one.")
    for run in runs:
        heading = f" of <code>{text.escape(run.name)}</code>" if several else ""
        if changes := text.plans(run):
            parts.append(f"<h2>Changes of plan{heading}</h2>\n{changes}")
        if not run.layer_names:
            continue
        step = "" if run.last_layers_step is None else f", step {text.figure(run.last_layers_step)}"
        parts.append(f"<h2>The last sampled step{heading}{step}</h2>\n{text.phases(run)}{text.layers(run)}")
    return "".join(parts), pictures
