"""`modulo`: bytes and values against the twin on every code path, side information, specs, hostile bytes, all-reduce in process."""

import random

import numpy as np
import pytest
import torch
from _inputs import INPUTS, Guarded, key_of, normal, same_bits
from _reducers import Record, World, inputs, outcome

import commpress
from commpress import errors, ops, reference
from commpress.codecs import Key
from commpress.codecs._modulo import modulo_constants

PATHS = [isa for isa in ops.Isa if isa is not ops.Isa.BEST and ops.isa_available(isa)]
SPECS = [f"modulo:{b},rho={rho}" for b in range(1, 9) for rho in ("0", "0.9", "0.9999")]
SIZES = (0, 1, 15, 16, 511, 512, 513, 4095, 4096, 4097, 9000)


def correlated(x: np.ndarray, rho: float, seed: int = 1) -> np.ndarray:
    return (rho * x + np.sqrt(1 - rho * rho) * normal(x.size, 1000 + seed)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS[1::3])
def test_payloads_and_values_are_the_twins(spec):
    codec = commpress.codec(spec)
    for number, numel in enumerate(SIZES):
        x, key = normal(numel, number), key_of(number)
        y = correlated(x, 0.9, number) * np.float32(17)
        out = Guarded(codec.payload_nbytes(numel), torch.uint8)
        codec.encode(torch.from_numpy(x), key, out=out.tensor, offset=8192, gain=0.75)
        assert out.intact()
        expected = reference.encode(x, spec, key, 8192, 0.75)
        assert np.array_equal(out.tensor.numpy(), expected), numel
        assert reference.payload_nbytes(spec, numel) == out.tensor.numel()
        values = Guarded(numel, torch.float32)
        codec.decode(out.tensor, key, out=values.tensor, offset=8192, gain=1.5, side=torch.from_numpy(y))
        assert values.intact()
        assert same_bits(values.tensor, reference.decode_with_side(expected, y, spec, key, 8192, 1.5)), numel


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("spec", ["modulo:1,rho=0.5", "modulo:4,rho=0.99", "modulo:8,rho=0.9999"])
def test_every_input_is_the_twins_on_every_path(spec, name):
    codec, numel, key = commpress.codec(spec), 5000, key_of(3)
    x = INPUTS[name](numel)
    expected = reference.encode(x, spec, key)
    arguments = {"code": modulo_constants(codec.width, codec.rho), "seed": key.seed, "words": key.words(), "offset": 0}
    for isa in PATHS:
        payload = Guarded(codec.payload_nbytes(numel), torch.uint8)
        ops.modulo_encode(torch.from_numpy(x), payload.tensor, **arguments, gain=1.0, isa=isa)
        assert payload.intact() and np.array_equal(payload.tensor.numpy(), expected), isa
    for side in (x, normal(numel), np.zeros(numel, np.float32)):
        want = reference.decode_with_side(expected, side, spec, key)
        for isa in PATHS:
            out = Guarded(numel, torch.float32)
            assert ops.modulo_decode(
                payload.tensor, torch.from_numpy(side), out.tensor, **arguments, accumulate=False, gain=1.0, beta=1.0, isa=isa
            ) == -1  # fmt: skip
            assert out.intact() and same_bits(out.tensor, want), isa
        finite = np.isfinite(x).all() and np.isfinite(side).all()
        assert np.isfinite(want).all() == finite


def test_side_information_has_any_scale_dtype_and_shape():
    codec, key = commpress.codec("modulo:3,rho=0.95"), key_of(1)
    x = normal(3000)
    y = torch.from_numpy(correlated(x, 0.95)).view(50, 60)
    payload = codec.encode(torch.from_numpy(x), key)
    plain = codec.decode(payload, key, out=torch.zeros(50, 60), side=y)
    assert torch.equal(codec.decode(payload, key, out=torch.zeros(50, 60), side=y.double()), plain)
    assert torch.equal(codec.decode(payload, key, out=torch.zeros(50, 60), side=y.T.contiguous().T), plain)
    for scale in (2.0**-90, 1024.0, 2.0**70):
        assert torch.allclose(codec.decode(payload, key, out=torch.zeros(50, 60), side=y * scale), plain, atol=1e-5)
    start = torch.from_numpy(normal(3000, 5)).view(50, 60)
    out = codec.decode(payload, key, out=start.clone(), accumulate=True, gain=2.0, beta=0.5, side=y)
    assert torch.allclose(out, 0.5 * start + 2 * plain, atol=1e-5)
    assert torch.equal(codec.decode(payload, key, out=(same := y.clone()), side=same), plain)  # in place
    unrelated = codec.decode(payload, key, out=torch.zeros(50, 60), side=start)
    near, far = (float((v.flatten() - torch.from_numpy(x)).square().mean()) for v in (plain, unrelated))
    assert near < 0.02 < 0.5 < far


def test_without_side_information_there_is_an_error():
    codec, key = commpress.codec("modulo:2,rho=0.9"), key_of(1)
    payload = codec.encode(torch.ones(100), key)
    out = Guarded(100, torch.float32)
    for side, message in ((None, "side information only"), (torch.ones(99), "shape"), (torch.ones(100, dtype=torch.int32), "floating")):  # fmt: skip
        with pytest.raises(errors.TensorError, match=message):
            codec.decode(payload, key, out=out.tensor, side=side)
    assert out.untouched()
    other = commpress.codec("uniform:4")
    plain = other.encode(torch.ones(100), key)
    with pytest.raises(errors.TensorError, match="leave out side"):
        other.decode(plain, key, out=torch.zeros(100), side=torch.ones(100))
    frame = commpress.pack(torch.ones(100), codec, key)
    with pytest.raises(errors.TensorError, match="side information only"):
        commpress.unpack(frame)
    with pytest.raises(errors.WireError, match="side information"):
        reference.decode(payload.numpy(), str(codec), key, 100)


