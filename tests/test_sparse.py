"""Sparsifiers against their twin: bytes, values, exact top-k, positions at their entropy whatever they are, and what decoders do with any bytes."""

from __future__ import annotations

import itertools
import math
import pathlib
import random

import numpy as np
import pytest
import torch
from _inputs import FINITE, INPUTS, NON_FINITE, Guarded, key_of, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import fixed_input, golden_key, line

import commpress
from commpress import errors, ops, reference
from commpress.reference import _gaps, _rates, _sparse

SPECS = ["topk:0.01", "topk:0.01,values=1", "topk:0.003,values=2", "topk:0.05,values=3", "topk:0.02,values=8"]
SPECS += ["topk:0.01,values=bf16", "topk:0.1,values=fp32", "topk:0.000001", "topk:0.5,values=2", "topk:0.9", "topk:1"]
SPECS += ["topk:0.02,block=4096", "threshold:2.5358", "threshold:1"]
SPECS += ["randk:0.01", "randk:0.1,values=bf16", "randk:0.1,values=4", "randk:0.02,scale=none", "randk:1"]
SPECS += ["randk:0.03,scale=none,values=2", "randk:0.05,scale=none,values=bf16", "randk:0.2,block=4096,values=1"]
SIZES = (0, 1, 2, 5, 100, 4095, 4096, 4097, 65535, 65536, 65537, 140_000)
GOLDEN = pathlib.Path(__file__).with_name("golden") / "sparse.txt"  # written by `python tests/test_sparse.py`
GOLDEN_SHAPES = ((1, 0), (513, 1 << 18), (12345, 0), (70_000, 1 << 18))
PATHS = [isa for isa in ops.Isa if ops.isa_available(isa)]


def encode(spec: str, x: np.ndarray, key: commpress.Key, **options) -> torch.Tensor:
    return commpress.codec(spec).encode(torch.from_numpy(x), key, **options)


def decode(spec: str, payload: torch.Tensor, key: commpress.Key, n: int, **options) -> np.ndarray:
    return commpress.codec(spec).decode(payload, key, out=torch.full((n,), 7.0), **options).numpy()


def assert_twins(spec: str, x: np.ndarray, key: commpress.Key, offset: int = 0, gain: float = 1.0) -> np.ndarray:
    payload = encode(spec, x, key, offset=offset, gain=gain)
    assert payload.numel() == reference.payload_nbytes(spec, x.size, offset)
    differing = np.flatnonzero(payload.numpy() != reference.encode(x, spec, key, offset, gain))
    assert differing.size == 0, f"{spec} n={x.size} gain={gain}: bytes differ from {differing[:1]} on"
    out = Guarded(x.size, torch.float32)
    commpress.codec(spec).decode(payload, key, out=out.tensor, offset=offset, gain=0.7)
    assert out.intact()
    assert same_bits(out.tensor, reference.decode(payload, spec, key, x.size, offset, 0.7)), (spec, x.size)
    return out.tensor.numpy()


# ---- bytes and values


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_and_values_equal_the_twins_at_every_size(spec):
    for number, n in enumerate(SIZES):
        assert_twins(spec, normal(n, number), key_of(number), 65536 * (0, 1, 2**20)[number % 3], (1.0, 0.3)[number % 2])


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_and_values_equal_the_twins_for_every_kind_of_input(spec):
    for number, (name, make) in enumerate(INPUTS.items()):
        x = make((5000, 700, 9000)[number % 3]).astype(np.float32)
        y = assert_twins(spec, x, key_of(number), gain=(1.0, 1.7e-5, 640.0)[number % 3])
        if name in FINITE:
            assert np.isfinite(y).all(), name
        if not x.any():
            assert not y.any()


