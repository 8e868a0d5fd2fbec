"""The executor of PTX: arithmetic and conversions to the bit, against Python's integers and numpy."""

import numpy as np
import pytest
from _ptx import blocks_of, needs_nvcc, poisoned, random, run, samples

pytestmark = needs_nvcc


@pytest.fixture(scope="module")
def kernels():
    return samples()


def bits_below(count):
    return (1 << count) - 1


def signed(value, bits=32):
    return value - (1 << bits) if value >> bits - 1 & 1 else value


def toward_zero(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def integer_results(x, y, z):
    """What the kernel `integers` computes, in Python's unbounded integers."""
    s, t, w, v = signed(x), signed(y), x << 32 | y, z << 32 | x
    sw, sv, mask = signed(w, 64), signed(v, 64), bits_below(64)
    six, five = z & 63, z & 31
    both = y << 32 | x

    def wide(value):
        return [value, value >> 32]

    def octets(selector):
        total = 0
        for place in range(4):
            choice = selector >> 4 * place & 15
            octet = both >> 8 * (choice & 7) & 255
            octet = (255 if octet & 128 else 0) if choice & 8 else octet
            total |= octet << 8 * place
        return total

    def field(value, start, length, negative):
        found = value >> start & bits_below(length)
        top = min(start + length - 1, 31)
        return found | ~bits_below(length) if negative and length and value >> top & 1 else found

    inserted = bits_below(z >> 8 & 31) << five
    length, first = (y & 31), five
    comparison = s < 0 and y > z
    le = t <= signed(z)
    carry = x + y
    dot = z + sum((x >> 8 * i & 255) * (y >> 8 * i & 255) for i in range(4))
    table = sum(((0x1B >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1))) & 1) << i for i in range(32))
    return [
        *wide(x * y),
        *wide(s * t + sv),
        x * y >> 32,
        s * t >> 32,
        *wide(w * v >> 64),
        *wide(sw * sv >> 64),
        *wide(w * v + w),
        *wide(w << six),
        *wide((w & mask) >> six),
        *wide(sw >> six),
        x << five | s >> five,
        x << six,
        s >> six,
        (both << five) >> 32,
        both >> five,
        (both << min(six, 32)) >> 32,
        both >> min(six, 32),
        table,
        octets(0x6240),
        octets(z),
        field(x, first, length, False),
        field(x, first, length, True),
        (y & ~inserted) | (x << five & inserted),
        x.bit_length() - 1,
        (x if s >= 0 else ~x & 0xFFFFFFFF).bit_length() - 1,
        (32 - x.bit_length()) * 64 + 64 - v.bit_length(),
        x.bit_count() * 128 + w.bit_count(),
        int(f"{x:032b}"[::-1], 2),
        (x & -x).bit_length(),
        min(s, t) ^ max(s, t),
        min(x, y) ^ max(x, y),
        abs(s) + (-s if s < t else t),
        x // y + x % y if y else 0,
        2 * toward_zero(s, t) - s + toward_zero(s, t) * (t - 1) if t else 0,
        (x & 255) + signed(y & 255, 8) + signed(z & 0xFFFF, 16),
        (1 if comparison else 2) + (4 if le else 0) + (8 if not le else 0),
        0xFFFFFFFF if s >= t else 0,
        carry & 0xFFFFFFFF ^ (y + z + (carry >> 32)) & 0xFFFFFFFF,
        # the carry of a subtraction is set where nothing is borrowed
        (x - y ^ z - x - (x < y)) & 0xFFFFFFFF,
        (x - y ^ z + x + (x >= y)) & 0xFFFFFFFF,
        (carry ^ z - x - (carry >> 32 == 0)) & 0xFFFFFFFF,
        *wide((w << 63 | v) // (v | 1) if y else 0),
        *wide((w << 63 | v) % (w | 1) if y else 0),
        dot,
        min(max(s >> 20, 0), 255),
    ]


def test_integers(kernels):
    n = 333
    edges = [0, 1, 2, 31, 32, 63, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF]
    a, b, c = (
        random(seed).integers(0, 2**32, n, np.uint32) >> random(seed + 9).integers(0, 32, n).astype(np.uint32)
        for seed in range(3)
    )
    a[:100], b[:100] = np.repeat(edges, 10), np.tile(edges, 10)
    c[:50] = edges * 5
    expected = np.array(
        [
            [value & 0xFFFFFFFF for value in integer_results(*row)]
            for row in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
    )
    out = poisoned(expected.shape[1] * n, np.uint32)
    run(kernels["integers"], blocks_of(n), 64, [a, b, c, out, n])
    for number, (found, wanted) in enumerate(zip(out.reshape(-1, n), expected.T, strict=True)):
        assert found.tolist() == wanted.tolist(), number


def bfloat16(values):
    """Bits of the nearest bfloat16, ties to even: by search among its neighbours rather than by adding bits."""
    low = values.view(np.uint32) >> 16
    candidates = np.stack([low - 1, low, low + 1]).astype(np.uint32)
    wide = (candidates << 16).view(np.float32).astype(np.float64)
    distance = np.nan_to_num(np.abs(wide - values.astype(np.float64)), nan=np.inf)
    best = distance == distance.min(0)
    even = np.where(best.sum(0) > 1, best & (candidates % 2 == 0), best)
    return np.take_along_axis(candidates, even.argmax(0)[None], 0)[0].astype(np.uint16)


def half_bits(values):
    return values.astype(np.float16).view(np.uint16)


def clipped(values, dtype):
    limits = np.iinfo(dtype)
    return np.array([0 if np.isnan(v) else int(min(max(v, limits.min), limits.max)) for v in values.astype(float)])


def truncated(value):
    """The float32 next to an integer towards zero."""
    drop = max(0, abs(value).bit_length() - 24)
    return np.float32((abs(value) >> drop << drop) * (-1 if value < 0 else 1))


def float_results(x, y, z, u):
    """What the kernel `floats` computes, each row as numbers or as bits."""
    s = u.view(np.int32)
    exact = [float(np.longdouble(p) * np.longdouble(q) + np.longdouble(r)) for p, q, r in zip(x, y, z, strict=True)]
    less = (x < y) | (x <= y) * 2 | (x == y) * 4 | (x != y) * 8 | ~(x < y) * 16
    product = x * y
    tiny = lambda v: np.abs(v) < 2.0**-126  # noqa: E731
    flushed = np.where(tiny(x) | tiny(y) | tiny(product), np.copysign(np.float32(0), product), product)
    return [
        x + y,
        x - y,
        product,
        np.array(exact).astype(np.float32),
        x / y,
        np.sqrt(np.abs(x)),
        np.float32(1) / y,
        -x,
        np.minimum(x, y),
        np.maximum(x, y),
        clipped(np.rint(x), np.int32),
        clipped(np.trunc(x), np.int32),
        clipped(np.floor(x), np.int32),
        clipped(np.ceil(x), np.int32),
        clipped(np.rint(x), np.uint32),
        clipped(np.trunc(x), np.uint32),
        clipped(np.rint(x), np.int64),
        np.rint(x),
        np.floor(x),
        s.astype(np.float32),
        np.array([truncated(v) for v in s.tolist()]),
        u.astype(np.float32),
        np.array([truncated(v) for v in u.tolist()]),
        np.array([v << 20 | v for v in u.tolist()], np.uint64).astype(np.float32),
        x.astype(np.float16).view(np.uint16),
        bfloat16(x),
        (u & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32),
        ((u & 0xFFFF) << 16).view(np.float32),
        bfloat16(y).astype(np.uint32) << 16 | bfloat16(x),
        less,
        np.clip(x, 0, 1),
        flushed,
    ]


def test_floats(kernels):
    n = 1000
    rng = random()
    scales = np.exp2(rng.integers(-30, 40, (3, n)))
    a, b, c = (rng.standard_normal((3, n)) * scales).astype(np.float32)
    a[:6] = [2.5, -2.5, 0.5, 4294967040.0, 1e-39, 3e-39]
    b[:6] = [2.5, 1.0, 3.0, -1.0, 2.0, 1e-3]
    c[100:200] = -(a[100:200] * b[100:200])  # so that the rounding of the product shows
    a[200:300] = np.rint(a[200:300]) + np.float32(0.5)
    bits = rng.integers(0, 2**32, n, np.uint32)
    bits[(bits & 0x7C00) == 0x7C00] &= 0xFFFF83FF  # neither NaN nor infinity of either half format
    bits[(bits & 0x7F80) == 0x7F80] &= 0xFFFF807F
    with np.errstate(all="ignore"):
        expected = float_results(a, b, c, bits)
    out = poisoned(len(expected) * n, np.uint32)
    run(kernels["floats"], blocks_of(n), 64, [a, b, c, bits, out, n])
    for number, (found, wanted) in enumerate(zip(out.reshape(-1, n), expected, strict=True)):
        if wanted.dtype.kind == "f":
            wanted = wanted.astype(np.float32).view(np.uint32)
        assert (found == wanted.astype(np.int64).astype(np.uint32)).all(), number


def test_special_floats(kernels):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45], np.float32)
    a, b = (grid.ravel().copy() for grid in np.meshgrid(special, special))
    n = a.size
    out = poisoned(32 * n, np.uint32)
    run(kernels["floats"], 1, n, [a, b, a, np.zeros(n, np.uint32), out, n])
    found = out.reshape(32, n)
    assert np.array_equal(found[10], clipped(np.rint(a), np.int32) & 0xFFFFFFFF)
    least = np.where(np.isnan(a), b, np.where(np.isnan(b) | (a < b) | ((a == b) & np.signbit(a)), a, b))
    numbers = ~np.isnan(least)
    assert np.array_equal(found[8][numbers], least.view(np.uint32)[numbers])
    assert np.isnan(found[8].view(np.float32)[~numbers]).all()
    unordered = np.isnan(a) | np.isnan(b)
    assert ((found[29] & 31)[unordered] == 24).all() and np.array_equal(found[29] >> 5 & 1, np.isnan(a))
    assert (found[25][np.isnan(a)] == 0x7FFF).all()


