"""Decoders fed with anything: a typed error before the output is touched, or an output, and never a byte elsewhere."""

import random

import numpy as np
import pytest
import torch
from _inputs import CASTS, SPECS, Guarded, key_of, normal, same_bits

import commpress
from commpress import errors, reference

NUMELS = (1, 5, 127, 128, 200, 511, 512, 700, 4096, 4500)


def random_payload(rng: random.Random, nbytes: int) -> torch.Tensor:
    kind = rng.randrange(4)
    if kind == 0:
        data = rng.randbytes(nbytes)
    elif kind == 1:
        data = bytes([rng.choice([0x00, 0xFF, 0x7F, 0x80])]) * nbytes
    else:  # bytes that make possible scales likely
        data = bytes(rng.choices([0x00, 0x3F, 0xFF, 0x7F, 0x80, 0x42], k=nbytes))
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def decoded(codec: object, payload: torch.Tensor, key: commpress.Key, numel: int) -> Guarded | None:
    """The output, or None where the payload was refused; asserts that nothing else was written."""
    out = Guarded(numel, torch.float32)
    before = payload.clone()
    try:
        codec.decode(payload, key, out=out.tensor)
    except errors.WireError:
        assert out.untouched(), "a refused payload must leave the output alone"
        out = None
    assert out is None or out.intact()
    assert torch.equal(payload, before)
    return out


@pytest.mark.parametrize("spec", SPECS[::2] + CASTS)
def test_random_bytes(spec):
    codec, rng = commpress.codec(spec), random.Random(spec)
    accepted = 0
    for number in range(120):
        numel = rng.choice(NUMELS)
        payload = random_payload(rng, codec.payload_nbytes(numel))
        accepted += decoded(codec, payload, key_of(number), numel) is not None
    assert accepted > 0  # not every case was refused at the door


@pytest.mark.parametrize("spec", SPECS[::3])
def test_refusals_and_values_are_the_twins(spec):
    codec, rng = commpress.codec(spec), random.Random(spec)
    for number in range(12):
        numel = rng.choice((5, 200, 700, 4500))
        payload = random_payload(rng, codec.payload_nbytes(numel))
        out = decoded(codec, payload, key_of(number), numel)
        try:
            expected = reference.decode(payload.numpy(), spec, key_of(number), numel)
        except errors.WireError:
            expected = None
        assert (out is None) == (expected is None)
        assert out is None or same_bits(out.tensor, expected)


@pytest.mark.parametrize("spec", SPECS[1::3])
def test_mutated_payloads(spec):
    codec, rng = commpress.codec(spec), random.Random(spec)
    for numel in (200, 4500):
        good = codec.encode(torch.from_numpy(normal(numel)), key_of(0))
        for _ in range(60):
            payload = good.clone()
            for _ in range(rng.randint(1, 3)):
                payload[rng.choice([rng.randrange(payload.numel()), rng.randrange(min(4, payload.numel()))])] = (
                    rng.randrange(256)
                )
            decoded(codec, payload, key_of(0), numel)


@pytest.mark.parametrize(
    "spec", ["uniform:4", "uniform:0.1", "lloyd:2", "hadamard+lloyd:2", "hadamard+lloyd:0.1", *CASTS]
)
def test_payloads_at_the_end_of_their_memory(spec):
    """A payload that ends where its buffer ends, at every alignment: nothing beyond it matters."""
    codec = commpress.codec(spec)
    for numel in NUMELS:
        good = codec.encode(torch.from_numpy(normal(numel)), key_of(numel))
        expected = codec.decode(good, key_of(numel), out=torch.zeros(numel))
        for shift in (0, 1, 3, 17):
            for poison in (0x00, 0xFF):
                raw = torch.full((good.numel() + shift + 64,), poison, dtype=torch.uint8)
                raw[shift : shift + good.numel()] = good
                out = codec.decode(raw[shift : shift + good.numel()], key_of(numel), out=torch.zeros(numel))
                assert torch.equal(out, expected)


def test_an_invalid_block_anywhere_leaves_all_untouched():
    for spec, size in (("uniform:2", 2), ("lloyd:2", 4), ("hadamard+lloyd:2", 4)):
        codec, numel = commpress.codec(spec), 4096 * 40
        good = codec.encode(torch.from_numpy(normal(numel)), key_of(0))
        for block in (0, 1, 39):
            payload = good.clone()
            at = codec.payload_nbytes(4096 * block)
            payload[at : at + size] = torch.tensor([0, 0, 0xC0, 0x7F][-size:], dtype=torch.uint8)
            assert decoded(codec, payload, key_of(0), numel) is None
            sums = Guarded(numel, torch.float32)
            with pytest.raises(errors.WireError):
                codec.decode(payload, key_of(0), out=sums.tensor, accumulate=True)
            assert sums.untouched()
