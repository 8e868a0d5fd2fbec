"""Number formats and the classic quantisers (docs/wire-format.md, section 4.7)."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import numpy.typing as npt

from commpress.errors import WireError
from commpress.reference import _random, _sums
from commpress.reference._packing import U8, pack_block, pack_trits, unpack_block, unpack_trits
from commpress.reference._rates import BLOCK, GROUP

U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
FLT_MAX = np.finfo(np.float32).max
NON_FINITE = 0xFFFFFFFF
NVFP4_LARGEST = np.float32(2.0**116)
_SPEC = re.compile(r"(float|mxfp8|mxfp6|mxfp4|nvfp4|natural|int8|qsgd|ternary|sign|onebit)(?::(\w+))?((?:,\w+=\w+)*)")


@dataclasses.dataclass(frozen=True)
class Format:
    """A parsed spec. ``kind``: "float", "nvfp4", "levels", "sign" or "onebit"; ``block`` 0 means no scale."""

    kind: str
    exponent: int = 0
    mantissa: int = 0
    levels: int = 0
    block: int = 512
    stochastic: bool = True
    euclidean: bool = False
    trits: bool = False
    may_saturate: bool = False

    @property
    def bits(self) -> int:
        """Width of a code."""
        if self.kind == "levels":
            return math.ceil(math.log2(2 * self.levels + 1))
        return 1 + self.exponent + self.mantissa  # of a sign: one

    # ---- floats: magnitudes are codes without the sign bit ----

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def least(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def infinity(self) -> int:
        """Magnitude that stands for infinity, or for anything not finite."""
        top = 2 ** (self.exponent + self.mantissa)
        return top - 2**self.mantissa if self.exponent >= 5 else top - 1

    @property
    def nan(self) -> int:
        """Magnitude that stands for NaN."""
        return self.infinity + (2**self.mantissa // 2 if self.exponent >= 5 else 0)

    @property
    def largest(self) -> int:
        """The largest finite magnitude."""
        return self.infinity if self.exponent <= 3 and self.block else self.infinity - 1

    @property
    def largest_value(self) -> float:
        return float(self.values(np.array([self.largest]))[0])

    @property
    def scales(self) -> range:
        """Exponents that a block scale may have."""
        top = math.frexp(self.largest_value)[1] - 1
        return range(max(-127, -149 - self.least + self.mantissa), 127 - top + 1)

    def values(self, magnitudes: npt.NDArray[np.integer]) -> F64:
        """Of finite magnitudes."""
        field, fraction = magnitudes >> self.mantissa, magnitudes % 2**self.mantissa
        whole = np.where(field > 0, 2**self.mantissa, 0) + fraction
        return np.ldexp(whole.astype(np.float64), np.maximum(field, 1) - self.bias - self.mantissa)

    def codes(self, y: F32, words: U32) -> U32:
        """Of finite values."""
        m = self.mantissa
        a = np.abs(y)
        if self.stochastic:
            with np.errstate(over="ignore"):  # beyond every code, and clamped
                digits = a if self.exponent == 8 else a + np.maximum(a, np.float32(2.0**self.least))
            base = 0 if self.exponent == 8 else 127 + self.least << 23
            noise = (words & np.uint32(2 ** (23 - m) - 1)).astype(np.int64)
            magnitudes = digits.astype(np.float32).view(np.uint32).astype(np.int64) - base + noise >> (23 - m)
        else:
            wide = a.astype(np.float64)
            exponents = np.where(a > 0, np.maximum(np.frexp(wide)[1] - 1, self.least), self.least)
            steps = np.rint(np.ldexp(wide, m - exponents)).astype(np.int64)
            magnitudes = steps + ((exponents - self.least).astype(np.int64) << m)
        magnitudes = np.minimum(magnitudes, self.largest)
        return (magnitudes | np.signbit(y).astype(np.int64) << (self.bits - 1)).astype(np.uint32)


def knows(text: str) -> bool:
    """Whether this module has the codec of a spec."""
    return _SPEC.fullmatch(text) is not None


def parse(text: str) -> Format:
    """The spec of a codec's text. Raises ValueError if it is none."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"not a format: {text!r}")
    family, argument = match[1], match[2] or ""
    options = dict(option.split("=") for option in match[3].split(",")[1:])
    stochastic = options.get("rounding", "stochastic") == "stochastic"
    block = int(options.get("block", 512))
    if options.get("scale") == "none":
        block = 0
    if family in ("sign", "onebit"):
        block = 0 if options.get("scale") == "none" else int(options.get("block", 4096))
        return Format(family, block=block, stochastic=False)
    if family == "nvfp4":
        return Format("nvfp4", 2, 1, block=16, stochastic=stochastic)
    if family in ("int8", "qsgd", "ternary"):
        levels = {"int8": 127, "ternary": 1}.get(family) or int(argument)
        euclidean = family == "qsgd" and options.get("norm", "l2") == "l2"
        return Format(
            "levels",
            levels=levels,
            block=block,
            stochastic=stochastic,
            euclidean=euclidean,
            trits=family == "ternary",
        )
    element = {"float": argument, "mxfp8": "e4m3", "mxfp6": "e2m3", "mxfp4": "e2m1", "natural": "e7m0"}[family]
    if family == "natural" and block == 0:
        element = "e8m0"
    exponent, mantissa = (int(v) for v in options.get("format", element)[1:].split("m"))
    if exponent == 8:
        block = 0
    mx = family.startswith("mxfp")
    return Format(
        "float",
        exponent,
        mantissa,
        block=32 if mx else block,
        stochastic=stochastic,
        may_saturate=mx and not stochastic,
    )


