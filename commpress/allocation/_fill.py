"""The optimum over the hulls of real codecs for a given number of bytes, in millionths of a bit.

Only + - * / sqrt, floor, comparisons and sorting of numbers are used, each an exactly rounded operation in a stated order:
every machine computes the same plan from the same numbers.
"""

from __future__ import annotations

import abc
from typing import final

import numpy as np

from commpress.allocation._curve import Curves, concave_hull, interpolate
from commpress.allocation._objective import MICRO, Array, Ints, total
from commpress.allocation._price import Price
from commpress.errors import SpecError


@final
class Segments:
    """The vertices of every layer's hull in bytes, and the segments between them.

    Args:
        layers: numbers of the layers (into `curves` and for `price`).
        curves: of all layers.
        price: bytes of a layer at a rate; asked at the vertices.
        lowest: in millionths of a bit: where each layer begins. 0 is a layer that isn't sent.

    Attributes:
        micro: rates, int64 of shape (layers, vertices); unused places repeat the last vertex.
        captured, nbytes: G and bytes there, float64; slopes of G over bytes fall along a row.
        open: which segments have a width, bool of shape (layers, vertices - 1).
        step_micro, step_captured, step_bytes, slope: of the segments; slope (G per byte) is 0 where not open.
    """

    def __init__(self, layers: Ints, curves: Curves, price: Price, lowest: int) -> None:
        width = max((len(curve.hull) for curve in curves.kinds), default=1)
        micro = np.zeros((len(curves.kinds), width), dtype=np.int64)
        captured = np.zeros((len(curves.kinds), width))
        for row, curve in enumerate(curves.kinds):
            rates = [max(lowest, round(rate * MICRO)) for rate, _ in curve.hull]
            micro[row] = rates + [rates[-1]] * (width - len(rates))
            captured[row] = interpolate(curve, micro[row] / MICRO)
        mine = curves.which[layers]
        self.micro, self.captured = micro[mine], captured[mine]
        self.nbytes = price.at_each(layers, self.micro)
        if (self.nbytes[:, 1:] < self.nbytes[:, :-1]).any():
            layer = layers[(self.nbytes[:, 1:] < self.nbytes[:, :-1]).any(axis=1)][0]
            raise SpecError(f"cost must not fall with the rate, but it does for layer {layer}")
        self._make_concave()
        self.step_micro = np.diff(self.micro, axis=1)
        self.step_captured, self.step_bytes = np.diff(self.captured, axis=1), np.diff(self.nbytes, axis=1)
        self.open = self.step_bytes > 0
        self.slope = np.where(self.open, self.step_captured / np.where(self.open, self.step_bytes, 1.0), 0.0)

    def _make_concave(self) -> None:
        """A small layer's bytes come in steps, which can bend its hull inward: such rows get the hull of their own points."""
        dg, db = np.diff(self.captured, axis=1), np.diff(self.nbytes, axis=1)
        bent = ((db == 0) & (dg > 0)).any(axis=1)
        bent |= (dg[:, 1:] * db[:, :-1] > dg[:, :-1] * db[:, 1:]).any(axis=1)
        for row in np.flatnonzero(bent):
            points = list(zip(self.nbytes[row].tolist(), self.captured[row].tolist(), strict=True))
            kept = concave_hull(points)
            kept += [kept[-1]] * (len(points) - len(kept))
            for table in (self.micro, self.captured, self.nbytes):
                table[row] = table[row, kept]

    def place(self, rates: Ints) -> tuple[Ints, Array]:
        """The segment in which each layer's rate lies (the one above, at a vertex; -1 at the top), and its G there."""
        rows = np.arange(len(rates))
        if self.micro.shape[1] < 2:
            return np.full(len(rates), -1), self.captured[:, 0]
        at = np.minimum((self.micro[:, 1:] <= rates[:, None]).sum(axis=1), self.micro.shape[1] - 2)
        width = self.step_micro[rows, at]
        part = np.clip((rates - self.micro[rows, at]) / np.where(width > 0, width, 1), 0.0, 1.0)
        captured = self.captured[rows, at] + part * self.step_captured[rows, at]
        return np.where(rates >= self.micro[:, -1], -1, at), captured


class Filling(abc.ABC):
    """One allocation problem: how the rates follow from a number of bytes."""

    @abc.abstractmethod
    def rates(self, nbytes: float) -> Ints:
        """Best rates of the layers, millionths of a bit, int64 of shape (layers,), for this number of bytes by the hull."""

    @abc.abstractmethod
    def gains(self, rates: Ints) -> tuple[Array, Ints]:
        """By how much a further byte betters the objective at these rates, and up to which rate (millionths) that holds; shape (layers,)."""


