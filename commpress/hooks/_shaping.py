"""Noise shaping: the error of a coordinate follows the size that this coordinate's gradient usually has.

A block code spreads its error evenly over a block, so a coordinate that is always small gets the error of its large neighbours. An optimizer like Adam, which divides every
coordinate by the root of its second moment v, then steps along noise there. All ranks know the means of earlier steps to the bit, hence a running v of every coordinate, and
need not be told: with ``u = v / mean(v) + 0.01`` gradients are encoded as ``x u^(-a/2)`` and decoded means multiplied by ``u^(a/2)``, so the error has variance proportional to
``u^a``. What is unbiased stays unbiased, and no byte is added.

The total error of a block is ``D sum(x^2 u^-a) sum(u^a) / d``, D the code's distortion. Where E x^2 is u it is least at a = 1/2, where it is ``(mean sqrt u)^2 / mean u`` of that
without shaping (``sum(v u^-a) sum(u^a) >= (sum sqrt v)^2``, Cauchy and Schwarz, with equality there); at a = 1 it is what it was, and every coordinate has the same relative error,
which is what Adam asks for.

A layer is shaped only where its coordinates were measured to differ: the error at a = 1/2 is taken of means with the v that was known before. Where all coordinates are alike that is
``E sqrt(v) E 1/sqrt(v)``, about ``1 + 1 / (2 (n - 1))`` for a v from n normal samples: what guessing costs. Only a layer that stays below that is shaped. At low rates the code's
even noise is more than the gradient, and hides how it differs: there every layer is shaped.

Every rank needs the same weights to the bit, whatever its instruction set: only operations that IEEE 754 defines are used (no power, no fused multiply-add, no library sum).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

import torch

from commpress import ops
from commpress.codecs import BLOCK, Codec
from commpress.errors import SpecError, StateError
from commpress.feedback import Layout

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DEFAULT, _DEFAULT_HIDDEN = 0.75, 1.0
_EVERY = 1  # steps between two looks at the means
_MEMORY = 16  # looks that the running second moments go back
_SAMPLES = 2 * _MEMORY - 1  # so many samples with equal weights are worth as much
_REFRESH = 8  # looks between two judgements and new weights; the first come after half as many
_SAMPLE = 16  # blocks of a layer that are judged
_NEW = 0.5  # weight of the newest judgement in the running ratio
_FLOOR = 0.01  # least u
_ON, _OFF = 0.98, 0.995  # parts of a guess's ratio below which shaping begins and above which it ends
_HIDDEN = 0.75  # bits per coordinate below which the code's noise hides the sizes
_SMALLEST = 4096  # coordinates of a layer that is worth the calls
_RANGE = 1e-30, 1e30  # of mean squares that say something


def check_exponent(exponent: float) -> float:
    """Raises SpecError unless it is one of `EXPONENTS`."""
    if isinstance(exponent, bool) or exponent not in EXPONENTS:
        raise SpecError(f"shaping must be one of {', '.join(f'{e:g}' for e in EXPONENTS)}, got {exponent!r}")
    return float(exponent)


def exponent_of(wanted: float | None, codec: Codec, with_feedback: bool) -> float:
    """What a HookState uses. Raises SpecError."""
    if wanted is None:
        usual = _DEFAULT_HIDDEN if _hides(codec.bits) else _DEFAULT
        return usual if codec.even_error and not with_feedback else 0.0
    exponent = check_exponent(wanted)
    if exponent and with_feedback:
        raise SpecError("shaping and error feedback exclude each other: give shaping=0 or feedback=False")
    return exponent


@final
class Shaper:
    """The running second moments and the weights of every layer. Equal on all ranks.

    Args:
        dims: coordinates of each layer by name.
        exponent: a, one of `EXPONENTS`.
        rate: bits per coordinate, or None where the codec has none.

    Memory: 4 bytes a coordinate, and 4 more in layers that are shaped.
    """

    def __init__(self, dims: dict[str, int], exponent: float, rate: float | None = None) -> None:
        self._always = _hides(rate)
        self._dims = {name: numel for name, numel in dims.items() if numel >= _SMALLEST}
        self._exponent = exponent
        self._looks = dict.fromkeys(self._dims, 0)
        self._moments: dict[str, torch.Tensor] = {}
        self._ratios = dict.fromkeys(self._dims, 1.0)
        self._on = dict.fromkeys(self._dims, False)
        self._weights: dict[str, torch.Tensor] = {}

    @property
    def exponent(self) -> float:
        """a."""
        return self._exponent

    @property
    def active(self) -> bool:
        """Whether any layer is shaped."""
        return bool(self._weights)

    @property
    def ratios(self) -> dict[str, float]:
        """For each layer that is shaped: its error at a = 1/2 over that of coordinates that are all alike, as measured."""
        return {name: self._ratios[name] for name in self._weights}

    def due(self, step: int) -> bool:
        """Whether the means of this step are looked at."""
        return bool(self._dims) and step % _EVERY == 0

    def look(self, name: str, mean: torch.Tensor) -> None:
        """Takes a layer's mean, flat, of a step that is due and finite."""
        if name not in self._dims:
            return
        mean = mean.to(torch.float32)
        held = self._moments.get(name)
        looks = self._looks[name] = self._looks[name] + 1
        if held is None:
            self._moments[name] = mean.square()
            return
        if _judged(looks):
            u = _relative(_some(held))
            ratio = None if u is None else _ratio(_some(mean).square(), u.sqrt_())
            if ratio is not None:
                ratio /= _guess(looks - 1)
                self._ratios[name] += _NEW * (ratio - self._ratios[name])
        ops.follow_squares(held, mean, 1.0 / min(looks, _MEMORY))

    def refresh(self, exact: Collection[str] = ()) -> None:
        """Between two steps, after looks: new weights of the layers that were judged. Those that are sent `exact`ly have none."""
        for name, held in self._moments.items():
            if name in exact:
                self._on[name] = False
            elif not _judged(self._looks[name]):
                continue
            else:
                # A ratio of few coordinates is noisy.
                sure = 2 / min(held.numel(), _SAMPLE * BLOCK) ** 0.5
                below = _OFF if self._on[name] else min(_ON, 1 - sure)
                self._on[name] = self._always or self._ratios[name] < below
            u = _relative(held) if self._on[name] else None
            if u is None:
                self._weights.pop(name, None)
            else:
                self._weights[name] = _power(u, self._exponent)

    def bucket(self, layout: Layout) -> BucketShaping:
        """The part of one bucket."""
        return BucketShaping(self, layout)

    def weight(self, name: str) -> torch.Tensor | None:
        """What a layer's decoded coordinates are multiplied by, flat fp32; None: by nothing."""
        return self._weights.get(name)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        return {
            "exponent": self._exponent,
            "looks": dict(self._looks),
            "ratios": dict(self._ratios),
            "on": dict(self._on),
            "moments": {name: value.clone() for name, value in self._moments.items()},
            "weights": {name: value.clone() for name, value in self._weights.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises StateError if it is of other layers or another exponent."""
        sizes = {name: value.numel() for name, value in state["moments"].items()}
        if set(state["looks"]) != set(self._dims) or any(self._dims.get(k) != n for k, n in sizes.items()):
            raise StateError("the saved noise shaping is of other layers")
        if state["exponent"] != self._exponent:
            raise StateError(f"the saved state has shaping {state['exponent']}, this one {self._exponent}")
        self._looks, self._ratios, self._on = dict(state["looks"]), dict(state["ratios"]), dict(state["on"])
        self._moments = {name: value.clone() for name, value in state["moments"].items()}
        self._weights = {name: value.clone() for name, value in state["weights"].items()}


@final
class BucketShaping:
    """What a bucket's observer calls."""

    def __init__(self, shaper: Shaper, layout: Layout) -> None:
        self._shaper = shaper
        self._segments = list(layout.segments())
        found = ((start, stop, shaper.weight(name)) for name, start, stop in self._segments)
        self._shaped = [(start, stop, weight) for start, stop, weight in found if weight is not None]

    def shape(self, flat: torch.Tensor) -> None:
        """Before encoding."""
        for start, stop, weight in self._shaped:
            flat[start:stop].div_(weight)

    def unshape(self, flat: torch.Tensor) -> None:
        """After decoding."""
        for start, stop, weight in self._shaped:
            flat[start:stop].mul_(weight)

    def plain(self, start: int, values: torch.Tensor) -> torch.Tensor:
        """Shaped values from `start` of the bucket on, as they are without shaping; a copy where that differs."""
        copied = False
        stop = start + values.numel()
        for first, last, weight in self._shaped:
            low, high = max(start, first), min(stop, last)
            if low < high:
                values, copied = (values if copied else values.clone()), True
                values[low - start : high - start].mul_(weight[low - first : high - first])
        return values

    def look(self, flat: torch.Tensor) -> None:
        """At the mean."""
        for name, start, stop in self._segments:
            self._shaper.look(name, flat[start:stop])


def _hides(rate: float | None) -> bool:
    """Whether a code of this rate makes more noise than the gradient has energy."""
    return rate is not None and rate < _HIDDEN


def _guess(looks: int) -> float:
    """The ratio where all coordinates are alike and normal, from v of so many looks (at least 3)."""
    return 1.0 + 0.5 / (min(looks, _SAMPLES) - 1)


def _judged(looks: int) -> bool:
    return looks % _REFRESH == 0 or looks == _REFRESH // 2


def _some(x: torch.Tensor) -> torch.Tensor:
    """Blocks from all over a layer."""
    blocks = x.numel() // BLOCK
    if blocks <= _SAMPLE:
        return x
    return x[: blocks * BLOCK].view(blocks, BLOCK)[:: blocks // _SAMPLE][:_SAMPLE].reshape(-1)


def _relative(moments: torch.Tensor) -> torch.Tensor | None:
    """u of each coordinate; None if there is no scale to speak of."""
    mean = _sum(moments) / moments.numel()
    return (moments / mean).add_(_FLOOR) if _RANGE[0] < mean < _RANGE[1] else None


def _power(u: torch.Tensor, exponent: float) -> torch.Tensor:
    """``u^(exponent / 2)`` for multiples of 1/4, by square roots. Overwrites `u`."""
    result: torch.Tensor | None = None
    share = 1.0
    while exponent:
        u, share = u.sqrt_(), share / 2
        if exponent / 2 >= share:
            exponent -= 2 * share
            result = u.clone() if result is None else result.mul_(u)
    return torch.ones_like(u) if result is None else result


def _ratio(squares: torch.Tensor, scale: torch.Tensor) -> float | None:
    """Error of coordinates with these `squares` when it has variances proportional to `scale`, over that when it is even in each block; None without any."""
    energy = _sum(squares)
    if not _RANGE[0] < energy < _RANGE[1]:
        return None
    tail = scale.numel() % BLOCK
    sizes = torch.full((-(-scale.numel() // BLOCK),), float(BLOCK))
    if tail:
        sizes[-1] = tail
    return _sum(_blocks(squares / scale) * _blocks(scale) / sizes) / energy


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """Sum of each block, in an order of its own."""
    whole = x.numel() // BLOCK * BLOCK
    rows = x[:whole].view(-1, BLOCK)
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rows = rows[:, :half] + rows[:, half:]
    sums = rows.flatten()
    return sums if whole == x.numel() else torch.cat([sums, torch.tensor([_sum(x[whole:])])])


def _sum(x: torch.Tensor) -> float:
    """Sum in an order of its own: the same on every machine."""
    while x.numel() > 1:
        half = x.numel() // 2
        head = x[:half] + x[half : 2 * half]
        x = torch.cat([head, x[2 * half :]]) if x.numel() % 2 else head
    return float(x[0]) if x.numel() else 0.0
