"""What the experiment prints, writes, and holds against theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commpress.experiments.precision_scaling import _theory
from commpress.experiments.precision_scaling._kinds import KindRow
from commpress.experiments.precision_scaling._measure import Fit, Point

# Published to four decimals (the additive .2223 is .22225): full, multiplicative, additive for M = 100, 1000, 10000 at eps = 1e-4.
STATED = {100: (0.1995, 0.1997, 0.2485), 1000: (0.0632, 0.0635, 0.2223), 10000: (0.0200, 0.0203, 0.2221)}
_STATED_WITHIN = 6e-5
SLOPE, SLOPE_WITHIN, FLAT = -0.50, 0.03, 0.02
RISK_WITHIN, FIT_WITHIN = 0.01, 0.05
_LABELS = ("multiplicative", "additive", "additive by block")


def closed_forms() -> dict[int, tuple[float, float, float]]:
    """Risks without quantisation, with multiplicative and with additive noise of eps = 1e-4, by M."""
    found = {}
    for size in _theory.SIZES:
        noises = (None, _theory.multiplicative(size, _theory.EPS), _theory.additive(size, _theory.EPS))
        found[size] = tuple(_theory.risk(size, noise) for noise in noises)
    return found  # type: ignore[return-value]


def floor(eps: float) -> float:
    """Risk that multiplicative noise leaves however many features are kept."""
    return eps / (1.0 + eps) * _theory.tail(0)


def slopes(points: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """(measured, by the closed form at eps = 1e-4) slope of log risk over log M in [300, 3000], of multiplicative noise above its floor, of additive as it is."""
    sizes = _theory.slope_sizes()
    found = {}
    for label in _LABELS[:2]:
        mine = {p.size: p for p in points if p.label == label}
        noise = _theory.multiplicative if label == "multiplicative" else _theory.additive
        off = floor(mine[sizes[-1]].eps) if label == "multiplicative" else 0.0
        exact_off = floor(_theory.EPS) if label == "multiplicative" else 0.0
        measured = _theory.slope(sizes, [mine[size].risk - off for size in sizes])
        exact = [_theory.risk(size, noise(size, _theory.EPS)) - exact_off for size in sizes]
        found[label] = measured, _theory.slope(sizes, exact)
    return found


def failures(points: Sequence[Point], fits: Sequence[Fit], rows: Sequence[KindRow]) -> list[str]:
    """What does not agree with theory, one line each."""
    wrong = []
    for size, found in closed_forms().items():
        for value, stated in zip(found, STATED[size], strict=True):
            if abs(value - stated) > _STATED_WITHIN:
                wrong.append(f"the closed form at M = {size} is {value:.5f}, stated {stated:.4f}")
    for label, both in slopes(points).items():
        for value, how in zip(both, ("measured", "predicted"), strict=True):
            target, within = (SLOPE, SLOPE_WITHIN) if label == "multiplicative" else (0.0, FLAT)
            if not abs(value - target) <= within:
                wrong.append(f"{how} slope of {label} noise is {value:+.4f}, wanted {target:+.2f} +- {within:.2f}")
    checked: list[tuple[Point | Fit, float]] = [*((p, RISK_WITHIN) for p in points), *((f, FIT_WITHIN) for f in fits)]
    for one, within in checked:
        if not abs(one.risk / one.predicted - 1.0) <= within:
            wrong.append(
                f"{one.quantiser} at M = {one.size}: risk {one.risk:.5f}, predicted {one.predicted:.5f}, more than {within:.0%} apart"
            )
    wrong += [f"{r.spec} declares {r.declared} noise, measured {r.measured}" for r in rows if r.declared != r.measured]
    return wrong


def tables(points: Sequence[Point], fits: Sequence[Fit], rows: Sequence[KindRow]) -> str:
    """Everything as text; every line ends in a newline."""
    lines = [
        "Closed forms at eps = 1e-4 (in brackets: as stated)",
        _line("M", "no noise", "multiplicative", "additive"),
    ]
    for size, found in closed_forms().items():
        cells = (f"{value:.5f} ({stated:.4f})" for value, stated in zip(found, STATED[size], strict=True))
        lines.append(_line(f"{size}", *cells))
    lines += [
        "",
        "Risk with the library's codecs as quantisers: measured, predicted, and the unquantised features worth as much",
    ]
    lines.append(_line("M", "no noise", *_LABELS, width=30))
    for size in sorted({p.size for p in points}):
        mine = {p.label: p for p in points if p.size == size}
        full = next(iter(mine.values())).full
        cells = (f"{mine[x].risk:.5f} {mine[x].predicted:.5f} ~{mine[x].effective:.0f}" for x in _LABELS if x in mine)
        lines.append(_line(f"{size}", f"{full:.5f}", *cells, width=30))
    names = {p.label: (p.quantiser, p.eps) for p in points}
    lines += [f"{label:>18}: {name}, eps {eps:.3g}" for label, (name, eps) in names.items()]
    lines += ["", "Slope of log risk over log M, M from 300 to 3000: measured, predicted"]
    for label, (measured, predicted) in slopes(points).items():
        lines.append(
            f"{label + (' minus its floor' if label == 'multiplicative' else ''):>30}  {measured:+.4f}  {predicted:+.4f}"
        )
    lines += ["", "Least squares on quantised features: error on fresh samples, and what is predicted"]
    lines.append(_line("M", "noise", "measured", "predicted", "off by"))
    for f in fits:
        lines.append(
            _line(f"{f.size}", f.label, f"{f.risk:.5f}", f"{f.predicted:.5f}", f"{f.risk / f.predicted - 1:+.1%}")
        )
    lines += [
        "",
        "Noise kinds: declared, measured, and the slope of log error over log square (0 additive, 1 multiplicative)",
    ]
    for r in rows:
        fitted = "-" if r.slope is None else f"{r.slope:.2f}"
        lines.append(f"{r.spec:>24}  {r.declared:<15} {r.measured:<15} {fitted:>6}")
    return "\n".join(lines) + "\n"


def records(points: Sequence[Point], fits: Sequence[Fit], rows: Sequence[KindRow]) -> list[dict[str, Any]]:
    """For a JSONL file."""
    forms = [
        {"kind": "closed-form", "eps": _theory.EPS, "size": size, "full": a, "multiplicative": b, "additive": c}
        for size, (a, b, c) in closed_forms().items()
    ]
    measured: list[Point | Fit | KindRow] = [*points, *fits, *rows]
    return [*forms, *(one.record() for one in measured)]


def _line(first: str, *cells: str, width: int = 18) -> str:
    return f"{first:>6}" + "".join(f"{cell:>{width}}" for cell in cells)