@pytest.mark.parametrize("isa", PATHS, ids=lambda isa: isa.name)
def test_every_code_path_gives_the_same_bytes(isa):
    for spec, n in itertools.product(SPECS, (100, 70_001)):
        codec, key = commpress.codec(spec), key_of(n)
        x = torch.from_numpy(normal(n, 3))[1:]  # off the alignment
        arguments = codec.arguments(key, 0, 1.0)
        payload = torch.full((codec.payload_nbytes(n - 1),), 0xA5, dtype=torch.uint8)
        ops.sparse_encode(x, payload, isa=isa, **arguments)
        assert torch.equal(payload, codec.encode(x, key)), spec
        out = torch.full((n - 1,), 5.0)
        assert ops.sparse_decode(payload, out, isa=isa, accumulate=False, beta=1.0, **arguments) == -1
        assert same_bits(out, codec.decode(payload, key, out=torch.zeros(n - 1)).numpy())


@pytest.mark.parametrize("spec", SPECS)
def test_accumulating(spec):
    codec = commpress.codec(spec)
    for number, (n, beta) in enumerate(itertools.product((1, 5000), (1.0, 1 / 3, 0.0))):
        key, before = key_of(number), normal(n, 77)
        payload = encode(spec, normal(n, number), key)
        out = Guarded(n, torch.float32, align=number % 4)
        out.tensor.copy_(torch.from_numpy(before))
        codec.decode(payload, key, out=out.tensor, accumulate=True, beta=beta, gain=0.3)
        value = reference.decode(payload, spec, key, n, gain=0.3)
        assert out.intact()
        assert np.array_equal(out.tensor.numpy(), before * np.float32(beta) + value)


@pytest.mark.parametrize("spec", ["topk:0.01", "randk:0.1,values=3", "topk:0.02,block=4096"])
def test_threads_and_cuts_do_not_change_bytes(spec):
    codec, key, n = commpress.codec(spec), key_of(1), 9 * 65536 + 77
    x = torch.from_numpy(normal(n))
    whole = codec.encode(x, key)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(codec.encode(x, key), whole)
    finally:
        torch.set_num_threads(threads)
    for parts in (2, 3, 7, 100):
        cuts = codec.split(0, n, parts)
        assert len(cuts) == parts + 1 and cuts[0] == 0 and cuts[-1] == n and cuts == sorted(cuts)
        pieces = [codec.encode(x[a:b], key, offset=a) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(pieces), whole)
        sizes = [codec.payload_nbytes(b - a, offset=a) for a, b in itertools.pairwise(cuts)]
        assert sum(sizes) == codec.payload_nbytes(n) and [p.numel() for p in pieces] == sizes


def test_other_dtypes_strides_and_offsets():
    codec, key = commpress.codec("topk:0.1"), key_of(0)
    x = torch.from_numpy(normal(3000)).to(torch.bfloat16)
    out = codec.decode(codec.encode(x, key), key, out=torch.empty(3000, dtype=torch.float64))
    assert torch.equal(out, codec.decode(codec.encode(x.float(), key), key, out=torch.empty(3000)).double())
    for offset in (4096, -65536, 65535):
        with pytest.raises(errors.SpecError, match="65536"):
            codec.encode(x, key, offset=offset)
    commpress.codec("topk:0.1,block=4096").encode(x, key, offset=4096)


def golden_lines(spec: str) -> list[str]:
    codec, lines = commpress.codec(spec), []
    for n, offset in GOLDEN_SHAPES:
        payload = codec.encode(torch.from_numpy(fixed_input(n)), golden_key(n), offset=offset, gain=0.25)
        out = codec.decode(payload, golden_key(n), out=torch.full((n,), 9.0), offset=offset)
        lines.append(line(spec, n, offset, payload.numpy(), out.numpy()))
    return lines


def test_the_golden_file():
    """A changed line is a changed wire format. (That code paths and the twin agree is tested above.)"""
    assert [text for spec in SPECS for text in golden_lines(spec)] == GOLDEN.read_text().splitlines()


# ---- which are kept


def kept_by_sorting(x: np.ndarray, k: int) -> np.ndarray:
    u = x.view(np.uint32) & 0x7FFFFFFF
    best = np.lexsort((np.arange(x.size), -u.astype(np.int64)))[:k]
    return np.sort(best[u[best] > 0])


