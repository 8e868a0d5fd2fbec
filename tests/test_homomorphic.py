"""`homomorphic`: bytes against the twin on every code path, sums of codes, specs, sizes, hostile bytes."""

import random

import numpy as np
import pytest
import torch
from _inputs import INPUTS, Guarded, key_of, normal, same_bits

import commpress
from commpress import errors, ops, reference

PATHS = [isa for isa in ops.Isa if isa is not ops.Isa.BEST and ops.isa_available(isa)]
SPECS = [
    *(f"homomorphic:{b}" for b in range(1, 9)),
    "homomorphic:3,block=4096",
    "homomorphic:4,block=1024,rounding=stochastic",
    "homomorphic:2,rounding=stochastic",
]
SIZES = (0, 1, 15, 16, 511, 512, 513, 4095, 4096, 4097, 9000)


def poisoned(nbytes: int) -> Guarded:
    return Guarded(nbytes, torch.uint8)


@pytest.mark.parametrize("spec", SPECS)
def test_payloads_and_values_are_the_twins(spec):
    codec = commpress.codec(spec)
    for number, numel in enumerate(SIZES):
        x, key = normal(numel, number), key_of(number)
        out = poisoned(codec.payload_nbytes(numel))
        codec.encode(torch.from_numpy(x), key, out=out.tensor, offset=8192, gain=0.75)
        assert out.intact()
        expected = reference.encode(x, spec, key, 8192, 0.75)
        assert np.array_equal(out.tensor.numpy(), expected), numel
        assert reference.payload_nbytes(spec, numel) == out.tensor.numel()
        values = Guarded(numel, torch.float32)
        codec.decode(out.tensor, key, out=values.tensor, offset=8192, gain=1.5)
        assert values.intact()
        assert same_bits(values.tensor, reference.decode(expected, spec, key, numel, 8192, 1.5)), numel
        assert numel < 2 or not np.array_equal(values.tensor.numpy(), x)  # something was quantised


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("spec", ["homomorphic:1", "homomorphic:5,block=4096", "homomorphic:8,rounding=stochastic"])
def test_every_input_is_the_twins_on_every_path(spec, name):
    codec, numel, key = commpress.codec(spec), 5000, key_of(3)
    x = INPUTS[name](numel)
    expected = reference.encode(x, spec, key)
    want = reference.decode(expected, spec, key, numel)
    at = codec.scales_nbytes(numel)
    common, workers = key.replace(sender=0).words(), 1
    for isa in PATHS:
        scales, codes = poisoned(at), poisoned(codec.codes_nbytes(numel))
        ops.homomorphic_scales(torch.from_numpy(x), scales.tensor, block=codec.block, isa=isa)
        arguments = {"bits": codec.width, "block": codec.block, "worker": key.sender, "seed": key.seed, "words": common}
        ops.homomorphic_encode(torch.from_numpy(x), scales.tensor, codes.tensor, **arguments, offset=0, isa=isa)
        assert scales.intact() and codes.intact()
        assert np.array_equal(torch.cat([scales.tensor, codes.tensor]).numpy(), expected), isa
        out = Guarded(numel, torch.float32)
        assert ops.homomorphic_decode(
            codes.tensor, scales.tensor, out.tensor, **arguments, subtract=codec.subtract, workers=workers, offset=0,
            accumulate=False, gain=1.0, beta=1.0, isa=isa,
        ) == -1  # fmt: skip
        assert out.intact() and same_bits(out.tensor, want), isa
    finite = np.isfinite(x)
    assert np.isfinite(want[: codec.block]).all() == finite[: codec.block].all()
    if finite.all():
        # Off by no more than a step of the block's grid, and by what a bfloat16 scale rounds up.
        largest = np.repeat(np.maximum.reduceat(np.abs(x), np.arange(0, numel, codec.block)), codec.block)[:numel]
        step = 2 * np.minimum(largest.astype(np.float64) * (1 + 2**-7) + 2.0**-133, 2.0**128) / (2**codec.width - 1)
        assert (np.abs(want.astype(np.float64) - x) <= step * 1.001 + 2.0**-148).all()


