"""The twin itself, against things that are known independently of it."""

import itertools
import math

import numpy as np
import pytest
from _inputs import SPECS, key_of, normal

import commpress
from commpress import errors, reference
from commpress.codecs import _tables
from commpress.reference import _casts, _lloyd, _packing, _random, _rates, _sums, _uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),  # Random123's kat_vectors
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert tuple(reference.philox(np.array(counter, np.uint64), key)) == expected


def one_word(key: commpress.Key, purpose: int, c0: int, output: int) -> int:
    """A word straight from the definition of the counter."""
    counter = [c0 % 2**32, key.step, key.sender << 8 | key.phase << 4 | purpose, key.tensor]
    return int(reference.philox(np.array(counter, np.uint64), (key.seed % 2**32, key.seed >> 32))[output])


@pytest.mark.parametrize("s", [0, 512, 4096 * 1000 + 1536, 2**36])
def test_rounding_words_are_where_the_document_puts_them(s):
    key = key_of(1)
    words = _random.rounding_words(key, s)
    for i in (0, 1, 15, 16, 63, 64, 100, 200, 301, 511):
        row, lane = divmod(i, 16)
        v = row // 4
        w = one_word(key, 3, s // 16 + 8 * (v // 2) + lane // 2, 2 * (v % 2) + lane % 2)
        turn = 8 * (row % 4)
        assert int(words[i]) == (w << turn | w >> (32 - turn)) % 2**32


def test_leading_bytes_of_rounding_words_never_meet():
    leading = {int(w) >> 24 for w in _random.rounding_words(key_of(1), 0)}
    assert len(leading) > 200  # 512 draws of 256
    sources = set()
    for i in range(1024):  # two groups: (counter, output, byte) is another one for every coordinate
        s, (row, lane) = i // 512 * 512, divmod(i % 512, 16)
        v = row // 4
        sources.add((s // 16 + 8 * (v // 2) + lane // 2, 2 * (v % 2) + lane % 2, row % 4))
    assert len(sources) == 1024


@pytest.mark.parametrize(("s", "n"), [(0, 4096), (8192, 2048), (4096 * 5 + 2048, 512), (4096 + 128, 128)])
def test_rotation_signs_are_where_the_document_puts_them(s, n):
    key = key_of(2)
    for purpose in (1, 2):
        signs = _random.rotation_signs(key, purpose, s, n)
        assert set(np.unique(signs)) == {-1.0, 1.0} and abs(signs.mean()) < 5 / math.sqrt(n)
        for i in (0, 1, 17, 100, n // 2 + 3, n - 1):
            row, lane = divmod(i, 16)
            v = row // 32
            w = one_word(key, purpose, s // 128 + 8 * (v // 2) + lane // 2, 2 * (v % 2) + lane % 2)
            assert signs[i] == (-1 if w >> (row % 32) & 1 else 1)


@pytest.mark.parametrize(("n", "count"), [(4096, 1), (4096, 409), (4096, 4096), (77, 30), (1, 1)])
def test_selection_takes_one_coordinate_from_each_stratum(n, count):
    where, width = _random.selection(key_of(3), 8192, n, count)
    edges = [j * n // count for j in range(count + 1)]
    assert width.sum() == n
    for j in (0, count // 3, count - 1):
        assert edges[j] <= where[j] < edges[j + 1]
        u = one_word(key_of(3), 4, 8192 // 4 + j // 4, j % 4)
        assert where[j] == edges[j] + (u * (edges[j + 1] - edges[j]) >> 32)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_layout(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 512).astype(np.uint8)
    words = _packing.pack(codes, bits).view("<u4")
    assert words.size == 16 * bits
    for lane in (0, 5, 15):
        string = sum(int(codes[16 * row + lane]) << (row * bits) for row in range(32))
        assert [int(words[16 * k + lane]) for k in range(bits)] == [
            string >> (32 * k) & 0xFFFFFFFF for k in range(bits)
        ]
    for n in (1, 7, 100, 511):
        string = sum(int(code) << (i * bits) for i, code in enumerate(codes[:n]))
        assert _packing.pack(codes[:n], bits).tobytes() == string.to_bytes((n * bits + 7) // 8, "little")
    for n in (1, 7, 100, 511, 512):
        assert (_packing.unpack(_packing.pack(codes[:n], bits), n, bits) == codes[:n]).all()


@pytest.mark.parametrize("n", [128, 512, 4096])
def test_hadamard_is_the_sylvester_matrix(n):
    rows, columns = np.random.default_rng(n).permutation(n)[:100], np.arange(n)
    parity = sum(rows[:, None] >> bit & columns[None, :] >> bit & 1 for bit in range(12)) & 1
    x = np.random.default_rng(n).integers(-100, 100, n)  # exact in binary32
    dense = (1 - 2 * parity) @ x
    for strides in (_lloyd.ENCODE_STRIDES, _lloyd.DECODE_STRIDES):
        assert (_lloyd.hadamard(x.astype(np.float32), strides)[rows] == dense).all()


def test_sums_follow_their_order():
    """With one accumulator per lane and quarter spelled out, one addition after another."""

    def fold(acc):
        lanes = [np.float32(np.float32(acc[0][i] + acc[1][i]) + np.float32(acc[2][i] + acc[3][i])) for i in range(16)]
        for half in (8, 4, 2, 1):
            lanes = [np.float32(lanes[i] + lanes[i + half]) for i in range(half)]
        return lanes[0]

    for n in (1, 16, 17, 129, 512, 4096):
        x = np.abs(normal(n) * 10.0 ** np.random.default_rng(n).integers(-4, 4, n)).astype(np.float32)
        rows = -(-n // 16)
        padded = np.zeros(rows * 16, np.float32)
        padded[:n] = x
        energy = [[np.float32(0)] * 16 for _ in range(4)]
        for j in range(16):
            for k in range(16):
                if 16 * k + j < rows:
                    for lane in range(16):
                        v = padded[16 * (16 * k + j) + lane]
                        energy[k % 4][lane] = np.float32(energy[k % 4][lane] + np.float32(v * v))
        assert _sums.energy(x) == fold(energy)
        terms = [[np.float32(0)] * 16 for _ in range(4)]
        for row in range(rows):
            for lane in range(16):
                terms[row % 4][lane] = np.float32(terms[row % 4][lane] + padded[16 * row + lane])
        assert _sums.natural(x) == fold(terms)


def gaussian(a: float, b: float) -> tuple[float, float]:
    """The integrals of phi and of x phi over [a, b]."""
    cdf = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (a, b)]
    pdf = [math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in (a, b)]
    return cdf[1] - cdf[0], pdf[0] - pdf[1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_tables_are_lloyd_max_quantisers(bits):
    """Thresholds lie midway between levels, levels are the centroids of their cells: that is the optimum."""
    every, half = [float(v) for v in _tables.LEVELS[bits]], 2 ** (bits - 1)
    levels, inner = every[half:], [float(v) / _tables.PER_SIGMA[bits] for v in _tables.THRESHOLDS[bits]]
    assert len(every) == 2**bits == len(inner) + 1 and every[:half] == [-v for v in levels[::-1]]
    assert inner == pytest.approx([(a + b) / 2 for a, b in itertools.pairwise(every)], rel=1e-6, abs=1e-12)
    products = [float(v) * _tables.PER_SIGMA[bits] for v in _tables.PRODUCT_LEVELS[bits]]
    assert products == pytest.approx(every, rel=1e-6)
    inner = inner[half:]
    edges = [0.0, *inner, 40.0]
    power = 0.0
    for level, (a, b) in zip(levels, itertools.pairwise(edges), strict=True):
        mass, first = gaussian(a, b)
        # erf's cancellation limits the outermost cells of the finest table
        assert level == pytest.approx(first / mass, rel=2e-6 if bits < 8 else 2e-4)
        power += 2 * first * first / mass
    # theory: D of 2, 4, 8, 16, 32, 64 levels
    known = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501, 5: 0.002505, 6: 0.000644}
    if bits in known:
        assert 1 - power == pytest.approx(known[bits], abs=1e-6)


def test_rates_mix_exactly_and_evenly():
    for rate in (1_500_000, 2_250_000, 7_999_999, 3_000_000, 1_000_001):
        bits = [_rates.group_bits(rate, 512 * j) for j in range(4000)]
        assert set(bits) <= {rate // 10**6, rate // 10**6 + 1}
        for groups in (1, 3, 100, 4000):
            assert 0 <= groups * rate - 10**6 * sum(bits[:groups]) < 10**6
    for rate in (1, 300, 100_000, 999_999):
        sent = [_rates.sent(rate, 4096 * k, 4096) for k in range(3000)]
        assert all(1 <= n <= 4096 for n in sent)
        if rate >= 300:
            assert sum(sent) == 3000 * 4096 * rate // 10**6


def test_sizes_are_additive_over_blocks():
    for spec in SPECS:
        for numel in (0, 1, 4096, 20000):
            parts = [reference.payload_nbytes(spec, min(4096, numel - at), 8192 + at) for at in range(0, numel, 4096)]
            assert reference.payload_nbytes(spec, numel, 8192) == sum(parts)


def test_least_bfloat16():
    for value in (1.0, 1.0000001, 3.14159, 2.0**-126, 2.0**-133, 1e-45, 3e38, 1e-40, 0.0):
        q = np.float32(value)
        t = _uniform.least_bfloat16(q)
        bits = _uniform.bits_of_bfloat16(t)
        assert float(np.uint32(bits << 16).view(np.float32)) == t >= q
        assert bits == 0 or float(np.uint32((bits - 1) << 16).view(np.float32)) < q


def test_steps_never_let_the_outermost_level_overflow():
    largest = float(np.finfo(np.float32).max)
    for bits in range(1, 9):
        for value in (largest, largest / 2, 1.0, 1e-30):
            k = 0 if 2.0**-60 <= value <= 2.0**100 else 1 - int(np.frexp(np.float32(value))[1])
            a = np.ldexp(np.float32(value), k)
            with np.errstate(over="ignore"):
                t, inv = _uniform.step_and_inverse(a, k, bits, np.float32(1))
            top = 2 ** (bits - 1) - 1 if bits > 1 else 1
            assert t * top <= largest
            assert a * inv <= (top if bits > 1 else 0.5) and t * top >= value * (1 - 2.0**-7)


def test_casts_round_to_nearest_even():
    cases = {1.0: 0x3F80, 1.00390625: 0x3F80, 1.01171875: 0x3F82, -0.0: 0x8000, 3.4e38: 0x7F80, 1e-45: 0}
    for value, bits in cases.items():
        assert _casts.to_bits16(np.array([value], np.float32), "cast:bf16")[0] == bits
    nan = np.array([0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert list(_casts.to_bits16(nan, "cast:bf16")) == [0xFFC0, 0x7FC0]
    assert list(_casts.to_bits16(nan, "cast:fp16")) == [0xFE00, 0x7E00]


def test_impossible_scales_and_sizes_are_refused():
    key = key_of(0)
    for spec, at, bad in [
        ("uniform:2", slice(0, 2), (0x8000, 0x7F80, 0x7FC0, 0xFF80, 0xFFFE)),
        ("lloyd:2", slice(0, 4), (0x80000000, 0x7F800000, 0x7FC00000, 0xBF800000, 0xFFFFFFFE)),
        ("hadamard+lloyd:2", slice(0, 4), (0x80000000, 0x7F800000, 0x7FC00000, 0xFF800000, 0xFFFFFFFE)),
    ]:
        good = reference.encode(normal(512), spec, key)
        for pattern in bad:
            payload = good.copy()
            payload[at] = np.frombuffer(pattern.to_bytes(at.stop, "little"), np.uint8)
            with pytest.raises(errors.WireError, match="scale"):
                reference.decode(payload, spec, key, 512)
        with pytest.raises(errors.WireError, match="bytes"):
            reference.decode(good[:-1], spec, key, 512)
