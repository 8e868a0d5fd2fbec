"""Checkpoints for another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commpress.errors import StateError
from commpress.feedback import merge_residuals


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes of the states that all ranks saved one that every rank of a job of any size may load.

    What the ranks' error-feedback residuals owe the coming steps is conserved: each new rank gets their mean.

    Raises:
        StateError: the states are not those of all ranks of one job at one step.
    """
    if not states:
        raise StateError("no states")
    for name in ("format", "codec", "seed", "step", "with_feedback", "world_size"):
        values = {repr(state[name]) for state in states}
        if len(values) > 1:
            raise StateError(f"the states differ in {name}: {', '.join(sorted(values))}")
    merged = dict(states[0])
    if states[0]["residuals"] is not None:
        merged["residuals"] = merge_residuals([state["residuals"] for state in states])
    return merged
