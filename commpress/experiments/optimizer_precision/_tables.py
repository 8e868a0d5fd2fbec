"""What the experiment prints, writes, and holds against theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commpress.experiments.optimizer_precision._average import MANTISSAS, Average, Track
from commpress.experiments.optimizer_precision._needs import GROWING, Growth, Need
from commpress.experiments.optimizer_precision._problem import Run
from commpress.experiments.optimizer_precision._trainings import Training

LEAST_R2 = 0.9
MORE_BITS = 4
STUCK, TRACKS, FINE = 0.05, 0.015, 0.05
_LOOK = 3000


def failures(
    averages: Sequence[Average],
    tracks: Sequence[Track],
    needs: Sequence[Need],
    growths: Sequence[Growth],
    *,
    quick: bool,
) -> list[str]:
    """What does not agree with theory, one line each."""
    wrong = [
        f"an average with beta = {a.beta}, rounded to nearest, needs {a.needed} bits of mantissa, predicted {a.predicted}"
        for a in averages
        if a.needed != a.predicted
    ]
    nearest, stochastic, wide = tracks
    if not abs(nearest.values[-1] / nearest.values[0] - 1.0) < STUCK:
        wrong.append(
            f"bfloat16's mantissa rounded to nearest moved from {nearest.values[0]} to {nearest.values[-1]:.4f}"
        )
    value, exact = looked(stochastic)
    if not abs(value / exact - 1.0) < TRACKS:
        wrong.append(f"rounded stochastically the average is {value:.5f} after {_LOOK} steps, exactly {exact:.5f}")
    if not abs(wide.values[-1] / wide.exact[-1] - 1.0) < FINE:
        wrong.append(f"12 bits rounded to nearest end at {wide.values[-1]:.5f}, exactly {wide.exact[-1]:.5f}")
    for g in growths:
        # Over one decade instead of two, whole bits are too coarse for a line.
        if (g.rounding, g.place) in GROWING and not (g.crossing_slope > 0 and (quick or g.r2 >= LEAST_R2)):
            wrong.append(
                f"{g.optimizer} {g.place}, {g.rounding}: needed mantissas {g.bits} do not grow linearly with log2 T, R^2 {g.r2:.3f}"
            )
    second, momentum = sensitive(needs)
    if second - momentum < MORE_BITS:
        wrong.append(
            f"Adam's second moment needs {second} bits and Muon's momentum {momentum}, fewer than {MORE_BITS} apart"
        )
    return wrong


def looked(track: Track) -> tuple[float, float]:
    """(value, exact value) after 3000 steps."""
    at = track.steps.index(_LOOK)
    return track.values[at], track.exact[at]


def sensitive(needs: Sequence[Need]) -> tuple[int, int]:
    """Mantissas that Adam's second moment and Muon's momentum need at the longest horizon, rounded to nearest."""
    longest = max(n.horizon for n in needs)
    found = {(n.optimizer, n.place): n.mantissa for n in needs if n.horizon == longest and n.rounding == "nearest"}
    return found["adam", "second moment"], found["muon", "momentum"]


def tables(
    averages: Sequence[Average],
    tracks: Sequence[Track],
    runs: Sequence[Run],
    needs: Sequence[Need],
    growths: Sequence[Growth],
    trainings: Sequence[Training],
) -> str:
    """Everything as text; every line ends in a newline."""
    lines = [
        "A moving average rounded to nearest: bits of mantissa with which it never sticks",
        _row("beta", "measured", "predicted"),
    ]
    lines += [_row(f"{a.beta}", f"{a.needed}", f"{a.predicted}") for a in averages]
    lines += ["", f"beta = .999, from 1.5, no more input: after {_LOOK} steps, and exactly"]
    lines += [f"{track.codec:>30}  {looked(track)[0]:.5f}  {looked(track)[1]:.5f}" for track in tracks]
    longest = max(r.horizon for r in runs)
    lines += ["", f"Final gradient norm over that of float32, {longest:,} steps, by bits of mantissa"]
    lines.append(f"{'':>34}" + "".join(f"{m:>7}" for m in MANTISSAS))
    for r in runs:
        if r.horizon == longest:
            name = f"{r.optimizer} {r.place}, {r.rounding}"
            lines.append(f"{name:>34}" + "".join(f"{min(999.0, norm / r.exact):>7.2f}" for norm in r.norms))
    horizons = sorted({n.horizon for n in needs})
    lines += ["", "Needed mantissa (within 10 % of float32) by number of steps, and its growth with log2 T"]
    lines.append(f"{'':>34}" + "".join(f"{h:>8}" for h in horizons) + "   bits per doubling, R^2; of the crossings")
    for g in growths:
        name = f"{g.optimizer} {g.place}, {g.rounding}"
        lines.append(
            f"{name:>34}" + "".join(f"{b:>8}" for b in g.bits)
            + f"   {g.slope:+.2f}, {g.r2:.3f}; {g.crossing_slope:+.2f}, {g.crossing_r2:.3f}"
        )  # fmt: skip
    second, momentum = sensitive(needs)
    lines += ["", f"Rounded to nearest, Adam's second moment needs {second} bits and Muon's momentum {momentum}."]
    if trainings:
        lines += [
            "",
            "The main job: held-out loss, and bytes of the optimizer's states",
            _row("optimizer", "states", "loss", "against fp32", "bytes", "of fp32", width=28),
        ]
    for t in trainings:
        base = next(b for b in trainings if b.optimizer == t.optimizer and b.states is None)
        lines.append(
            _row(
                t.optimizer, t.states or "fp32", f"{t.held_out_loss:.4f}", f"{t.held_out_loss / base.held_out_loss - 1:+.2%}",
                f"{t.state_bytes:,}", f"{t.state_bytes / base.state_bytes:.1%}", width=28,
            )
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def records(*parts: Sequence[Any]) -> list[dict[str, Any]]:
    """For a JSONL file."""
    return [one.record() for part in parts for one in part]


def _row(first: str, *cells: str, width: int = 12) -> str:
    return f"{first:>10}" + "".join(f"{cell:>{width if i == 0 else 14}}" for i, cell in enumerate(cells))
