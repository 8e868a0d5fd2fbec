"""Decoders of the formats fed with anything: a typed error before the output is touched, or an output without infinities."""

import random

import numpy as np
import pytest
import torch
from _formats import FORMATS, UNSCALED, WIDE
from _inputs import Guarded, key_of, normal, same_bits
from test_fuzz import NUMELS, decoded, random_payload

import commpress
from commpress import errors, ops, reference

SPECIALS = {*UNSCALED, *WIDE, *(spec for spec in FORMATS if "e8" in spec or "scale=none" in spec)}


@pytest.mark.parametrize("spec", FORMATS)
def test_random_bytes(spec):
    codec, rng = commpress.codec(spec), random.Random(spec)
    accepted = 0
    for number in range(150):
        numel = rng.choice(NUMELS)
        payload = random_payload(rng, codec.payload_nbytes(numel))
        out = decoded(codec, payload, key_of(number), numel)
        if out is not None:
            accepted += 1
            assert spec in SPECIALS or not torch.isinf(out.tensor).any()
    assert accepted > 0


@pytest.mark.parametrize("spec", FORMATS)
def test_refusals_and_values_are_the_twins(spec):
    codec, rng = commpress.codec(spec), random.Random(spec + "twin")
    good = codec.encode(torch.from_numpy(normal(700)), key_of(0))
    for number in range(16):
        payload = good.clone()
        if number < 8:
            payload = random_payload(rng, payload.numel())
        else:
            for _ in range(3):
                payload[rng.randrange(payload.numel())] = rng.randrange(256)
        try:
            expected = reference.decode(payload.numpy(), spec, key_of(number), 700)
        except errors.WireError:
            expected = None
        for isa in [isa for isa in ops.Isa if ops.isa_available(isa)]:
            out = torch.full((700,), 3.0)
            invalid = ops.format_decode(
                payload, out, format=codec.format, accumulate=False, gain=1.0, beta=1.0, isa=isa
            )
            assert (invalid >= 0) == (expected is None)
            assert same_bits(out, np.full(700, 3.0) if expected is None else expected)


@pytest.mark.parametrize("spec", FORMATS[::2])
def test_every_bit_flipped_and_every_truncation(spec):
    codec, n = commpress.codec(spec), 37
    good = codec.encode(torch.from_numpy(normal(n)), key_of(0))
    expected = codec.decode(good, key_of(0), out=torch.zeros(n))
    refused = changed = 0
    for bit in range(8 * good.numel()):
        payload = good.clone()
        payload[bit // 8] ^= 1 << bit % 8
        out = decoded(codec, payload, key_of(0), n)
        refused += out is None
        changed += out is not None and not same_bits(out.tensor, expected.numpy())
    assert (
        changed > 0 and refused + changed >= 0.8 * 8 * good.numel()
    )  # spare bits, scales of zeros and the like do nothing
    for length in range(good.numel()):
        out = Guarded(n, torch.float32)
        with pytest.raises(errors.WireError):
            codec.decode(good[:length], key_of(0), out=out.tensor)
        assert out.untouched()


@pytest.mark.parametrize(
    ("spec", "at", "bad"),
    [
        ("float:e4m3", 0, [254]),  # 2^127 times 448
        ("mxfp4", 1, [253]),
        ("float:e2m23", 0, [0]),  # its smallest values would not be binary32
        ("nvfp4", 0, [0, 0, 0x80, 0x7F]),
        ("nvfp4", 0, [0, 0, 0x80, 0xBF]),
        ("nvfp4", 6, [0x80]),
        ("int8", 0, [0, 0, 0xC0, 0x7F]),
        ("qsgd:3", 0, [0, 0, 0x80, 0x80]),
        ("qsgd:3", 0, [0xFF, 0xFF, 0x7F, 0x7F]),  # finite, but not three times
        ("ternary", 40, [243]),
        ("sign", 0, [0, 0, 0x80, 0x7F]),
        ("sign,scale=none", 0, [1]),
        ("onebit", 4, [0, 0, 0x80, 0xBF]),
        ("onebit", 0, [0xFF, 0xFF, 0xFF, 0xFF]),  # one mean of two
    ],
)
def test_an_invalid_block_anywhere_leaves_all_untouched(spec, at, bad):
    codec, numel = commpress.codec(spec), 4096 * 40
    good = codec.encode(torch.from_numpy(normal(numel)), key_of(0))
    for block in (0, 1, 39):
        payload = good.clone()
        start = codec.payload_nbytes(4096 * block) + at
        payload[start : start + len(bad)] = torch.tensor(bad, dtype=torch.uint8)
        assert decoded(codec, payload, key_of(0), numel) is None
        with pytest.raises(errors.WireError, match=f"block {block} "):
            codec.decode(payload, key_of(0), out=torch.zeros(numel))
        with pytest.raises(errors.WireError):
            reference.decode(payload.numpy(), spec, key_of(0), numel)
