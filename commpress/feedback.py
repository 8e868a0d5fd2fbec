"""Error feedback: what one step's encodes left out is added to the next step's input.

A bucket is reduced in two phases, and both leave something out:

* phase 1, on every rank: ``v = gradient + sent``; `v` is encoded to the owners of the other shards, and
  ``sent' = v - decode(encode(v))``. The rank's own shard is not encoded, so its residual is 0.
* phase 2, on the owner of a shard: ``m = mean + mean_residual``; `m` is encoded for everybody, and
  ``mean_residual' = m - decode(encode(m))``. Where contributions are passed on instead (`codec.passes_on`), `m` is the
  owner's own gradient plus its residual.

The residuals live in flat buffers, one per bucket, next to a :class:`Layout` that says which parameter lies where, and
are regrouped by parameter when DDP rebuilds its buckets: `mean_residual` is then folded into the owner's `sent` as
``world_size * mean_residual`` (or ``mean_residual``, if contributions are passed on), so that the sum over ranks that later means receive is conserved.

Where the ranks of a node add up their gradients before phase 1, `v` is the node's sum plus `sent` of the rank that encodes it: each rank
adds its `sent` to its own gradient first, which is the same.

New residuals become current only in :meth:`ErrorFeedback.commit`, called once a whole step is known to be good on all
ranks; a step that is not leaves no trace. Hence two copies. Memory on each rank, with N fp32 coordinates and n ranks:
``8 N + 8 ceil(N / n)`` bytes, to within a block per bucket (none for a lossless codec).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

import torch

from commpress.errors import StateError


class FeedbackCodec(Protocol):
    """What feedback asks of a codec (every commpress codec does it)."""

    @property
    def lossless(self) -> bool: ...

    def decode(
        self,
        payload: torch.Tensor,
        key: Any,
        *,
        out: torch.Tensor,
        accumulate: bool = False,
        offset: int = 0,
        gain: float = 1.0,
        beta: float = 1.0,
    ) -> torch.Tensor: ...


@final
@dataclasses.dataclass(frozen=True)
class Layout:
    """Which parameters a flat bucket holds, in order and without gaps.

    Args:
        parameters: their names.
        sizes: their numbers of coordinates.
        dtype: of the bucket, as text ("float32").
    """

    parameters: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str = "float32"

    @property
    def numel(self) -> int:
        return sum(self.sizes)

    def segments(self) -> Iterable[tuple[str, int, int]]:
        """``(parameter, start, stop)`` of each parameter in the flat bucket."""
        start = 0
        for name, size in zip(self.parameters, self.sizes, strict=True):
            yield name, start, start + size
            start += size

    def as_list(self) -> list[Any]:
        """For a checkpoint: plain lists, text and integers."""
        return [list(self.parameters), list(self.sizes), self.dtype]

    @staticmethod
    def from_list(value: Sequence[Any]) -> Layout:
        names, sizes, dtype = value
        return Layout(tuple(names), tuple(sizes), dtype)


@final
class BucketFeedback:
    """The residuals of one bucket on one rank. Made by :class:`ErrorFeedback`.

    The two phases may run on two threads; they touch different buffers.
    """

    def __init__(
        self,
        layout: Layout,
        codec: FeedbackCodec,
        world_size: int,
        own: tuple[int, int],
        part: tuple[int, int] | None = None,
        senders: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.layout = layout
        self._codec = codec
        self._world_size = world_size
        # What a mean residual is to later sums.
        self.weight = _weight(codec, senders or world_size, world_size)
        self._start, self._stop = own
        self._part = part or (0, layout.numel)
        self._sent = _pair(layout.numel, device)
        self._mean = _pair(self._stop - self._start, device)

    def add_input(self, tensor: torch.Tensor) -> None:
        """Phase 1, first: ``tensor += sent``. `tensor`: fp32, flat, the whole bucket."""
        tensor.add_(self._sent[0])
        sent, (low, high) = self._sent[1], self._part
        for start, stop in ((self._start, self._stop), (0, low), (high, sent.numel())):
            sent[start:stop].zero_()

    def send_exactly(self, tensor: torch.Tensor) -> None:
        """For a bucket whose sum arrives without loss: ``tensor`` gets all that this rank owes, and nothing is left out."""
        tensor.add_(self._sent[0])
        tensor[self._start : self._stop].add_(self._mean[0], alpha=self.weight)
        self._sent[1].zero_()
        self._mean[1].zero_()

    def record_sent(self, tensor: torch.Tensor, payload: torch.Tensor, key: Any, start: int, stop: int) -> None:
        """Phase 1, after the encode of ``tensor[start:stop] / world_size`` to `payload` under `key`."""
        left = self._sent[1][start:stop]
        self._codec.decode(payload, key, out=left, offset=start, gain=float(self._world_size))
        torch.sub(tensor[start:stop], left, out=left)

    def add_mean(self, tensor: torch.Tensor, start: int, stop: int) -> None:
        """Phase 2, before the encode of a piece of the own shard: ``tensor[start:stop] += mean_residual``."""
        tensor[start:stop].add_(self._mean[0][start - self._start : stop - self._start])

    def record_mean(
        self, tensor: torch.Tensor, payload: torch.Tensor, key: Any, start: int, stop: int, *, gain: float = 1.0
    ) -> None:
        """Phase 2, after the encode of ``gain * tensor[start:stop]`` to `payload` and before its decode overwrites it."""
        left = self._mean[1][start - self._start : stop - self._start]
        self._codec.decode(payload, key, out=left, offset=start, gain=1.0 / gain)
        torch.sub(tensor[start:stop], left, out=left)

    def left_out(self, start: int, stop: int, phase: int) -> torch.Tensor:
        """A view of what the current step's encode of ``[start, stop)`` left out."""
        if phase == 1:
            return self._sent[1][start:stop]
        return self._mean[1][start - self._start : stop - self._start]

    def hold(self, start: int, stop: int) -> None:
        """Keeps the residuals of ``[start, stop)`` as they were before this step: its result will be discarded."""
        self._sent[1][start:stop].copy_(self._sent[0][start:stop])
        low, high = max(start, self._start) - self._start, min(stop, self._stop) - self._start
        if low < high:
            self._mean[1][low:high].copy_(self._mean[0][low:high])

    def commit(self) -> None:
        """Makes the current step's residuals the ones to add next."""
        self._sent.reverse()
        self._mean.reverse()

    def owed(self) -> dict[str, torch.Tensor]:
        """For each parameter a flat fp32 copy of what later sums over ranks are owed by this rank."""
        whole = self._sent[0].clone()
        whole[self._start : self._stop].add_(self._mean[0], alpha=self.weight)
        return {name: whole[start:stop].clone() for name, start, stop in self.layout.segments()}

    def preset(self, sent: dict[str, torch.Tensor]) -> None:
        """Takes over what was :meth:`owed` under another layout."""
        for name, start, stop in self.layout.segments():
            self._sent[0][start:stop].copy_(sent[name])

    def state(self) -> dict[str, dict[str, Any]]:
        """By parameter: ``sent`` and, where the own shard cuts the parameter, ``mean`` and its ``mean_start`` in it."""
        found: dict[str, dict[str, Any]] = {}
        for name, start, stop in self.layout.segments():
            found[name] = {"sent": self._sent[0][start:stop].to("cpu", copy=True)}
            low, high = max(start, self._start), min(stop, self._stop)
            if low < high:
                piece = self._mean[0][low - self._start : high - self._start].to("cpu", copy=True)
                found[name] |= {"mean": piece, "mean_start": low - start}
        return found

    def restore(self, state: dict[str, dict[str, Any]], weight: int) -> None:
        """The inverse of :meth:`state`, of a bucket with that `weight`. A ``mean`` piece outside the own shard, or of another weight, is folded into `sent`."""
        for name, start, stop in self.layout.segments():
            entry = state[name]
            self._sent[0][start:stop].copy_(entry["sent"])
            piece = entry.get("mean")
            if piece is None:
                continue
            low = start + entry["mean_start"]
            high = low + piece.numel()
            if self._start <= low and high <= self._stop and weight == self.weight:
                self._mean[0][low - self._start : high - self._start].copy_(piece)
            else:
                self._sent[0][low:high].add_(piece.to(self._sent[0].device), alpha=weight)


