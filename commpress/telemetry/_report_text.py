"""What the report says in words and tables. Everything that comes from a file is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from commpress.telemetry._load import RunLog
from commpress.telemetry._report_data import number

_PLANS = 40  # plan changes listed: the last ones
_MOST = 3  # layers named in the summary
_EXACT_BITS = 12.0


def escape(text: object) -> str:
    """For element content and quoted attributes; control characters, which HTML does not allow, become U+FFFD."""
    clean = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return html.escape(clean, quote=True)


def percent(share: float) -> str:
    """``.8488`` -> ``84.9 %``."""
    return f"{100 * share:.1f} %"


def figure(value: float | None, form: str = ",.0f") -> str:
    """A number, or a dash for None and NaN."""
    return "\N{EN DASH}" if value is None or value != value else format(value, form)


def small(value: float | None) -> str:
    """A number of any size in few digits."""
    return figure(value, ".3g" if value is None or not 1e-3 <= abs(value) < 1e4 else ",.4g")


def efficiencies(run: RunLog) -> tuple[float | None, float | None, int]:
    """Means over the sampled steps of eta_codec and eta_alloc, and how many steps had either."""
    both = np.isfinite(run.information["eta_codec"]) | np.isfinite(run.information["eta_alloc"])
    return run.information.mean("eta_codec"), run.information.mean("eta_alloc"), int(both.sum())


def limit_words(run: RunLog) -> str:
    """Which limit the figures refer to, as the records say."""
    label = run.last_information.get("label") or "of the Gaussian limit"
    return str(label)


def summary(run: RunLog) -> list[str]:
    """Sentences about a run, as HTML."""
    return [*_extent(run), *_bytes(run), *_information(run), *_where(run), *_distortion(run), *_loss(run), *_notes(run)]


def _extent(run: RunLog) -> list[str]:
    parts = []
    if run.head.get("codec"):
        parts.append(f"codec <code>{escape(run.head['codec'])}</code>")
    if run.head.get("world_size"):
        parts.append(f"{figure(number(run.head['world_size']))} ranks")
    if run.layer_names:
        parts.append(f"{len(run.layer_names):,} layers with {figure(sum(run.layer_numels))} coordinates")
    last = max((c.last for c in (run.steps, run.losses) if c.last is not None), default=run.held_out.last or 0.0)
    steps = max(len(run.steps), len(run.losses))
    parts.append(f"{steps:,} steps recorded, the last is step {figure(last)}")
    return [parts[0][:1].upper() + parts[0][1:] + "".join(f", {part}" for part in parts[1:]) + "."]


def _bytes(run: RunLog) -> list[str]:
    lines = []
    asked, sent = run.steps.mean("requested_rate"), run.steps.mean("achieved_rate")
    if sent is not None:
        wanted = f"<b>{asked:.4g}</b> bits per coordinate were asked for and " if asked is not None else ""
        lines.append(f"{wanted}<b>{sent:.4g}</b> bits per coordinate were sent as payload.")
    wire, payload = run.steps.mean("wire_bytes"), run.steps.mean("payload_bytes")
    if wire is not None:
        text = f"Each rank sent <b>{wire:,.0f} bytes</b> per step on the wire"
        text += f" ({payload:,.0f} of them payload)" if payload is not None else ""
        ranks, numel = number(run.head.get("world_size")), number(run.head.get("numel"))
        if ranks and ranks > 1 and numel and wire > 0:
            text += f", {8 * (ranks - 1) / ranks * numel / wire:.1f} times fewer than an fp32 ring all-reduce needs"
        lines.append(text + ".")
    return lines


def _information(run: RunLog) -> list[str]:
    codec, alloc, samples = efficiencies(run)
    if not samples:
        return ["No record measured information, so nothing can be said about the limit."] if len(run.steps) else []
    over = f"mean over {samples:,} sampled step{'s' if samples != 1 else ''}"
    lines = []
    if codec is not None:
        lines.append(
            f"The run kept <b>{percent(codec)}</b> of the information that any code of these bits could keep "
            f"({escape(limit_words(run))}; {over})."
        )
    if alloc is not None and alloc > 0:
        more = max(0.0, 1 / alloc - 1)
        text = f"Moving bits between layers would give at most <b>{percent(more)}</b> more."
        goals = {str(plan["objective"]) for plan in run.plans if plan["objective"]}
        if goals and goals != {"fisher"}:
            names = ", ".join(f"<code>{escape(goal)}</code>" for goal in sorted(goals))
            text += f" (The plan's objective was {names}, which is not information itself, so some gap is meant.)"
        lines.append(text)
    if run.last_information.get("binding"):
        lines.append(f"The limit that binds here: {escape(run.last_information['binding'])}.")
    extra = run.information.mean("extra_bytes")
    if extra is not None:
        lines.append(f"Measuring it cost {extra:,.0f} extra bytes per sampled step, counted in the bytes.")
    return lines


def last_bits(run: RunLog) -> np.ndarray:
    """Bits by layer at the last record, NaN where unknown: float64, one for each of `layer_names`."""
    bits = np.full(len(run.layer_names), np.nan)
    bits[: len(run.bits.latest)] = run.bits.latest
    return bits


def _where(run: RunLog) -> list[str]:
    bits, numels = last_bits(run), np.array(run.layer_numels, dtype=np.float64)
    spent = np.nan_to_num(bits * numels)
    if not spent.size or spent.sum() <= 0:
        return []
    most = np.argsort(-spent, kind="stable")[:_MOST]
    named = ", ".join(
        f"<code>{escape(run.layer_names[i])}</code> ({percent(spent[i] / spent.sum())}, at {bits[i]:.3g} bits per "
        "coordinate)"
        for i in most
        if spent[i] > 0
    )
    text = f"At the end most bits went to {named}"
    none, exact = int((bits == 0).sum()), int((bits > _EXACT_BITS).sum())
    text += f"; {none:,} layer{'s' if none != 1 else ''} got none" if none else ""
    text += f"; {exact:,} layer{'s' if exact != 1 else ''} went exact" if exact else ""
    return [text + "."]


def _distortion(run: RunLog) -> list[str]:
    _, values = run.steps.points("nmse")
    if not values.size:
        return []
    return [f"What a rank sent differed from its gradient by an NMSE of {values.mean():.3g} (mean over coordinates)."]


def _loss(run: RunLog) -> list[str]:
    lines = []
    _, training = run.losses.points("loss")
    _, held_out = run.held_out.points("loss")
    if training.size:
        lines.append(f"Training loss went from {training[0]:.4g} to {training[-1]:.4g}.")
    if held_out.size:
        lines.append(f"Held-out loss went from {held_out[0]:.4g} to {held_out[-1]:.4g}.")
    return lines


def _notes(run: RunLog) -> list[str]:
    lines = []
    if run.unreadable:
        lines.append(f"Note: {run.unreadable:,} lines of the file are no JSON objects and were left out.")
    return lines


def comparison(runs: Sequence[RunLog]) -> str:
    """One row for each run."""
    head = ("run", "steps", "bits asked for", "bits sent", "wire bytes per step", "NMSE", "kept", "could gain", "loss")
    rows = []
    for run in runs:
        codec, alloc, _ = efficiencies(run)
        losses = run.held_out.points("loss")[1] if len(run.held_out) else run.losses.points("loss")[1]
        rows.append(
            [
                f"<code>{escape(run.name)}</code>",
                f"{max(len(run.steps), len(run.losses)):,}",
                figure(run.steps.mean("requested_rate"), ".4g"),
                figure(run.steps.mean("achieved_rate"), ".4g"),
                figure(run.steps.mean("wire_bytes")),
                figure(run.steps.mean("nmse"), ".3g"),
                figure(codec) if codec is None else percent(codec),
                figure(alloc) if not alloc else percent(max(0.0, 1 / alloc - 1)),
                figure(float(losses[-1]) if losses.size else None, ".4g"),
            ]
        )
    note = (
        "<p class=note>kept: information of what any code of these bits could keep, of the Gaussian limit. could gain: at "
        "most, by moving bits between layers. loss: held out where there is one.</p>"
    )
    return table(head, rows) + note


def phases(run: RunLog) -> str:
    """The last sampled step, by phase of the all-reduce; empty without information."""
    names = (("phase1", "phase 1, ranks to owner"), ("phase2", "phase 2, owner to ranks"), ("together", "together"))
    rows = []
    for key, name in names:
        part = run.last_information.get(key)
        if isinstance(part, dict):
            captured, rate, eta = (number(part.get(field)) for field in ("captured", "rate", "eta"))
            rows.append(
                [name, figure(captured, ".5f"), figure(rate, ".4f"), "\N{EN DASH}" if eta is None else percent(eta)]
            )
    if not rows:
        return ""
    return table(("phase", "captured G", "bits per coordinate, all bytes", "of the limit at this rate"), rows)


def layers(run: RunLog) -> str:
    """The table by layer of the last sampled step; empty if no layer is known."""
    if not run.layer_names:
        return ""
    bits, numels = last_bits(run), run.layer_numels
    spent = np.nan_to_num(bits * np.array(numels))
    total, lossy = float(spent.sum()), bits[np.isfinite(bits) & (bits <= _EXACT_BITS)]
    top = float(lossy.max()) if lossy.size and lossy.max() > 0 else 1.0
    rows = []
    for i, name in enumerate(run.layer_names):
        found = run.last_layers.get(name, {})
        eta = found.get("eta")
        width = 0.0 if bits[i] != bits[i] else min(100.0, max(0.0, 100 * bits[i] / top))
        kind = "bar exact" if bits[i] > _EXACT_BITS else "bar"
        rows.append(
            [
                f"<code>{escape(name)}</code>",
                figure(numels[i]),
                figure(float(bits[i]), ".3f"),
                f'<div class="{kind}" style="width:{width:.1f}%"></div>',
                percent(spent[i] / total) if total > 0 else "\N{EN DASH}",
                small(found.get("nmse")),
                small(found.get("variance")),
                figure(found.get("captured"), ".4f"),
                "\N{EN DASH}" if eta is None else percent(eta),
            ]
        )
    head = ("layer", "coordinates", "bits", "", "share of bits", "NMSE", "variance", "captured G", "of the limit")
    return table(head, rows)


def plans(run: RunLog) -> str:
    """The changes of plan; empty if there was none."""
    rows = []
    for plan in run.plans[-_PLANS:]:
        budget, planned = plan["budget_bytes"], plan["planned_bytes"]
        used = percent(planned / budget) if planned is not None and budget else "\N{EN DASH}"
        words = [escape(plan["objective"]), escape(plan["reason"])]
        rows.append([figure(plan["step"]), *words, figure(budget), figure(planned), used])
    if not rows:
        return ""
    head = ("from step", "objective", "reason", "budget, bytes", "planned, bytes", "used")
    more = len(run.plans) - len(rows)
    return (f"<p class=note>{more:,} earlier changes are not listed.</p>" if more else "") + table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
