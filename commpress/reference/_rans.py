"""Entropy coders: interleaved rANS for values (Duda 2013; Giesen 2014), an adaptive binary coder for classes (docs/wire-format.md, section 4.8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
LOW = 1 << 16  # states lie in [2^16, 2^32)


def rans_encode(frequency: I64, start: I64, lane: I64, lanes: int) -> bytes:
    """States in lane order, then 16-bit words, as the decoder reads them.

    Args:
        frequency, start: of each symbol in the decoder's order; start is the sum of the frequencies before it.
        lane: of each symbol; within a row of lanes they ascend.
    """
    state = [LOW] * lanes
    words = []
    for f, c, k in zip(frequency[::-1].tolist(), start[::-1].tolist(), lane[::-1].tolist(), strict=True):
        x = state[k]
        if x >> 20 >= f:
            words.append(x & 0xFFFF)
            x >>= 16
        state[k] = (x // f << 12) + x % f + c
    return np.array(state, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


class RansDecoder:
    """Reads a stream; words beyond its end are zero."""

    def __init__(self, data: bytes, lanes: int) -> None:
        padded = data[: len(data) // 2 * 2] if len(data) >= 4 * lanes else data + bytes(4 * lanes - len(data))
        self.state = np.frombuffer(padded[: 4 * lanes], "<u4").astype(np.int64).tolist()
        self._words = np.frombuffer(padded[4 * lanes :], "<u2").tolist()
        self._at = 0

    def symbol(self, lane: int, cumulative: list[int]) -> int:
        """The next symbol of a lane; ``cumulative`` (65) are the sums of frequencies."""
        x = self.state[lane]
        slot = x & 4095
        low, high = 0, 64
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cumulative[middle] <= slot else (low, middle)
        x = (cumulative[low + 1] - cumulative[low]) * (x >> 12) + slot - cumulative[low]
        if x < LOW:
            word = self._words[self._at] if self._at < len(self._words) else 0
            self._at += 1
            x = x << 16 | word
        self.state[lane] = x
        return low


class BinaryEncoder:
    """Carry-less arithmetic coder of bits with adaptive probabilities of 16 bits."""

    def __init__(self) -> None:
        self._low, self._high = 0, 0xFFFFFFFF
        self.out = bytearray()

    def bit(self, model: list[int], context: int, value: int) -> None:
        """Codes one bit and learns from it; ``model[context]`` is 65536 times the probability of a 1."""
        middle = self._low + (((self._high - self._low) * model[context]) >> 16)
        if value:
            self._high = middle
            model[context] += (65536 - model[context]) >> 5
        else:
            self._low = middle + 1
            model[context] -= model[context] >> 5
        while not (self._low ^ self._high) >> 24:
            self.out.append(self._high >> 24)
            self._low, self._high = (self._low << 8) & 0xFFFFFFFF, ((self._high << 8) & 0xFFFFFFFF) | 0xFF

    def finish(self) -> bytes:
        """All bytes; those beyond count as zero."""
        self.out.append((self._low >> 24) + 1)
        return bytes(self.out)


class BinaryDecoder:
    """The inverse of :class:`BinaryEncoder`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self._low, self._high = 0, 0xFFFFFFFF
        self._code = int.from_bytes((data + bytes(4))[:4], "big")

    def bit(self, model: list[int], context: int) -> int:
        """The next bit."""
        middle = self._low + (((self._high - self._low) * model[context]) >> 16)
        value = int(self._code <= middle)
        if value:
            self._high = middle
            model[context] += (65536 - model[context]) >> 5
        else:
            self._low = middle + 1
            model[context] -= model[context] >> 5
        while not (self._low ^ self._high) >> 24:
            self._low, self._high = (self._low << 8) & 0xFFFFFFFF, ((self._high << 8) & 0xFFFFFFFF) | 0xFF
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._code = ((self._code << 8) & 0xFFFFFFFF) | byte
            self._at += 1
        return value


ZERO, NAN = -1, -2  # kinds of blocks beside the classes 0, 1, ...


class _Contexts:
    """Adaptive probabilities: special or not, which special, same class, direction, magnitude."""

    def __init__(self) -> None:
        self.special, self.which, self.other = [2048, 61440], [2048], [2048, 8192, 16384]
        self.up, self.more = [32768] * 3, [32768] * 8
        self.was_special, self.last, self.change = 0, 0, 0

    def moved(self, kind: int) -> None:
        """Notes what a block was."""
        self.was_special = int(kind < 0)
        if kind >= 0:
            self.change, self.last = kind - self.last, kind

    def direction(self) -> int:
        """0, 1, 2 for the last change of class: none, up, down."""
        return 0 if self.change == 0 else 1 if self.change > 0 else 2


def encode_classes(kinds: list[int]) -> bytes:
    """The class of every block: difference to the one before, under adaptive probabilities."""
    c, coder = _Contexts(), BinaryEncoder()
    for kind in kinds:
        coder.bit(c.special, c.was_special, int(kind < 0))
        if kind < 0:
            coder.bit(c.which, 0, int(kind == NAN))
        else:
            d = kind - c.last
            coder.bit(c.other, min(abs(c.change), 2), int(d != 0))
            if d:
                coder.bit(c.up, c.direction(), int(d > 0))
                for i in range(1, abs(d)):
                    coder.bit(c.more, min(i - 1, 7), 1)
                coder.bit(c.more, min(abs(d) - 1, 7), 0)
        c.moved(kind)
    return coder.finish()


def decode_classes(data: bytes, blocks: int, classes: int) -> list[int] | None:
    """The inverse; None where a class is out of range."""
    c, coder, out = _Contexts(), BinaryDecoder(data), []
    for _ in range(blocks):
        if coder.bit(c.special, c.was_special):
            kind = NAN if coder.bit(c.which, 0) else ZERO
        else:
            kind = c.last
            if coder.bit(c.other, min(abs(c.change), 2)):
                sign, d = 1 if coder.bit(c.up, c.direction()) else -1, 1
                while coder.bit(c.more, min(d - 1, 7)):
                    d += 1
                    if d > classes:
                        return None
                kind = c.last + sign * d
            if not 0 <= kind < classes:
                return None
        c.moved(kind)
        out.append(kind)
    return out
