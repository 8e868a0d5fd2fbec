"""Number formats and classic quantisers against their twin, byte by byte; non-finite values, sizes, specs, torch's own formats."""

import itertools

import numpy as np
import pytest
import torch
from _formats import FORMATS, NEAREST, UNBIASED, UNSCALED, WIDE
from _inputs import FINITE, INPUTS, NON_FINITE, SIZES, Guarded, key_of, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import commpress
from commpress import errors, ops, reference

PATHS = [isa for isa in ops.Isa if ops.isa_available(isa) and isa is not ops.Isa.BEST]
GAINS = (1.0, 0.5, 1 / 3, 1.7e-5, 640.0)


def encode(spec: str, x: np.ndarray, key: commpress.Key, offset: int, gain: float, isa: ops.Isa) -> torch.Tensor:
    codec = commpress.codec(spec)
    out = Guarded(codec.payload_nbytes(x.size), torch.uint8, align=x.size % 5)
    ops.format_encode(
        torch.from_numpy(x),
        out.tensor,
        format=codec.format,
        seed=key.seed,
        words=key.words(),
        offset=offset,
        gain=gain,
        isa=isa,
    )
    assert out.intact()
    return out.tensor


def assert_twins(spec: str, x: np.ndarray, key: commpress.Key, offset: int, gain: float) -> torch.Tensor:
    expected = reference.encode(x, spec, key, offset, gain)
    assert expected.size == reference.payload_nbytes(spec, x.size, offset)
    for isa in PATHS:
        payload = encode(spec, x, key, offset, gain, isa)
        differing = np.flatnonzero(payload.numpy() != expected)
        assert differing.size == 0, f"{spec} {isa.name} n={x.size} gain={gain}: bytes differ from {differing[:1]} on"
    return payload


@pytest.mark.parametrize("spec", FORMATS)
def test_bytes_equal_the_twins_at_every_size(spec):
    for number, n in enumerate(SIZES):
        offset = 4096 * (0, 1, 7, 2**20, 2**25)[number % 5]
        assert_twins(spec, normal(n, number), key_of(number), offset, GAINS[number % 5])


@pytest.mark.parametrize("spec", FORMATS)
def test_bytes_and_values_equal_the_twins_for_every_kind_of_input(spec):
    codec = commpress.codec(spec)
    for number, (name, make) in enumerate(INPUTS.items()):
        n, key, gain = (5000, 700, 4096)[number % 3], key_of(number), GAINS[number % 5]
        x = make(n).astype(np.float32)
        payload = assert_twins(spec, x, key, 0, gain)
        for isa, read in itertools.product(PATHS, (1.0, 2.5)):
            out = Guarded(n, torch.float32, align=number % 4)
            invalid = ops.format_decode(
                payload, out.tensor, format=codec.format, accumulate=False, gain=read, beta=1.0, isa=isa
            )
            expected = reference.decode(payload, spec, key, n, 0, read)
            assert invalid == -1 and out.intact() and same_bits(out.tensor, expected), (name, read, isa)


@pytest.mark.parametrize("spec", FORMATS[::3])
def test_accumulating_rounds_product_and_sum_apart(spec):
    codec = commpress.codec(spec)
    for number, (n, beta, gain) in enumerate(itertools.product((1, 300, 5000), (1.0, 1 / 3, 0.0), (1.0, 0.3))):
        key = key_of(number)
        payload = codec.encode(torch.from_numpy(normal(n, number)), key)
        out = Guarded(n, torch.float32, align=number % 4)
        before = normal(n, 77)
        out.tensor.copy_(torch.from_numpy(before))
        codec.decode(payload, key, out=out.tensor, accumulate=True, gain=gain, beta=beta)
        expected = np.float32(beta) * before + reference.decode(payload, spec, key, n, 0, gain)
        assert out.intact() and same_bits(out.tensor, expected), (n, beta, gain)


