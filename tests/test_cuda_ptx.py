"""The CUDA kernels as nvcc compiles them, executed without a GPU: the bytes and the values of the CPU codecs, to the bit.

tests/cuda/test_kernels.cpp does the same, for many more inputs, with the source under an emulator; here it is the PTX
that runs, and the executor checks every access to memory (see tests/cuda/ptx).
"""

import itertools

import numpy as np
import pytest
import torch
from _cuda_kernels import (
    BLOCK,
    BLOCKS_PER_PROCESSOR,
    Launcher,
    Layer,
    decode_on_cpu,
    encode_on_cpu,
    layers_of,
    same_values,
)
from _inputs import INPUTS, key_of, normal
from _ptx import POISON, needs_nvcc

import commpress

pytestmark = needs_nvcc

SPECS = [
    *(f"uniform:{rate}" for rate in ("1", "2", "3", "4", "8", "2.5", "0.3")),
    "lloyd:2",
    *(f"hadamard+lloyd:{rate}" for rate in ("1", "2", "3", "4", "5", "8", "2.5", "0.5", "4,scale=centroid")),
    "cast:fp16",
    "cast:bf16",
]
SIZES = (1, 31, 4097)
KINDS = (
    "normal",
    "lognormal",
    "two spikes",
    "40 blocks of zeros",
    "some negative zeros",
    "denormals",
    "huge",
    "nan",
    "-inf at the end",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def poisoned(n):
    return np.frombuffer(bytes([POISON]) * (4 * n), np.float32)


def of_kinds(layers, kinds, dtype, seed):
    """Values for the layers, of a kind each; `seed` tells senders apart."""
    parts = [np.roll(INPUTS[kind](layer.numel), seed) for layer, kind in zip(layers, kinds, strict=True)]
    return torch.from_numpy(np.concatenate(parts)).to(dtype)


def check(layers, xs, number=0, *, gain=0.75, beta=0.5, align=5, counter=None, **options):
    """Encodes for as many senders as there are inputs, decodes from the first and from all of them; the CPU does it too."""
    key = key_of(number)
    real = key if counter is None else key.replace(step=key.step + counter)
    launcher = Launcher(layers, key, counter, **options)
    payloads, keys = [], [real.replace(sender=sender) for sender in range(len(xs))]
    for i, (x, own) in enumerate(zip(xs, keys, strict=True)):
        sender = Launcher(layers, key.replace(sender=i), counter, **options)
        payload = sender.encode(x, gain=gain if i else 1.0, align=x.itemsize * (i % 4), align_out=i * align % 16)
        expected = encode_on_cpu(layers, own, x, gain if i else 1.0)
        differing = np.flatnonzero(payload != expected)
        assert not len(differing), f"sender {i}: {len(differing)} bytes differ, the first is {differing[0]}"
        payloads.append(payload)

    before = poisoned(launcher.numel)
    compare(launcher, layers, payloads[:1], keys[:1], before, align=align)
    before = normal(launcher.numel, 77)
    compare(launcher, layers, payloads, keys, before, accumulate=True, gain=gain, beta=beta, align_out=4 * (number % 4))


def compare(launcher, layers, payloads, keys, before, *, align=0, align_out=0, **how):
    values, report = launcher.decode(payloads, keys, before, align=align, align_out=align_out, **how)
    expected = decode_on_cpu(layers, payloads, keys, before, **how)
    assert same_values(values, expected), f"{np.flatnonzero(values != expected)[:10]} of {len(payloads)} senders"
    assert report.tolist() == [0, int(not np.isfinite(expected).all())]


@pytest.mark.parametrize("spec", SPECS)
def test_sizes_and_kinds(spec):
    """Layers of every size and kind at once, from senders with different dtypes."""
    codec = commpress.codec(spec)
    pairs = list(itertools.product(SIZES, KINDS))
    layers = [Layer(codec, n, tensor=65536 * i, offset=BLOCK * (i % 5)) for i, (n, _) in enumerate(pairs)]
    kinds = [kind for _, kind in pairs]
    check(layers, [of_kinds(layers, kinds, dtype, i) for i, dtype in enumerate(DTYPES)], SPECS.index(spec))


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:4", "lloyd:2", "none"])
@pytest.mark.parametrize("n", SIZES)
def test_one_layer(spec, n):
    """Without a table; the step is counted in device memory."""
    dtypes = DTYPES if spec != "none" else DTYPES[:1]
    xs = [torch.from_numpy(normal(n, i)).to(dtype) for i, dtype in enumerate(dtypes)]
    check(layers_of(spec, n), xs, n, counter=1000 + n, align=4)


def test_a_table_of_all_families():
    """Both kernels of a launch, each with its own layers; and fp32 and casts, which one of them does."""
    specs = [*SPECS, "none", "hadamard+lloyd:0.003", "uniform:7.999999"]
    sizes = [*SIZES, 2 * BLOCK, 700]
    layers = [Layer(commpress.codec(spec), sizes[i % 5], tensor=i, offset=BLOCK * i) for i, spec in enumerate(specs)]
    for number, some in enumerate((layers, [one for one in layers if "l" not in str(one.codec).split(":")[0][:3]])):
        xs = [torch.from_numpy(normal(sum(one.numel for one in some), i)) for i in range(2)]
        check(some, xs, number, align=3)


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:4"])
def test_blocks_of_threads_go_on(spec):
    """More blocks of coordinates than the grid has blocks of threads; aligned throughout."""
    n = (2 * BLOCKS_PER_PROCESSOR + 1) * BLOCK + 129
    xs = [torch.from_numpy(normal(n, i) * np.float32(10) ** (np.arange(n) // BLOCK % 3)) for i in range(2)]
    check(layers_of(spec, n), xs, align=0, processors=1)


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:4"])
@pytest.mark.parametrize("n", [2**17 - 5, pytest.param(2**20 - 5, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_many_values(spec, n):
    check(layers_of(spec, n), [torch.from_numpy(normal(n))])


@pytest.mark.parametrize("spec", ["uniform:4", "lloyd:2", "hadamard+lloyd:4"])
@pytest.mark.parametrize("n", [31, 4096, 4097])
def test_payloads_that_no_encoder_writes(spec, n):
    """The last sender with an invalid scale is reported; so is a sum that is not finite."""
    layers, key = layers_of(spec, n), key_of(n)
    keys = [key.replace(sender=sender) for sender in range(3)]
    x = torch.from_numpy(normal(n))
    good, bad = encode_on_cpu(layers, key, x), encode_on_cpu(layers, key, x)
    bad[: 2 if spec == "uniform:4" or n == 31 and spec != "lloyd:2" else 4] = 0x81  # a negative scale
    if spec != "uniform:4":
        bad[:4] = np.array([0x7F812345], "<u4").view(np.uint8)  # a scale that is no number
    launcher = Launcher(layers, key)
    with pytest.raises(commpress.WireError):
        decode_on_cpu(layers, [bad], keys[:1], poisoned(n))
    for senders, expected in (([good, bad, good], 7 + 1 + 1), ([bad, good, bad], 7 + 2 + 1), ([good, good, good], 0)):
        _, report = launcher.decode(senders, keys, poisoned(n), position=7)
        assert report[0] == expected
    huge = np.full(n, np.finfo(np.float32).max, np.float32)
    values, report = launcher.decode([good] * 3, keys, huge, accumulate=True, beta=2.0)
    assert not np.isfinite(values).any() and report.tolist() == [0, 1]