E4M3 = Format("float", 4, 3, block=0, stochastic=False)


# ---- sizes ----


def scales_nbytes(f: Format, n: int) -> int:
    """What precedes the codes of a block of ``n``."""
    if f.block == 0:
        return int(f.kind == "sign")
    each = {"float": 1, "nvfp4": 1, "levels": 4, "sign": 4, "onebit": 8}[f.kind]
    return -(-n // f.block) * each + 4 * (f.kind == "nvfp4")


def codes_nbytes(f: Format, n: int) -> int:
    return -(-n // 5) if f.trits else (n * f.bits + 7) // 8


def payload_nbytes(f: Format, numel: int) -> int:
    """Size of a payload."""
    whole, rest = divmod(numel, BLOCK)
    total = whole * (scales_nbytes(f, BLOCK) + codes_nbytes(f, BLOCK))
    return total + (scales_nbytes(f, rest) + codes_nbytes(f, rest) if rest else 0)


# ---- encoding ----


def plain(a: np.float32) -> bool:
    """Whether sums of squares and quotients stay in range."""
    return bool(a == 0 or 2.0**-60 <= a <= 2.0**56)


def encode(x: F32, f: Format, key: _random.KeyLike, index: int, gain: np.float32) -> bytes:
    """A block of at most 4096 coordinates from index ``index`` on."""
    block = f.block or (BLOCK if f.kind == "sign" else GROUP)
    parts = [x[at : at + block] for at in range(0, x.size, block)]
    finite = [bool(np.isfinite(part).all()) for part in parts]
    scaled = [
        np.clip(part * gain, -FLT_MAX, FLT_MAX) if ok else np.zeros_like(part)
        for part, ok in zip(parts, finite, strict=True)
    ]
    largest = [np.abs(part).max() for part in scaled]
    if f.kind == "nvfp4":
        largest = [max(largest)] * len(parts)
    exponents = [0 if f.kind == "float" or plain(a) else int(np.frexp(a)[1]) - 1 for a in largest]
    ys = [np.ldexp(part, -e) for part, e in zip(scaled, exponents, strict=True)]
    words = np.concatenate([_random.rounding_words(key, index + at) for at in range(0, x.size, GROUP)])[: x.size]
    y = np.concatenate(ys)
    if f.kind == "float" and f.block == 0:
        codes = f.codes(np.clip(np.where(np.isfinite(x), x, 0) * gain, -FLT_MAX, FLT_MAX), words)
        special = np.where(np.isnan(x), f.nan, f.infinity) | np.signbit(x).astype(np.int64) << (f.bits - 1)
        return pack_block(np.where(np.isfinite(x), codes, special).astype(np.uint32), f.bits).tobytes()
    if f.kind == "float":
        scales, multipliers = float_scales(f, largest)
        head = bytes(s if ok else 0xFF for s, ok in zip(scales, finite, strict=True))
    elif f.kind == "nvfp4":
        outer, scales, multipliers = nvfp4_scales(f, ys, exponents[0])
        head = outer.tobytes() + bytes(s if ok else 0x7F for s, ok in zip(scales, finite, strict=True))
    elif f.kind == "levels":
        steps, multipliers = level_scales(f, ys, exponents)
        head = b"".join(wire(step, ok) for step, ok in zip(steps, finite, strict=True))
    else:
        head = sign_scales(f, ys, exponents, finite)
        signs = np.where(np.repeat(finite, [p.size for p in parts]), np.signbit(x), 0)
        return head + pack_block(signs.astype(np.uint32), 1).tobytes()
    multiplier = np.repeat(np.array(multipliers, np.float32), [part.size for part in parts])
    if f.kind != "levels":
        return head + pack_block(f.codes(y * multiplier, words), f.bits).tobytes()
    digits = 31 - f.bits if f.stochastic else 0
    fixed = np.rint(y * (multiplier * np.float32(2.0**digits))).astype(np.int64) + (f.levels << digits)
    if f.stochastic:
        fixed = fixed + (words & np.uint32(2**digits - 1)) >> digits
    codes = fixed.astype(np.uint32)
    return head + (pack_trits(codes) if f.trits else pack_block(codes, f.bits)).tobytes()


def wire(scale: np.float32, finite: bool) -> bytes:
    """A scale of four bytes."""
    return np.float32(scale).tobytes() if finite else NON_FINITE.to_bytes(4, "little")


def float_scales(f: Format, largest: list[np.float32]) -> tuple[list[int], list[np.float32]]:
    """(bytes, multipliers): the least power of two under which no value exceeds the largest code, or OCP's, which ignores the mantissa."""
    scales = []
    top_mantissa, top = math.frexp(f.largest_value)
    for a in largest:
        mantissa, exponent = math.frexp(float(a))
        e = exponent - top + (mantissa > top_mantissa and not f.may_saturate) if a >= 2.0**-126 else -200
        scales.append(min(max(e, f.scales[0]), f.scales[-1]) + 127)
    return scales, [np.float32(2.0 ** (127 - s)) for s in scales]


def nvfp4_scales(f: Format, ys: list[F32], exponent: int) -> tuple[np.float32, list[int], list[np.float32]]:
    """(outer scale, bytes, multipliers)."""
    one, six = np.float32(1), np.float32(6)
    largest = np.array([np.abs(y).max() for y in ys], np.float32)
    outer = min(np.ldexp(largest.max() / np.float32(2688), exponent), NVFP4_LARGEST)
    local = np.ldexp(outer, -exponent)
    if local == 0:
        return outer, [0] * len(ys), [np.float32(0)] * len(ys)
    q = largest * (one / (six * local))
    if f.stochastic:  # up
        up = dataclasses.replace(E4M3, stochastic=True)
        codes = np.maximum(up.codes(q, np.full(q.size, NON_FINITE, np.uint32)), (largest > 0).astype(np.uint32))
    else:
        codes = E4M3.codes(q, np.zeros(q.size, np.uint32))
    scale = E4M3.values(codes.astype(np.int64)).astype(np.float32)
    multipliers = np.where(codes > 0, one / (scale * local), np.float32(0))
    return outer, [int(c) for c in codes], list(multipliers)


def largest_step(levels: int) -> np.float32:
    """The largest step whose multiples are finite."""
    step = FLT_MAX / np.float32(levels)
    while np.isinf(step * np.float32(levels)):
        step = np.nextafter(step, np.float32(0))
    return np.float32(step)


def level_scales(f: Format, ys: list[F32], exponents: list[int]) -> tuple[list[np.float32], list[np.float32]]:
    """(steps, multipliers)."""
    steps, multipliers, s = [], [], np.float32(f.levels)
    for y, e in zip(ys, exponents, strict=True):
        a = np.abs(y).max()
        norm = np.sqrt(_sums.natural(y * y)) if f.euclidean else a
        step = min(np.ldexp(norm / s, e), largest_step(f.levels))
        inverse = np.float32(0)
        if step > 0:
            inverse = s / norm
            while a * inverse > s:
                inverse = np.nextafter(inverse, np.float32(0))
        steps.append(np.float32(step))
        multipliers.append(inverse)
    return steps, multipliers


def sign_scales(f: Format, ys: list[F32], exponents: list[int], finite: list[bool]) -> bytes:
    """All scales of a block."""
    if f.block == 0:
        return bytes([0xFF if not finite[0] else 127 if ys[0].any() else 0])
    out = []
    for y, e, ok in zip(ys, exponents, finite, strict=True):
        if f.kind == "sign":
            out.append(wire(mean(np.abs(y), y.size, e), ok))
        else:
            negative = int(np.signbit(y).sum())
            out.append(wire(mean(np.maximum(y, np.float32(0)), y.size - negative, e), ok))
            out.append(wire(mean(np.maximum(-y, np.float32(0)), negative, e), ok))
    return b"".join(out)


def mean(v: F32, count: int, exponent: int) -> np.float32:
    """The sum of ``v`` over ``count``, times 2^exponent."""
    return min(np.ldexp(_sums.natural(v) / np.float32(count), exponent), FLT_MAX) if count else np.float32(0)


# ---- decoding ----


def decode(data: U8, f: Format, n: int, gain: np.float32) -> F32:
    """The values of a block. Raises WireError for a scale or a code that no encoder writes."""
    at = scales_nbytes(f, n)
    codes = unpack_trits(data[at:], n) if f.trits else unpack_block(data[at:], n, f.bits)
    if f.kind == "float" and f.block == 0:
        return unscaled_values(f, codes) * gain
    repeat = f.block or BLOCK
    if f.kind == "float":
        exponents = data[:at].astype(np.int64) - 127
        if any(e not in f.scales and e != 128 for e in exponents):
            raise WireError(f"a block scale is not one of 2^{f.scales[0]} .. 2^{f.scales[-1]}")
        steps = np.where(exponents == 128, np.float32(np.nan), np.ldexp(gain, exponents))
    elif f.kind == "nvfp4":
        outer = data[:4].view(np.uint32)[0]
        inner = data[4:at].astype(np.int64)
        if outer > NVFP4_LARGEST.view(np.uint32) or (inner > 0x7F).any():
            raise WireError("an nvfp4 scale that is negative or too large")
        factor = outer.view(np.float32) * gain
        steps = np.where(inner == 0x7F, np.float32(np.nan), E4M3.values(inner).astype(np.float32) * factor)
    elif f.block == 0:
        if data[0] not in (0, 127, 255):
            raise WireError(f"a block of signs has scale {data[0]}")
        steps = np.array([{0: np.float32(0), 127: gain, 255: np.float32(np.nan)}[int(data[0])]])
    else:
        patterns = data[:at].view(np.uint32)
        most = largest_step(f.levels) if f.kind == "levels" else FLT_MAX
        if ((patterns > most.view(np.uint32)) & (patterns != NON_FINITE)).any():
            raise WireError("a scale that is negative or too large")
        steps = np.where(patterns == NON_FINITE, np.float32(np.nan), patterns.view(np.float32) * gain)
    if f.kind == "onebit":
        pairs = patterns.reshape(-1, 2) == NON_FINITE
        if (pairs[:, 0] != pairs[:, 1]).any():
            raise WireError("one of two means is not finite")
        up, down = (np.repeat(steps[k::2], repeat)[:n] for k in (0, 1))
        return np.where(codes == 0, up, -down).astype(np.float32)
    step = np.repeat(steps, repeat)[:n].astype(np.float32)
    if f.kind == "levels":
        return (np.minimum(codes, 2 * f.levels) - f.levels).astype(np.float32) * step
    if f.kind == "sign":
        return np.where(codes == 0, step, -step).astype(np.float32)
    magnitudes = np.minimum(codes % 2 ** (f.bits - 1), f.largest)
    return with_signs(f.values(magnitudes), codes, f) * step


def with_signs(magnitudes: F64, codes: npt.NDArray[np.int64], f: Format) -> F32:
    """The values with the sign bits of their codes."""
    return np.copysign(magnitudes, np.where(codes >> (f.bits - 1), -1.0, 1.0)).astype(np.float32)


def unscaled_values(f: Format, codes: npt.NDArray[np.int64]) -> F32:
    """Where there is no scale, codes above the largest are infinities or NaN."""
    magnitudes = codes % 2 ** (f.bits - 1)
    values = np.where(magnitudes > f.largest, np.nan, f.values(np.minimum(magnitudes, f.largest)))
    if f.nan != f.infinity:
        values = np.where(magnitudes == f.infinity, np.inf, values)
    return with_signs(values, codes, f)
