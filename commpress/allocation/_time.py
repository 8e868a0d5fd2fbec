"""The objective `time`: the shortest exchange for a distortion target, or the finding that fp32 is faster."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import numpy as np

from commpress.allocation._curve import Curve, concave_hull, interpolate
from commpress.allocation._objective import MICRO, Array, Ints, Numbers, check_dims, check_numbers, importance, total
from commpress.errors import SpecError


@final
@dataclasses.dataclass(frozen=True)
class Timing:
    """What :func:`fastest` found.

    Attributes:
        compress: False if fp32 is at least as fast; then ``rates`` are 32 and ``nmse`` is 0.
        rates: bits per coordinate, multiples of 1e-6, float64 of shape (layers,).
        seconds: of one exchange by the model; None where the link is infinitely slow.
        fp32_seconds: of the same exchange in fp32; None as above.
        sent_bytes: that one rank sends.
        nmse: sum d s (1-G) / sum d s.
    """

    compress: bool
    rates: Array
    seconds: float | None
    fp32_seconds: float | None
    sent_bytes: float
    nmse: float


def fastest(
    dims: Sequence[int] | Ints,
    variances: Numbers,
    curve: Curve,
    *,
    max_nmse: float,
    world_size: int,
    link_bytes_per_second: float | None,
    codec_bytes_per_second: float | Sequence[float] | None = None,
) -> Timing:
    """Rates with the shortest exchange whose distortion is at most ``max_nmse``.

    Model: a rank sends 2(n-1)/n of the payload over its link, and before that encodes and decodes; nothing overlaps, so a coordinate at rate b takes
    (2(n-1)/n)(b + overhead)/(8 link) + 4/codec seconds. In fp32 it takes (2(n-1)/n) 4/link. A layer at rate 0 takes none.
    Distortion against time is a hull again, so segments are bought by distortion removed per second until the target is met (exact, up
    to the rounding of rates to 1e-6 bit, upwards).

    Args:
        dims: coordinates of each layer, integers >= 0.
        variances: s of each layer, >= 0: energy per coordinate.
        curve: the codec's.
        max_nmse: largest sum d s (1-G) / sum d s, > 0, of one encode.
        world_size: n, at least 1.
        link_bytes_per_second: of one rank, one way; None is infinitely slow: only bytes count, and compression always wins where it sends fewer.
        codec_bytes_per_second: bytes of fp32 gradient that a rank takes through a whole exchange's encodes and decodes in a second; one
            number, or one for each of the curve's rates. None: infinitely fast.

    Returns:
        A :class:`Timing`.

    Raises:
        SpecError: an argument is malformed, or the target is below what the codec's highest rate reaches (the message has that).
    """
    sizes = check_dims(dims)
    s = check_numbers(variances, len(sizes), "variances")
    if not 0 < max_nmse <= 1:
        raise SpecError(f"max_nmse must be in (0, 1], got {max_nmse}")
    if world_size < 1:
        raise SpecError(f"world_size must be at least 1, got {world_size}")
    if link_bytes_per_second is not None and not 0 < link_bytes_per_second < math.inf:
        raise SpecError(
            f"link_bytes_per_second must be positive, or None for infinitely slow, got {link_bytes_per_second}"
        )
    floor = 1.0 - curve.hull[-1][1]
    if max_nmse < floor:
        raise SpecError(
            f"the codec reaches an NMSE of {floor:g} at most, not {max_nmse:g}: ask for more, or use an exact codec"
        )
    share = 2.0 * (world_size - 1) / world_size
    all_rates = (0.0, *curve.rates)
    sent = np.array([0.0, *(share * (r + curve.overhead_at(r)) / 8.0 for r in curve.rates)])
    work = np.array([0.0, *(4.0 / v for v in _speeds(codec_bytes_per_second, curve))])
    per_coordinate = sent if link_bytes_per_second is None else sent / link_bytes_per_second + work
    if (np.diff(per_coordinate) < 0).any():  # a slower lower rate is never chosen, but time must rise along the hull
        per_coordinate = np.maximum.accumulate(per_coordinate)
    g = interpolate(curve, np.array(all_rates))
    kept = concave_hull(list(zip(per_coordinate.tolist(), g.tolist(), strict=True)))
    micro = np.array([round(all_rates[k] * MICRO) for k in kept], dtype=np.int64)
    rates = _buy(sizes, s, micro, per_coordinate[kept], g[kept], max_nmse)
    return _judge(sizes, s, curve, rates, share, link_bytes_per_second, (micro, work[kept]))


def _speeds(speed: float | Sequence[float] | None, curve: Curve) -> list[float]:
    speeds = (
        [math.inf if speed is None else speed] * len(curve.rates) if not isinstance(speed, Sequence) else list(speed)
    )
    if len(speeds) != len(curve.rates) or not all(v > 0 for v in speeds):
        raise SpecError(
            f"codec_bytes_per_second must be positive: one number, or {len(curve.rates)} for the curve's rates"
        )
    return [float(v) for v in speeds]


def _buy(sizes: Ints, s: Array, micro: Ints, seconds: Array, g: Array, max_nmse: float) -> Ints:
    """Segments by distortion removed per second, the best first, until sum d s (1-G) <= max_nmse sum d s."""
    rates = np.full(len(sizes), micro[0], dtype=np.int64)
    energy: Array = np.where((sizes > 0) & (s > 0), importance("mse", s, np.ones_like(s)), 0.0) * sizes.astype(
        np.float64
    )
    if not energy.any() or len(micro) < 2:
        return rates
    step_g, step_seconds = np.diff(g), np.diff(seconds)
    with np.errstate(divide="ignore"):
        slope = step_g / step_seconds  # infinite where only distortion counts: one rank, a codec that takes no time
    # Per coordinate: a layer's size counts in its time as in its distortion.
    value = np.where(sizes > 0, energy / np.maximum(sizes, 1), 0.0)
    gain = np.where(value[:, None] > 0, np.maximum(value[:, None], 1e-300) * slope, 0.0).ravel()
    order = np.argsort(-gain, kind="stable")
    removed = (energy[:, None] * step_g).ravel()[order]
    cumulative = np.add.accumulate(removed)
    need = total(energy) * (1.0 - max_nmse - g[0])
    whole = int(np.searchsorted(cumulative, need, side="left"))  # the segment that meets the target
    bought = np.zeros(len(order), dtype=np.int64)
    widths = np.tile(np.diff(micro), len(sizes))
    bought[order[:whole]] = widths[order[:whole]]
    if whole < len(order) and removed[whole] > 0:
        part = (need - (cumulative[whole - 1] if whole else 0.0)) / removed[whole]
        last = order[whole]
        bought[last] = min(int(widths[last]), int(max(0.0, part) * widths[last]) + 1)
    return rates + bought.reshape(len(sizes), -1).sum(axis=1)


def _judge(
    sizes: Ints, s: Array, curve: Curve, rates: Ints, share: float, link: float | None, work: tuple[Ints, Array]
) -> Timing:
    d = sizes.astype(np.float64)
    b = rates / MICRO
    sent = share * total(d * (b + interpolate(curve, b, overhead=True))) / 8.0
    sent_fp32 = share * 4.0 * total(d)
    micro, spent = work
    at = np.clip(np.searchsorted(micro, rates, side="left"), 1, max(1, len(micro) - 1))
    at = np.minimum(at, len(micro) - 1)
    width = np.maximum(micro[at] - micro[at - 1], 1)
    part = np.where(at > 0, (rates - micro[at - 1]) / width, 0.0)
    codec = total(d * (spent[at - 1] + (spent[at] - spent[at - 1]) * part))
    seconds = None if link is None else sent / link + codec
    fp32 = None if link is None else sent_fp32 / link
    wins = sent < sent_fp32 if seconds is None or fp32 is None else seconds < fp32
    if not wins:
        return Timing(False, np.where(sizes > 0, 32.0, 0.0), fp32, fp32, sent_fp32, 0.0)
    energy = d * s
    lost = total(energy * (1.0 - interpolate(curve, b)))
    return Timing(True, b, seconds, fp32, sent, lost / total(energy) if total(energy) > 0 else 0.0)
