"""The codecs against their twin, byte by byte and value by value; sizes, views, guards, errors."""

import itertools

import numpy as np
import pytest
import torch
from _inputs import CASTS, FINITE, INPUTS, NON_FINITE, SIZES, SPECS, Guarded, key_of, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import commpress
from commpress import errors, reference

GAINS = (1.0, 0.5, 1 / 3, 1.7e-5, 640.0)


def encode(spec: str, x: np.ndarray, key: commpress.Key, **options) -> torch.Tensor:
    return commpress.codec(spec).encode(torch.from_numpy(x), key, **options)


def assert_twins(spec: str, x: np.ndarray, key: commpress.Key, offset: int, gain: float) -> torch.Tensor:
    payload = encode(spec, x, key, offset=offset, gain=gain)
    expected = reference.encode(x, spec, key, offset, gain)
    assert payload.numel() == reference.payload_nbytes(spec, x.size, offset)
    differing = np.flatnonzero(payload.numpy() != expected)
    assert differing.size == 0, f"{spec} n={x.size} offset={offset} gain={gain}: bytes differ from {differing[:1]} on"
    return payload


@pytest.mark.parametrize("spec", SPECS + CASTS)
def test_bytes_equal_the_twins_at_every_size(spec):
    for number, n in enumerate(SIZES):
        offset = 4096 * (0, 1, 7, 2**20, 2**25)[number % 5]
        assert_twins(spec, normal(n, number), key_of(number), offset, GAINS[number % len(GAINS)])


@pytest.mark.parametrize("spec", SPECS + CASTS)
def test_bytes_and_values_equal_the_twins_for_every_kind_of_input(spec):
    codec = commpress.codec(spec)
    for number, (name, make) in enumerate(INPUTS.items()):
        n, key, gain = (5000, 700)[number % 2], key_of(number), GAINS[number % 3]
        x = make(n).astype(np.float32)
        payload = assert_twins(spec, x, key, 0, gain)
        for read in (1.0, 2.5):
            out = Guarded(n, torch.float32)
            codec.decode(payload, key, out=out.tensor, gain=read)
            assert out.intact(), (name, read)
            assert same_bits(out.tensor, reference.decode(payload, spec, key, n, 0, read)), (name, read)


@pytest.mark.parametrize("spec", SPECS + CASTS)
def test_accumulating_rounds_product_and_sum_apart(spec):
    codec = commpress.codec(spec)
    for number, (n, beta, gain) in enumerate(itertools.product((1, 300, 5000), (1.0, 1 / 3, 0.0), (1.0, 0.3))):
        key = key_of(number)
        payload = encode(spec, normal(n, number), key)
        out = Guarded(n, torch.float32, align=number % 4)
        before = normal(n, 77)
        out.tensor.copy_(torch.from_numpy(before))
        codec.decode(payload, key, out=out.tensor, accumulate=True, gain=gain, beta=beta)
        expected = np.float32(beta) * before + reference.decode(payload, spec, key, n, 0, gain)
        assert out.intact() and same_bits(out.tensor, expected), (n, beta, gain)


@pytest.mark.parametrize(
    "spec", ["uniform:4", "uniform:0.3", "lloyd:2.5", "hadamard+lloyd:1.5", "hadamard+lloyd:0.3", "none", *CASTS]
)
def test_a_payload_is_its_chunks_one_behind_the_other(spec):
    codec, x, key = commpress.codec(spec), normal(20000), key_of(5)
    for start in (0, 4096 * 3):
        whole = encode(spec, x, key, offset=start)
        for cuts in ([4096], [8192, 12288], [4096, 8192, 12288, 16384]):
            edges = [0, *cuts, x.size]
            pieces = [encode(spec, x[a:b], key, offset=start + a) for a, b in itertools.pairwise(edges)]
            assert torch.equal(torch.cat(pieces), whole)
            sizes = [codec.payload_nbytes(b - a, offset=start + a) for a, b in itertools.pairwise(edges)]
            assert sum(sizes) == whole.numel() == codec.payload_nbytes(x.size, offset=start)
            out = torch.full((x.size,), 7.0)
            for (a, b), piece in zip(itertools.pairwise(edges), pieces, strict=True):
                codec.decode(piece, key, out=out[a:b], offset=start + a)
            assert torch.equal(out, codec.decode(whole, key, out=torch.empty(x.size), offset=start))


@pytest.mark.parametrize("spec", ["uniform:3", "lloyd:2", "hadamard+lloyd:2", "hadamard+lloyd:0.5", *CASTS])
def test_every_dtype_is_coded_as_binary32_and_comes_back(spec):
    codec, key = commpress.codec(spec), key_of(3)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.from_numpy(normal(1000)).to(dtype)
        payload = codec.encode(x, key)
        assert torch.equal(payload, codec.encode(x.to(torch.float32), key))
        out = torch.full((1000,), 3.0, dtype=dtype)
        codec.decode(payload, key, out=out)
        values = torch.from_numpy(reference.decode(payload, spec, key, 1000))
        assert torch.equal(out, values.to(dtype))


