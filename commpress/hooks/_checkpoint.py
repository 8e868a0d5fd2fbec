"""What a HookState saves and how it is taken up again.

A state is a dict of numbers, strings, lists and tensors, so that ``torch.load(weights_only=True)`` reads it. Each rank
saves its own; :func:`commpress.hooks.merge_states` makes of all of them one for another number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commpress.errors import StateError
from commpress.feedback import merge_residuals
from commpress.hooks._handshake import library_version
from commpress.hooks._reduction import Reduction

_FORMAT = 4
PARTS = ("residuals", "allocator", "shaping", "bases", "auto")
"""What a reduction may save."""


def build_state(
    *,
    codec: Any,
    with_feedback: bool,
    seed: int,
    step: int,
    layouts: dict[str, Any],
    loaded: dict[str, Any],
    reduction: Reduction | None,
) -> dict[str, Any]:
    """The state to save before step number `step`.

    Args:
        layouts: the tracker's state.
        loaded: parts that were loaded and wait for a reduction.
        reduction: None if the hook is not bound.
    """
    parts = loaded if reduction is None else reduction.saved()
    return {
        "format": _FORMAT,
        "version": library_version(),
        "codec": str(codec),
        "seed": seed,
        "step": step,
        "rank": reduction.rank if reduction is not None else None,
        "world_size": reduction.world_size if reduction is not None else None,
        "with_feedback": with_feedback,
        "layouts": layouts,
        **{name: parts.get(name) for name in PARTS},
    }


def check_state(state: dict[str, Any], *, codec: Any, with_feedback: bool) -> None:
    """Raises StateError unless `state` is of this format, codec and feedback setting."""
    mine = {"format": _FORMAT, "codec": str(codec), "with_feedback": with_feedback}
    for name, value in mine.items():
        if state.get(name) != value:
            raise StateError(f"the saved state has {name} {state.get(name)!r}, this one {value!r}")


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
