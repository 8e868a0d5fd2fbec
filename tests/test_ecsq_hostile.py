"""Entropy-coded quantisers: bytes that no encoder wrote."""

import random

import pytest
import torch
from _inputs import Guarded, key_of, normal, same_bits
from test_ecsq import SPECS, decoded

import commpress
from commpress import errors, reference


def refused(spec: str, payload: torch.Tensor, numel: int) -> bool:
    """Whether a payload is refused; nothing but the output may be written, and that only if it is not."""
    out = Guarded(numel, torch.float32)
    try:
        commpress.codec(spec).decode(payload, key_of(0), out=out.tensor)
    except errors.WireError:
        assert out.untouched()
        return True
    assert out.intact()
    return False


@pytest.mark.parametrize("spec", SPECS)
def test_hostile_bytes(spec):
    codec, n, rng = commpress.codec(spec), 700, random.Random(spec)
    good = codec.encode(torch.from_numpy(normal(n)), key_of(0))
    for length in range(good.numel()):
        assert refused(spec, good[:length].clone(), n)
    refusals = 0
    for bit in range(8 * good.numel()):
        flipped = good.clone()
        flipped[bit // 8] ^= 1 << bit % 8
        refusals += refused(spec, flipped, n)
    assert 0 < refusals < 8 * good.numel()
    taken = 0
    for _ in range(1500):
        data = bytearray(rng.randbytes(good.numel()))
        keep = rng.choice((0, 1, 8, 18, 30))
        data[:keep] = bytes(good[:keep].tolist())
        taken += not refused(spec, torch.frombuffer(data, dtype=torch.uint8), n)
    assert taken > 0


def test_hostile_bytes_are_the_twins_business_too():
    n, rng, taken = 700, random.Random(5), 0
    for spec in SPECS:
        good = commpress.codec(spec).encode(torch.from_numpy(normal(n)), key_of(0))
        for _ in range(25):
            payload = good.clone()
            payload[rng.randrange(good.numel() if rng.randrange(2) else 40)] = rng.randrange(256)
            try:
                expected = reference.decode(payload.numpy(), spec, key_of(0), n)
            except errors.WireError:
                assert refused(spec, payload, n)
                continue
            taken += 1
            assert same_bits(decoded(spec, payload, key_of(0), n), expected)
    assert taken > 20