@final
class ErrorFeedback:
    """The residuals of all buckets of a model on one rank.

    Args:
        codec: the codec of both phases, made by its ``for_feedback()``; `arrange` may bring another for each bucket.
        rank: this process's place among `world_size`.
        world_size: ranks whose mean is taken.
        shard: (numel, codec) -> ``(start, stop)``, the range of a bucket that this rank owns.
        part: (numel, codec) -> ``(start, stop)``, the range that it exchanges in compressed form; None: all. What the rest owes is given on, exactly, with the gradient.
        senders: how many contributions each sum has, if not `world_size`: the nodes, where their ranks add up before.
        device: where the residuals are; None: on the CPU. All methods work on the device's current stream, which must be the same one always.
    """

    def __init__(
        self,
        codec: FeedbackCodec,
        *,
        rank: int,
        world_size: int,
        shard: Callable[[int, Any], tuple[int, int]],
        part: Callable[[int, Any], tuple[int, int]] | None = None,
        senders: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device
        self._part = part
        self._senders = senders or world_size
        self._codec = codec
        self._rank = rank
        self._world_size = world_size
        self._shard = shard
        self._buckets: list[BucketFeedback] = []
        self._codecs: list[FeedbackCodec] = []

    @property
    def layouts(self) -> tuple[Layout, ...]:
        return tuple(b.layout for b in self._buckets)

    @property
    def active(self) -> bool:
        """False for a lossless codec: every residual is exactly 0, and nothing is stored."""
        return not self._codec.lossless

    def arrange(self, layouts: Sequence[Layout], codecs: Sequence[FeedbackCodec] | None = None) -> bool:
        """Regroups the residuals by parameter for new `layouts`, or other codecs of them. True if anything moved.

        Raises:
            StateError: the layouts hold other parameters than before.
        """
        codecs = [self._codec] * len(layouts) if codecs is None else list(codecs)
        if not self.active or (tuple(layouts) == self.layouts and codecs == self._codecs):
            return False
        new = [
            BucketFeedback(
                lay,
                codec,
                self._world_size,
                self._shard(lay.numel, codec),
                None if self._part is None else self._part(lay.numel, codec),
                self._senders,
                self._device,
            )
            for lay, codec in zip(layouts, codecs, strict=True)
        ]
        if self._buckets:
            owed = self.owed()
            _check_same({k: v.numel() for k, v in owed.items()}, _sizes(layouts), "the buckets of this step")
            for bucket in new:
                bucket.preset(owed)
        self._buckets, self._codecs = new, codecs
        return True

    def bucket(self, index: int) -> BucketFeedback:
        return self._buckets[index]

    def commit(self, buckets: Sequence[int] | None = None) -> None:
        """Ends a step that is good on all ranks: its residuals become the current ones; of all buckets, or of those that took part."""
        for i, bucket in enumerate(self._buckets):  # none for a lossless codec
            if buckets is None or i in buckets:
                bucket.commit()

    def owed(self) -> dict[str, torch.Tensor]:
        """For each parameter what later sums over ranks are owed by this one: ``sent + world_size * mean_residual``, or
        ``sent + mean_residual`` if contributions are passed on."""
        return {name: value for bucket in self._buckets for name, value in bucket.owed().items()}

    def state_dict(self) -> dict[str, Any]:
        """Text, integers and CPU tensors only. Loads bit for bit on the same rank, world size and layouts."""
        return {
            "rank": self._rank,
            "world_size": self._world_size,
            "weight": self._buckets[0].weight
            if self._buckets
            else _weight(self._codec, self._senders, self._world_size),
            "layouts": [lay.as_list() for lay in self.layouts],
            "residuals": {name: entry for bucket in self._buckets for name, entry in bucket.state().items()},
        }

    def load_state_dict(self, state: dict[str, Any], codec_of: Callable[[Layout], FeedbackCodec] | None = None) -> None:
        """Takes the residuals and the layouts of `state`, whose buckets have the codecs that `codec_of` gives, if it is given.

        Raises:
            StateError: the state is of another rank or world size (see :func:`merge_residuals`).
        """
        if state["world_size"] not in (0, self._world_size):
            raise StateError(f"the residuals are of {state['world_size']} ranks, not of {self._world_size}")
        if state["world_size"] and state["rank"] != self._rank and state["residuals"]:
            raise StateError(
                f"the residuals are of rank {state['rank']}, not {self._rank}: each rank saves and loads "
                "its own state, or all of them load what merge_residuals() makes of every rank's"
            )
        layouts = [Layout.from_list(entry) for entry in state["layouts"]]
        _check_same({k: v["sent"].numel() for k, v in state["residuals"].items()}, _sizes(layouts), "its own layouts")
        self._buckets = []
        self.arrange(layouts, None if codec_of is None else [codec_of(layout) for layout in layouts])
        for bucket in self._buckets:
            bucket.restore(state["residuals"], state["weight"] or bucket.weight)


def merge_residuals(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes of all ranks' :meth:`ErrorFeedback.state_dict` one that every rank of a world of any size may load.

    Each new rank starts with the mean of what the old ranks owed: the next mean is what it would have been.

    Raises:
        StateError: the states are not those of ranks 0 to n-1 of one world.
    """
    ranks = sorted(s["rank"] for s in states)
    if not states or ranks != list(range(states[0]["world_size"])):
        world = states[0]["world_size"] if states else 0
        raise StateError(f"expected the states of all {world} ranks, got those of ranks {ranks}")
    n = len(states)
    total: dict[str, torch.Tensor] = {}
    for state in states:
        for name, entry in state["residuals"].items():
            mean = total.setdefault(name, torch.zeros_like(entry["sent"]))
            mean.add_(entry["sent"], alpha=1 / n)
            if "mean" in entry:
                start = entry["mean_start"]
                mean[start : start + entry["mean"].numel()].add_(entry["mean"], alpha=state["weight"] / n)
    residuals = {name: {"sent": value} for name, value in total.items()}
    return {"rank": 0, "world_size": 0, "weight": 0, "layouts": states[0]["layouts"], "residuals": residuals}


def _weight(codec: Any, senders: int, world_size: int) -> int:
    return 1 if hasattr(codec, "passes_on") and codec.passes_on(senders) else world_size


def _pair(numel: int, device: torch.device | None) -> list[torch.Tensor]:
    return [torch.zeros(numel, device=device), torch.zeros(numel, device=device)]


def _sizes(layouts: Sequence[Layout]) -> dict[str, int]:
    return {name: size for lay in layouts for name, size in zip(lay.parameters, lay.sizes, strict=True)}


def _check_same(have: dict[str, int], want: dict[str, int], where: str) -> None:
    for name in (*have, *want):
        if have.get(name) != want.get(name):
            raise StateError(
                f"residual of parameter {name!r} has {have.get(name)} coordinates, but {want.get(name)} in {where}"
            )