@pytest.mark.parametrize("spec", FORMATS)
def test_non_finite_values_always_arrive_and_finite_ones_stay_finite(spec):
    codec, n = commpress.codec(spec), 5000
    for name, make in NON_FINITE.items():
        for start in (0, 4096):  # whole blocks, and the short last one
            x = normal(n)
            x[start:] = make(n - start)
            bad = ~np.isfinite(x)
            for gain in (1.0, 1e-6, 1e6):
                payload = codec.encode(torch.from_numpy(x), key_of(1), gain=gain)
                out = codec.decode(payload, key_of(1), out=torch.zeros(n)).numpy()
                assert not np.isfinite(out[bad]).any(), name
                assert np.isfinite(out[:start]).all(), name
                if spec not in ("sign,scale=none", "ternary,block=4096", "float:e5m10,block=4096", "sign", "onebit"):
                    assert np.isfinite(out).any(), name  # a block of its own, not everything
    for name, make in FINITE.items():
        for gain in (1.0, 1e6):
            payload = codec.encode(torch.from_numpy(make(n).astype(np.float32)), key_of(1), gain=gain)
            out = codec.decode(payload, key_of(1), out=torch.zeros(n))
            assert torch.isfinite(out).all(), (name, gain)
            if "zeros" in name and not make(n).any():
                assert not out.any(), (name, gain)


@pytest.mark.parametrize("spec", FORMATS[::2])
def test_a_payload_is_its_chunks_one_behind_the_other(spec):
    codec, x, key = commpress.codec(spec), torch.from_numpy(normal(20000)), key_of(5)
    whole = codec.encode(x, key, offset=8192)
    edges = [0, 4096, 16384, 20000]
    pieces = [codec.encode(x[a:b], key, offset=8192 + a) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(codec.encode(x, key), whole) or not codec.unbiased  # the offset counts


@settings(max_examples=60, deadline=None)
@given(spec=st.sampled_from(FORMATS), numel=st.integers(0, 2**17))
def test_sizes_equal_the_twins(spec, numel):
    assert commpress.codec(spec).payload_nbytes(numel) == reference.payload_nbytes(spec, numel)


def test_sizes_of_enormous_tensors_add_up():
    for spec in FORMATS:
        codec, n = commpress.codec(spec), 2**40
        assert codec.payload_nbytes(3 * n + 77) == 3 * codec.payload_nbytes(n) + codec.payload_nbytes(77)
        assert codec.bits == 8 * codec.payload_nbytes(2**32) / 2**32


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("float:e4m3,scale=none", 8),
        ("float:e3m2,scale=none", 6),
        ("float:e8m7", 16),
        ("float:e5m5", 11 + 1 / 64),
        ("mxfp8", 8.25),
        ("mxfp6", 6.25),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5 + 1 / 128),
        ("natural", 8 + 1 / 64),
        ("natural,scale=none", 9),
        ("int8,block=4096", 8 + 1 / 128),
        ("qsgd:1", 2 + 1 / 16),
        ("qsgd:3", 3 + 1 / 16),
        ("qsgd:127", 8 + 1 / 16),
        ("ternary,block=4096", 820 / 512 + 1 / 128),
        ("sign", 1 + 1 / 128),
        ("sign,scale=none", 1 + 1 / 512),
        ("onebit", 1 + 1 / 64),
    ],
)
def test_bits_per_coordinate(spec, bits):
    assert commpress.codec(spec).bits == bits


@settings(max_examples=80, deadline=None)
@given(
    spec=st.sampled_from(FORMATS),
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    numel=st.integers(1, 700),
    key=st.integers(0, 1000),
    gain=st.floats(2.0**-20, 1024, width=32),
)
def test_any_floats_at_all(spec, values, numel, key, gain):
    x = np.resize(np.array(values, np.float32), numel)
    payload = assert_twins(spec, x, key_of(key), 0, gain)
    out = commpress.codec(spec).decode(payload, key_of(key), out=torch.empty(numel))
    assert same_bits(out, reference.decode(payload, spec, key_of(key), numel))
    assert np.isfinite(out.numpy()[np.isfinite(x)]).all() or not np.isfinite(x).all()
    assert not np.isfinite(out.numpy()[~np.isfinite(x)]).any()


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(1, 8),
    mantissa=st.integers(0, 23),
    stochastic=st.booleans(),
    scaled=st.booleans(),
    scale=st.integers(-140, 120),
    number=st.integers(0, 1000),
)
def test_every_float_there_is(exponent, mantissa, stochastic, scaled, scale, number):
    """Two equations: bytes equal the twin's, and what a format can hold comes back as it was."""
    spec = f"float:e{exponent}m{mantissa},rounding={'stochastic' if stochastic else 'nearest'}"
    if not scaled or exponent == 8:
        spec += ",scale=none"
    if exponent + mantissa < 2 and "none" in spec:
        with pytest.raises(errors.SpecError):
            commpress.codec(spec)
        return
    x = np.ldexp(normal(600, number), scale).astype(np.float32)
    key = key_of(number)
    payload = assert_twins(spec, x, key, 0, 1.0)
    y = commpress.codec(spec).decode(payload, key, out=torch.empty(600))
    again = commpress.codec(spec).decode(commpress.codec(spec).encode(y, key), key, out=torch.empty(600))
    assert same_bits(again, y.numpy())


