"""What a HookState saves and how it is taken up again.

A state is a dict of numbers, strings, lists and tensors, so that ``torch.load(weights_only=True)`` reads it. Each rank
saves its own; :func:`commpress.hooks.merge_states` makes of all of them one for another number of ranks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from commpress.errors import StateError
from commpress.feedback import merge_residuals
from commpress.hooks._exchange import Exchange
from commpress.hooks._handshake import library_version

_log = logging.getLogger("commpress.hooks")
_FORMAT = 4


def build_state(
    *,
    codec: Any,
    with_feedback: bool,
    seed: int,
    step: int,
    layouts: dict[str, Any],
    residuals: dict[str, Any] | None,
    allocator: dict[str, Any] | None,
    shaping: dict[str, Any] | None,
    exchange: Exchange | None,
) -> dict[str, Any]:
    """The state to save before step number `step`.

    Args:
        layouts: the tracker's state.
        residuals, allocator, shaping: those that were loaded and wait for an exchange.
        exchange: None if the hook is not bound.
    """
    if exchange is not None:
        exchange.settle()  # the plan of the next step
        residuals = None if exchange.feedback is None else exchange.feedback.state_dict()
        allocator = None if exchange.planner is None else exchange.planner.state_dict()
        if allocator is not None and exchange.predictor is not None:
            allocator = {**allocator, "prediction": exchange.predictor.state_dict()}
        shaping = None if exchange.shaper is None else exchange.shaper.state_dict()
    return {
        "format": _FORMAT,
        "version": library_version(),
        "codec": str(codec),
        "seed": seed,
        "step": step,
        "rank": exchange.rank if exchange is not None else None,
        "world_size": exchange.world_size if exchange is not None else None,
        "with_feedback": with_feedback,
        "layouts": layouts,
        "residuals": residuals,
        "allocator": allocator,
        "shaping": shaping,
    }


def check_state(state: dict[str, Any], *, codec: Any, with_feedback: bool) -> None:
    """Raises StateError unless `state` is of this format, codec and feedback setting."""
    mine = {"format": _FORMAT, "codec": str(codec), "with_feedback": with_feedback}
    for name, value in mine.items():
        if state.get(name) != value:
            raise StateError(f"the saved state has {name} {state.get(name)!r}, this one {value!r}")


def load_into(
    exchange: Exchange,
    residuals: dict[str, Any] | None,
    allocator: dict[str, Any] | None,
    shaping: dict[str, Any] | None,
) -> None:
    """Gives saved residuals, the allocator's averages and the shaper's to the exchange, where they are not None.

    Residuals that another number of ranks saved are dropped, with a warning.

    Raises:
        StateError: the residuals are another rank's.
    """
    planner = exchange.planner
    if allocator is not None and planner is not None:
        planner.load_state_dict({name: value for name, value in allocator.items() if name != "prediction"})
        if exchange.predictor is not None and "prediction" in allocator:
            exchange.predictor.load_state_dict(allocator["prediction"])
    if shaping is not None and exchange.shaper is not None:
        exchange.shaper.load_state_dict(shaping)
    if residuals is None:
        return
    assert exchange.feedback is not None
    if residuals["world_size"] in (0, exchange.world_size):
        exchange.feedback.load_state_dict(residuals, None if planner is None else planner.codec)
        return
    text = (
        f"the state was saved by {residuals['world_size']} ranks and is loaded by {exchange.world_size}: its "
        "error-feedback residuals are dropped (commpress.hooks.merge_states would keep them)"
    )
    _log.warning(text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)  # at who called the HookState


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
