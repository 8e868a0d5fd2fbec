"""The bitshift trellis: bytes that no encoder wrote."""

import random

import pytest
import torch
from _inputs import Guarded, key_of, normal, same_bits
from test_bitshift import FEW

import commpress
from commpress import errors, reference


def refused_or_twin(spec: str, payload: torch.Tensor, key: commpress.Key, n: int) -> bool:
    """Whether the payload was refused, as the twin does; where not, the values are the twin's and nothing else was written."""
    out = Guarded(n, torch.float32)
    try:
        commpress.codec(spec).decode(payload, key, out=out.tensor)
    except errors.WireError:
        assert out.untouched()
        with pytest.raises(errors.WireError):
            reference.decode(payload.numpy(), spec, key, n)
        return True
    assert out.intact() and same_bits(out.tensor, reference.decode(payload.numpy(), spec, key, n))
    return False


@pytest.mark.parametrize("spec", FEW)
def test_every_bit_flip_and_every_truncation(spec):
    n, key = 1024 + 5, key_of(0)
    codec = commpress.codec(spec)
    good = codec.encode(torch.from_numpy(normal(n)), key)
    refused = 0
    for bit in range(8 * good.numel()):
        payload = good.clone()
        payload[bit // 8] ^= 1 << bit % 8
        refused += refused_or_twin(spec, payload, key, n)
    # a sign that `bitshift` does not have, or the exponent of an infinity; rotated, the scale's every neighbour may be one
    assert refused > 0 or spec.startswith("hadamard")
    for size in range(good.numel()):
        out = Guarded(n, torch.float32)
        with pytest.raises(errors.WireError, match="bytes"):
            codec.decode(good[:size], key, out=out.tensor)
        assert out.untouched()


@pytest.mark.parametrize("spec", FEW)
def test_random_bytes(spec):
    rng, codec, counts = random.Random(spec), commpress.codec(spec), [0, 0]
    for number in range(1500):
        n = rng.choice((1, 200, 1024, 1100, 3100))
        data = rng.randbytes(codec.payload_nbytes(n))
        if number % 3 == 0:
            data = bytes(rng.choices([0x00, 0x3F, 0xFF, 0x7F, 0x80, 0x42], k=len(data)))
        payload, out = torch.tensor(list(data), dtype=torch.uint8), Guarded(n, torch.float32)
        try:
            codec.decode(payload, key_of(number % 7), out=out.tensor)
            counts[0] += 1
            assert out.intact()
        except errors.WireError:
            counts[1] += 1
            assert out.untouched()
    assert min(counts) > 20