TORCH = {
    "float:e8m7": torch.bfloat16,
    "float:e5m10": torch.float16,
    "float:e4m3": torch.float8_e4m3fn,
    "float:e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize(("spec", "dtype"), TORCH.items())
def test_nearest_rounding_is_torchs(spec, dtype):
    """Codes and values, bit for bit, within the format's range: independent implementations."""
    options = ",rounding=nearest" + ("" if "e8" in spec else ",scale=none")
    codec, limit = commpress.codec(spec + options), float(torch.finfo(dtype).max)
    rng = np.random.default_rng(7)
    patterns = torch.from_numpy(rng.integers(0, 2**32, 400_000, dtype=np.uint64).astype(np.uint32).view(np.float32))
    small = torch.from_numpy(normal(200_000) * np.exp2(rng.integers(-24, 16, 200_000))).to(torch.float32)
    ties = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(torch.float32)
    x = torch.cat([patterns, small, ties, ties * 1.0625, small.to(dtype).to(torch.float32)])
    x = x[x.isfinite() & (x.abs() <= limit)]
    assert x.numel() > 200_000
    payload = codec.encode(x, commpress.Key())
    values = codec.decode(payload, commpress.Key(), out=torch.empty_like(x))
    assert same_bits(values, x.to(dtype).to(torch.float32).numpy())
    # A run of fewer than 512 codes is one bit string, so its bytes are those of torch's dtype.
    for part in x[:20_000].split(500):
        assert torch.equal(codec.encode(part, commpress.Key()), part.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("spec", ["float:e5m2", "float:e5m10", "float:e8m7", "float:e4m3"])
def test_special_codes_are_torchs(spec):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0])
    options = ",rounding=nearest" + ("" if "e8" in spec else ",scale=none")
    payload = commpress.codec(spec + options).encode(x, commpress.Key())
    ours = payload.view(TORCH[spec]).to(torch.float32)
    assert torch.isnan(ours[0]) and torch.equal(ours[3:], x[3:])
    if "e4m3" in spec:
        assert torch.isnan(ours[:3]).all()  # fn: no infinities
    else:
        assert torch.equal(ours[1:3], x[1:3])
    huge = commpress.codec(spec + options).encode(torch.tensor([3e38, -3e38]), commpress.Key()).view(TORCH[spec])
    if "e8" not in spec:  # clamped, never an infinity
        most = torch.finfo(TORCH[spec]).max
        assert huge.to(torch.float32).tolist() == [most, -most]


def test_mx_scales_are_ocps():
    """The shared exponent of OCP MX 1.0, section 6.3: floor(log2(max)) - emax of the element."""
    x = torch.zeros(64)
    x[:4] = torch.tensor([7.9, -1.0, 0.26, 5.1])  # clamped to 6
    x[32] = 2.0**-100
    payload = commpress.codec("mxfp4,rounding=nearest").encode(x, commpress.Key())
    assert payload[:2].tolist() == [127, 127 - 100 - 2]
    out = commpress.codec("mxfp4,rounding=nearest").decode(payload, commpress.Key(), out=torch.empty(64))
    assert out[:4].tolist() == [6.0, -1.0, 0.5, 6.0] and float(out[32]) == 2.0**-100
    # Without bias nothing may be clamped.
    assert int(commpress.codec("mxfp4").encode(x, commpress.Key())[0]) == 128


def test_promises():
    for spec in FORMATS:
        codec = commpress.codec(spec)
        assert str(codec) == str(commpress.codec(str(codec))) and commpress.codec(str(codec)) == codec
        assert hash(codec) == hash(commpress.codec(str(codec))) and not codec.lossless
        assert codec.unbiased == (spec in UNBIASED or (spec in WIDE and "nearest" not in spec)), spec
        feedback = codec.for_feedback()
        assert feedback == feedback.for_feedback() and not feedback.unbiased
        assert feedback.payload_nbytes(12345) == codec.payload_nbytes(12345) or spec == "sign,scale=none"
    assert {spec for spec in NEAREST + UNSCALED if commpress.codec(spec).unbiased} == set()
    assert str(commpress.codec("float:e4m3,scale=block,block=512,rounding=stochastic")) == "float:e4m3"
    assert (
        str(commpress.codec("qsgd:4,norm=linf,block=64").for_feedback()) == "qsgd:4,block=64,norm=linf,rounding=nearest"
    )
    assert str(commpress.codec("sign,scale=none").for_feedback()) == "sign"
    assert str(commpress.codec("onebit").for_feedback()) == "onebit"