values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 3e38, math.inf]), st.floats(-4, 4, width=32)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=80), st.integers(0, 6), st.sampled_from([0.05, 0.3, 0.8]), st.randoms())
def test_exactly_the_k_largest_the_lower_index_first(pattern, copies, fraction, rng):
    x = np.array((pattern * (1 << copies * 2))[:70_000], np.float32)
    rng.shuffle(pattern)
    spec = f"topk:{fraction},values=fp32"
    y = decode(spec, encode(spec, x, key_of(0)), key_of(0), x.size)
    for index, n, k, _ in _sparse.segments(_sparse.parse(spec), x.size, 0):
        mine = x[index : index + n]
        expected = np.zeros(n, np.float32)
        kept = kept_by_sorting(mine, k)
        expected[kept] = mine[kept]
        assert np.array_equal(y[index : index + n], expected)


@pytest.mark.parametrize("isa", PATHS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    "kind", ["normal", "ties", "all equal", "rows", "sparse", "ascending", "huge cluster", "denormals", "nan"]
)
def test_whatever_the_sample_says(kind, isa):
    n, rng = 65536 + 30_000, np.random.default_rng(5)
    x = normal(n, 8)
    x = {
        "normal": x,
        "ties": np.round(x),
        "all equal": np.full(n, -0.25, np.float32),
        "rows": x * np.repeat(np.exp2(rng.integers(-30, 30, n // 256 + 1)), 256)[:n],
        "sparse": np.where(rng.random(n) < 0.004, x, 0),
        "ascending": np.arange(n) / n,
        "huge cluster": np.where(np.arange(n) // 500 == 7, 1e6 * x, x),
        "denormals": rng.integers(-9, 9, n) * 2.0**-149,
        "nan": np.where(rng.random(n) < 0.001, np.float32(np.nan), x),
    }[kind].astype(np.float32)
    codec = commpress.codec("topk:0.01,values=fp32")
    payload = torch.zeros(codec.payload_nbytes(n), dtype=torch.uint8)
    ops.sparse_encode(torch.from_numpy(x), payload, isa=isa, **codec.arguments(key_of(0), 0, 1.0))
    y = decode(str(codec), payload, key_of(0), n)
    for index, m, k, _ in _sparse.segments(_sparse.parse(str(codec)), n, 0):
        expected = np.zeros(m, np.float32)
        kept = kept_by_sorting(x[index : index + m], k)
        expected[kept] = x[index : index + m][kept]
        assert np.array_equal(y[index : index + m], expected, equal_nan=True)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NON_FINITE)
def test_what_is_not_finite_arrives(spec, name):
    n = 9000
    x = NON_FINITE[name](n).astype(np.float32)
    y = decode(spec, encode(spec, x, key_of(0)), key_of(0), n)
    for index, m, _, _ in _sparse.segments(_sparse.parse(spec), n, 0):
        bad = ~np.isfinite(x[index : index + m])
        assert not np.isfinite(y[index : index + m][bad]).any()
    full = np.full(n, np.inf, np.float32)  # more than are sent
    assert not np.isfinite(decode(spec, encode(spec, full, key_of(0)), key_of(0), n)).all()


def test_few_non_zeros_are_sent_exactly():
    for spec in ("topk:0.01", "topk:0.01,values=bf16", "topk:0.01,values=1"):
        x = np.zeros(65536, np.float32)
        where = np.random.default_rng(0).permutation(65536)[:100]
        x[where] = normal(100)
        assert np.array_equal(decode(spec, encode(spec, x, key_of(0)), key_of(0), x.size), x)
    assert not encode("topk:0.01", np.full(70_000, -0.0, np.float32), key_of(0)).any()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_no_vector_grows_by_being_rounded(bits):
    """|x - y| <= |x|, what feedback needs, and the error of kept magnitudes."""
    spec = f"topk:0.05,values={bits}"
    for name, make in FINITE.items():
        x = make(9000).astype(np.float32).astype(np.float64)
        y = decode(spec, encode(spec, x.astype(np.float32), key_of(0)), key_of(0), 9000).astype(np.float64)
        assert ((x - y) ** 2).sum() <= (x**2).sum() * (1 + 1e-6), name
    x = normal(65536, 1).astype(np.float64)
    y = decode(spec, encode(spec, x.astype(np.float32), key_of(0)), key_of(0), x.size)
    kept = y != 0
    error = ((x - y)[kept] ** 2).sum() / (x[kept] ** 2).sum()
    assert 1e-6 < error < {1: 0.035, 2: 0.012, 3: 0.006, 4: 0.0015, 5: 3e-4, 8: 1e-5}[bits]


# ---- positions


@pytest.mark.parametrize("millionths", [1, 10, 1000, 10_000, 62_500, 100_000, 333_333, 499_999, 500_000, 900_000])
def test_every_set_of_positions_fits(millionths):
    """Random, clustered, evenly spread, and what the model's rounding and its longest gaps make dearest."""
    rng = np.random.default_rng(millionths)
    survival = _gaps.model(millionths)
    for n in (1, 7, 300, 4096, 65536):
        most = max(1, n * millionths // _gaps.MILLION)
        for m in {1, most, max(1, most // 2)}:
            sets = [np.arange(m), np.arange(n - m, n), np.sort(rng.permutation(n)[:m]), np.arange(m) * n // m]
            gap = min(len(survival) - 2, n // m - 1)
            sets.append(np.cumsum(np.full(m, gap + 1)) - 1)
            for positions in sets:
                data = _gaps.encode(positions.astype(np.int64), n, millionths)
                assert len(data) == _gaps.nbytes(millionths, n, m)
                if m <= 3000:
                    assert np.array_equal(_gaps.decode(data, n, m, millionths), positions)


def test_the_budget_is_the_entropy():
    for millionths, n in ((10_000, 65536), (1000, 1 << 18), (100_000, 65536)):
        k = n * millionths // 10**6
        entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
        bits = 8 * _gaps.nbytes(millionths, n, k)
        assert entropy < bits < entropy + 0.006 * entropy + 45


def test_symbols_cost_what_the_budget_assumes():
    """The table's rounding costs less than 2^-13 bits a symbol, so the margin of docs/wire-format.md holds for any set."""
    for millionths in (1, 7, 100, 3333, 10_000, 27_000, 100_000, 250_000, 500_000):
        survival = np.array(_gaps.model(millionths), np.float64)
        p = millionths / 1e6
        j = np.arange(survival.size - 1)
        excess = 32 - np.log2(survival[:-1] - survival[1:]) + np.log2(p) + j * np.log2(1 - p)
        assert excess.max() < 2**-13
        assert 32 - np.log2(survival[-1]) + (survival.size - 1) * np.log2(1 - p) < 2**-13
        assert 0 <= _gaps.cost(millionths) - 65536 * math.log2(1 / p) < 1 + 1e-6


def test_the_bits_of_a_kept_coordinate():
    codec, n = commpress.codec("topk:0.01,values=4"), 25 << 18
    sent = n // 100
    assert codec.payload_nbytes(n) * 8 / sent <= 12.5
    assert codec.bits == pytest.approx(codec.payload_nbytes(n) * 8 / n, rel=1e-3)
    for spec in SPECS:  # of huge tensors too, and they add up
        codec, n = commpress.codec(spec), 1 << 40
        assert codec.payload_nbytes(n) == codec.payload_nbytes(n - 65536 * 5) + codec.payload_nbytes(
            65536 * 5, offset=n - 65536 * 5
        )
        assert codec.payload_nbytes(200_000, offset=65536 * 77) == reference.payload_nbytes(spec, 200_000, 65536 * 77)


# ---- any bytes


@pytest.mark.parametrize("spec", ["topk:0.01", "topk:0.05,values=fp32", "randk:0.1,values=2", "threshold:2"])
def test_truncated_anywhere_and_every_bit_turned(spec):
    codec, key, n = commpress.codec(spec), key_of(3), 500
    good = codec.encode(torch.from_numpy(normal(n)), key)
    out = Guarded(n, torch.float32)
    for length in [*range(good.numel()), good.numel() + 1]:
        with pytest.raises(errors.WireError):
            codec.decode(torch.zeros(length, dtype=torch.uint8), key, out=out.tensor)
    assert out.untouched()
    refused = 0
    for bit in range(8 * good.numel()):
        payload = good.clone()
        payload[bit // 8] ^= 1 << bit % 8
        refused += assert_same_fate(codec, payload, key, n)
    assert refused > 0 or "fp32" in spec or spec.startswith("randk")


def assert_same_fate(codec, payload: torch.Tensor, key: commpress.Key, n: int) -> bool:
    """Kernel and twin both refuse, and nothing is touched, or both give the same values. Returns whether they refused."""
    out = Guarded(n, torch.float32)
    try:
        expected = reference.decode(payload.numpy(), str(codec), key, n)
    except errors.WireError:
        with pytest.raises(errors.WireError):
            codec.decode(payload, key, out=out.tensor)
        assert out.untouched()
        return True
    codec.decode(payload, key, out=out.tensor)
    assert out.intact() and same_bits(out.tensor, expected)
    return False


@pytest.mark.parametrize("spec", SPECS)
def test_random_bytes(spec):
    codec, rng = commpress.codec(spec), random.Random(spec)
    fates = set()
    for number in range(150):
        n = rng.choice((1, 5, 200, 700, 5000))
        size = codec.payload_nbytes(n)
        data = rng.randbytes(size) if number % 3 else bytes(rng.choices([0, 1, 0xFF, 0x3F, 0x80], k=size))
        payload = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        if number % 2 and spec.startswith(("topk", "threshold")):  # a header that may pass, random positions
            k = _rates.sent(codec.fraction, 0, n)
            m = rng.randint(0, k)
            word = m | (1 << 31 if _sparse.fits_exactly(_sparse.parse(spec), n, k, m) else 0)
            payload[:4] = torch.from_numpy(np.array([word], np.uint32).view(np.uint8))
            if codec.value_bits <= 8:
                payload[4:8] = torch.tensor([0, 0x3F, 0, 0x42], dtype=torch.uint8)
        fates.add(assert_same_fate(codec, payload, key_of(number), n))
    assert False in fates
    assert True in fates or spec.startswith("randk") or codec.value_bits == 1


def test_two_streams_of_random_bytes():
    codec, rng, n = commpress.codec("topk:0.3,values=2"), random.Random(1), 3000
    for number in range(60):
        payload = torch.from_numpy(np.frombuffer(rng.randbytes(codec.payload_nbytes(n)), np.uint8).copy())
        payload[:8] = torch.from_numpy(np.array([900 - number, 0x42003F00], np.uint32).view(np.uint8))
        assert not assert_same_fate(codec, payload, key_of(number), n)


# ---- specs


def test_specs_and_their_canonical_text():
    for spec in SPECS:
        codec = commpress.codec(spec)
        assert str(codec) == spec and commpress.codec(str(codec)) == codec
        assert codec.unbiased == (spec.startswith("randk") and "none" not in spec) and not codec.lossless
        assert not codec.for_feedback().unbiased
        assert codec.for_feedback() == codec or spec.startswith("randk")
    assert str(commpress.codec("topk:0.010,values=4,block=65536")) == "topk:0.01"
    assert str(commpress.codec("randk:.5,scale=unbiased,values=fp32")) == "randk:0.5"
    assert str(commpress.codec("threshold:2.50")) == "threshold:2.5"
    assert commpress.codec("threshold:2.5358").fraction == 11_219
    assert str(commpress.codec("randk:0.5").for_feedback()) == "randk:0.5,scale=none"
    bad = [
        "topk",
        "topk:0",
        "topk:1.1",
        "topk:0.0000001",
        "topk:x",
        "topk:nan",
        "topk:0.1,values=9",
        "topk:0.1,block=0",
    ]
    bad += ["topk:0.1,block=5000", "topk:0.1,block=524288", "topk:0.1,scale=none", "randk:0.1,scale=2", "threshold:-1"]
    bad += ["threshold:6", "threshold:inf", "topk:0.1,values=", "topk:0.1,size=3", "threshold:1e1", "topk:0.1,block=²"]
    for spec in bad:
        with pytest.raises(errors.SpecError):
            commpress.codec(spec)


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{text}\n" for spec in SPECS for text in golden_lines(spec)))
