"""Inputs, specs and small helpers that the codec tests share."""

import numpy as np
import torch

import commpress

SIZES = (0, 1, 2, 127, 128, 129, 300, 511, 512, 513, 1000, 4095, 4096, 4097, 5000, 12345)
FAMILIES = ("uniform", "lloyd", "hadamard+lloyd")
RATES = (
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "1.5",
    "2.25",
    "7.999999",
    "0.999999",
    "0.5",
    "0.1",
    "0.003",
    "0.000001",
)
SPECS = [f"{family}:{rate}" for family in FAMILIES for rate in RATES]
SPECS += [f"hadamard+lloyd:{rate},scale=centroid" for rate in ("1", "2", "3.5", "4", "8", "0.5", "0.003")]
CASTS = ["cast:fp16", "cast:bf16"]


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def _spikes(count: int, value: float = 1.0):
    def make(n: int) -> np.ndarray:
        x = np.zeros(n, np.float32)
        x[np.random.default_rng(count).permutation(n)[:count]] = value
        return x

    return make


def _with(value: float, at: float):
    def make(n: int) -> np.ndarray:
        x = normal(n)
        x[int(at * (n - 1)) : int(at * (n - 1)) + 1] = value
        return x

    return make


def _alternating(n: int) -> np.ndarray:
    return np.where(np.arange(n) % 2 == 0, 1, -1).astype(np.float32) * np.finfo(np.float32).max


FINITE = {
    "normal": normal,
    "lognormal": lambda n: np.exp(normal(n)) * np.sign(normal(n, 1)),
    "zeros": lambda n: np.zeros(n, np.float32),
    "negative zeros": lambda n: np.full(n, -0.0, np.float32),
    "some negative zeros": lambda n: np.where(np.arange(n) % 3 == 0, np.float32(-0.0), normal(n)),
    "constant": lambda n: np.full(n, -0.1, np.float32),
    "denormals": lambda n: (np.random.default_rng(2).integers(-50, 50, n) * 2.0**-149).astype(np.float32),
    "smallest": _spikes(3, 2.0**-149),
    "tiny": lambda n: normal(n) * np.float32(2.0**-70),
    "tiny energy": lambda n: normal(n) * np.float32(2.0**-40),
    "huge energy": lambda n: normal(n) * np.float32(2.0**60),
    "huge": lambda n: normal(n) * np.float32(2.0**120),
    "largest": _alternating,
    "all magnitudes": lambda n: normal(n) * np.exp2(np.random.default_rng(3).integers(-120, 120, n)).astype(np.float32),
    "one spike": _spikes(1, -3.0),
    "two spikes": _spikes(2),
    "33 spikes": _spikes(33),
    "40 blocks of zeros": lambda n: np.where(np.arange(n) // 512 % 2 == 0, np.float32(0), normal(n)),
    "ramp": lambda n: np.arange(n, dtype=np.float32) - n // 2,
}
NON_FINITE = {
    "nan": _with(np.nan, 0.3),
    "inf": _with(np.inf, 0.0),
    "-inf at the end": _with(-np.inf, 1.0),
    "huge and nan": lambda n: np.where(np.arange(n) == n // 2, np.float32(np.nan), _alternating(n)),
}
INPUTS = {**FINITE, **NON_FINITE}


def key_of(number: int) -> commpress.Key:
    """Keys that use every bit of every field now and then."""
    rng = np.random.default_rng(number)
    bits = [int(v) for v in rng.integers(0, 2**31, 8)]
    return commpress.Key(
        seed=bits[0] << 33 | bits[1] << 2 | bits[2] % 4,
        step=bits[3] * 2 + 1,
        sender=bits[4] % 2**24,
        tensor=bits[5] * 2,
        phase=bits[6] % 16,
    )


def same_bits(a: torch.Tensor, b: np.ndarray) -> bool:
    """Whether two float32 arrays are equal to the bit, where a NaN equals any NaN."""
    x, y = a.detach().numpy().reshape(-1), np.asarray(b, np.float32).reshape(-1)
    both = np.isnan(x) & np.isnan(y)
    return x.shape == y.shape and bool(((x.view(np.uint32) == y.view(np.uint32)) | both).all())


class Guarded:
    """A tensor inside a poisoned buffer; ``intact()`` says whether nothing around it was written."""

    def __init__(self, numel: int, dtype: torch.dtype, poison: int = 0xA5, align: int = 1) -> None:
        nbytes = numel * dtype.itemsize
        start = 64 + align * dtype.itemsize  # not a multiple of a vector
        self._raw = torch.full((start + nbytes + 128,), poison, dtype=torch.uint8)
        self._range, self._poison = (start, start + nbytes), poison
        self.tensor = self._raw[start : start + nbytes].view(dtype)

    def intact(self) -> bool:
        start, end = self._range
        return bool((self._raw[:start] == self._poison).all() and (self._raw[end:] == self._poison).all())

    def untouched(self) -> bool:
        return bool((self._raw == self._poison).all())