def test_none_sends_the_elements_themselves():
    codec, key = commpress.codec("none"), key_of(1)
    assert codec.lossless and codec.unbiased
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = torch.from_numpy(normal(301)).to(dtype)
        x[:3] = torch.tensor([float("nan"), float("inf"), -0.0], dtype=dtype)
        payload = codec.encode(x, key)
        assert payload.numel() == codec.payload_nbytes(301, dtype=dtype) == 301 * dtype.itemsize
        assert torch.equal(payload, x.view(torch.uint8))
        out = codec.decode(payload, key, out=torch.zeros(301, dtype=dtype))
        assert torch.equal(out.view(torch.uint8), payload)


@pytest.mark.parametrize(
    "spec", ["none", "uniform:4", "lloyd:2", "hadamard+lloyd:2", "hadamard+lloyd:0.1", "cast:bf16"]
)
def test_strided_input_is_coded_as_its_contiguous_copy(spec):
    codec, key = commpress.codec(spec), key_of(2)
    base = torch.from_numpy(normal(6000)).reshape(100, 60)
    for view in (base.t(), base[::3, ::2], base[:, 7], base[1:, 1:], base.flip(0), base[0].expand(5, 60)):
        before = base.clone()
        payload = codec.encode(view, key)
        assert torch.equal(payload, codec.encode(view.contiguous().reshape(-1), key))
        assert torch.equal(before, base)
        out = torch.zeros(view.shape)
        assert codec.decode(payload, key, out=out) is out
        assert torch.equal(out.reshape(-1), codec.decode(payload, key, out=torch.zeros(view.numel())))


@pytest.mark.parametrize("spec", ["none", *SPECS[::3], *CASTS])
def test_exactly_the_payload_is_written_and_all_of_it(spec):
    codec = commpress.codec(spec)
    for n in (0, 1, 129, 513, 5000):
        x, key = torch.from_numpy(normal(n)), key_of(n)
        expected = codec.encode(x, key)
        assert expected.dtype == torch.uint8 and expected.dim() == 1
        for poison in (0x00, 0xA5, 0xFF):
            out = Guarded(codec.payload_nbytes(n), torch.uint8, poison, align=poison % 7)
            assert codec.encode(x, key, out=out.tensor) is out.tensor
            assert out.intact() and torch.equal(out.tensor, expected)


def test_overhead_is_small_and_sizes_are_exact():
    for rate in ("1", "2", "4", "1.5", "0.5"):
        for family, most in (("uniform", 0.035), ("lloyd", 0.008), ("hadamard+lloyd", 0.008)):
            nbytes = commpress.codec(f"{family}:{rate}").payload_nbytes(2**20)
            assert 0 < nbytes * 8 / 2**20 - float(rate) <= most


@settings(max_examples=150, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    numel=st.one_of(st.integers(0, 20000), st.integers(0, 2**17)),
    block=st.one_of(st.integers(0, 100), st.integers(0, 2**28)),
)
def test_sizes_equal_the_twins(spec, numel, block):
    assert commpress.codec(spec).payload_nbytes(numel, offset=4096 * block) == reference.payload_nbytes(
        spec, numel, 4096 * block
    )


def test_sizes_of_enormous_tensors_add_up():
    for spec in SPECS:
        codec, n = commpress.codec(spec), 2**40
        whole = codec.payload_nbytes(3 * n + 77)
        assert whole == sum(codec.payload_nbytes(m, offset=at) for at, m in ((0, n), (n, 2 * n), (3 * n, 77)))


