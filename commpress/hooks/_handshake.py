"""What all ranks must agree on before the first exchange."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from commpress.collectives import gather
from commpress.errors import MismatchError

__all__ = ["by_value", "compare", "found_text", "gather", "library_version"]


def library_version() -> str:
    """``commpress.__version__`` as it is now. (The package's top imports this room, not the other way round.)"""
    return str(sys.modules["commpress"].__version__)


def compare(records: Sequence[dict[str, Any]]) -> None:
    """Checks that the ranks' records are equal. ``"parameters"`` is a list, of which the first difference is named.

    Raises:
        MismatchError: the same on every rank; the message names each field that differs, the values and their ranks.
    """
    differences = []
    names = dict.fromkeys(name for record in records for name in record if name != "parameters")
    for name in names:
        found = by_value([record.get(name) for record in records])
        if len(found) > 1:
            differences.append(f"{name} ({found_text(found)})")
    lists = [record["parameters"] for record in records]
    for i in range(max(map(len, lists))):
        found = by_value([entry[i] if i < len(entry) else "none" for entry in lists])
        if len(found) > 1:
            differences.append(f"parameter {i}, the first that differs ({found_text(found)})")
            break
    if differences:
        raise MismatchError("ranks disagree on " + ", and on ".join(differences))


def by_value(values: Sequence[Any]) -> dict[str, list[int]]:
    """Which ranks have which value, as text."""
    found: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        text = (
            value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, list) else repr(value)
        )
        found.setdefault(text, []).append(rank)
    return found


def found_text(found: dict[str, list[int]]) -> str:
    """``rank 0: x; ranks 1, 2: y``"""
    return "; ".join(f"rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}: {value}" for value, r in found.items())
