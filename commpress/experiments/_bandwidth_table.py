"""What the bandwidth experiment found, in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from commpress.cluster import bits_per_second
from commpress.experiments._bandwidth import Results
from commpress.experiments._one_bit_adam import exact_steps
from commpress.experiments._records import Run
from commpress.experiments._ways import SKIP

SIXTEEN = ("fp16", "bf16")
EXACT = ("fp32", *SIXTEEN)


def medians(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds by way and rate."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        found.setdefault(record["way"], {})[record["rate"]] = record["median_seconds"]
    return found


def best(seconds: dict[str, dict[str, float]], ways: Sequence[str], rate: str) -> float:
    """The least of some ways; NaN if none was measured."""
    known = [v for name in ways if not math.isnan(v := seconds.get(name, {}).get(rate, math.nan))]
    return min(known, default=math.nan)


def speed_ups(seconds: dict[str, dict[str, float]], name: str) -> dict[float, float]:
    """By rate in bits/s: time of the quickest exact or 16-bit way over that of `name`."""
    pairs = ((rate, best(seconds, EXACT, rate) / value) for rate, value in seconds[name].items())
    return {float(bits_per_second(rate)): ratio for rate, ratio in pairs if not math.isnan(ratio)}


def break_even(ratios: dict[float, float]) -> float | None:
    """The rate in bits/s above which a way no longer gains, between measured ones on logarithmic scales.

    Infinite if it gains at the highest one, 0 if it gains at none, None if nothing is known.
    """
    if not ratios:
        return None
    points = sorted(ratios.items())
    if points[-1][1] > 1:
        return math.inf
    for (low, above), (high, below) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if above > 1 >= below:
            share = math.log(above) / (math.log(above) - math.log(below))
            return math.exp(math.log(low) + share * math.log(high / low))
    return 0.0


def steps_to(run: Run, target: float) -> float | None:
    """Steps until the held-out loss of the sample is `target`, between evaluations on a straight line; None if it never is."""
    before: dict[str, Any] | None = None
    for point in run.evaluations:
        if point["held_out_loss_sample"] <= target:
            if before is None:
                return float(point["step"])
            drop = before["held_out_loss_sample"] - point["held_out_loss_sample"]
            share = (before["held_out_loss_sample"] - target) / drop
            return float(before["step"] + share * (point["step"] - before["step"]))
        before = point
    return None


def seconds_to(results: Results, name: str, steps: float, rate: str) -> float:
    """Training time of the first `steps` steps of a run at a rate; NaN if it was not measured. Steps before 1-bit Adam compresses take as long as fp32's."""
    seconds = medians(results.steps)
    exact = min(steps, exact_steps(results.sweep.steps)) if name == "1bit-adam" else 0.0
    late = seconds.get(name, {}).get(rate, math.nan)
    return (steps - exact) * late + (exact * seconds.get("fp32", {}).get(rate, math.nan) if exact else 0.0)


def target_of(results: Results) -> float | None:
    """The loss that counts as reached: that of fp32 at its end, times the sweep's factor."""
    run = results.runs.get("fp32")
    return None if run is None else run.evaluations[-1]["held_out_loss_sample"] * results.sweep.target


def tables(results: Results) -> str:
    """All of it; every line ends in a newline."""
    sweep = results.sweep
    parts = []
    for ranks in sorted({record["ranks"] for record in results.bucket}):
        records = [record for record in results.bucket if record["ranks"] == ranks]
        parts.append(
            f"One bucket of {sweep.mib:g} MiB, {ranks} ranks: ms, and times as fast as the quickest of {', '.join(EXACT)}"
        )
        parts.append(_times(records, 1e3, with_nmse=True))
    if results.steps:
        numel = results.steps[0]["numel"]
        parts.append(
            f"A training step, {numel / 1e6:.1f} M parameters, {sweep.job_ranks} ranks: ms, and times as fast as the quickest "
            f"of {', '.join(EXACT)}"
        )
        parts.append(_times(results.steps, 1e3, with_nmse=False))
    if results.runs:
        parts.append(_losses(results))
    parts.append(_legend(results))
    return "\n".join(parts)


