"""Everything that decides a run of the main job."""

from __future__ import annotations

import dataclasses
from typing import Any

from commpress.codecs import codec as make_codec
from commpress.errors import SpecError
from commpress.experiments._model import Shape
from commpress.experiments._optimizers import OPTIMIZERS
from commpress.experiments._ways import is_peer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run.

    Attributes:
        codec: a codec's spec, or one of `PEERS`; with `bits` the family whose rates the allocator chooses.
        bits: budget per coordinate that the allocator shares out, or None.
        every: local steps between two rounds of LocalSGD, whose differences then go through the codec; 0: gradients do, in every step.
        parts, outer_lr, outer_momentum: of LocalSGD.
        optimizer: "adamw", or "muon" for the matrices of hidden layers (and AdamW for the rest).
        states: format in which the optimiser's states are kept (`commpress.optim.PackedStates`); None: as torch keeps them.
        steps: optimiser steps.
        seed: of initialisation, data order and the codec's randomness.
        shape: sizes of the model.
        windows_per_rank: sequences per rank and step.
        learning_rate: its largest value; it warms up for a tenth of the steps and falls along a cosine to a twentieth.
        weight_decay: of matrices; vectors have none.
        clip: largest norm of the gradient.
        held_out_windows: size of the sample for the final loss.
        curve_points: evaluations on the way, on the first `curve_windows` of an evenly spread sample.
        curve_windows: its size.
        probes: steps in which the NMSE is measured.
        text: folder of .py files; None means the standard library.
        interface: network interface to watch; None means the one that sends most.
    """

    codec: str = "hadamard+lloyd:2"
    bits: float | None = None
    every: int = 0
    parts: int = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    optimizer: str = "adamw"
    states: str | None = None
    steps: int = 250
    seed: int = 0
    shape: Shape = dataclasses.field(default_factory=Shape)
    windows_per_rank: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    held_out_windows: int = 1024
    curve_points: int = 10
    curve_windows: int = 128
    probes: int = 6
    text: str | None = None
    interface: str | None = None

    @property
    def way(self) -> str:
        """How gradients travel, as `_ways.way` reads it."""
        return self.codec if self.bits is None else f"{self.codec} bits={self.bits:g}"

    @property
    def communication(self) -> str:
        """What travels and how, for people."""
        text = self.codec if self.bits is None else f"{self.codec}, {self.bits:g} bits shared out"
        if self.every:
            text += f", every {self.every} steps" + (f", {self.parts} parts" if self.parts > 1 else "")
            text += f", outer momentum {self.outer_momentum:g}" if self.outer_momentum else ""
        text += ", Muon" if self.optimizer == "muon" else ""
        text += f", states in {self.states}" if self.states else ""
        return text

    def __post_init__(self) -> None:
        for name in ("steps", "windows_per_rank", "held_out_windows", "curve_points", "curve_windows"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.every < 0:
            raise SpecError(f"every must be at least 0, got {self.every}")
        if self.every and is_peer(self.codec):
            raise SpecError(
                f"{self.codec} is an all-reduce of gradients: with local steps give a codec, none for whole differences"
            )
        if not self.every and (self.parts, self.outer_lr, self.outer_momentum) != (1, 1.0, 0.0):
            raise SpecError("parts, outer_lr and outer_momentum belong to local steps: give every= too")
        if self.optimizer not in OPTIMIZERS:
            raise SpecError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.codec == "1bit-adam" and (self.optimizer, self.states) != ("adamw", None):
            raise SpecError("1bit-adam is an optimizer of its own: leave out optimizer and states")
        if self.states is not None:
            object.__setattr__(self, "states", str(make_codec(self.states)))  # raises SpecError; canonical from here on
        if not 0 <= self.seed < 1 << 63:
            raise SpecError(f"seed must be in [0, 2^63), got {self.seed}")


QUICK: dict[str, Any] = {
    "steps": 12,
    "shape": Shape(width=64, layers=2, heads=2, context=32),
    "windows_per_rank": 4,
    "held_out_windows": 64,
    "curve_points": 4,
    "curve_windows": 16,
    "probes": 2,
}
"""Settings of a run of seconds that still does everything once."""
