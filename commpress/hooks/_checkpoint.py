"""What a HookState saves and how it is taken up again.

A state is a dict of numbers, strings, lists and tensors, so that ``torch.load(weights_only=True)`` reads it. Each rank
saves its own; :func:`commpress.hooks.merge_states` makes of all of them one for another number of ranks.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from commpress.errors import StateError
from commpress.hooks._exchange import Exchange
from commpress.hooks._handshake import library_version

_log = logging.getLogger("commpress.hooks")
_FORMAT = 1


def build_state(
    *,
    codec: Any,
    with_feedback: bool,
    seed: int,
    step: int,
    layouts: dict[str, Any],
    residuals: dict[str, Any] | None,
    exchange: Exchange | None,
) -> dict[str, Any]:
    """The state to save before step number `step`.

    Args:
        layouts: the tracker's state.
        residuals: those that were loaded and wait for an exchange.
        exchange: None if the hook is not bound.
    """
    if exchange is not None and exchange.feedback is not None:
        residuals = exchange.feedback.state_dict()
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
    }


def check_state(state: dict[str, Any], *, codec: Any, with_feedback: bool) -> None:
    """Raises StateError unless `state` is of this format, codec and feedback setting."""
    mine = {"format": _FORMAT, "codec": str(codec), "with_feedback": with_feedback}
    for name, value in mine.items():
        if state.get(name) != value:
            raise StateError(f"the saved state has {name} {state.get(name)!r}, this one {value!r}")


def load_residuals(residuals: dict[str, Any], exchange: Exchange) -> None:
    """Gives saved residuals to the exchange, or drops them, with a warning, if another number of ranks saved them.

    Raises:
        StateError: they are another rank's.
    """
    assert exchange.feedback is not None
    if residuals["world_size"] in (0, exchange.world_size):
        exchange.feedback.load_state_dict(residuals)
        return
    text = (
        f"the state was saved by {residuals['world_size']} ranks and is loaded by {exchange.world_size}: its "
        "error-feedback residuals are dropped (commpress.hooks.merge_states would keep them)"
    )
    _log.warning(text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)  # at who called the HookState
