"""The encoder of the entropy-coded quantisers as nvcc compiles it, executed without a GPU: the CPU's bytes.

What tests/cuda/test_entropy_encoder.cpp does, for many more inputs, with the source under an emulator.
"""

import numpy as np
import pytest
import torch
from _cuda_kernels import BLOCK, Launcher, Layer, encode_on_cpu, layers_of
from _inputs import INPUTS, key_of, normal
from _ptx import needs_nvcc
from test_substreams import patchy

import commpress

pytestmark = needs_nvcc

NIGHTLY = pytest.mark.nightly
SIZES = (1, 31, 513, 4097)


def check(layers, x, number=0, gain=0.75, dtype=torch.float32, counter=None, **options):
    key = key_of(number)
    values = torch.from_numpy(x).to(dtype)
    made = Launcher(layers, key, counter, **options).encode(values, gain, align=4 * (number % 4), align_out=number % 16)
    own = key if counter is None else key.replace(step=key.step + counter)
    known = encode_on_cpu(layers, own, values.to(torch.float32), gain)
    assert np.array_equal(made, known), np.flatnonzero(made != known)[:9]


@pytest.mark.parametrize(
    ("specs", "kind", "dtype", "sizes"),
    [
        (["ecsq:0.05", "ecdq:2", "hadamard+ecsq:8"], "normal", torch.bfloat16, (513,)),
        pytest.param(["ecsq:0.05", "ecdq:2", "hadamard+ecsq:8"], "normal", torch.float32, SIZES, marks=NIGHTLY),
        pytest.param(["hadamard+ecdq:1", "ecsq:3,scale=centroid"], "two spikes", torch.bfloat16, SIZES, marks=NIGHTLY),
        pytest.param(["ecsq:2", "hadamard+ecsq:1.5"], "denormals", torch.float32, SIZES, marks=NIGHTLY),
        pytest.param(["ecdq:6", "ecsq:5"], "all magnitudes", torch.float32, SIZES, marks=NIGHTLY),
        pytest.param(["ecsq:4", "hadamard+ecdq:3"], "nan", torch.float16, SIZES, marks=NIGHTLY),
        pytest.param(["ecsq:1", "ecdq:1"], "40 blocks of zeros", torch.float32, SIZES, marks=NIGHTLY),
        pytest.param(["ecsq:7.3", "ecdq:0.3"], "lognormal", torch.float16, SIZES, marks=NIGHTLY),
    ],
    ids=str,
)
def test_codecs_sizes_and_kinds(specs, kind, dtype, sizes):
    """Some codecs and sizes in one table, of which a block of threads has several."""
    cases = [(spec, n) for spec in specs for n in sizes]
    layers = [
        Layer(commpress.codec(spec), n, tensor=65536 * i, offset=BLOCK * (i % 5)) for i, (spec, n) in enumerate(cases)
    ]
    check(layers, np.concatenate([INPUTS[kind](layer.numel) for layer in layers]), len(kind), dtype=dtype)


@pytest.mark.parametrize(
    ("spec", "n"),
    [("ecsq:8", 33_000), *(pytest.param(s, 70_001, marks=NIGHTLY) for s in ("hadamard+ecdq:4", "ecsq:4", "ecdq:8"))],
)
def test_one_layer_of_many_classes(spec, n):
    """Blocks of zeros and NaN, values without a symbol; the step is counted in device memory."""
    check(layers_of(spec, n), patchy(70_001, 1)[-n:], 7, counter=1234)


@pytest.mark.parametrize("spec", ["hadamard+ecsq:8", pytest.param("ecdq:8", marks=NIGHTLY)])
def test_substreams(spec):
    layers = layers_of(f"{spec},substream=8", 17_000)
    assert Launcher(layers, key_of(0))._table.blocks > 1
    check(layers, patchy(70_001, 3)[18_000:35_000], 9)


@pytest.mark.nightly
def test_segments():
    """A payload that begins shortly before the border of two segments; and one whose step is searched with samples."""
    codec = commpress.codec("hadamard+ecsq:4")
    check([Layer(codec, 9_001, offset=(1 << 23) - BLOCK)], normal(9_001, 1), 4)
    check(layers_of("ecsq:1", 140_001), normal(140_001, 2), 5)


@pytest.mark.parametrize("states", [8, *(pytest.param(states, marks=NIGHTLY) for states in (16, 64, 256))])
def test_trellises(states):
    """Classes in and beside the trellis, of which a search takes two turns at least."""
    check(layers_of(f"trellis:5,states={states}", 13_313), patchy(70_001, states)[20_000:33_313], states)


@pytest.mark.nightly
@pytest.mark.parametrize(("spec", "n"), [("hadamard+trellis:0.7", 100_000), ("trellis:8,substream=8", 33_000)])
def test_trellises_of_samples_and_substreams(spec, n):
    check(layers_of(spec, n), normal(n, 3), 8)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("spec", ["hadamard+ecsq:4,substream=64", "ecdq:2", "trellis:2,substream=64"])
def test_many_values(spec):
    """Slow under the executor."""
    n = 2**20 - 5
    check(layers_of(spec, n), patchy(n, 5), 6)