def test_specs():
    codec = commpress.codec("modulo:2,rho=.90")
    assert str(codec) == "modulo:2,rho=0.9" and codec == commpress.codec(str(codec))
    assert codec.needs_side and not codec.unbiased and not codec.lossless
    assert str(codec.of_second_phase) == "hadamard+lloyd:2"
    for wrong in ("modulo", "modulo:2", "modulo:0,rho=0.9", "modulo:9,rho=0.9", "modulo:2,rho=1", "modulo:2,rho=-0.1", "modulo:2,rho=x",
                  "modulo:2,rho=0.1234567", "modulo:2,rho=nan", "modulo:2,rho=0.9,x=1", "modulo:1.5,rho=0.9"):  # fmt: skip
        with pytest.raises(errors.SpecError):
            commpress.codec(wrong)
    with pytest.raises(errors.SpecError, match="feedback"):
        codec.for_feedback()
    for other in ("uniform:4", "homomorphic:4"):
        assert not commpress.codec(other).needs_side and commpress.codec(other).of_second_phase == commpress.codec(
            other
        )


def test_hostile_bytes_and_side_information():
    rng, accepted, refused = random.Random(1), 0, 0
    for number in range(400):
        codec = commpress.codec(rng.choice(SPECS))
        numel = rng.choice((1, 5, 511, 512, 700, 4500))
        payload = torch.from_numpy(np.frombuffer(rng.randbytes(codec.payload_nbytes(numel)), np.uint8).copy())
        if rng.random() < 0.7:  # possible scales
            payload[3] %= 0x7F
            if numel > 4096:
                payload[codec.payload_nbytes(4096) + 3] %= 0x7F
        side = torch.from_numpy(np.frombuffer(rng.randbytes(4 * numel), np.float32).copy())
        out, key = Guarded(numel, torch.float32), key_of(number)
        try:
            codec.decode(payload, key, out=out.tensor, side=side)
        except errors.WireError:
            refused += 1
            assert out.untouched()
            with pytest.raises(errors.WireError):
                reference.decode_with_side(payload.numpy(), side.numpy(), str(codec), key)
            continue
        accepted += 1
        assert out.intact()
        assert same_bits(out.tensor, reference.decode_with_side(payload.numpy(), side.numpy(), str(codec), key))
    assert accepted > 100 and refused > 30


def test_operators_check_their_arguments():
    x, payload = torch.zeros(600), torch.zeros(4 + 128 + 22, dtype=torch.uint8)
    good = {"code": ops.Modulo(2, 0.8, 1.1, 0.7), "seed": 0, "words": (0, 0, 0), "offset": 0}
    ops.modulo_encode(x, payload, **good, gain=1.0)
    for code in (ops.Modulo(0, 0.8, 1.1, 0.7), ops.Modulo(9, 0.8, 1.1, 0.7), ops.Modulo(2, 0.0, 1.1, 0.7), ops.Modulo(2, 0.8, float("nan"), 0.7), ops.Modulo(2, 0.8, 1.1, 1.1)):  # fmt: skip
        with pytest.raises(RuntimeError):
            ops.modulo_encode(x, payload, **(good | {"code": code}), gain=1.0)
    with pytest.raises(RuntimeError):
        ops.modulo_encode(x, payload, **(good | {"offset": 7}), gain=1.0)
    with pytest.raises(RuntimeError, match="side information of 599"):
        ops.modulo_decode(payload, x[:599].clone(), x, **good, accumulate=False, gain=1.0, beta=1.0)


def like(size: int, numel: int, rho: float, seed: int = 0) -> list[torch.Tensor]:
    """Any two have correlation rho."""
    common, *own = inputs(size + 1, numel, seed)
    return [rho**0.5 * common + (1 - rho) ** 0.5 * x for x in own]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("op", ["mean", "sum"])
def test_all_reduce_with_the_own_shard_for_side_information(size, op):
    codec, numel, key = commpress.codec("modulo:2,rho=0.9"), 100_003, Key(step=3)
    data, second = like(size, numel, 0.9), codec.of_second_phase
    bounds = codec.split(0, numel, size)
    want = torch.empty(numel)
    for owner in range(size):
        start, stop = bounds[owner], bounds[owner + 1]
        side, gain = data[owner][start:stop], 1 / size if op == "mean" else 1.0
        total = side.clone()
        for d in range(1, size):
            sender = (owner + d) % size
            sent = key.replace(phase=1, sender=sender)
            payload = codec.encode(data[sender][start:stop], sent, offset=start, gain=gain)
            codec.decode(
                payload, sent, out=total, accumulate=True, offset=start, beta=gain if d == 1 else 1.0, side=side
            )
        back = key.replace(phase=2, sender=owner)
        second.decode(second.encode(total, back, offset=start), back, out=want[start:stop], offset=start)
    records = [Record() for _ in range(size)]
    with World(size, chunk=7_000) as world:
        futures = [
            r.submit(x.clone(), codec, second, key, op=op)
            for r, x in zip(world.reducers, data, strict=True)
        ]  # fmt: skip
        assert all(torch.equal(f.wait(), want) for f in futures)
        bad = [x.clone() for x in data]
        bad[0][50_000] = float("inf")
        futures = [
            r.submit(x, codec, second, key, op=op, observer=o)
            for r, x, o in zip(world.reducers, bad, records, strict=True)
        ]
        assert all(isinstance(v := outcome(f), torch.Tensor) and v[50_000].isnan() for f in futures)
        assert all(record.report.nonfinite for record in records)
