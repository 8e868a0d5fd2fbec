"""The executor of PTX in tests/cuda/ptx: what nvcc makes of small kernels, against numpy; and faults that it must find."""

import pathlib
import sys

import numpy as np
import pytest

CUDA = pathlib.Path(__file__).parent / "cuda"
sys.path.insert(0, str(CUDA))

import ptx  # noqa: E402

pytestmark = pytest.mark.skipif(ptx.find_nvcc() is None, reason="no nvcc: neither in CUDA_HOME nor on the PATH")
# Tails: one thread, one less than a block, a block, a block and one, several blocks and some.
SIZES = [1, 63, 64, 65, 517]
POISON = 0xA5


@pytest.fixture(scope="module")
def kernels():
    return ptx.load(ptx.compile_ptx(CUDA / "ptx" / "samples.cu"))


def random(seed=0):
    return np.random.default_rng(seed)


def poisoned(count, dtype):
    return np.frombuffer(bytearray([POISON]) * (count * np.dtype(dtype).itemsize), dtype)


def run(kernel, grid, block, arguments, memory=None, **options):
    """Launches with arrays in place of their addresses."""
    memory = memory or ptx.Memory()
    given = [memory.add(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arguments]
    return ptx.Machine(kernel, memory, grid, block, given, **options).run()


def blocks_of(n, threads=64):
    return -(-n // threads)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("lanes", [64, 8192])
def test_struct_by_value(kernels, n, lanes):
    x, y = random().standard_normal(n).astype(np.float32), poisoned(n + 3, np.float32)
    fields = [("x", "u8"), ("y", "u8"), ("n", "i8"), ("scale", "f4"), ("shift", "f4"), ("order", "i4", 8)]
    memory = ptx.Memory()
    order = random(1).integers(-9, 9, 8)
    argument = np.array([(memory.add(x), memory.add(y), n, 1.7, -0.3, order)], np.dtype(fields, align=True))[0]
    counts = run(kernels["affine"], 3, 64, [argument], memory, lanes=lanes)
    expected = x * np.float32(1.7) + np.float32(-0.3) + order[np.arange(n) % 8].astype(np.float32)
    assert np.array_equal(y[:n], expected) and (y[n:].view(np.uint8) == POISON).all()
    assert counts.traffic["ld"].nbytes == counts.traffic["st"].nbytes == 4 * n
    assert counts.touched_bytes["st"] == 32 * blocks_of(4 * n, 32)
    assert counts.blocks == 3


def test_three_dimensions(kernels):
    grid, block = (3, 2, 2), (5, 4, 3)
    out = poisoned(12 * 60, np.uint32)
    run(kernels["grid_of_three_dimensions"], grid, block, [out])
    b, t = np.meshgrid(np.arange(12), np.arange(60), indexing="ij")
    expected = b % 3 | b // 3 % 2 << 4 | b // 6 << 8 | t % 5 << 12 | t // 5 % 4 << 16 | t // 20 << 20
    assert np.array_equal(out, expected.ravel())


@pytest.mark.parametrize("n", SIZES)
def test_tables_and_variables(kernels, n):
    codes, y, z = random().integers(0, 256, n, np.uint8), poisoned(n, np.float32), poisoned(n, np.uint32)
    levels = [0.128, 0.388, 0.657, 0.942, 1.256, 1.618, 2.069, 2.733]
    table = np.array([-level for level in reversed(levels)] + levels, np.float32)
    octets = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 9])
    memory, calls = ptx.Memory(), np.zeros(1, np.uint32)
    for launch in (1, 2):
        run(kernels["tables"], blocks_of(n), 64, [codes, y, z, n], memory)
        assert np.array_equal(y, table[codes & 15])
        assert np.array_equal(z, 10 ** (codes >> 5).astype(np.int64) + octets[codes % 12])
        run(kernels["read_calls"], 1, 1, [calls], memory)
        assert calls[0] == launch * n


def mix(a, b):
    return a * np.uint32(2654435761) ^ b >> np.uint32(3)


