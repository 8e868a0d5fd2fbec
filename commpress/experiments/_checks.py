"""What an experiment must find: figures beside the range that theory gives them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure.

    Attributes:
        what: in plain words.
        measured: what came out.
        expected: what theory, or the specification, says.
        low, high: limits, inclusive; infinite where there is none.
    """

    what: str
    measured: float
    expected: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether it is within its limits; a NaN never is."""
        return self.low <= self.measured <= self.high

    def record(self) -> dict[str, Any]:
        """For a line of JSON; what is not finite becomes None."""
        values = dataclasses.asdict(self) | {"passed": self.passed}
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return {"kind": "check", **known}


def within(what: str, measured: float, expected: float, relative: float) -> Check:
    """Within so large a part of what is expected."""
    return Check(what, measured, expected, expected * (1 - relative), expected * (1 + relative))


def near(what: str, measured: float, expected: float, absolute: float) -> Check:
    """Within so much of what is expected."""
    return Check(what, measured, expected, expected - absolute, expected + absolute)


def between(what: str, measured: float, expected: float, limits: tuple[float, float], allowance: float = 0.0) -> Check:
    """Between the limits, or beyond them by no more than the `allowance`, which is chance's."""
    return Check(what, measured, expected, limits[0] - allowance, limits[1] + allowance)


def at_least(what: str, measured: float, least: float) -> Check:
    """No less than that."""
    return Check(what, measured, least, low=least)


def at_most(what: str, measured: float, most: float) -> Check:
    """No more than that."""
    return Check(what, measured, most, high=most)


def checks_table(checks: Sequence[Check]) -> str:
    """Measured against expected, a line each. Every line ends in a newline."""
    rows = [("", "measured", "expected", "allowed", "")]
    for check in checks:
        low, high = (f"{v:.4g}" if math.isfinite(v) else "" for v in (check.low, check.high))
        allowed = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
        rows.append(
            (
                check.what,
                f"{check.measured:.4g}",
                f"{check.expected:.4g}",
                allowed,
                "" if check.passed else "FAILED",
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right, under a ruled head. Every line ends in a newline."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"