@pytest.mark.parametrize(
    "bad",
    ["float", "float:e9m1", "float:e0m3", "float:e4m24", "float:4", "float:e8m7,scale=block", "float:e1m0,scale=none"]
    + ["float:e4m3,scale=none,block=64", "mxfp8:e4m3", "mxfp8,format=e3m2", "mxfp4,format=e2m1", "mxfp4,block=32"]
    + ["nvfp4,rounding=up", "qsgd", "qsgd:0", "qsgd:32768", "qsgd:1.5", "qsgd:4,norm=l1", "int8,block=8", "int8:8"]
    + [
        "int8,block=100",
        "int8,block=8192",
        "sign:vote",
        "sign,scale=l2",
        "onebit,scale=none",
        "natural:8",
        "ternary:2",
    ],
)
def test_bad_specs_are_refused(bad):
    with pytest.raises(errors.SpecError):
        commpress.codec(bad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 0, 0, 0, 512, 0), "unknown format"),
        ((6, 0, 0, 0, 512, 0), "unknown format"),
        ((1, 9, 3, 0, 512, 0), "no float"),
        ((1, 4, 24, 0, 512, 0), "no float"),
        ((1, 8, 7, 0, 512, 0), "no float"),
        ((1, 1, 0, 0, 0, 0), "no float"),
        ((1, 4, 3, 0, 48, 0), "power of two"),
        ((3, 0, 0, 127, 0, 0), "power of two"),
        ((3, 0, 0, 0, 512, 0), "levels"),
        ((3, 0, 0, 127, 512, 4), "trits"),
        ((2, 4, 3, 0, 16, 0), "nvfp4"),
        ((1, -1, 3, 0, 512, 0), "out of range"),
    ],
)
def test_bad_formats_are_refused(fields, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.commpress.format_nbytes(list(fields), 100)
    x, payload = torch.zeros(100), torch.zeros(102, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.commpress.format_encode(x, payload, list(fields), 0, 0, 0, 0, 0, 1.0, -1)


def test_operators_as_torch_sees_them():
    codec = commpress.codec("qsgd:7")
    x, payload = torch.from_numpy(normal(1000)), torch.zeros(codec.payload_nbytes(1000), dtype=torch.uint8)
    checks, common = ("test_schema", "test_faketensor"), (codec.format.integers(), 1, 2, 3, 4)
    torch.library.opcheck(
        torch.ops.commpress.format_encode.default, (x, payload, *common, 0, 1.0, -1), test_utils=checks
    )
    decode = torch.ops.commpress.format_decode.default
    torch.library.opcheck(decode, (payload, x.clone(), common[0], True, 1.0, 0.5, -1), test_utils=checks)
    with pytest.raises(RuntimeError, match="bytes"):
        torch.ops.commpress.format_encode(x, payload[:-1], *common, 0, 1.0, -1)
    with pytest.raises(RuntimeError, match="offset"):
        torch.ops.commpress.format_encode(x, payload, *common, 100, 1.0, -1)


def test_threads_do_not_change_a_byte():
    x, before = torch.from_numpy(normal(2**20 + 77)), torch.get_num_threads()
    try:
        for spec in ("float:e4m3", "nvfp4", "ternary", "onebit"):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                payload = commpress.codec(spec).encode(x, key_of(4))
                results.append((payload, commpress.codec(spec).decode(payload, key_of(4), out=torch.empty_like(x))))
            for payload, out in results[1:]:
                assert torch.equal(payload, results[0][0]) and torch.equal(out, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_a_majority_vote_comes_out_of_the_two_phases():
    """`sign,scale=none`: the owner adds +1 and -1 of the others to its own share, which breaks ties, and sends the sign."""
    codec, n = commpress.codec("sign,scale=none"), 3000
    ranks = [torch.from_numpy(normal(n, seed)) for seed in range(5)]
    keys = [key_of(r) for r in range(5)]
    payloads = [codec.encode(x, key, gain=1 / 5) for x, key in zip(ranks[1:], keys[1:], strict=True)]
    values, out = ranks[0].clone(), torch.empty_like(payloads[0])
    assert codec.reduce(payloads, keys[1:], keys[0], values=values, out=out, beta=1 / 5)
    votes = torch.stack(ranks).sign().sum(0)
    assert torch.equal(values, votes.sign())
