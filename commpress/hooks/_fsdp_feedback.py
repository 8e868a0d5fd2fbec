"""Error feedback of a reduce-scatter: what a rank's encodes for the others' rows left out is added to its next gradient.

There is one phase only, and the result is not quantised, so a rank owes no more than what it left out itself: for every coordinate of the rows of the others a number, in the units of
the gradient. Its own row is not encoded; the residual there is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from commpress.errors import StateError


@final
class RowsFeedback:
    """The residuals of one module on one rank: `rows` rows, in each of which every parameter has its padded shard.

    New residuals become current in :meth:`commit`, at the end of a step that is good on all ranks; :meth:`drop` forgets them. Hence two copies: 8 bytes for each coordinate of the
    unsharded module.

    Args:
        names, sizes: of the parameters, and of their padded shards.
        rows: number of ranks. own: this one.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], rows: int, own: int) -> None:
        self._rows = rows
        self._own = own
        self._parked: dict[str, torch.Tensor] = {}  # of parameters that the last step's gradient had not
        self._pending = False
        self.names, self.sizes = tuple(names), tuple(sizes)
        self._now, self._next = self._blank(), self._blank()

    def _blank(self) -> torch.Tensor:
        return torch.zeros(self._rows, sum(self.sizes))

    def arrange(self, names: Sequence[str], sizes: Sequence[int]) -> None:
        """Other parameters from now on (some were frozen or thawed): each keeps its residual until it is back."""
        if (self.names, self.sizes) == (tuple(names), tuple(sizes)):
            return
        self._parked |= self._columns()
        self._pending = False
        self.names, self.sizes = tuple(names), tuple(sizes)
        self._now, self._next = self._blank(), self._blank()
        for name, columns in self._columns(copy=False).items():
            if name in self._parked:
                columns.copy_(self._parked.pop(name))

    def add_input(self, flat: torch.Tensor) -> None:
        """``flat += residual``, before anything of it is encoded. A second time in one step it is what the first one left."""
        flat.view(self._rows, -1).add_(self._next if self._pending else self._now)
        self._next[self._own].zero_()
        self._pending = True

    def record(
        self, flat: torch.Tensor, codec: Any, payload: torch.Tensor, key: Any, start: int, stop: int, gain: float
    ) -> torch.Tensor:
        """After the encode of ``gain * flat[start:stop]``; returns a view of what it left out, by which `flat` is more than what receivers see."""
        left = self._next.view(-1)[start:stop]
        codec.decode(payload, key, out=left, offset=start, gain=1.0 / gain)
        return torch.sub(flat[start:stop], left, out=left)

    def commit(self) -> None:
        """The step was good."""
        if self._pending:
            self._now, self._next, self._pending = self._next, self._now, False

    def drop(self) -> None:
        """It was not."""
        self._pending = False

    def state(self) -> dict[str, torch.Tensor]:
        """A (rows, padded shard) tensor for each parameter."""
        return {**self._parked, **self._columns()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse. Raises StateError: other sizes."""
        for name, columns in self._columns(copy=False).items():
            if name not in state or tuple(state[name].shape) != tuple(columns.shape):
                found = tuple(state[name].shape) if name in state else "none"
                raise StateError(f"the saved residual of {name!r} is {found}, expected {tuple(columns.shape)}")
            columns.copy_(state[name])
        self._parked = {name: value for name, value in state.items() if name not in self.names}
        self._pending = False

    def _columns(self, *, copy: bool = True) -> dict[str, torch.Tensor]:
        parts = self._now.split(list(self.sizes), dim=1)
        return {name: part.clone() if copy else part for name, part in zip(self.names, parts, strict=True)}
