"""The bitshift trellis (docs/wire-format.md, section 4.9)."""

from __future__ import annotations

import dataclasses
import functools
import re
import struct

import numpy as np
import numpy.typing as npt

from commpress.codecs._gauss_table import GAUSS_COUNT
from commpress.errors import WireError
from commpress.reference import _lloyd, _random, _rates, _sums, _uniform

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SIGN = 9  # purpose of the signs that the code itself is given
SMALLEST, WARM_UP = 1024, 64
SEED = 0x7466696873746962
SPREADS = {  # (k, V): 1 / sqrt(1 - 2^(-2 k / V))
    (1, 20): 3.8642886,
    (1, 10): 2.7793927,
    (1, 8): 2.5070329,
    (1, 5): 2.0321941,
    (1, 4): 1.847759,
    (1, 2): 1.4142135,
    (1, 1): 1.1547005,
    (3, 2): 1.069045,
    (2, 1): 1.0327955,
    (3, 1): 1.0079052,
    (4, 1): 1.0019588,
}
_SPEC = re.compile(r"(hadamard\+)?bitshift:(\d+(?:\.\d{1,6})?)(?:,length=(\d+))?(?:,scale=(centroid|unbiased))?")


@dataclasses.dataclass(frozen=True)
class Spec:
    """k bits for each codeword of V values; L bits of a state."""

    k: int
    v: int
    length: int
    rotated: bool
    centroid: bool

    @property
    def rest(self) -> _rates.Spec:
        """The codec of what does not fill a piece."""
        family = "hadamard+lloyd" if self.rotated else "lloyd"
        return _rates.Spec(family, _rates.MILLION * self.k // self.v, self.centroid or not self.rotated)

    @property
    def span(self) -> int:
        return 16384 if self.k >= self.v else 65536

    def chain(self, n: int) -> int:
        """Coordinates of a chain in a piece of n."""
        chain = 4096
        while chain < 1024 * self.v:
            chain *= 2
        return min(n, chain)

    def codewords(self, n: int) -> int:
        """Codewords of a chain in a piece of n."""
        return -(-self.chain(n) // self.v)

    def piece_nbytes(self, n: int) -> int:
        return 4 + -(-(n // self.chain(n)) * self.codewords(n) * self.k // 8)


def parse(text: str) -> Spec | None:
    """The spec of a codec's text, None if it is of another family."""
    match = _SPEC.fullmatch(text)
    if match is None:
        return None
    for k, v in SPREADS:
        if k / v == float(match[2]):
            return Spec(k, v, int(match[3] or 12), match[1] is not None, match[4] == "centroid")
    raise ValueError(f"no such rate: {text!r}")


def pieces(spec: Spec, numel: int) -> list[tuple[int, int]]:
    """(first, n) of the pieces; the last may be a rest of n < SMALLEST."""
    out, at, n = [], 0, spec.span
    while n >= SMALLEST:
        while numel - at >= n:
            out.append((at, n))
            at += n
        n //= 2
    return [*out, (at, numel - at)] if at < numel else out


def payload_nbytes(spec: Spec, numel: int, offset: int) -> int:
    """Size of a payload."""
    return sum(
        spec.piece_nbytes(n) if n >= SMALLEST else sum(p[3] for p in _rates.pieces(spec.rest, n, offset + first))
        for first, n in pieces(spec, numel)
    )


@functools.lru_cache(maxsize=4)
def codebook(v: int, length: int) -> tuple[F32, F32]:
    """Levels of all states (2^L, V), and half the energy of each (2^L)."""
    rows = 2 ** (length - 2)
    counter = np.zeros((-(-rows * v // 8), 4), np.uint64)
    counter[:, 0] = np.arange(counter.shape[0])
    counter[:, 3] = v
    words = _random.philox(counter, (SEED & 0xFFFFFFFF, SEED >> 32))
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(-1)[: rows * v]
    magnitude = np.searchsorted(np.array(GAUSS_COUNT), halves & 0x7FFF, side="right")
    row = np.where(halves >> 15 == 1, -magnitude, magnitude).reshape(rows, v)
    state = np.arange(2**length)
    sign = 1 - 2 * ((state ^ state >> (length - 1)) & 1)
    row_of_state = state >> 1 & (rows - 1)
    energy = (row**2).sum(1).astype(np.float32) * np.float32(2**-19)
    levels = row.astype(np.float32)[row_of_state] * np.float32(2**-9) * sign.astype(np.float32)[:, None]
    return levels, energy[row_of_state]


def target(v: F32) -> F32:
    """To 13 significant bits, halves away from zero."""
    return ((v.view(np.uint32) + np.uint32(0x400)) & ~np.uint32(0x7FF)).view(np.float32)


def search(targets: F32, spec: Spec) -> U8:
    """Viterbi: the codes (T,) of one chain, whose targets are (T, V)."""
    k, length = spec.k, spec.length
    levels, energy = codebook(spec.v, length)
    nodes, count = 2 ** (length - k), len(targets)
    node_of_state = np.arange(2**length) & (nodes - 1)  # what was known before the newest bits came

    def walk(first: int, steps: int, cost: F32) -> tuple[list[U8], F32]:
        """Decisions (nodes,) of each step: the oldest bits p of the state by which the best path came; final costs."""
        decisions = []
        for i in range(steps):
            y = targets[(first + i) % count]
            product = y[0] * levels[:, 0]
            for value in range(1, spec.v):
                product = product + y[value] * levels[:, value]
            total = ((cost[node_of_state] + energy) - product).reshape(nodes, 2**k)  # of state (node, p)
            p = total.argmin(1)
            decisions.append(p.astype(np.uint8))
            cost = total[np.arange(nodes), p]
        return decisions, cost

    warm = min(count, WARM_UP)
    decisions, cost = walk(count - warm, 2 * warm, np.zeros(nodes, np.float32))
    node = int(cost.argmin())
    for p in reversed(decisions[warm:]):
        node = (node << k | int(p[node])) & (nodes - 1)
    start = np.full(nodes, np.inf, np.float32)
    start[node] = 0
    decisions, _ = walk(0, count, start)
    codes = np.empty(count, np.uint8)
    for i in reversed(range(count)):
        codes[i] = node >> (length - 2 * k)
        node = (node << k | int(decisions[i][node])) & (nodes - 1)
    return codes


def chain_levels(bits: U8, spec: Spec, n: int) -> F32:
    """Levels (n,) of a chain of T k bits."""
    count = bits.size // spec.k
    ends = (np.arange(count) + 1) * spec.k
    state = np.zeros(count, np.int64)
    for i in range(spec.length):
        state |= bits[(ends - spec.length + i) % bits.size].astype(np.int64) << i
    return codebook(spec.v, spec.length)[0][state].reshape(-1)[:n]


def piece_levels(data: U8, spec: Spec, n: int) -> F32:
    """Levels (n,) of a piece's bit string."""
    bits, chain, size = np.unpackbits(data, bitorder="little"), spec.chain(n), spec.codewords(n) * spec.k
    return np.concatenate([chain_levels(bits[i * size : (i + 1) * size], spec, chain) for i in range(n // chain)])


def _blocks(x: F32) -> list[F32]:
    return [x[i : i + 4096] for i in range(0, x.size, 4096)]


def _signs(key: _random.KeyLike, purpose: int, index: int, n: int) -> F32:
    size = min(n, 4096)
    return np.concatenate([_random.rotation_signs(key, purpose, index + i, size) for i in range(0, n, size)])


def _total(terms: list[np.float32]) -> np.float32:
    total = np.float32(0)
    for term in terms:
        total = total + term
    return total


ACROSS = (4096, 8192, 16384, 32768)


def encode_piece(x: F32, spec: Spec, key: _random.KeyLike, index: int, gain: np.float32) -> bytes:
    """A piece: x.size is a power of two from SMALLEST to the span."""
    n = np.float32(x.size)
    empty = bytes(spec.piece_nbytes(x.size) - 4)
    if not np.isfinite(x).all():
        return struct.pack("<I", _lloyd.NONFINITE) + empty
    if not x.any():
        return struct.pack("<I", 0) + empty
    e = _total([_sums.energy(block) for block in _blocks(x)])
    exponent = 0
    if not 2.0**-60 <= e <= 2.0**100:
        exponent = int(np.frexp(np.abs(x).max())[1]) - 1
        x = np.ldexp(x, -exponent)
        e = _total([_sums.energy(block) for block in _blocks(x)])
    y, s, twice = x, np.sqrt(e / n), False
    if spec.rotated:
        strides = _lloyd.ENCODE_STRIDES + ACROSS
        y = _lloyd.hadamard(x * _signs(key, _random.ROTATION_1, index, x.size), strides)
        twice = bool((x * x).max() * np.float32(32) > e)
        if twice:
            y = _lloyd.hadamard(y * _signs(key, _random.ROTATION_2, index, x.size), strides)
        s = np.sqrt(e * n) if twice else np.sqrt(e)
        y = y * _signs(key, SIGN, index, x.size)
    factor = np.float32(SPREADS[spec.k, spec.v]) * (np.float32(1) / s)
    v = y * factor
    chain, count = spec.chain(x.size), spec.codewords(x.size)
    codes = []
    for i in range(0, x.size, chain):
        padded = np.zeros(count * spec.v, np.float32)
        padded[:chain] = target(v[i : i + chain])
        codes.append(search(padded.reshape(count, spec.v), spec))
    bits = np.unpackbits(np.concatenate(codes)[:, None], axis=1, bitorder="little")[:, : spec.k]
    data = np.packbits(bits.reshape(-1), bitorder="little")
    levels = piece_levels(data, spec, x.size)
    p = _total([_sums.natural(block) for block in _blocks(v * levels)])
    q = _total([_sums.natural(block) for block in _blocks(levels * levels)])
    if not p > 0:
        return struct.pack("<I", 0) + empty
    c = np.float32(1) if not spec.rotated else n * n if twice else n
    correlation = p / factor
    ratio = correlation / (c * q) if spec.centroid or not spec.rotated else e / correlation
    a = np.ldexp(ratio, exponent) * gain
    if a == 0:
        return struct.pack("<I", 0) + empty
    return (
        struct.pack("<I", int(np.float32(min(a, _lloyd.FLT_MAX)).view(np.uint32)) | int(twice) << 31) + data.tobytes()
    )


def decode_piece(data: U8, spec: Spec, key: _random.KeyLike, index: int, n: int, gain: np.float32) -> F32:
    """The inverse. Raises WireError for an impossible scale."""
    (pattern,) = struct.unpack("<I", data[:4].tobytes())
    if pattern == 0:
        return np.zeros(n, np.float32)
    if pattern == _lloyd.NONFINITE:
        return np.full(n, np.nan, np.float32)
    twice = bool(pattern >> 31)
    if not 0 < pattern & 0x7FFFFFFF <= 0x7F7FFFFF or (twice and not spec.rotated):
        raise WireError(f"scale 0x{pattern:08x} is not a positive finite float")
    a = np.uint32(pattern & 0x7FFFFFFF).view(np.float32) * gain
    z = piece_levels(data[4:], spec, n)
    if spec.rotated:
        strides = ACROSS + _lloyd.DECODE_STRIDES
        z = z * _signs(key, SIGN, index, n)
        if twice:
            z = _lloyd.hadamard(z, strides) * _signs(key, _random.ROTATION_2, index, n)
        z = _lloyd.hadamard(z, strides) * _signs(key, _random.ROTATION_1, index, n)
    return _lloyd.scaled(z, a)


def encode(x: F32, spec: Spec, key: _random.KeyLike, offset: int, gain: np.float32) -> bytes:
    """The payload of gain * x."""
    out = []
    for first, n in pieces(spec, x.size):
        index, part = offset + first, x[first : first + n]
        if n >= SMALLEST:
            out.append(encode_piece(part, spec, key, index, gain))
            continue
        for kind, i, m, _ in _rates.pieces(spec.rest, n, index):
            block = part[i - index : i - index + m]
            if kind == "uniform":
                out.append(_uniform.encode(block, spec.rest, key, i, gain))
            else:
                out.append(_lloyd.encode(block, spec.rest, key, i, gain, rotate=kind == "hadamard"))
    return b"".join(out)


def decode(data: U8, spec: Spec, key: _random.KeyLike, numel: int, offset: int, gain: np.float32) -> F32:
    """All values of a payload."""
    out, at = [np.empty(0, np.float32)], 0
    for first, n in pieces(spec, numel):
        index = offset + first
        if n >= SMALLEST:
            end = at + spec.piece_nbytes(n)
            out.append(decode_piece(data[at:end], spec, key, index, n, gain))
            at = end
            continue
        for kind, i, m, nbytes in _rates.pieces(spec.rest, n, index):
            block = data[at : at + nbytes]
            at += nbytes
            if kind == "uniform":
                out.append(_uniform.decode(block, spec.rest, key, i, m, gain))
            else:
                out.append(_lloyd.decode(block, spec.rest, key, i, m, gain, rotate=kind == "hadamard"))
    return np.concatenate(out)