@pytest.mark.parametrize(("bits", "workers"), [(1, 1), (1, 2), (2, 3), (4, 4), (4, 5), (8, 7), (3, 33), (8, 256)])
def test_sums_of_codes_are_the_codes_of_sums(bits, workers):
    spec, numel, key = f"homomorphic:{bits}", 1300, key_of(9)
    codec, twin = commpress.codec(spec), reference.parse_homomorphic(spec)
    inputs = [torch.from_numpy(normal(numel, i)) for i in range(workers)]
    own = [torch.empty(codec.scales_nbytes(numel), dtype=torch.uint8) for _ in inputs]
    for x, scales in zip(inputs, own, strict=True):
        codec.own_scales(x, scales)
        assert np.array_equal(scales.numpy().view(np.uint16), reference.own_scales(x.numpy(), twin))
    agreed = torch.empty_like(own[0])
    codec.agree(own, agreed)
    words = agreed.numpy().view(np.uint16)
    assert np.array_equal(words, np.max([s.numpy().view(np.uint16) for s in own], axis=0))
    codes = []
    for i, x in enumerate(inputs):
        out = poisoned(codec.codes_nbytes(numel))
        codec.encode_codes(x, agreed, key.replace(sender=i), out=out.tensor, offset=4096)
        assert out.intact()
        if i in (0, 1, workers - 1):
            twins = reference.encode_codes(x.numpy(), words, twin, key.replace(sender=i), 4096)
            assert out.tensor.numpy().tobytes() == twins
        codes.append(out.tensor.clone())
    width = bits + int(np.ceil(np.log2(workers)))
    sums = poisoned(codec.sums_nbytes(numel, workers))
    assert sums.tensor.numel() == 2 * 64 * width + -(-276 * width // 8)
    codec.add_codes(codes, out=sums.tensor, numel=numel)
    assert sums.intact()
    expected = reference.add_codes([c.numpy() for c in codes], twin, numel)
    assert sums.tensor.numpy().tobytes() == expected
    for isa in PATHS:
        other = poisoned(sums.tensor.numel())
        ops.homomorphic_add(codes, other.tensor, bits=bits, numel=numel, isa=isa)
        assert other.intact() and torch.equal(other.tensor, sums.tensor)
    out = Guarded(numel, torch.float32)
    codec.decode_sums(sums.tensor, agreed, key, workers=workers, out=out.tensor, offset=4096, gain=1 / workers)
    assert out.intact()
    want = reference.decode_sums(
        np.frombuffer(expected, np.uint8), words, twin, key.replace(sender=0), workers, numel, 4096, np.float32(1 / workers)
    )  # fmt: skip
    assert same_bits(out.tensor, want)
    # What the sum decodes to is the mean of what each worker's own payload decodes to.
    alone = [
        codec.decode(codec.payload_of(agreed, c), key.replace(sender=i), out=torch.zeros(numel), offset=4096).double()
        for i, c in enumerate(codes)
    ]
    assert torch.allclose(out.tensor.double(), sum(alone) / workers, rtol=0, atol=2e-6 * float(agreed.numel()))
    assert not torch.allclose(out.tensor.double(), sum(alone[1:], alone[0] * 0) / workers, rtol=0, atol=1e-4)


def test_accumulate_dtypes_and_strides():
    codec, key = commpress.codec("homomorphic:4"), key_of(1)
    x = torch.from_numpy(normal(3000)).view(50, 60)
    payload = codec.encode(x.T.double(), key)
    assert torch.equal(payload, codec.encode(x.T.contiguous(), key))
    plain = codec.decode(payload, key, out=torch.zeros(60, 50))
    start = torch.from_numpy(normal(3000, 5)).view(60, 50)
    out = codec.decode(payload, key, out=start.clone(), accumulate=True, gain=2.0, beta=0.5)
    assert torch.allclose(out, 0.5 * start + 2 * plain, atol=1e-6) and not torch.equal(out, plain)
    half = codec.decode(payload, key, out=torch.zeros(60, 50, dtype=torch.bfloat16))
    assert torch.equal(half, plain.bfloat16())


def test_specs():
    assert str(commpress.codec("homomorphic:4,block=512,rounding=dither")) == "homomorphic:4"
    assert (
        str(commpress.codec("homomorphic:4,rounding=stochastic,block=4096"))
        == "homomorphic:4,block=4096,rounding=stochastic"
    )
    codec = commpress.codec("homomorphic:4")
    assert codec.unbiased and not codec.lossless and codec.bits == 4
    for wrong in ("homomorphic", "homomorphic:0", "homomorphic:9", "homomorphic:2.5", "homomorphic:4,block=256", "homomorphic:4,x=1"):  # fmt: skip
        with pytest.raises(errors.SpecError):
            commpress.codec(wrong)
    codec.check_workers(2048)
    commpress.codec("homomorphic:8").check_workers(256)
    for spec, workers in (("homomorphic:8", 257), ("homomorphic:4", 2049), ("homomorphic:6", 1025)):
        with pytest.raises(errors.SpecError, match="at most"):
            commpress.codec(spec).check_workers(workers)
    with pytest.raises(errors.SpecError, match="feedback"):
        codec.for_feedback()


def test_hostile_bytes():
    rng, accepted, refused = random.Random(1), 0, 0
    for number in range(400):
        codec = commpress.codec(rng.choice(SPECS))
        numel = rng.choice((1, 5, 511, 512, 700, 4500))
        nbytes, at = codec.payload_nbytes(numel), codec.scales_nbytes(numel)
        payload = torch.from_numpy(np.frombuffer(rng.randbytes(nbytes), np.uint8).copy())
        if rng.random() < 0.7:  # possible scales
            payload[1:at:2] %= 0x7F
        out, key = Guarded(numel, torch.float32), key_of(number)
        try:
            codec.decode(payload, key, out=out.tensor)
        except errors.WireError:
            refused += 1
            assert out.untouched()
            with pytest.raises(errors.WireError):
                reference.decode(payload.numpy(), str(codec), key, numel)
            continue
        accepted += 1
        assert out.intact()
        assert same_bits(out.tensor, reference.decode(payload.numpy(), str(codec), key, numel))
    assert accepted > 100 and refused > 30


def test_hostile_agreements():
    codec, numel = commpress.codec("homomorphic:4"), 1000
    x = torch.from_numpy(normal(numel))
    own = torch.empty(codec.scales_nbytes(numel), dtype=torch.uint8)
    codec.own_scales(x, own)
    codes = torch.empty(codec.codes_nbytes(numel), dtype=torch.uint8)
    with pytest.raises(errors.WireError, match="below"):
        codec.encode_codes(x, torch.zeros_like(own), key_of(0), out=codes, offset=0)
    bad = own.clone()
    bad[0:2] = torch.tensor([0x81, 0x7F], dtype=torch.uint8)
    for call in (lambda: codec.agree([own, bad], torch.empty_like(own)), lambda: codec.finite(bad)):
        with pytest.raises(errors.WireError):
            call()
    assert codec.finite(own)
    marked = own.clone()
    marked[2:4] = 255
    assert not codec.finite(marked)
    with pytest.raises(errors.WireError):
        codec.decode(torch.zeros(7, dtype=torch.uint8), key_of(0), out=torch.zeros(numel))


def test_operators_check_their_arguments():
    x, scales, codes = torch.zeros(600), torch.zeros(4, dtype=torch.uint8), torch.zeros(256 + 44, dtype=torch.uint8)
    good = {"bits": 4, "block": 512, "worker": 0, "seed": 0, "words": (0, 0, 0), "offset": 0}
    ops.homomorphic_encode(x, scales, codes, **good)
    for change in ({"bits": 0}, {"bits": 9}, {"block": 256}, {"block": 700}, {"offset": 5}):
        with pytest.raises(RuntimeError):
            ops.homomorphic_encode(x, scales, codes, **(good | change))
    for wrong in ((x.double(), scales, codes), (x, scales[:2], codes), (x, scales, codes[:-1])):
        with pytest.raises(RuntimeError):
            ops.homomorphic_encode(*wrong, **good)
    with pytest.raises(RuntimeError):
        ops.homomorphic_add([codes, codes[:-1]], torch.zeros(375, dtype=torch.uint8), bits=4, numel=600)
    with pytest.raises(RuntimeError):
        ops.homomorphic_add([], codes, bits=4, numel=600)
