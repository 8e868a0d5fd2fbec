"""LayeredCodec: every layer as if it were alone, cut anywhere it says, and reduced like any other codec."""

from __future__ import annotations

import itertools

import pytest
import torch
from _reducers import World, inputs, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.codecs import BLOCK, Codec, Key, LayeredCodec, codec
from commpress.errors import MismatchError, SpecError, WireError

SPECS = ("hadamard+lloyd:1", "hadamard+lloyd:2.37", "uniform:4", "hadamard+lloyd:0.4", "none", "lloyd:3")


def sample(sizes=(9_000, 70, 300, 20_001, 1), specs=SPECS) -> LayeredCodec:
    return LayeredCodec([(n, codec(specs[i % len(specs)])) for i, n in enumerate(sizes)])


def test_each_layer_is_coded_as_if_alone_under_its_own_key():
    layered, key = sample(), Key(3, 4, 5, 6, 1)
    x = torch.randn(layered.numel)
    payload, out = layered.encode(x, key), torch.full((layered.numel,), float("nan"))
    layered.decode(payload, key, out=out)
    start = byte = 0
    for i, (n, own) in enumerate(layered.layers):
        inner = key.replace(tensor=6 + 65536 * (i + 1))
        alone = own.encode(x[start : start + n], inner)
        assert torch.equal(alone, payload[byte : byte + alone.numel()])
        assert torch.equal(own.decode(alone, inner, out=torch.empty(n)), out[start : start + n])
        start, byte = start + n, byte + alone.numel()
    assert byte == payload.numel() == layered.payload_nbytes(layered.numel)


@pytest.mark.parametrize("specs", [SPECS, (*SPECS, "cast:bf16", "cast:fp16"), (*SPECS, "topk:0.1", "mxfp4")])
def test_one_call_for_all_layers_does_what_single_calls_do(specs):
    """With families that have operators of their own (the last case) the layers go one by one."""
    layered = LayeredCodec([(4096 * (i % 3) + 37 * i, codec(spec)) for i, spec in enumerate((*specs, *specs))])
    generator = torch.Generator().manual_seed(9)
    x, base = torch.randn(2, layered.numel, generator=generator)
    keys = [Key(3, 4, sender, 6, 1) for sender in (1, 2)]
    payloads = [layered.encode(x * (i + 1), key, gain=0.5) for i, key in enumerate(keys)]
    out, expected = base.clone(), base.clone()
    layered.decode(payloads[0], keys[0], out=out, accumulate=True, gain=0.75, beta=0.3)
    start = byte = 0
    for i, (n, own) in enumerate(layered.layers):
        inner = keys[0].replace(tensor=6 + 65536 * (i + 1))
        alone = own.encode(x[start : start + n], inner, gain=0.5)
        assert torch.equal(alone, payloads[0][byte : byte + alone.numel()])
        own.decode(alone, inner, out=expected[start : start + n], accumulate=True, gain=0.75, beta=0.3)
        start, byte = start + n, byte + alone.numel()
    assert torch.equal(out, expected)
    after = Key(3, 4, 0, 6, 2)
    one, two, by_one, by_two = (
        base.clone(),
        base.clone(),
        torch.full_like(payloads[0], 77),
        torch.full_like(payloads[0], 99),
    )
    assert layered.reduce(payloads, keys, after, values=one, out=by_one, beta=0.5)
    assert Codec.reduce(layered, payloads, keys, after, values=two, out=by_two, beta=0.5)
    assert torch.equal(one, two) and torch.equal(by_one, by_two)
    assert layered.decode_sum(payloads, keys, out=one) and Codec.decode_sum(layered, payloads, keys, out=two)
    assert torch.equal(one, two)
    one[5] = float("inf")
    assert not layered.reduce(payloads, keys, after, values=one, out=by_one, beta=0.5)


def test_an_invalid_layer_is_refused_before_anything_is_written():
    layered, key = sample(), Key(1)
    payload, out = layered.encode(torch.randn(layered.numel), key), torch.full((layered.numel,), 7.0)
    nbytes = layered.payload_nbytes(layered.layers[0][0])
    payload[nbytes - 1 : nbytes + 1] = 255  # nothing but codes
    layered.decode(payload, key, out=torch.empty_like(out))
    last = sum(n for n, _ in layered.layers[:3])
    where = layered.payload_nbytes(last)
    payload[where : where + 4] = torch.tensor([1, 0, 255, 255], dtype=torch.uint8)  # a scale that is NaN
    with pytest.raises(WireError, match="layer"):
        layered.decode(payload, key, out=out)
    assert bool((out == 7).all())
    with pytest.raises(WireError, match="rank 0"):
        layered.reduce([payload], [key], key, values=out, out=torch.empty_like(payload))
    with pytest.raises(WireError, match="rank 0"):
        layered.decode_sum([payload], [key], out=out)


