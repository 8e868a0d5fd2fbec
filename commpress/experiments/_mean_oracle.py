"""The B-bit oracle of the mean-estimation experiments: what a worker may send in a round, and how its bits are counted."""

from __future__ import annotations

import abc
import hashlib
import math
from typing import final

import torch

from commpress.codecs import BLOCK, Codec, Key, codec
from commpress.errors import SpecError, StateError

_CALIBRATION_VALUES = 1 << 16
_CALIBRATION_MESSAGES = 512
_MEASURING, _CALIBRATING = 0, 1  # Key.tensor: the coins of one are never the other's


class Oracle(abc.ABC):
    """A memoryless randomised encoder with its decoder. Randomness is public: it depends on seed, round and row alone."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @property
    @abc.abstractmethod
    def unbiased(self) -> bool:
        """Whether it promises that a decoded value's mean over the coins is the input. If not, its gain is measured."""

    @abc.abstractmethod
    def bits(self, d: int) -> int:
        """All bits of one message about ``d`` coordinates."""

    @abc.abstractmethod
    def send(self, x: torch.Tensor, *, seed: int, round_: int, purpose: int = _MEASURING) -> torch.Tensor:
        """What the server decodes from one message per row.

        Args:
            x: float32, shape (rows, d); each row is another worker's message in another repetition.
            seed, round_, purpose: of the coins.

        Returns:
            float32, shape (rows, d).
        """


@final
class CodecOracle(Oracle):
    """A codec of the library: every message is its payload, encoded and decoded for real, and all payload bits count.

    Args:
        spec: a codec or its spec.

    Raises:
        SpecError: there is no such codec.
    """

    def __init__(self, spec: str | Codec) -> None:
        self._codec = codec(spec)

    @property
    def name(self) -> str:
        return str(self._codec)

    @property
    def unbiased(self) -> bool:
        return self._codec.unbiased

    def bits(self, d: int) -> int:
        return 8 * self._codec.payload_nbytes(d)

    def send(self, x: torch.Tensor, *, seed: int, round_: int, purpose: int = _MEASURING) -> torch.Tensor:
        rows, d = x.shape
        out = torch.empty_like(x)
        # Rows of whole blocks may travel as one tensor: each block has its own scale and coins, and if the sizes
        # add up the bits are those of separate messages. It spares most of the time.
        if d % BLOCK == 0 and 8 * self._codec.payload_nbytes(rows * d) == rows * self.bits(d):
            self._one(x.reshape(-1), Key(seed, round_, 0, purpose), out.view(-1), rows * self.bits(d))
        else:
            for row in range(rows):
                self._one(x[row], Key(seed, round_, row, purpose), out[row], self.bits(d))
        return out

    def _one(self, x: torch.Tensor, key: Key, out: torch.Tensor, bits: int) -> None:
        payload = self._codec.encode(x, key)
        if 8 * payload.numel() != bits:
            raise StateError(f"{self._codec} sent {8 * payload.numel()} bits where {bits} are counted")
        self._codec.decode(payload, key, out=out)


def generator_for(*what: object) -> torch.Generator:
    """A stream of its own for whatever the arguments name; the global stream is not touched."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def calibrate(oracle: Oracle, d: int, *, seed: int) -> tuple[float, float]:
    """What a server may know of an oracle beforehand, measured on N(0, I_d).

    Returns:
        (gain, omega): E<x, x^> / E|x|^2, which is taken as 1 if the oracle promises it, and
        E|x^/gain - x|^2 / E|x|^2, the variance of the estimate without bias over the input's energy.

    Raises:
        StateError: the decoded values have nothing in common with the input.
    """
    rows = max(8, min(_CALIBRATION_MESSAGES, _CALIBRATION_VALUES // d))
    x = torch.randn(rows, d, generator=generator_for("calibration", oracle.name, d, seed))
    decoded = oracle.send(x, seed=seed, round_=0, purpose=_CALIBRATING).double()
    energy = float(x.double().square().sum())
    gain = 1.0 if oracle.unbiased else float((decoded * x).sum()) / energy
    if not (math.isfinite(gain) and gain > 0):
        raise StateError(f"{oracle.name}: the decoded values do not correlate with the input at d = {d} (gain {gain})")
    return gain, float((decoded / gain - x).square().sum()) / energy


def specs(template: str, rates: tuple[float, ...]) -> list[str]:
    """The specs that ``hadamard+lloyd``, ``hadamard+lloyd:R,scale=centroid`` or ``lloyd:2`` stand for.

    Args:
        template: a family, or a spec with R for the rate, or a spec with a rate of its own.
        rates: values of R, bits per coordinate.

    Raises:
        SpecError: a rate is not in (0, 8], or there is no such codec.
    """
    family, _, argument = template.partition(":")
    first, comma, options = argument.partition(",")
    if first not in ("", "R"):
        return [str(codec(template))]
    for rate in rates:
        if not 0 < rate <= 8:
            raise SpecError(f"a rate is more than 0 and at most 8 bits per coordinate, got {rate}")
    return [str(codec(f"{family}:{rate:.6f}{comma}{options}")) for rate in rates]