@pytest.mark.parametrize("n", SIZES)
def test_local_arrays_and_calls(kernels, n):
    x, y = random().integers(0, 2**32, n, np.uint32), poisoned(n, np.uint32)
    run(kernels["local_array"], blocks_of(n), 64, [x, y, n])
    row, held, total = np.arange(n), np.zeros((n, 16), np.uint32), np.zeros(n, np.uint32)
    for k in range(16):
        held[:, k * 5 & 15] = x + np.uint32(k)
    for k in range(16):
        held[row, x + np.uint32(k) & 15] ^= held[:, k + 3 & 15]
    for k in range(16):
        total = mix(total, held[row, (x >> np.uint32(4)) + np.uint32(k) & 15])
    assert np.array_equal(y, np.where(x & 1, total + x + x, mix(total, x) + 2 * x))


@pytest.mark.parametrize("n", SIZES)
def test_trip_counts_that_differ(kernels, n):
    x, steps = random().integers(1, 300, n).astype(np.uint32), poisoned(n, np.uint32)
    counts = run(kernels["collatz"], blocks_of(n), 64, [x, steps, n])

    def length(value):
        count = 0
        while value != 1:
            value, count = (3 * value + 1 if value & 1 else value // 2), count + 1
        return count

    expected = [length(value) for value in x.tolist()]
    assert steps.tolist() == expected
    # a warp pays for its slowest thread, not for more: it shows that diverged threads meet again
    slowest = sum(max(expected[i : i + 32]) for i in range(0, n, 32))
    assert counts.thread_instructions > 3 * sum(expected) and counts.issued < 8 * slowest + 50 * blocks_of(n)


@pytest.mark.parametrize("n", SIZES)
def test_switch(kernels, n):
    x, y = random().integers(0, 2**32, n, np.uint32), poisoned(n, np.uint32)
    run(kernels["jump_table"], blocks_of(n), 64, [x, y, n])
    cases = [
        lambda v: v * 3 + 1,
        lambda v: int(f"{v:032b}"[::-1], 2),
        lambda v: v // 7,
        lambda v: v ^ 0x5A5A,
        int.bit_count,
        lambda v: v << 3 | v >> 29,
        lambda v: ~v,
        lambda v: v % 1000,
        lambda v: v - 17,
    ]
    assert y.tolist() == [cases[v % 9](v) & 0xFFFFFFFF for v in x.tolist()]


JUMP = """
.visible .entry jump(.param .u64 out)
{
    .reg .b32 %r<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 3;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    $L_table: .branchtargets $L_a, $L_b, $L_a, $L_c;
    brx.idx %r2, $L_table;
    $L_a: mov.u32 %r3, 10; bra.uni $L_end;
    $L_b: mov.u32 %r3, 20; bra.uni $L_end;
    $L_c: mov.u32 %r3, 30;
    $L_end: st.global.u32 [%rd3], %r3;
    ret;
}
"""


def test_jump_table():
    out = poisoned(40, np.uint32)
    run(ptx.load(JUMP)["jump"], 1, 40, [out])
    assert out.tolist() == [10, 20, 10, 30] * 10


@pytest.mark.parametrize("n", SIZES)
def test_histogram(kernels, n):
    x, counts = random().integers(0, 40, n, np.uint8), np.zeros(256, np.uint32)
    run(kernels["histogram"], 3, 64, [x, counts, n])
    assert np.array_equal(counts, np.bincount(x, minlength=256))


@pytest.mark.parametrize("n", SIZES)
def test_atomics(kernels, n):
    x = random().integers(-1000, 1000, n).astype(np.int32)
    out, total, order = np.array([-5, 5, 0, -1, 0, 0, 0, -1], np.int32), np.zeros(1, np.float32), poisoned(n, np.uint32)
    run(kernels["atomics"], blocks_of(n), 64, [x, out, total, order, n])
    bits = [np.bitwise_or.reduce(x), np.bitwise_and.reduce(x), np.bitwise_xor.reduce(x)]
    assert out[:5].tolist() == [max(-5, x.max()), min(5, x.min()), *bits]
    assert out[5] in x and out[6] == n % 100 and out[7] == next((v for v in x if v != -1), -1)
    assert sorted(order) == sorted(i % 100 for i in range(n))
    assert total[0] == (x & 15).sum()


def test_warp_collectives(kernels):
    n = 192
    x, out = random().integers(0, 256, n).astype(np.uint32), poisoned(11 * n, np.uint32)
    run(kernels["warp"], 3, 64, [x, out, n])
    rows, lane = x.reshape(-1, 32), np.arange(32)
    found = out.reshape(11, -1, 32)
    ballot = [sum(1 << int(i) for i in lane[row & 4 != 0]) for row in rows]
    same = [[sum(1 << int(i) for i in lane[(row & 3) == (v & 3)]) for v in row] for row in rows]
    odd = [sum(1 << i for i in range(20) if row[i] & 1) + int(row[19]) for row in rows]
    votes = [int((row == x[0]).any()) | int((row < 200).all()) << 1 for row in rows]
    expected = [
        rows[:, lane ^ 5],
        rows[:, np.where(lane >= 3, lane - 3, lane)],
        rows[:, np.where(lane % 16 < 9, lane + 7, lane)],
        np.take_along_axis(rows, rows & 31, 1),
        np.repeat(ballot, 32).reshape(-1, 32),
        np.repeat(votes, 32).reshape(-1, 32),
        np.repeat(rows.max(1), 32).reshape(-1, 32),
        np.repeat(rows.sum(1), 32).reshape(-1, 32),
        np.repeat(np.bitwise_xor.reduce(rows, 1), 32).reshape(-1, 32),
        np.array(same),
    ]
    for number, row in enumerate(expected):
        assert np.array_equal(found[number], row), number
    assert np.array_equal(found[10][:, :20], np.repeat(odd, 20).reshape(-1, 20))
    assert (found[10][:, 20:] == POISON * 0x01010101).all()


@pytest.mark.parametrize("n", SIZES)
def test_barriers_and_dynamic_shared_memory(kernels, n):
    x, blocks = random().standard_normal(n).astype(np.float32), blocks_of(n)
    sums, found = poisoned(blocks, np.float32), poisoned(blocks, np.int32)
    counts = run(kernels["block_sum"], blocks, 64, [x, sums, found, n], dynamic_shared=256)
    padded = np.zeros(blocks * 64, np.float32)
    padded[:n] = x
    rows = padded.reshape(-1, 64)
    tree, width = rows.copy(), 32
    while width:
        tree, width = tree[:, :width] + tree[:, width : 2 * width], width // 2
    assert np.array_equal(sums, tree[:, 0])
    full = np.arange(1, blocks + 1) * 64 <= n
    assert np.array_equal(found, (rows > 0).sum(1) * 4 + (rows > 3).any(1) * 2 + full)
    assert counts.conflict_ratio == 1 and counts.shared_ideal > 0


@pytest.mark.parametrize("lanes", [64, 8192])
def test_blocks_that_wait_for_one_another(kernels, lanes):
    x = random().integers(0, 100, 20).astype(np.uint32)
    running, flag = poisoned(20, np.uint32), np.zeros(20, np.uint32)
    run(kernels["chain"], 20, 32, [x, running, flag], lanes=lanes)
    assert np.array_equal(running, np.cumsum(x))


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


@pytest.mark.parametrize("n", [0, 15, 16, 17, 1024, 1037])
def test_vectors_of_every_width(kernels, n):
    x, y = random().integers(0, 256, n + 16, np.uint8), poisoned(n + 16, np.uint8)
    counts = run(kernels["copy"], 2, 64, [x, y, n])
    assert np.array_equal(y[:n], x[:n]) and (y[n:] == POISON).all()
    assert counts.traffic["st"].nbytes == n if n else "st" not in counts.traffic


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1)])
def test_bank_conflicts(kernels, stride, wavefronts):
    y = poisoned(32, np.uint32)
    counts = run(kernels["bank_conflicts"], 1, 32, [y, stride])
    assert (counts.shared_wavefronts, counts.shared_ideal) == (2 * wavefronts, 2)
    assert y.tolist() == list(range(32))