def _times(records: list[dict[str, Any]], factor: float, *, with_nmse: bool) -> str:
    seconds = medians(records)
    rates = sorted({record["rate"] for record in records}, key=bits_per_second)
    rows = [
        ["way", "MB sent", *(["NMSE"] if with_nmse else []), *(c for rate in rates for c in (rate, "")), "gains up to"]
    ]
    for name in seconds:
        mine = [record for record in records if record["way"] == name]
        row = [name, f"{mine[0]['interface_bytes_per_rank'] / 1e6:.3g}"]
        row += [f"{mine[0]['nmse']:.2g}"] if with_nmse else []
        for rate in rates:
            value = seconds[name].get(rate, math.nan)
            row += [f"{factor * value:,.4g}", _ratio(best(seconds, EXACT, rate) / value)]
        row.append("" if name in EXACT or name == SKIP else _gain(break_even(speed_ups(seconds, name))))
        rows.append(row)
    return _align(rows)


def _losses(results: Results) -> str:
    target = target_of(results)
    rates = sorted({record["rate"] for record in results.steps}, key=bits_per_second)
    title = f"The main job, {results.sweep.steps} steps, {results.sweep.job_ranks} ranks"
    if target is not None and rates:
        title += (
            f": seconds until the held-out loss is {target:.4f} (fp32's last times {results.sweep.target:g}), and times as fast as "
            "fp32, as the quickest of 16 bits, as the quickest PowerSGD"
        )
    rows = [["way", "held-out loss", "vs fp32", "steps", *(c for rate in rates for c in (rate, "", "", ""))]]
    reached = {name: None if target is None else steps_to(run, target) for name, run in results.runs.items()}
    times = {
        name: {rate: seconds_to(results, name, steps, rate) for rate in rates}
        for name, steps in reached.items()
        if steps is not None
    }
    powers = [name for name in times if name.startswith("powersgd")]
    for name, run in results.runs.items():
        loss = run.summary["held_out_loss"]
        base = results.runs["fp32"].summary["held_out_loss"] if "fp32" in results.runs else math.nan
        steps = reached[name]
        row = [name, f"{loss:.4f}", "" if name == "fp32" else f"{loss / base - 1:+.2%}"]
        row.append("never" if steps is None else f"{steps:.0f}")
        for rate in rates:
            value = times.get(name, {}).get(rate, math.nan)
            row.append("-" if math.isnan(value) else f"{value:,.1f}")
            for peers in (("fp32",), SIXTEEN, powers):
                ratio = best(times, peers, rate) / value
                row.append(_ratio(ratio))
        rows.append(row)
    return f"{title}\n{_align(rows)}"


def _legend(results: Results) -> str:
    lines = [
        "MB sent       by each rank's interface in one call or step",
        "NMSE          squared error over energy of the mean, first call",
        "gains up to   link rate above which the way is no faster than the quickest of fp32 and 16 bits (between rates: on logarithmic scales)",
        "fp16, bf16    torch's hooks (bf16: its arithmetic; DDP refuses its hook on gloo)",
        "powersgd:R    torch's hook, low-rank dimension R, all gradients in one bucket: with several its nested collectives collide on gloo",
        "1bit-adam     exact Adam for a fifth of the steps, then signs of the momentum with error feedback; a step's time is that of the later ones",
        "bits=B        hadamard+lloyd (below .75 bits hadamard+bitshift), B bits a coordinate shared out between the layers",
        "skip          no exchange at all: what a step costs without a network",
    ]
    if results.runs and results.steps:
        lines.append(
            "Losses by step do not depend on the links: each way ran once, on loopback; its time at a rate is steps times a step's median time there."
        )
    names = {name for record in (*results.bucket, *results.steps) for name in (record["way"],)} | set(results.runs)
    kept = [line for line in lines if line[0].isupper() or _is_about(line.split("  ")[0], names)]
    return "\n".join(kept) + "\n"


def _is_about(term: str, names: set[str]) -> bool:
    stems = {"powersgd:R": "powersgd", "bits=B": "bits=", "fp16, bf16": "fp16", "1bit-adam": "1bit", "skip": "skip"}
    return term not in stems or any(stems[term] in name for name in names)


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}x"


def rate_text(bits: float) -> str:
    """Bits per second to two digits, with a unit."""
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= 0.995 * size:
            return f"{float(f'{bits / size:.2g}'):g} {unit}"
    return f"{bits:.2g} bit/s"


def _gain(rate: float | None) -> str:
    if rate is None:
        return "-"
    return "never gains" if rate == 0 else "all" if math.isinf(rate) else rate_text(rate)


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"
