"""Which bucket layout a step is coded in.

Codes depend on the layout (blocks and their randomness follow the flat bucket), and DDP changes its layout: a new process
begins with one and rebuilds its buckets after the first or (static graph) second step. For a restart to be bitwise equal to
the uninterrupted run, the layout in use must follow from the step alone, not from the age of the process:

* Steps before `SETTLED` use the layout that DDP presented in the run's first step.
* From then on a step uses the layout that DDP presented last before it. A checkpoint holds it.
* What DDP presents in the first steps after a restart is not news, unless it changes.

A step whose presented layout is not the one in use is repacked: same results, without overlap, for a few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.errors import StateError, TensorError
from commpress.feedback import Layout

SETTLED = 5
"""First step that may use a rebuilt layout: late enough that a process restarted before it has seen DDP rebuild too."""
_YOUNG = 3  # steps in which a restarted process may still present the layout from before DDP's rebuild

Layouts = tuple[Layout, ...]


def names_of(
    bucket: dist.GradBucket, names: dict[int, str], parameters: dict[str, torch.Tensor], *, bound: bool
) -> list[str]:
    """Of a bucket's parameters. As long as the hook is not bound, unknown ones get names by their place, in `names` (by id) and `parameters`.

    Raises:
        StateError: it is bound, and a parameter is unknown.
    """
    found = []
    for i, p in enumerate(bucket.parameters()):
        if id(p) not in names:
            if bound:
                raise StateError(
                    f"this HookState is already bound to another model: bucket {bucket.index()} holds a parameter "
                    f"of shape {list(p.shape)} that the bound model has not"
                )
            names[id(p)] = f"bucket {bucket.index()} parameter {i}"
            parameters[names[id(p)]] = p
        found.append(names[id(p)])
    return found


def layout_of(bucket: dist.GradBucket, buffer: torch.Tensor, names: Sequence[str]) -> Layout:
    """The layout of one of DDP's buckets whose parameters have these names.

    Raises:
        TensorError: the bucket is sparse, neither on the CPU nor on a CUDA device, not floating-point, or its size is not its parameters'.
    """
    where = f"bucket {bucket.index()}"
    if buffer.layout != torch.strided:
        raise TensorError(
            f"{where} holds a sparse gradient ({buffer.layout}), and commpress reduces dense ones only: "
            "use sparse=False, or keep the parameter out of DDP"
        )
    if buffer.device.type not in ("cpu", "cuda"):
        raise TensorError(f"{where} is on {buffer.device}: only gradients on CPUs and CUDA devices can be reduced")
    if not buffer.is_floating_point():
        raise TensorError(f"{where} has dtype {buffer.dtype}, not a floating-point one")
    # A complex bucket arrives as pairs of real numbers.
    sizes = tuple(p.numel() * (2 if p.is_complex() else 1) for p in bucket.parameters())
    layout = Layout(tuple(names), sizes, str(buffer.dtype).removeprefix("torch."))
    if layout.numel != buffer.numel() or not buffer.is_contiguous():
        raise TensorError(f"{where} has {buffer.numel()} coordinates for {layout.numel} of its parameters")
    return layout


@final
class LayoutTracker:
    """Follows what DDP presents and says what to use."""

    def __init__(self) -> None:
        self.current: Layouts | None = None
        self._next: Layouts | None = None
        self._presented: Layouts | None = None
        self._restored = False
        self._steps = 0

    @property
    def fresh_process(self) -> bool:
        """No step has been presented since the process began or a state was loaded."""
        return self._steps == 0

    def presented(self, step: int, layouts: Layouts) -> None:
        """Step number `step` presented `layouts`; `current` is from now on that of the next step."""
        changed = self._presented not in (None, layouts)
        self._presented = layouts
        self._steps += 1
        if not self._restored or changed or self._steps > _YOUNG:
            self._next = layouts
        if self._next is not None and step + 1 >= SETTLED:
            self.current = self._next

    def check(self, layouts: Layouts) -> None:
        """Raises StateError unless `layouts` hold the parameters of those in use."""
        assert self.current is not None
        have, want = _entries(layouts), _entries(self.current)
        for name in (*want, *have):
            if have.get(name) != want.get(name):
                raise StateError(
                    f"the state was saved for parameter {name!r} of {want.get(name, 'no')} coordinates and dtype, "
                    f"the model has {have.get(name, 'none')}"
                )

    def state(self) -> dict[str, Any]:
        return {"current": _lists(self.current), "next": _lists(self._next)}

    def load(self, state: dict[str, Any]) -> None:
        self.current, self._next = _layouts(state["current"]), _layouts(state["next"])
        self._presented, self._restored, self._steps = None, self.current is not None, 0


def _entries(layouts: Layouts) -> dict[str, tuple[int, str]]:
    return {n: (s, lay.dtype) for lay in layouts for n, s in zip(lay.parameters, lay.sizes, strict=True)}


def _lists(layouts: Layouts | None) -> list[Any] | None:
    return None if layouts is None else [layout.as_list() for layout in layouts]


def _layouts(lists: Sequence[Any] | None) -> Layouts | None:
    return None if lists is None else tuple(Layout.from_list(entry) for entry in lists)


@final
class Repacking:
    """Gradients moved from the buckets that DDP presented into flat buffers of other layouts, and back.

    Args:
        layouts: those to code in.
        presented: DDP's, of the same parameters.
        buffers: DDP's flat buffers.
    """

    def __init__(self, layouts: Layouts, presented: Layouts, buffers: Sequence[torch.Tensor]) -> None:
        places = {
            name: buffer[start:stop]
            for layout, buffer in zip(presented, buffers, strict=True)
            for name, start, stop in layout.segments()
        }
        self.flats: list[torch.Tensor] = []
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layout in layouts:
            flat = torch.empty(layout.numel, dtype=getattr(torch, layout.dtype), device=buffers[0].device)
            for name, start, stop in layout.segments():
                flat[start:stop].copy_(places[name])
                self._pairs.append((places[name], flat[start:stop]))
            self.flats.append(flat)

    def unpack(self) -> None:
        """Copies the flat buffers back into DDP's."""
        for place, piece in self._pairs:
            place.copy_(piece)
