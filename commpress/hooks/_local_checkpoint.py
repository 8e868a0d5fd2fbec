"""What a LocalSGD saves and how it is taken up again. The names that a HookState's state has too mean the same, so that `merge_states` serves both."""

from __future__ import annotations

from typing import Any

from commpress.errors import StateError
from commpress.hooks._checkpoint import PARTS
from commpress.hooks._handshake import library_version
from commpress.hooks._local_engine import Engine
from commpress.hooks._local_round import Round
from commpress.hooks._local_settings import LocalSettings

_FORMAT = "local SGD 1"


def build_local_state(
    engine: Engine, *, codec: Any, settings: LocalSettings, numbers: dict[str, int]
) -> dict[str, Any]:
    """The state to save: numbers, text, lists and tensors. The engine's round under way must have been waited for.

    Args:
        numbers: seed, "step" (rounds begun), and what else LocalSGD counts.
    """
    replica, reduction, pending = engine.replica, engine.reduction, engine.pending
    parts = reduction.saved()
    under_way: dict[str, Any] | None = None
    if pending is not None:
        under_way = {
            "number": pending.number,
            "members": list(pending.members),
            "finite": pending.finite,
            "buckets": replica.pending_state(pending.members),
        }
    optimizer, buffers = engine.outer.optimizer, engine.buffers
    return {
        "format": _FORMAT,
        "version": library_version(),
        "codec": str(codec),
        **numbers,
        "rank": reduction.rank,
        "world_size": reduction.world_size,
        **_settings_of(settings),
        "counts": dict(engine.counts),
        "synchronized": replica.state(),
        "outer": None if optimizer is None else optimizer.state_dict(),
        "buffers": None if buffers is None else buffers.state(),
        "under_way": under_way,
        **{name: parts.get(name) for name in PARTS},
    }


def check_local_state(state: dict[str, Any], *, codec: Any, settings: LocalSettings) -> None:
    """Raises StateError unless `state` is of this format, codec and settings."""
    for name, value in {"format": _FORMAT, "codec": str(codec), **_settings_of(settings)}.items():
        if state.get(name) != value:
            raise StateError(f"the saved state has {name} {state.get(name)!r}, this LocalSGD {value!r}")


def load_parts(state: dict[str, Any], engine: Engine) -> Round | None:
    """Takes up everything but LocalSGD's own numbers; the round that was under way, or None.

    Raises:
        StateError: the state is of other parameters, or has another kind of outer optimiser.
    """
    replica, outer, buffers, reduction = engine.replica, engine.outer, engine.buffers, engine.reduction
    saved = state["synchronized"]
    for name in (*replica.pieces, *saved):
        have = list(saved[name].shape) if name in saved else None
        want = list(replica.pieces[name].shape) if name in replica.pieces else None
        if have != want:
            raise StateError(f"the saved state has parameter {name!r} of shape {have}, the model of shape {want}")
    if (state["outer"] is None) != (outer.optimizer is None):
        raise StateError("the saved state and this LocalSGD differ in whether there is an outer optimiser")
    reduction.load({name: state.get(name) for name in PARTS})
    for name, view in replica.pieces.items():
        view.copy_(saved[name])
    if outer.optimizer is not None:
        outer.optimizer.load_state_dict(state["outer"])
    if buffers is not None and state["buffers"] is not None:
        buffers.load(state["buffers"])
    engine.counts.update({name: int(state["counts"].get(name, 0)) for name in engine.counts})
    under_way = state["under_way"]
    if under_way is None:
        return None
    replica.load_pending(under_way["members"], under_way["buckets"])
    return Round(under_way["number"], list(under_way["members"]), finite=under_way["finite"])


def _settings_of(settings: LocalSettings) -> dict[str, Any]:
    names = ("every", "warmup_steps", "parts", "overlap")
    return {"with_feedback": settings.with_feedback, **{name: getattr(settings, name) for name in names}}
