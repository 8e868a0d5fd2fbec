"""Short runs of the main job with the optimizer's states in few bits: torch's own AdamW and Muon under `commpress.optim.PackedStates`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from commpress.experiments._job import MainJob, Progress, process_group
from commpress.experiments._records import RunWriter
from commpress.experiments._settings import QUICK, Settings
from commpress.experiments._text import standard_library

_FORMATS = (None, "float:e8m7", "float:e8m2", "float:e8m2,rounding=nearest")
_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of the main job on one rank.

    Attributes:
        optimizer: "adamw" or "muon". states: format of its states; None: float32.
        held_out_loss: nats per byte. state_bytes: that the states take.
    """

    optimizer: str
    states: str | None
    held_out_loss: float
    state_bytes: int

    def record(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": "training", **dataclasses.asdict(self)}


def trainings(*, quick: bool, seed: int, on_progress: Callable[[float, str], None] | None = None) -> list[Training]:
    """The same seed and data with each optimizer and format."""
    formats = _FORMATS[:2] if quick else _FORMATS
    work = [(optimizer, states) for optimizer in ("adamw", "muon") for states in formats]
    corpus = standard_library(None)
    found: list[Training] = []
    with process_group():
        for i, (optimizer, states) in enumerate(work):
            # The tiny model: torch's Muon multiplies in bfloat16, which takes minutes for the others on most CPUs.
            size: dict[str, Any] = {**QUICK, "probes": 1} | (
                {} if quick else {"steps": _STEPS, "held_out_windows": 512}
            )
            settings = Settings(codec="fp32", optimizer=optimizer, states=states, seed=seed, **size)

            def tell(progress: Progress, i: int = i) -> None:
                if on_progress is not None:
                    optimizer, states = work[i]
                    on_progress((i + progress.step / progress.steps) / len(work), f"{optimizer} {states or 'fp32'}")

            job = MainJob(settings, writer=RunWriter(None), on_progress=tell, corpus=corpus)
            try:
                summary = job.run()
            finally:
                job.close()
            found.append(
                Training(optimizer, settings.states, summary["held_out_loss"], summary["optimizer_state_bytes"])
            )
    return found
