"""The demo's table."""

from __future__ import annotations

from collections.abc import Sequence

from commpress.experiments._records import Run

_COLUMNS = ("run", "held-out loss", "vs fp32", "bytes sent", "claimed", "off by", "less than fp32", "step", "NMSE")


def name_of(run: Run) -> str:
    """What a run is called in the table and the picture."""
    return {
        "fp32": "fp32 all-reduce (DDP)",
        "fp16": "fp16 (torch's hook)",
        "bf16": "bf16 (torch's hook)",
    }.get(run.codec, run.codec)


def table(runs: Sequence[Run]) -> str:
    """A table of finished runs and, below it, what its columns mean. Every line ends in a newline."""
    if not runs:
        return "no run was finished\n"
    base = next((run for run in runs if run.codec == "fp32"), None)
    rows = [_COLUMNS, *(_row(run, base) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, "", *_legend(runs)]) + "\n"


def _row(run: Run, base: Run | None) -> tuple[str, ...]:
    figures = run.summary
    loss, sent, claimed = (
        figures["held_out_loss"],
        figures["interface_bytes_per_step_per_rank"],
        figures["claimed_bytes_per_step_per_rank"],
    )
    against = less = "-"
    if base is not None:
        against = f"{loss / base.summary['held_out_loss'] - 1:+.2%}" if run is not base else "-"
        theirs = base.summary["interface_bytes_per_step_per_rank"]
        less = f"{theirs / sent:.1f}x" if sent and run is not base else "-"
    return (
        name_of(run),
        f"{loss:.4f}",
        against,
        f"{sent:,.0f}" if sent else "unknown",
        f"{claimed:,.0f}",
        f"{sent / claimed - 1:+.1%}" if sent and claimed else "-",
        less,
        f"{1000 * figures['step_seconds']:.0f} ms",
        "-" if figures["nmse"] is None else _nmse_text(figures["nmse"]),
    )


def _nmse_text(nmse: float) -> str:
    return "0" if nmse < 1e-9 else f"{nmse:.2g}" if nmse < 0.01 else f"{nmse:.3f}"


def _legend(runs: Sequence[Run]) -> list[str]:
    head, figures = runs[0].head, runs[0].summary
    ranks, sharing, interface = head["world_size"], figures["ranks_on_interface"], figures["interface"]
    text, settings = head["text"], head["settings"]
    if interface:
        counted = f"by the network interface {interface!r}, per step and rank"
        if sharing > 1:
            counted += f" ({sharing} ranks send through it: their sum divided by {sharing})"
    else:
        counted = "unknown: this system does not count bytes by interface"
    return [
        f"{ranks} ranks, {head['parameters']:,} parameters, {settings['steps']} steps, seed {settings['seed']}.",
        f"held-out loss   nats per byte on {figures['held_out_bytes']:,} bytes of {text['held_out_files']} files that "
        f"are not trained on (byte frequencies alone give {figures['unigram_loss']:.2f})",
        f"bytes sent      {counted}",
        "claimed         by commpress: payloads, headers, and the TCP/IP framing that they should take; of torch's own "
        "all-reduce: 2 (n-1)/n of the gradient or of what stands for it",
        "step            median wall time of a training step",
        "NMSE            squared error over energy of the gradient that the optimiser got, against the exact mean",
    ]
