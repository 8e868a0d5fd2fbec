"""The key from which all randomness of one encode is derived."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from commpress.errors import SpecError

_BITS = (("seed", 64), ("step", 32), ("sender", 24), ("tensor", 32), ("phase", 4))


@dataclasses.dataclass(frozen=True)
class Key:
    """Identifies one encode; equal keys give equal bytes on every device.

    Args:
        seed: 64 bits, shared by all ranks of a run.
        step: training step, 32 bits.
        sender: rank that encodes, 24 bits.
        tensor: which tensor of the step (for DDP the bucket's index), 32 bits.
        phase: 0 for a plain encode; a collective sets 1 and 2 for its two phases. 4 bits.

    Raises:
        SpecError: a field is negative or too wide.
    """

    seed: int = 0
    step: int = 0
    sender: int = 0
    tensor: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        for (name, bits), value in zip(
            _BITS, (self.seed, self.step, self.sender, self.tensor, self.phase), strict=True
        ):
            if not isinstance(value, int) or value >> bits:
                raise SpecError(f"Key.{name} must be an integer in [0, 2^{bits}), got {value!r}")

    def replace(self, **changes: int) -> Key:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def of_layer(self, step: int) -> Key:
        """A copy whose tensor number is larger by `step`; unchecked, as it is made for every layer of every message."""
        copy = object.__new__(Key)
        copy.__dict__.update(self.__dict__, tensor=self.tensor + step)
        return copy

    def words(self) -> tuple[int, int, int]:
        """Philox counter words 1 to 3 without the purpose: ``(step, sender << 8 | phase << 4, tensor)``."""
        return self.step, self.sender << 8 | self.phase << 4, self.tensor

    def of_same_tensor(self, keys: Iterable[Key]) -> bool:
        """Whether `keys` differ from this one in sender and phase at most: what the operators for several payloads take."""
        return all((k.seed, k.step, k.tensor) == (self.seed, self.step, self.tensor) for k in keys)