FAULTS = {
    1: (ptx.BoundsError, "byte 260 of 256"),
    2: (ptx.AlignmentError, "8 bytes at the offset 4"),
    3: (ptx.UninitializedError, "before it is written"),
    4: (ptx.RaceError, "read of shared"),
    5: (ptx.RaceError, "read of shared"),
    6: (ptx.MaskError, "exited"),
    7: (ptx.MaskError, "outside"),
    8: (ptx.MaskError, "outside its own"),
    9: (ptx.BarrierError, "exited"),
    10: (ptx.BarrierError, "different barriers"),
    11: (ptx.DeadlockError, "in vain"),
    12: (ptx.DeadlockError, "does not end"),
    13: (ptx.TrapError, "trap"),
    14: (ptx.TrapError, "assertion"),
    15: (ptx.RaceError, "one place of global"),
    16: (ptx.RaceError, "another thread read"),
    17: (ptx.BoundsError, "no allocation"),
    18: (ptx.BoundsError, "shared"),
    19: (ptx.DeadlockError, "no thread can go on"),
    20: (ptx.UnsupportedError, "cp.async"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(kernels, which):
    error, message = FAULTS[which]
    with pytest.raises(error, match=message) as caught:
        run(kernels["faults"], 1, 64, [np.zeros(64, np.float32), 64, which], patience=3000)
    assert "faults, instruction" in str(caught.value)


def test_no_fault(kernels):
    run(kernels["faults"], 1, 64, [np.zeros(64, np.float32), 64, 0])


def test_an_access_through_a_null_pointer_or_past_the_tail(kernels):
    x, y = np.zeros(100, np.float32), np.zeros(99, np.float32)
    fields = np.dtype([("x", "u8"), ("y", "u8"), ("n", "i8"), ("s", "f4", 2), ("order", "i4", 8)], align=True)
    memory = ptx.Memory()
    x_at, y_at = memory.add(x), memory.add(y)
    for pointer in (0, y_at, y_at - 4):
        argument = np.array([(x_at, pointer, 100, 0, 0)], fields)[0]
        with pytest.raises(ptx.BoundsError):
            run(kernels["affine"], 2, 64, [argument], memory)


def test_read_only_memory(kernels):
    x, y = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    x.flags.writeable = False
    run(kernels["copy"], 1, 64, [x, y, 64])
    with pytest.raises(ptx.BoundsError, match="read-only"):
        run(kernels["copy"], 1, 64, [y, x, 64])


def test_arguments_are_checked(kernels):
    kernel, memory = kernels["copy"], ptx.Memory()
    for arguments in ([0, 0], [0, 0, np.int64(1)], [0, 0, 1 << 32], [0, 0, b"12345678"]):
        with pytest.raises(ValueError):
            ptx.Machine(kernel, memory, 1, 64, arguments)
    with pytest.raises(ValueError):
        ptx.Machine(kernel, memory, 1, 1025, [0, 0, 0])
    with pytest.raises(ValueError, match="contiguous"):
        memory.add(np.zeros(10, np.uint8)[::2])


def test_text_that_is_no_ptx():
    with pytest.raises(ptx.ParseError):
        ptx.load(".visible .entry k() { ret }")
    with pytest.raises(ptx.ParseError):
        ptx.load(".visible .entry k() { ret;")


def test_summary(kernels, tmp_path):
    n = 517
    x, y = random().integers(1, 300, n).astype(np.uint32), poisoned(n, np.uint32)
    counts = run(kernels["collatz"], blocks_of(n), 64, [x, y, n])
    found = counts.summary(n)
    assert found["elements"] == n and found["kernel"] == "collatz"
    assert sum(found["warp_instructions"].values()) == counts.issued == counts.warps.sum()
    assert found["warp_instructions"]["ld.global"] == -(-n // 32)
    assert counts.coverage == 1 and counts.never_executed() == []
    counts.save(tmp_path / "counts.json", n)
    assert (tmp_path / "counts.json").read_text().startswith("{")