sizes = st.lists(st.sampled_from([0, 1, 100, 4095, 4096, 4097, 10_000]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 5), st.integers(1, 3), st.randoms())
def test_parts_put_together_are_the_whole(lengths, parts, chunks, random):
    layered = LayeredCodec([(n, codec(random.choice(SPECS))) for n in lengths])
    x, key = torch.linspace(-3, 3, layered.numel).sin(), Key(1)
    whole = layered.encode(x, key)
    cuts = layered.split(0, layered.numel, parts)
    assert len(cuts) == parts + 1 and cuts[0] == 0 and cuts[-1] == layered.numel and cuts == sorted(cuts)
    pieces = []
    for start, stop in itertools.pairwise(cuts):
        for low, high in itertools.pairwise(layered.split(start, stop, chunks)):
            layered.check_offset(low)
            pieces.append(layered.encode(x[low:high], key, offset=low))
    assert torch.equal(torch.cat(pieces), whole)


def test_parts_have_equal_payload_not_equal_coordinates():
    layered = LayeredCodec([(40 * BLOCK, codec("hadamard+lloyd:8")), (80 * BLOCK, codec("hadamard+lloyd:1"))])
    cuts = layered.split(0, layered.numel, 3)
    nbytes = [layered.payload_nbytes(b - a, offset=a) for a, b in itertools.pairwise(cuts)]
    assert max(nbytes) < 1.2 * min(nbytes)
    assert cuts[1] < layered.numel // 3 - BLOCK  # equal coordinates would not do


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("chunk", [None, 3_000])
def test_all_reduce_under_a_layered_codec(size, chunk):
    layered = sample()
    tensors = inputs(size, layered.numel)
    mean = torch.stack(tensors).mean(0)
    with World(size, chunk=chunk) as world:
        futures = [r.submit(t, layered, layered, Key(7)) for r, t in zip(world.reducers, tensors, strict=True)]
        results = [outcome(f) for f in futures]
    for result in results:
        assert torch.equal(result, results[0])
    assert torch.allclose(results[0][9_000 + 70 + 300 + 20_001 :], mean[-1:], atol=1e-6)  # the exact layer
    error = (results[0] - mean).square().sum() / mean.square().sum()
    assert 0.01 < error < 20  # 0.4 bits a coordinate have a vNMSE of 2.9 in each phase


def test_another_plan_on_one_rank_is_named():
    plans = [sample(), sample(specs=SPECS[::-1])]
    with World(2) as world:
        futures = [r.submit(torch.ones(p.numel), p, p, Key()) for r, p in zip(world.reducers, plans, strict=True)]
        for future in futures:
            problem = outcome(future)
            assert isinstance(problem, MismatchError) and all(str(plan) in str(problem) for plan in plans)


def test_equality_bits_and_bad_input():
    assert sample() == sample() and hash(sample()) == hash(sample()) and str(sample()) == str(sample())
    assert sample() != sample(specs=SPECS[1:])
    merged = LayeredCodec([(3, codec("none")), (4, codec("none")), (0, codec("uniform:2")), (5, codec("none"))])
    assert merged.layers == ((12, codec("none")),) and merged.lossless and merged.unbiased
    assert LayeredCodec([(100, codec("uniform:2")), (300, codec("uniform:4"))]).bits == 3.5
    assert not LayeredCodec([(100, codec("lloyd:2")), (300, codec("none"))]).unbiased
    assert LayeredCodec([]).payload_nbytes(0) == 0
    with pytest.raises(SpecError, match="-1 coordinates"):
        LayeredCodec([(-1, codec("none"))])
    layered = sample()
    for offset in (1, 4096 + 9_000, -4096, layered.numel + 1):
        with pytest.raises(SpecError):
            layered.encode(torch.zeros(0), Key(), offset=offset)
    layered.encode(torch.zeros(70), Key(), offset=9_000)
    with pytest.raises(SpecError, match="of a tensor of"):
        layered.encode(torch.zeros(layered.numel + 1), Key())
    payload = layered.encode(torch.randn(layered.numel), Key())
    with pytest.raises(WireError):
        layered.decode(payload[:-1], Key(), out=torch.empty(layered.numel))
    payload[:4] = torch.tensor([1, 0, 192, 127], dtype=torch.uint8)  # the scale of the first layer
    with pytest.raises(WireError):
        layered.decode(payload, Key(), out=torch.empty(layered.numel))
