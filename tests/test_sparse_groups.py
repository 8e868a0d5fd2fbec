"""`uniform` sends groups with few values that are not zero exactly, as a list in the bytes of the codes (docs/wire-format.md 4.2)."""

import struct

import numpy as np
import pytest
import torch

import commpress
from commpress import reference
from commpress.errors import WireError

KEY = commpress.Key(seed=5)


def spikes(numel: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(numel)
    # away from the eight coordinates by which dense groups are told
    places = torch.randperm(numel, generator=generator)
    places = places[places % 64 != 0][:count]
    x[places] = torch.randn(count, generator=generator)
    return x


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("numel", [512, 300, 5000])
def test_lists_are_exact_up_to_their_capacity(bits, numel):
    codec = commpress.codec(f"uniform:{bits}")
    capacity = (min(numel, 512) * bits + 7) // 8 // 6
    fits, too_many = spikes(min(numel, 512), capacity), spikes(min(numel, 512), capacity + 1)
    for x, exact in ((fits, True), (too_many, False)):
        padded = torch.cat([x, torch.zeros(numel - x.numel())])
        payload = codec.encode(padded, KEY)
        assert payload.numel() == codec.payload_nbytes(numel)
        out = codec.decode(payload, KEY, out=torch.full((numel,), 7.0))
        assert torch.equal(out, padded) is exact
        assert np.array_equal(payload.numpy(), reference.encode(padded.numpy(), str(codec), KEY))


def test_gain_accumulation_and_negative_zero():
    codec = commpress.codec("uniform:4")
    x = spikes(512, 10)
    x[1] = -0.0
    payload = codec.encode(x, KEY, gain=0.25)
    out = codec.decode(payload, KEY, out=torch.ones(512), accumulate=True, gain=2.0, beta=0.5)
    assert torch.equal(out, 0.5 + x * 0.5)


def test_an_infinity_is_not_listed():
    codec = commpress.codec("uniform:4")
    for bad in (float("inf"), float("nan")):
        x = spikes(512, 3)
        x[77] = bad
        assert bool(torch.isnan(codec.decode(codec.encode(x, KEY), KEY, out=torch.zeros(512))).all())


@pytest.mark.parametrize(
    "entries",
    [
        [(5, 1.0), (5, 2.0)],
        [(6, 1.0), (5, 2.0)],
        [(5, 1.0), (512, 2.0)],
        [(5, 1.0), (65535, 2.0)],
        [(5, 0.0)],
        [(5, -0.0)],
        [(5, float("inf"))],
        [(5, float("nan"))],
        [(i, 1.0) for i in range(43)],
        [],
    ],
    ids=["twice", "descending", "outside", "far", "zero", "minus-zero", "infinite", "nan", "too-many", "empty"],
)
def test_impossible_lists_are_refused_and_nothing_is_written(entries):
    codec = commpress.codec("uniform:4")
    data = struct.pack("<H", 0x8000 + len(entries)) + b"".join(struct.pack("<Hf", *e) for e in entries)
    payload = torch.frombuffer(bytearray(data.ljust(258, b"\0")[:258]), dtype=torch.uint8)
    out = torch.full((512,), 3.0)
    with pytest.raises(WireError):
        codec.decode(payload, KEY, out=out)
    assert bool((out == 3.0).all())
    with pytest.raises(WireError):
        reference.decode(payload.numpy(), "uniform:4", KEY, 512)
