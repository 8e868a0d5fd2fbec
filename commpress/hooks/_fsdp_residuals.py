"""All residuals of an FSDP2 model on one rank: of reduce-scatters, and of all-reduces between replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.collectives import shard_bounds
from commpress.errors import StateError
from commpress.feedback import ErrorFeedback, Layout
from commpress.hooks._fsdp_feedback import RowsFeedback

if TYPE_CHECKING:
    from commpress.hooks._fsdp_torch import Unit

WHOLE = "module "
"""How the name of a layer begins that is a whole module's row, because nobody knows which parameters are in it."""
_BY_PARAMETER = 0


@final
class Residuals:
    """Made at registration with room for every module's trained parameters, so that a checkpoint has its shape before the first step.

    Args:
        units: the model's modules. codec: in general. codec_of: of a row with that layout.
        shards, replicas: this rank's place and the number of ranks in each of the two groups. replicated: whether there is the second one.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        codec: Any,
        codec_of: Callable[[Layout], Any],
        shards: tuple[int, int],
        replicas: tuple[int, int],
        *,
        replicated: bool,
    ) -> None:
        self._units = units
        self._codec, self._codec_of = codec, codec_of
        self._rank, self._world_size = shards
        self._replica, self._replicas = replicas
        self._rows: dict[
            tuple[int, int], RowsFeedback
        ] = {}  # by module, and the numel of a row with unknown parameters
        self._between: dict[tuple[int, Layout], ErrorFeedback] = {}
        for unit in units:
            layers = unit.layers(trained=True)
            if self._world_size > 1:
                self.rows(unit, layers, known=True)
            if replicated:
                self.replicas(unit, Layout(*layers), codec_of(Layout(*layers)))

    def rows(self, unit: Unit, layers: tuple[tuple[str, ...], tuple[int, ...]], *, known: bool) -> RowsFeedback:
        """Of one module's reduce-scatter, for these parameters or (not `known`) for its row as a whole."""
        place = unit.index, _BY_PARAMETER if known else sum(layers[1])
        if place not in self._rows:
            self._rows[place] = RowsFeedback(*layers, self._world_size, self._rank)
        self._rows[place].arrange(*layers)
        return self._rows[place]

    def replicas(self, unit: Unit, layout: Layout, codec: Any) -> ErrorFeedback:
        """Of one module's all-reduce."""
        place = unit.index, layout
        if place not in self._between:
            self._between[place] = ErrorFeedback(
                self._codec, rank=self._replica, world_size=self._replicas, shard=self._owned
            )
        self._between[place].arrange([layout], [codec])
        return self._between[place]

    def _owned(self, numel: int, codec: Any) -> tuple[int, int]:
        return shard_bounds(numel, self._replicas, self._replica, codec)

    def commit(self) -> None:
        """The step was good on all ranks."""
        for rows in self._rows.values():
            rows.commit()
        for feedback in self._between.values():
            feedback.commit()

    def drop(self) -> None:
        """Forgets what is not committed."""
        for rows in self._rows.values():
            rows.drop()

    def saved(self) -> dict[str, Any]:
        """Residuals by parameter; those of rows with unknown parameters, and between replicas, by module."""
        known: dict[str, torch.Tensor] = {}
        modules: dict[str, dict[str, torch.Tensor]] = {}
        for (index, numel), rows in self._rows.items():
            if numel == _BY_PARAMETER:
                known |= rows.state()
            else:
                modules[f"{index} {numel}"] = rows.state()
        between = {f"{index} {layout.numel}": f.state_dict() for (index, layout), f in self._between.items()}
        return {"residuals": known, "modules": modules, "replicas": between}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse. Raises StateError."""
        for unit in self._units:
            rows = self._rows.get((unit.index, _BY_PARAMETER))
            if rows is not None:
                rows.restore({n: v for n, v in saved["residuals"].items() if n in unit.names})
        for place, state in saved.get("modules", {}).items():
            index, numel = map(int, place.split())
            (name,) = state
            self._rows[index, numel] = RowsFeedback([name], [numel], self._world_size, self._rank)
            self._rows[index, numel].restore(state)
        for place, state in saved.get("replicas", {}).items():
            index, layout = int(place.split()[0]), Layout.from_list(state["layouts"][0])
            if index >= len(self._units):
                raise StateError(f"the saved state has a module number {index}, the model has {len(self._units)}")
            self.replicas(self._units[index], layout, self._codec_of(layout)).load_state_dict(state, self._codec_of)
