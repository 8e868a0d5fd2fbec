"""The scale that each layer's gradient has on most ranks, and the ranks that are far from it.

A norm of the whole gradient hides a small layer whose gradient is a hundred times too large on one rank, or missing there: a loss scale that one parameter group kept, a frozen layer, a
corrupt part of a checkpoint. Every layer's rms is compared with the median over the ranks, which :func:`commpress.collectives.common_scales` finds: two bits of each rank for a layer
whose scale has not moved since the last look, where telling it takes 32.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from commpress.collectives import ChannelError, Communicator, Notes, common_scales
from commpress.errors import PeerError

DIGITS = 2  # a common scale is too large by a quarter at most
FACTOR = 8.0
SMALLEST = 16  # coordinates of a layer that is judged: the rms of fewer differs by chance
NAMED = 4  # layers that a rank tells the others of
_HEAD, _LAYER = struct.Struct("<I"), struct.Struct("<If")
NOTE_NBYTES = _HEAD.size + NAMED * _LAYER.size


@final
@dataclasses.dataclass(frozen=True)
class FarLayer:
    """A layer whose gradient on one rank is not of the size that it has on most. ratio: its rms over the common scale; 0: it is zero there."""

    rank: int
    layer: str
    ratio: float


@final
@dataclasses.dataclass(frozen=True)
class LayerScales:
    """Of one step, equal on all ranks.

    Attributes:
        names, numels: of the layers. values: float64, of each the median over the ranks of its gradient's rms, rounded up to the next number of two binary digits behind the leading one.
        far: the layers that are furthest from that, at most 4 of each rank. counts: how many there are, by rank.
        rounds: of questions that it took. bytes_each, messages_each: sent to each other rank.
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    values: np.ndarray
    far: tuple[FarLayer, ...]
    counts: tuple[int, ...]
    rounds: int
    bytes_each: int
    messages_each: int

    def record(self) -> dict[str, Any]:
        """For telemetry."""
        layers = zip(self.names, self.numels, self.values.tolist(), strict=True)
        return {
            "layers": [{"name": name, "numel": numel, "rms": rms} for name, numel, rms in layers],
            "far": [dataclasses.asdict(one) for one in self.far],
            "far_layers": list(self.counts),
            "rounds": self.rounds,
            "bytes_each": self.bytes_each,
        }

    def sentence(self, rank: int) -> str:
        """What the log says of a rank that has such layers."""
        mine = [one for one in self.far if one.rank == rank]
        listed = ", ".join(f"{one.layer} ({_times(one.ratio)})" for one in mine)
        more = f" and {self.counts[rank] - len(mine)} more" if self.counts[rank] > len(mine) else ""
        return (
            f"the gradient of rank {rank} has not the size that it has on most ranks in {self.counts[rank]} of {len(self.names)} layers: "
            f"{listed}{more}"
        )


def _times(ratio: float) -> str:
    return "zero there" if ratio == 0 else f"{ratio:.3g} times"


@final
class ScaleWatch:
    """Compares the layers' scales on all ranks. Remembers the last ones, from which the next search begins.

    Args:
        names: of all layers, equal on all ranks.
        comm: a channel that nothing else uses meanwhile. timeout: seconds for any wait for a peer.
    """

    def __init__(self, names: Sequence[str], comm: Communicator, timeout: float) -> None:
        self._names, self._comm, self._timeout = tuple(names), comm, timeout
        self._notes = Notes(comm, NOTE_NBYTES, timeout)
        self._last: torch.Tensor | None = None
        self._known: set[tuple[int, str]] = set()

    def compare(self, rms: np.ndarray, numels: np.ndarray) -> LayerScales:
        """Collective. Of each layer the rms, finite on all ranks, and the coordinates. Raises PeerError."""
        mine = torch.from_numpy(rms.astype(np.float32))
        found = common_scales(
            mine, across="median", digits=DIGITS, near=self._last, group=self._comm, timeout=self._timeout
        )
        self._last = found.values
        common = found.values.double().numpy()
        # Where most ranks have no gradient at all there is nothing to compare with, and of two nobody can say who is wrong.
        judged = (common > 0) & (numels >= SMALLEST) & (self._comm.size > 2)
        ratios = np.where(judged, mine.double().numpy() / np.where(judged, common, 1.0), 1.0)
        far = np.flatnonzero((ratios >= FACTOR) | (ratios <= 1 / FACTOR))
        with np.errstate(divide="ignore"):
            worst = far[np.argsort(-np.abs(np.log(ratios[far])), kind="stable")][:NAMED]
        note = _HEAD.pack(len(far)) + b"".join(_LAYER.pack(int(i), ratios[i]) for i in worst)
        try:
            notes = self._notes.post(note.ljust(NOTE_NBYTES, b"\0")).collect()
        except ChannelError as error:
            raise PeerError(f"a rank did not say how large its gradients are: {error}") from error
        counts = tuple(_HEAD.unpack_from(one)[0] for one in notes)
        told = []
        for rank, (one, count) in enumerate(zip(notes, counts, strict=True)):
            for i in range(min(count, NAMED)):
                layer, ratio = _LAYER.unpack_from(one, _HEAD.size + i * _LAYER.size)
                told.append(FarLayer(rank, self._names[layer], ratio))
        return LayerScales(
            self._names,
            tuple(numels.tolist()),
            common,
            tuple(told),
            counts,
            found.rounds,
            found.bytes_each + NOTE_NBYTES,
            found.messages_each + 1,
        )

    def news(self, scales: LayerScales) -> list[int]:
        """Ranks that have such layers, if they had not the look before; so the log says it once."""
        now = {(one.rank, one.layer) for one in scales.far}
        fresh = sorted({rank for rank, _ in now - self._known})
        self._known = now
        return fresh