@final
class Linear(Filling):
    """max sum c G (mse, weighted, fisher): segments are bought whole, the steepest first.

    Args:
        segments: of the layers.
        worth: c of each layer, > 0, shape (layers,), any scale.
    """

    def __init__(self, segments: Segments, worth: Array) -> None:
        self._segments, self._worth = segments, worth
        self._base = total(segments.nbytes[:, 0])
        gain = worth[:, None] * segments.slope
        chosen = np.flatnonzero(segments.open)
        self._order = chosen[np.argsort(-gain.ravel()[chosen], kind="stable")]
        self._cumulative = np.add.accumulate(segments.step_bytes.ravel()[self._order])

    def rates(self, nbytes: float) -> Ints:
        segments, left = self._segments, nbytes - self._base
        whole = int(np.searchsorted(self._cumulative, left, side="right"))
        bought = np.zeros(segments.open.size, dtype=np.int64)
        bought[self._order[:whole]] = segments.step_micro.ravel()[self._order[:whole]]
        if whole < len(self._order):
            last = self._order[whole]
            rest = left - (self._cumulative[whole - 1] if whole else 0.0)
            part = max(0.0, rest) / segments.step_bytes.ravel()[last]
            bought[last] = int(part * segments.step_micro.ravel()[last])
        return segments.micro[:, 0] + bought.reshape(segments.open.shape).sum(axis=1)

    def gains(self, rates: Ints) -> tuple[Array, Ints]:
        at, _ = self._segments.place(rates)
        rows = np.arange(len(rates))
        if not self._segments.open.shape[1]:
            return np.zeros(len(rates)), rates
        gain = self._worth * self._segments.slope[rows, at]
        return np.where(at >= 0, gain, 0.0), np.where(at >= 0, self._segments.micro[rows, at + 1], rates)


@final
class Inverse(Filling):
    """min sum c / G (unbiased): on a segment of slope g the optimum is G = tau sqrt(c g), clipped to the segment; tau^-2 is the price of a byte.

    The bytes are piecewise linear in tau and rise with it, so tau is found by bisection over the sorted places where a
    segment begins or ends, and one division.

    Args:
        segments: of the layers.
        worth: c of each layer, > 0, shape (layers,), any scale.
    """

    def __init__(self, segments: Segments, worth: Array) -> None:
        self._segments, self._worth = segments, worth
        self._base = total(segments.nbytes[:, 0])
        chosen = np.flatnonzero(segments.open)
        root = np.sqrt(worth[:, None] * segments.slope).ravel()[chosen]
        slope, step = segments.slope.ravel()[chosen], segments.step_bytes.ravel()[chosen]
        low, high = segments.captured[:, :-1].ravel()[chosen], segments.captured[:, 1:].ravel()[chosen]
        self._chosen, self._step = chosen, step
        with np.errstate(over="ignore"):
            self._begins, self._ends = low / root, high / root
            self._factor = root / slope  # bytes per tau inside the segment
        self._places = np.sort(np.concatenate([self._begins, self._ends]))

    def _bytes(self, tau: float) -> Array:
        with np.errstate(over="ignore"):
            inside = np.minimum((tau - self._begins) * self._factor, self._step)
        return np.where(tau >= self._ends, self._step, np.where(tau <= self._begins, 0.0, inside))

    def rates(self, nbytes: float) -> Ints:
        segments = self._segments
        bought = np.zeros(segments.open.size, dtype=np.int64)
        if self._places.size:
            spent = self._bytes(self._tau(nbytes - self._base))
            micro = segments.step_micro.ravel()[self._chosen]
            bought[self._chosen] = np.where(spent >= self._step, micro, (spent / self._step * micro).astype(np.int64))
        return segments.micro[:, 0] + bought.reshape(segments.open.shape).sum(axis=1)

    def _tau(self, left: float) -> float:
        """The largest tau, to rounding, that spends at most ``left`` bytes."""
        low, high = 0, len(self._places) - 1
        if total(self._bytes(self._places[high])) <= left:
            return float(self._places[high])
        if total(self._bytes(self._places[low])) > left:
            high = low  # less than nothing is left: the first place has bought least
        while high - low > 1:
            middle = (low + high) // 2
            if total(self._bytes(self._places[middle])) <= left:
                low = middle
            else:
                high = middle
        start = float(self._places[low])
        if high == low:
            return start
        rising = (self._begins <= start) & (self._ends > start)
        rise = total(self._factor[rising])
        if rise <= 0:
            return start
        tau = start + (left - total(self._bytes(start))) / rise
        return min(max(tau, start), float(self._places[high]))

    def gains(self, rates: Ints) -> tuple[Array, Ints]:
        at, captured = self._segments.place(rates)
        rows = np.arange(len(rates))
        if not self._segments.open.shape[1]:
            return np.zeros(len(rates)), rates
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            gain = self._worth * self._segments.slope[rows, at] / (captured * captured)
        return np.where(at >= 0, gain, 0.0), np.where(at >= 0, self._segments.micro[rows, at + 1], rates)