def test_halves_and_doubles(kernels):
    n = 500
    rng = random()
    values = (rng.standard_normal((3, n, 2)) * np.exp2(rng.integers(-4, 5, (3, n, 2)))).astype(np.float32)
    forms = (
        (values.astype(np.float16).view(np.uint16), lambda bits: bits.view(np.float16), half_bits),
        (bfloat16(values), lambda bits: (bits.astype(np.uint32) << 16).view(np.float32), bfloat16),
    )
    for form, (stored, widened, narrowed) in enumerate(forms):
        a, b, c = (part.view(np.uint32).ravel() for part in stored)
        out, sums = poisoned(6 * n, np.uint32), poisoned(n, np.float64)
        run(kernels["halves"], blocks_of(n), 64, [a, b, c, out, sums, n])
        found = out.view(np.uint16).reshape(2, 3, n, 2)[form]
        # float64 is exact for these, and float32 all but exact
        x, y, z = (widened(part).astype(np.float64) for part in stored)
        for number, exact in enumerate((x + y, x * y, x * y + z)):
            assert np.array_equal(found[number], narrowed(exact.astype(np.float32))), number
        s, t = a.astype(np.float64), b.view(np.int32).astype(np.float64)
        assert np.array_equal(sums, (s + t) * t - s / 3)
