"""The decoder of the entropy-coded quantisers as nvcc compiles it, executed without a GPU: the CPU's values, to the bit, and its refusals.

What tests/cuda/test_entropy.cpp does, for many more inputs, with the source under an emulator.
"""

import numpy as np
import pytest
import torch
from _cuda_kernels import BLOCK, Launcher, Layer, decode_on_cpu, encode_on_cpu, layers_of
from _inputs import INPUTS, key_of, normal
from _ptx import needs_nvcc
from test_cuda_ptx import compare, poisoned
from test_substreams import patchy

import commpress
from commpress.errors import WireError

pytestmark = needs_nvcc

SPECS = ["ecsq:0.05", "ecsq:2", "ecsq:8,scale=centroid", "ecdq:1", "ecdq:6", "hadamard+ecsq:3", "hadamard+ecdq:4"]
SPECS += ["trellis:4", "hadamard+trellis:8,scale=centroid"]
SIZES = (1, 31, 513, 4097)
KINDS = (
    "normal",
    "lognormal",
    "two spikes",
    "zeros",
    "40 blocks of zeros",
    "denormals",
    "all magnitudes",
    "nan",
    "-inf at the end",
)


def payloads_of(layers, xs, key):
    keys = [key.replace(sender=sender) for sender in range(len(xs))]
    return [encode_on_cpu(layers, own, torch.from_numpy(x)) for own, x in zip(keys, xs, strict=True)], keys


def check(layers, xs, number=0, gain=0.75, beta=0.5, counter=None, **options):
    """Payloads that the CPU has made for these values, decoded from the first sender alone and added up from all."""
    key = key_of(number)
    payloads, keys = payloads_of(layers, xs, key if counter is None else key.replace(step=key.step + counter))
    launcher = Launcher(layers, key, counter, **options)
    compare(launcher, layers, payloads[:1], keys[:1], poisoned(launcher.numel), align=number % 16)
    if len(xs) > 1:
        before = normal(launcher.numel, 77)
        how = {"accumulate": True, "gain": gain, "beta": beta}
        compare(launcher, layers, payloads, keys, before, align=5, align_out=4 * (number % 4), **how)


@pytest.mark.parametrize("specs", [SPECS[i::3] for i in range(3)], ids=" ".join)
def test_codecs_sizes_and_kinds(specs):
    """Some codecs and every size in one table, the kinds in turn, from four senders."""
    cases = [(spec, n) for spec in specs for n in SIZES]
    layers = [
        Layer(commpress.codec(spec), n, tensor=65536 * i, offset=BLOCK * (i % 5)) for i, (spec, n) in enumerate(cases)
    ]
    xs = [
        np.concatenate([INPUTS[KINDS[(i + sender) % len(KINDS)]](layer.numel) for i, layer in enumerate(layers)])
        for sender in range(4)
    ]
    check(layers, xs, 3)


@pytest.mark.parametrize("spec", ["ecsq:4", "hadamard+ecdq:4", "trellis:2", "hadamard+trellis:4,states=64"])
def test_one_layer_of_thirty_two_lanes(spec):
    """Without a table; the step is counted in device memory. Many classes, blocks of zeros and NaN, values without a symbol."""
    check(layers_of(spec, 70_001), [patchy(70_001, 1), normal(70_001, 2)], 7, counter=1234)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize("states", [8, 256, *(pytest.param(s, marks=NIGHTLY) for s in (16, 32, 64, 128))])
def test_trellises(states):
    check(layers_of(f"trellis:5,states={states}", 16_513), [patchy(70_001, states)[20_000:36_513]], states)


@pytest.mark.parametrize("spec", ["ecsq:8", "ecdq:5", "hadamard+trellis:8"])
def test_substreams(spec):
    """Three, of a block of threads each."""
    layers = layers_of(f"{spec},substream=8", 40_000)
    assert Launcher(layers, key_of(0))._table.blocks == 3
    check(layers, [patchy(70_001, 3)[10_000:50_000], normal(40_000, 4)], 9)


@pytest.mark.parametrize("spec", ["ecsq:8", pytest.param("ecdq:8", marks=NIGHTLY)])
def test_long_substreams(spec):
    layers = layers_of(f"{spec},substream=64", 140_000)
    assert Launcher(layers, key_of(0))._table.blocks == 2
    check(layers, [patchy(140_000, 3)], 9)


def test_segments():
    """A payload that begins shortly before the border of two segments."""
    codec = commpress.codec("hadamard+ecsq:4")
    check([Layer(codec, 9_001, offset=(1 << 23) - BLOCK)], [normal(9_001, 1), normal(9_001, 2)], 4)


@pytest.mark.nightly
def test_many_values():
    """Slow under the executor; each block of threads has two substreams."""
    n = 2**20 - 5
    layers = layers_of("hadamard+ecsq:4,substream=64", n)
    check(layers, [patchy(n, 5)], 6, processors=1)


def refused(layers, payload, key):
    try:
        decode_on_cpu(layers, [payload], [key], poisoned(sum(layer.numel for layer in layers)))
    except WireError:
        return True
    return False


@pytest.mark.parametrize(
    ("spec", "n"), [("ecsq:2", 5_000), ("ecdq:5", 5_000), ("trellis:5", 16_400), ("ecsq:8,substream=8", 33_000)]
)
def test_damaged_headers(spec, n):
    """The CPU's verdict on each, and its values where it has none."""
    layers, key, rng = layers_of(spec, n), key_of(n), np.random.default_rng(n)
    good = encode_on_cpu(layers, key, torch.from_numpy(patchy(70_001, 1)[20_000 : 20_000 + n]))
    refusals = 0
    for at in [0, 3, 7, 8, 13, 17, 21, *rng.integers(22, 60, 2)]:
        payload = good.copy()
        payload[at] ^= 1 << rng.integers(8)
        launcher = Launcher(layers, key)
        if not refused(layers, payload, key):
            compare(launcher, layers, [payload], [key], poisoned(n))
            continue
        refusals += 1
        _, report = launcher.decode([payload], [key], poisoned(n), position=7)
        assert report[0] == 7 + 1
    assert refusals >= 3
    _, report = Launcher(layers, key).decode([good, payload, good], [key] * 3, poisoned(n))
    assert report[0] == 2 * refused(layers, payload, key)
