"""Sparsifiers measured: energy kept, variance, bias, error feedback's steady state, and all-reduces. Figures: theory of sparsification; each bar has a control that fails it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from _inputs import normal
from _reducers import World, inputs, outcome

import commpress
from commpress import ops
from commpress.codecs import Key, LayeredCodec, codec
from commpress.errors import SpecError

N = 1 << 20


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def roundtrip(spec: object, x: torch.Tensor, key: Key) -> torch.Tensor:
    c = codec(spec)
    return c.decode(c.encode(x, key), key, out=torch.full_like(x, float("nan")))


def laplace(seed: int) -> torch.Tensor:
    u = torch.rand(N, generator=generator(seed)) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 1e-7))


@pytest.mark.parametrize("seed", [1, 2])
def test_energy_kept(seed):
    """Of the top .1, 1, 5, 10 %: closed forms of the two densities."""
    for make, expected in (
        (lambda s: torch.from_numpy(normal(N, s)), (0.0127, 0.0845, 0.279, 0.439)),
        (laplace, (0.0318, 0.162, 0.424, 0.595)),
    ):
        x = make(seed)
        for fraction, energy in zip((0.001, 0.01, 0.05, 0.1), expected, strict=True):
            y = roundtrip(f"topk:{fraction},values=fp32", x, Key())
            kept = float(y.square().sum() / x.square().sum())
            assert kept == pytest.approx(energy, rel=0.02), (fraction, kept)
            assert int((y != 0).sum()) == N * fraction // 1
            # control: as many coordinates, but not the largest, hold their share only
            other = roundtrip(f"randk:{fraction},scale=none", x, Key())
            assert float(other.square().sum() / x.square().sum()) == pytest.approx(fraction, rel=0.2)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_threshold_rule_at_a_tenth_of_a_bit(seed):
    """t = 2.5358 keeps .01122 of a normal distribution; sign and one magnitude reach G = .09148 at R = .1."""
    x = torch.from_numpy(normal(1 << 22, seed)).double()
    c = codec("threshold:2.5358")
    y = roundtrip(c, x.float(), Key()).double()
    assert float((y != 0).double().mean()) == pytest.approx(0.01122, rel=1e-3)
    g = float((x @ y) ** 2 / (x.square().sum() * y.square().sum()))
    assert g == pytest.approx(0.09148, rel=0.01)
    assert c.bits == pytest.approx(0.1, rel=0.015)  # all bytes
    z = roundtrip("randk:0.011219", x.float(), Key()).double()  # the control: as many, but any
    assert float((x @ z) ** 2 / (x.square().sum() * z.square().sum())) < 0.02


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 9.0), (0.01, 99.0), (0.5, 1.0)])
def test_variance_of_randk(fraction, expected):
    """d/k - 1, for any input."""
    for x in (torch.from_numpy(normal(1 << 18, 5)), torch.linspace(-1, 2, 1 << 18)):
        errors = [float((roundtrip(f"randk:{fraction}", x, Key(step=s)) - x).square().sum()) for s in range(8)]
        assert np.mean(errors) / float(x.square().sum()) == pytest.approx(expected, rel=0.02)


def bias_ratio(spec: str, x: torch.Tensor, keys: int = 64) -> float:
    """|mean - x|^2 in units of its expectation for an unbiased codec: 1, give or take chance."""
    total, error = torch.zeros_like(x, dtype=torch.float64), 0.0
    for step in range(keys):
        y = roundtrip(spec, x, Key(seed=9, step=step)).double()
        total += y
        error += float((y - x).square().sum()) / keys
    return float((total / keys - x).square().sum()) / (error / keys)


def test_no_bias():
    x = torch.from_numpy(normal(70_000, 6))
    for values in ("fp32", "bf16", "8", "4", "2"):
        assert codec(f"randk:0.1,values={values}").unbiased
        assert bias_ratio(f"randk:0.1,values={values}", x) == pytest.approx(1, abs=0.1), values
    for control in ("randk:0.1,scale=none", "topk:0.1"):
        assert not codec(control).unbiased
        assert bias_ratio(control, x) > 4, control
    for values in ("bf16", "4"):  # every coordinate sent: the rounding alone
        assert bias_ratio(f"randk:1,values={values}", x) == pytest.approx(1, abs=0.1), values
    assert bias_ratio("topk:1,values=bf16", x) == pytest.approx(64, rel=0.01)


def test_positions_differ_between_keys_and_segments():
    x = torch.ones(1 << 18)
    masks = [
        roundtrip("randk:0.01", x, k) != 0 for k in (Key(), Key(step=1), Key(sender=1), Key(seed=1), Key(tensor=1))
    ]
    for a, b in itertools.combinations(masks, 2):
        assert int((a & b).sum()) == pytest.approx(26, abs=26)  # 2^18 / 10^4 by chance
    first, second = masks[0][: 1 << 16], masks[0][1 << 16 : 2 << 16]
    assert int((first & second).sum()) < 30
    assert torch.equal(masks[0], roundtrip("randk:0.01", x, Key()) != 0)


def steady_state(spec: str, n: int, steps: int) -> float:
    residual, squares = torch.zeros(n), []
    for step in range(steps):
        total = torch.randn(n, generator=generator(step)) + residual
        residual = total - roundtrip(spec, total, Key(step=step))
        squares.append(float(residual.square().mean()))
    return float(np.mean(squares[-steps // 4 :]))


def test_steady_state_of_error_feedback():
    """Residual energy a coordinate, i.i.d. normal input: (1-p)/p for RandK, 1.36 for TopK at 10 %."""
    randk = codec("randk:0.1").for_feedback()
    assert steady_state(randk, 1 << 16, 120) == pytest.approx(9.0, rel=0.04)
    for values in ("fp32", "4"):
        assert steady_state(f"topk:0.1,values={values}", 1 << 16, 80) == pytest.approx(1.36, rel=0.04), values
    assert not steady_state("randk:0.1", 4096, 120) < 1e3  # the unbiased scale diverges


@pytest.mark.parametrize("spec", ["topk:0.05", "topk:0.05,block=4096", "randk:0.05,values=4", "threshold:2"])
@pytest.mark.parametrize("chunk", [None, 3000])
def test_all_reduce_gives_equal_replicas(spec, chunk):
    size, n = 3, 5 * 65536 + 1234
    for tensors in (inputs(size, n), inputs(size, 1), inputs(size, 70_000)):
        mean = torch.stack(tensors).mean(0)
        with World(size, chunk=chunk) as world:
            futures = [
                r.submit(t.clone(), codec(spec), codec(spec), Key(7))
                for r, t in zip(world.reducers, tensors, strict=True)
            ]
            results = [outcome(f) for f in futures]
        for result in results:
            assert torch.equal(result, results[0])
        nonzero = int((results[0] != 0).sum())
        assert 0 < nonzero < max(2, 0.06 * mean.numel())
        assert float(results[0] @ mean) > 0


def test_a_layered_codec_cuts_where_its_layers_may_be_cut():
    layers = [(150_000, codec("topk:0.01")), (9_000, codec("uniform:4")), (70_000, codec("randk:0.1"))]
    layered = LayeredCodec([*layers, (10_000, codec("topk:0.1,block=4096"))])
    x, key = torch.from_numpy(normal(layered.numel)), Key(1)
    whole = layered.encode(x, key)
    for parts in (1, 2, 3, 7, 50):
        cuts = layered.split(0, layered.numel, parts)
        assert len(cuts) == parts + 1 and cuts[0] == 0 and cuts[-1] == layered.numel and cuts == sorted(cuts)
        pieces = [layered.encode(x[a:b], key, offset=a) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(pieces), whole)
    layered.check_offset(65536)
    layered.check_offset(150_000 + 4096)
    for offset in (4096, 150_000 + 9_000 + 4096):
        with pytest.raises(SpecError):
            layered.check_offset(offset)
    tensors = inputs(2, layered.numel)
    with World(2) as world:
        futures = [r.submit(t, layered, layered, Key(7)) for r, t in zip(world.reducers, tensors, strict=True)]
        first, second = [outcome(f) for f in futures]
    assert torch.equal(first, second)


def test_opcheck_andarguments():
    x, payload = torch.randn(1000), torch.zeros(codec("topk:0.1").payload_nbytes(1000), dtype=torch.uint8)
    common = (1, 100_000, 4, False, 65536, 1, 2, 3, 4, 0)
    checks = ("test_schema", "test_faketensor")
    operators = torch.ops.commpress
    torch.library.opcheck(operators.sparse_encode.default, (x, payload, *common, 1.0, -1), test_utils=checks)
    operators.sparse_encode(x, payload, *common, 1.0, -1)
    decode = operators.sparse_decode.default
    torch.library.opcheck(decode, (payload, x.clone(), *common, True, 1.0, 0.5, -1), test_utils=checks)
    good = codec("topk:0.1").arguments(Key(), 0, 1.0)
    ops.sparse_encode(x, payload, **good)
    wrong = {"kind": 3, "fraction": 0, "bits": 9, "block": 5000, "offset": 4096, "isa": 7}
    for name, value in wrong.items():
        with pytest.raises(RuntimeError, match="commpress: "):
            ops.sparse_encode(x, payload, **{**good, name: value})
    for bad in (payload[:-1], payload.repeat(2)):
        with pytest.raises(RuntimeError, match="bytes, got"):
            ops.sparse_encode(x, bad, **good)
        with pytest.raises(RuntimeError, match="bytes, got"):
            ops.sparse_decode(bad, x, accumulate=False, beta=1.0, **good)
    with pytest.raises(RuntimeError, match="float32"):
        ops.sparse_encode(x.double(), payload, **good)


def test_frames():
    x = torch.from_numpy(normal(70_000))
    for spec in ("topk:0.01,values=bf16", "randk:0.1,values=4", "threshold:2.5"):
        frame = commpress.pack(x, spec, Key(3))
        assert torch.equal(commpress.unpack(frame), roundtrip(spec, x, Key(3)))