@settings(max_examples=120, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
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
    if np.isfinite(x).all():
        assert np.isfinite(out.numpy()).all() or gain > 1


@pytest.mark.parametrize("spec", [*SPECS, *CASTS])
def test_non_finite_values_always_arrive_and_finite_ones_stay_finite(spec):
    codec, n = commpress.codec(spec), 5000
    for name, make in NON_FINITE.items():
        for start in (0, 4096):  # whole blocks, and the short last one
            x = normal(n)
            x[start:] = make(n - start)
            out = codec.decode(encode(spec, x, key_of(1)), key_of(1), out=torch.zeros(n))
            assert not torch.isfinite(out[start:]).all(), name
            assert torch.isfinite(out[:start]).all(), name
    for name, make in FINITE.items():
        if spec == "cast:fp16" and np.abs(make(n)).max() > 65504:
            continue  # infinities, as every cast to binary16 makes them
        out = codec.decode(encode(spec, make(n).astype(np.float32), key_of(1)), key_of(1), out=torch.zeros(n))
        assert torch.isfinite(out).all() or spec == "cast:bf16", name
        if "zeros" in name and not make(n).any() and spec not in CASTS:
            assert same_bits(out, np.zeros(n))


def test_threads_do_not_change_a_byte():
    x, before = normal(2**20 + 77), torch.get_num_threads()
    try:
        for spec in ("uniform:4", "hadamard+lloyd:2", "hadamard+lloyd:0.3", "lloyd:1.5"):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                payload = encode(spec, x, key_of(4))
                out = commpress.codec(spec).decode(payload, key_of(4), out=torch.empty(x.size))
                results.append((payload, out))
            for payload, out in results[1:]:
                assert torch.equal(payload, results[0][0]) and torch.equal(out, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_the_users_random_streams_are_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for spec in SPECS:
        payload = encode(spec, normal(600), key_of(0))
        commpress.codec(spec).decode(payload, key_of(0), out=torch.empty(600))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_the_input_is_left_alone_and_gradients_are_not_followed():
    x = torch.from_numpy(normal(5000)).requires_grad_()
    before = x.detach().clone()
    for spec in SPECS[::5]:
        assert not commpress.codec(spec).encode(x, key_of(0)).requires_grad
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("spec", ["none", "cast:fp16", "uniform:4", "lloyd:2", "hadamard+lloyd:0.5"])
def test_misuse_is_a_typed_error_and_touches_nothing(spec):
    codec, key, x = commpress.codec(spec), key_of(0), torch.from_numpy(normal(600))
    payload = codec.encode(x, key)
    for bad in (payload[:-1], torch.cat([payload, payload[:1]]), payload[:0]):
        out = Guarded(600, torch.float32)
        with pytest.raises(errors.WireError):
            codec.decode(bad, key, out=out.tensor)
        assert out.untouched()
    with pytest.raises(errors.CommpressError):
        codec.encode(x, key, out=torch.empty(payload.numel() + 1, dtype=torch.uint8))
    with pytest.raises(errors.CommpressError):
        codec.encode(torch.arange(600), key)
    with pytest.raises(errors.CommpressError):
        codec.encode(x, key, offset=100)
    with pytest.raises(errors.CommpressError):
        codec.decode(payload, key, out=torch.zeros(600), offset=100)
    for gain in (0.0, -1.0, float("nan"), float("inf")):
        if spec != "none":
            with pytest.raises((errors.CommpressError, ValueError)):
                codec.encode(x, key, gain=gain)


def test_promises():
    for spec in SPECS:
        codec = commpress.codec(spec)
        assert str(codec) == str(commpress.codec(str(codec))) and commpress.codec(str(codec)) == codec
        assert hash(codec) == hash(commpress.codec(spec))
        assert codec.unbiased == (not spec.startswith("lloyd") and "centroid" not in spec), spec
        assert codec.for_feedback() == codec.for_feedback().for_feedback()
        assert not codec.lossless
    assert str(commpress.codec("hadamard+lloyd:2").for_feedback()) == "hadamard+lloyd:2,scale=centroid"
    for spec in CASTS:
        assert not commpress.codec(spec).unbiased and not commpress.codec(spec).lossless
    for bad in (
        "",
        "uniform",
        "uniform:0",
        "uniform:9",
        "uniform:-1",
        "uniform:nan",
        "cast:int8",
        "lloyd:2,",
        "x:1",
        "none:2",
    ):
        with pytest.raises(errors.SpecError):
            commpress.codec(bad)


@pytest.mark.parametrize(
    "spec", ["uniform:1", "uniform:4", "uniform:2.5", "hadamard+lloyd:4,scale=centroid", "lloyd:3"]
)
def test_errors_stay_within_their_bounds(spec):
    codec, key = commpress.codec(spec), key_of(0)
    for name, make in FINITE.items():
        x = make(5000).astype(np.float32)
        y = codec.decode(encode(spec, x, key), key, out=torch.empty(x.size)).numpy()
        x64, y64 = x.astype(np.float64), y.astype(np.float64)
        if spec.startswith("uniform"):
            for at in range(0, x.size, 512):
                block, top = slice(at, at + 512), np.abs(x64[at : at + 512]).max()
                # One step; a step is 2/128 too large by its rounding to bfloat16, or a denormal of it. The largest
                # finite float lies above the largest bfloat16.
                least = 2 if spec == "uniform:1" else 1
                bound = least * max(top * (1 + 2**-6), 2.0**-133 if top else 0) + 1e-30 * top
                assert np.abs(y64 - x64)[block].max() <= bound, name
        else:  # least squares never adds to the energy, but for denormal results
            for at in range(0, x.size, 4096):
                e, f = ((y64 - x64)[at : at + 4096] ** 2).sum(), (x64[at : at + 4096] ** 2).sum()
                assert e <= f * (1 + 1e-5) + 5000 * (2.0**-140) ** 2, name
